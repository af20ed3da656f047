// Softmax with dropout on a CPU, as attention needs it.
//
// Arrays are contiguous matrices of rows and columns, in float32 or bfloat16; sums are float32.

#include <limits>

#include "native.hpp"

namespace {

struct Shape {
  int64_t rows;       // rows here
  int64_t columns;    // keys of a row
  int64_t rows_each;  // rows that share a row of the mask
};

template <typename Real>
void softmax_all(const float* scores, const uint8_t* valid, Real* weights, Real* dropped, const Drop shared,
                 double temperature, const Shape& shape, int threads) {
  const float scale = float(temperature);
  const int64_t columns = shape.columns;
  over_rows(shape.rows, threads, [=](int64_t start, int64_t end) {
    std::vector<float> buffer(columns);
    float* line = buffer.data();
    for (int64_t row = start; row < end; ++row) {
      const float* from = scores + row * columns;
      float highest = std::numeric_limits<float>::lowest();
      if (valid == nullptr) {
#pragma omp simd reduction(max : highest)
        for (int64_t c = 0; c < columns; ++c) {
          line[c] = from[c] * scale;
          highest = line[c] > highest ? line[c] : highest;
        }
      } else {
        const uint8_t* real = valid + row / shape.rows_each * columns;
#pragma omp simd reduction(max : highest)
        for (int64_t c = 0; c < columns; ++c) {
          line[c] = real[c] ? from[c] * scale : std::numeric_limits<float>::lowest();
          highest = line[c] > highest ? line[c] : highest;
        }
      }
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < columns; ++c) {
        line[c] = exponential(line[c] - highest);
        sum += line[c];
      }
      const float inverse = 1.0f / sum;
      Real* to = weights + row * columns;
#pragma omp simd
      for (int64_t c = 0; c < columns; ++c) {
        line[c] *= inverse;
        to[c] = narrow<Real>(line[c]);
      }
      if (dropped != nullptr) {
        const Drop drop = shared;
        const RowKey key(drop, row);
        Real* kept = dropped + row * columns;
#pragma omp simd
        for (int64_t c = 0; c < columns; ++c) kept[c] = narrow<Real>(line[c] * factor(drop, key, c));
      }
    }
  });
}

// From the weights and the gradient of the dropped weights: the dropped weights (again) and the gradient of the scores.
template <typename Real>
void softmax_backward_all(const Real* weights, const Real* grad, Real* dropped, Real* grad_scores, const Drop shared,
                          double temperature, const Shape& shape, int threads) {
  const float scale = float(temperature);
  const int64_t columns = shape.columns;
  over_rows(shape.rows, threads, [=](int64_t start, int64_t end) {
    std::vector<float> buffer(columns);
    float* line = buffer.data();
    for (int64_t row = start; row < end; ++row) {
      const Real* weight = weights + row * columns;
      const Real* from = grad + row * columns;
      float mean = 0.0f;
      if (dropped == nullptr) {
#pragma omp simd reduction(+ : mean)
        for (int64_t c = 0; c < columns; ++c) {
          line[c] = widen(from[c]);
          mean += widen(weight[c]) * line[c];
        }
      } else {
        const Drop drop = shared;
        const RowKey key(drop, row);
        Real* kept = dropped + row * columns;
#pragma omp simd reduction(+ : mean)
        for (int64_t c = 0; c < columns; ++c) {
          const float share = factor(drop, key, c);
          line[c] = widen(from[c]) * share;
          mean += widen(weight[c]) * line[c];
          kept[c] = narrow<Real>(widen(weight[c]) * share);
        }
      }
      Real* to = grad_scores + row * columns;
#pragma omp simd
      for (int64_t c = 0; c < columns; ++c) to[c] = narrow<Real>(widen(weight[c]) * (line[c] - mean) * scale);
    }
  });
}

}  // namespace

#define OSSICLE_EXPORT(NAME, REAL) \
  extern "C" void softmax_##NAME(const float* scores, const uint8_t* valid, REAL* weights, REAL* dropped, \
                                 const int64_t* seed, int64_t threshold, double scale, double temperature, \
                                 int64_t rows, int64_t columns, int64_t rows_each, int64_t threads) { \
    softmax_all<REAL>(scores, valid, weights, dropped, Drop(seed, threshold, scale), temperature, \
                      Shape{rows, columns, rows_each}, int(threads)); \
  } \
  extern "C" void softmax_backward_##NAME(const REAL* weights, const REAL* grad, REAL* dropped, REAL* grad_scores, \
                                          const int64_t* seed, int64_t threshold, double scale, double temperature, \
                                          int64_t rows, int64_t columns, int64_t rows_each, \
                                          int64_t threads) { \
    softmax_backward_all<REAL>(weights, grad, dropped, grad_scores, Drop(seed, threshold, scale), temperature, \
                               Shape{rows, columns, rows_each}, int(threads)); \
  }

OSSICLE_EXPORT(float, float)
OSSICLE_EXPORT(bfloat16, Bfloat16)
