// Softmax with dropout on a CPU, as attention needs it. What is dropped is a hash of the row, so nothing is stored for it.
//
// Arrays are contiguous matrices of rows and columns, in float32 or bfloat16; sums are float32. The hash is that of
// keep_mask in dropout.py: two rounds of multiply and xor-shift over the column, keyed by a hash of seed and row.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

namespace {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

using Bfloat16 = uint16_t;  // its bits: a struct would keep the compiler from using vectors

inline float widen(float value) { return value; }
inline float widen(Bfloat16 value) { return float_of(uint32_t(value) << 16); }

template <typename Real>
inline Real narrow(float value);
template <>
inline float narrow<float>(float value) {
  return value;
}
template <>
inline Bfloat16 narrow<Bfloat16>(float value) {  // to the nearest, ties to even
  const uint32_t bits = bits_of(value);
  return Bfloat16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x21f0aaadu;
  x ^= x >> 15;
  x *= 0x735a2d97u;
  return x ^ (x >> 15);
}

// Shares rows out over threads; each gets a range. Threads are started anew: 20 microseconds beside calls of a thousand.
template <typename Work>
void over_rows(int64_t rows, int threads, const Work& work) {
  const int64_t each = (rows + threads - 1) / std::max(threads, 1);
  std::vector<std::thread> others;
  for (int64_t start = each; start < rows; start += each)
    others.emplace_back([&work, start, end = std::min(rows, start + each)] { work(start, end); });
  work(0, std::min(rows, each));
  for (auto& other : others) other.join();
}

struct Drop {
  uint32_t seed_low, seed_high, threshold;
  float scale;

  Drop(const int64_t* seed, int64_t threshold_, double scale_)
      : seed_low(uint32_t(*seed)),
        seed_high(uint32_t(uint64_t(*seed) >> 32)),
        threshold(uint32_t(threshold_)),
        scale(float(scale_)) {}
};

struct RowKey {
  uint32_t outer, inner;

  RowKey(const Drop& drop, int64_t row)
      : outer(mix(uint32_t(row) ^ drop.seed_low)), inner(mix(outer ^ drop.seed_high)) {}

  uint32_t hash(uint32_t column) const {
    uint32_t x = column ^ outer;
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x ^= (x >> 15) ^ inner;
    x *= 0x735a2d97u;
    return x ^ (x >> 15);
  }
};

// By value: a load behind a condition would keep the compiler from using vectors.
inline float factor(const Drop drop, const RowKey key, int64_t column) {
  const float scale = drop.scale;
  return key.hash(uint32_t(column)) < drop.threshold ? 0.0f : scale;
}

// exp for arguments up to 0: 2^n times a Taylor series; 0 where float32 would underflow, NaN for NaN.
inline float exponential(float x) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = x < -87.0f ? -87.0f : x;
  const float n = (clamped * 1.44269504f + magic) - magic;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float series = 1.0f / 5040.0f;
  series = series * r + 1.0f / 720.0f;
  series = series * r + 1.0f / 120.0f;
  series = series * r + 1.0f / 24.0f;
  series = series * r + 1.0f / 6.0f;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const float result = series * float_of(uint32_t(int32_t(n) + 127) << 23);
  return x < -87.0f ? 0.0f : result;
}

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
