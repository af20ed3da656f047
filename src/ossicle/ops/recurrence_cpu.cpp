// The light gated recurrence on a CPU: forward and backward, every frame of it in one call.
//
// Each thread takes some rows of one direction through all of time, so that threads never wait for each other. The
// recurrent weights are packed once into panels as wide as two vectors and are then read in order at every frame.
// Arrays are contiguous: gates (R, B, T, 2U), weights (R, 2U, U), states (R, B, T, U); R directions, U units of one,
// of the 2U gates the first U update and the last U are candidates.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "threads.hpp"

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRows = 8;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kRows = 4;
#else
constexpr int kVectorBytes = 16;
constexpr int kRows = 4;
#endif

template <typename Real>
struct Vector {
  typedef Real type __attribute__((vector_size(kVectorBytes)));
  static constexpr int64_t lanes = kVectorBytes / sizeof(Real);
  static constexpr int64_t panel = 2 * lanes;
};

template <typename Real>
typename Vector<Real>::type load(const Real* from) {
  typename Vector<Real>::type vector;
  std::memcpy(&vector, from, kVectorBytes);
  return vector;
}

int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// A matrix (depth, width) as panels of columns, each contiguous, the last filled with zeros.
template <typename Real>
class Panels {
 public:
  Panels(const Real* matrix, int64_t depth, int64_t width, int64_t depth_stride, int64_t width_stride)
      : depth_(depth), padded_(round_up(width, Vector<Real>::panel)), packed_(depth * padded_, Real(0)) {
    constexpr int64_t panel = Vector<Real>::panel;
    for (int64_t column = 0; column < width; ++column)
      for (int64_t row = 0; row < depth; ++row)
        packed_[(column / panel * depth + row) * panel + column % panel] =
            matrix[row * depth_stride + column * width_stride];
  }

  int64_t padded() const { return padded_; }

  // out (rows, padded) = left (rows, depth) times the matrix.
  void multiply(const Real* left, int64_t left_stride, int64_t rows, Real* out) const {
    for (int64_t first = 0; first < padded_; first += Vector<Real>::panel) {
      const Real* panel = packed_.data() + first * depth_;
      int64_t row = 0;
      for (; row + kRows <= rows; row += kRows)
        tile<kRows>(left + row * left_stride, left_stride, panel, out + row * padded_ + first);
      for (; row < rows; ++row) tile<1>(left + row * left_stride, left_stride, panel, out + row * padded_ + first);
    }
  }

 private:
  template <int rows>
  void tile(const Real* left, int64_t stride, const Real* panel, Real* out) const {
    typename Vector<Real>::type sums[rows][2] = {};
    for (int64_t k = 0; k < depth_; ++k) {
      const auto low = load(panel + k * Vector<Real>::panel);
      const auto high = load(panel + k * Vector<Real>::panel + Vector<Real>::lanes);
      for (int row = 0; row < rows; ++row) {
        const Real value = left[row * stride + k];
        sums[row][0] += value * low;
        sums[row][1] += value * high;
      }
    }
    for (int row = 0; row < rows; ++row) std::memcpy(out + row * padded_, sums[row], sizeof(sums[row]));
  }

  int64_t depth_;
  int64_t padded_;
  std::vector<Real> packed_;
};

inline double exponential(double x) { return std::exp(x); }

// Without a branch or a call, so that loops over it become vector code: 2^n times a polynomial of the remainder.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (x * 1.44269504f + shift) - shift;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

template <typename Real>
struct Sizes {
  int64_t directions, rows, frames, units;
  double epsilon;  // of the layer norm, or negative where there is none
  bool normalised() const { return epsilon >= 0; }
};

// Calls work(direction, first row, rows) for parts of all rows, on several threads.
template <typename Work>
void share(int64_t directions, int64_t rows, int64_t threads, const Work& work) {
  const int64_t parts = std::max<int64_t>(1, std::min(rows, (threads + directions - 1) / directions));
  const int64_t step = (rows + parts - 1) / parts;
  const int64_t parts_used = (rows + step - 1) / step;
  std::atomic<int64_t> next{0};
  on_threads(std::min(threads, directions * parts_used), [&](int64_t, int64_t) {
    for (int64_t task = next++; task < directions * parts_used; task = next++) {
      const int64_t first = task % parts_used * step;
      work(task / parts_used, first, std::min(step, rows - first));
    }
  });
}

// Mean 0 and variance 1, in place; returns one over the deviation.
template <typename Real>
Real standardise(Real* __restrict x, int64_t width, double epsilon) {
  Real sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum += x[i];
  const Real mean = sum / width;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const Real scale = Real(1) / std::sqrt(squares / width + Real(epsilon));
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) x[i] = (x[i] - mean) * scale;
  return scale;
}

template <typename Real>
void step_forward(const Real* __restrict gates, const Real* __restrict recurrent, const Real* __restrict before,
                  Real* __restrict active, Real* __restrict state, int64_t units) {
#pragma omp simd
  for (int64_t i = 0; i < units; ++i) {
    const Real update = Real(1) / (Real(1) + exponential(-(gates[i] + recurrent[i])));
    const Real sum = gates[units + i] + recurrent[units + i];
    const Real candidate = sum < Real(0) ? Real(0) : sum;
    active[i] = update;
    active[units + i] = candidate;
    state[i] = update * before[i] + (Real(1) - update) * candidate;
  }
}

template <typename Real>
void forward(const Real* gates, const Real* weights, Real* states, Real* active, Real* normal, Real* scales,
             Sizes<Real> n, int64_t threads) {
  const int64_t units = n.units, wide = 2 * units;
  std::vector<Panels<Real>> panels;
  for (int64_t r = 0; r < n.directions; ++r) panels.emplace_back(weights + r * wide * units, units, wide, 1, units);
  const std::vector<Real> zeros(units, Real(0));
  share(n.directions, n.rows, threads, [&](int64_t r, int64_t first, int64_t rows) {
    const int64_t padded = panels[r].padded();
    std::vector<Real> product(rows * padded, Real(0));
    for (int64_t t = 0; t < n.frames; ++t) {
      const int64_t start = (r * n.rows + first) * n.frames + t;
      if (t > 0) panels[r].multiply(states + (start - 1) * units, n.frames * units, rows, product.data());
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t at = start + row * n.frames;
        Real* recurrent = product.data() + row * padded;
        if (n.normalised()) {
          scales[at] = standardise(recurrent, wide, n.epsilon);
          std::memcpy(normal + at * wide, recurrent, wide * sizeof(Real));
        }
        const Real* before = t > 0 ? states + (at - 1) * units : zeros.data();
        step_forward(gates + at * wide, recurrent, before, active + at * wide, states + at * units, units);
      }
    }
  });
}

template <typename Real>
void step_backward(const Real* __restrict grad_state, const Real* __restrict before, const Real* __restrict active,
                   Real* __restrict carry, Real* __restrict grad_gates, int64_t units) {
#pragma omp simd
  for (int64_t i = 0; i < units; ++i) {
    const Real grad = grad_state[i] + carry[i];
    const Real update = active[i], candidate = active[units + i];
    grad_gates[i] = grad * (before[i] - candidate) * update * (Real(1) - update);
    grad_gates[units + i] = candidate > Real(0) ? grad * (Real(1) - update) : Real(0);
    carry[i] = grad * update;
  }
}

// The gradient of what was normalised from that of the normal.
template <typename Real>
void standardise_backward(const Real* __restrict grad, const Real* __restrict normal, Real scale,
                          Real* __restrict out, int64_t width) {
  Real sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
  for (int64_t i = 0; i < width; ++i) {
    sum += grad[i];
    along += grad[i] * normal[i];
  }
  sum /= width;
  along /= width;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) out[i] = scale * (grad[i] - sum - normal[i] * along);
}

template <typename Real>
void backward(const Real* grad_states, const Real* states, const Real* active, const Real* normal, const Real* scales,
              const Real* weights, Real* grad_gates, Real* grad_products, Sizes<Real> n, int64_t threads) {
  const int64_t units = n.units, wide = 2 * units;
  std::vector<Panels<Real>> panels;
  for (int64_t r = 0; r < n.directions; ++r) panels.emplace_back(weights + r * wide * units, wide, units, units, 1);
  const std::vector<Real> zeros(units, Real(0));
  share(n.directions, n.rows, threads, [&](int64_t r, int64_t first, int64_t rows) {
    const int64_t padded = panels[r].padded();
    std::vector<Real> carry(rows * padded, Real(0)), product(rows * padded, Real(0));
    const Real* grads = n.normalised() ? grad_products : grad_gates;
    for (int64_t t = n.frames - 1; t >= 0; --t) {
      const int64_t start = (r * n.rows + first) * n.frames + t;
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t at = start + row * n.frames;
        const Real* before = t > 0 ? states + (at - 1) * units : zeros.data();
        Real* grad = grad_gates + at * wide;
        step_backward(grad_states + at * units, before, active + at * wide, carry.data() + row * padded, grad, units);
        if (n.normalised())
          standardise_backward(grad, normal + at * wide, scales[at], grad_products + at * wide, wide);
      }
      if (t == 0) break;
      panels[r].multiply(grads + start * wide, n.frames * wide, rows, product.data());
#pragma omp simd
      for (int64_t i = 0; i < rows * padded; ++i) carry[i] += product[i];
    }
  });
}

}  // namespace

#define OSSICLE_EXPORT(NAME, REAL)                                                                                    \
  extern "C" void light_gru_forward_##NAME(const REAL* gates, const REAL* weights, REAL* states, REAL* active,        \
                                           REAL* normal, REAL* scales, int64_t directions, int64_t rows,              \
                                           int64_t frames, int64_t units, double epsilon, int64_t threads) {          \
    forward<REAL>(gates, weights, states, active, normal, scales, {directions, rows, frames, units, epsilon},         \
                  threads);                                                                                           \
  }                                                                                                                   \
  extern "C" void light_gru_backward_##NAME(                                                                          \
      const REAL* grad_states, const REAL* states, const REAL* active, const REAL* normal, const REAL* scales,        \
      const REAL* weights, REAL* grad_gates, REAL* grad_products, int64_t directions, int64_t rows, int64_t frames,   \
      int64_t units, double epsilon, int64_t threads) {                                                               \
    backward<REAL>(grad_states, states, active, normal, scales, weights, grad_gates, grad_products,                   \
                   {directions, rows, frames, units, epsilon}, threads);                                              \
  }

OSSICLE_EXPORT(float, float)
OSSICLE_EXPORT(double, double)
