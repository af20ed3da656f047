// Softmax attention with dropout on a CPU (arXiv 1706.03762, equation 1), a block of queries by a block of keys at a
// time, so that no scores are stored (arXiv 2205.14135).
//
// Queries, keys, values and what is made of them are (B, T, H, K), float32 or bfloat16, the last dimension contiguous.
// Sums and exponentials are float32; products of bfloat16 are made of pairs of them where the processor can, else of
// floats. Of each query its highest score and the inverse of its sum of exponentials are kept for the way back.

#include <limits>
#include <vector>

#include "native.hpp"
#include "products.hpp"

namespace {

constexpr int64_t QUERIES = 60, KEYS = 480;  // of a block at most; multiples of MOST_ROWS, keys of 2 * WIDTH too
constexpr float LOWEST = std::numeric_limits<float>::lowest(), NOTHING = -std::numeric_limits<float>::infinity();

struct Sizes {
  int64_t rows, frames, heads, width;
  float temperature;
  int64_t padded, columns, queries;  // widths of matrices, queries of a block

  Sizes(int64_t rows_, int64_t frames_, int64_t heads_, int64_t width_, double temperature_)
      : rows(rows_), frames(frames_), heads(heads_), width(width_), temperature(float(temperature_)),
        padded(rounded_up(width_, WIDTH)), columns(rounded_up(frames_, WIDTH)) {
    const int64_t blocks = std::max<int64_t>(1, (frames + QUERIES - 1) / QUERIES);
    queries = rounded_up((frames + blocks - 1) / blocks, MOST_ROWS);
  }
};

// (B, T, H, K) somewhere in memory.
template <typename Real>
struct Tensor {
  Real* from;
  int64_t row, frame, head;

  Real* at(int64_t row_, int64_t head_) const { return from + row_ * row + head_ * head; }
};

#if defined(__AVX512BF16__)
template <typename Real>
using ElementOf = std::conditional_t<std::is_same_v<Real, Bfloat16>, Pair, float>;
#else
template <typename Real>
using ElementOf = float;
#endif
template <typename Element>
using ValueOf = std::conditional_t<std::is_same_v<Element, Pair>, Bfloat16, float>;
template <typename Element>
constexpr int64_t VALUES = std::is_same_v<Element, Pair> ? 2 : 1;  // in an element

template <typename Element>
const Element* elements(const ValueOf<Element>* values) {
  return reinterpret_cast<const Element*>(values);
}

// Frames of a head as a matrix (frames, padded), zeros behind its width.
template <typename Real, typename Value>
SEPARATE void load(const Real* from, int64_t frame, int64_t frames, int64_t width, int64_t padded, Value* to) {
  for (int64_t t = 0; t < frames; ++t, to += padded) {
    const Real* line = from + t * frame;
    __builtin_prefetch(line + 4 * frame);
    if constexpr (std::is_same_v<Real, Value>) {
      std::copy(line, line + width, to);
    } else {
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) to[k] = widen(line[k]);
    }
    std::fill(to + width, to + padded, Value(0));
  }
}

template <typename Real>
SEPARATE void store(const float* from, int64_t padded, float scale, int64_t frames, int64_t width, int64_t frame, Real* to) {
  for (int64_t t = 0; t < frames; ++t, from += padded) {
    Real* line = to + t * frame;
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) line[k] = narrow<Real>(from[k] * scale);
  }
}

// (frames, depth) to (depth, columns), zeros behind the frames.
template <typename Element>
SEPARATE void transpose(const Element* from, int64_t depth, int64_t frames, int64_t columns, Element* to) {
  for (int64_t start = 0; start < columns; start += WIDTH)
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t t = start; t < start + WIDTH; ++t) to[k * columns + t] = t < frames ? from[t * depth + k] : Element(0);
}

// Rows as the depth of a product: as they stand, or two beside each other, value by value.
inline const float* deep(const float* rows, int64_t, int64_t, int64_t, std::vector<float>&) { return rows; }
SEPARATE const Pair* deep(const Bfloat16* rows, int64_t stride, int64_t count, int64_t width, std::vector<Pair>& space) {
  space.resize(std::max<size_t>(space.size(), (count + 1) / 2 * stride + WIDTH));
  for (int64_t t = 0; t < count; t += 2) {
    const Bfloat16 *first = rows + t * stride, *second = first + stride;
    Pair* to = space.data() + t / 2 * stride;
    if (t + 1 == count) {
      for (int64_t k = 0; k < width; ++k) to[k] = first[k];
      break;
    }
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) to[k] = Pair(first[k]) | Pair(second[k]) << 16;
  }
  return space.data();
}

// What a thread needs of one head's frames: in rows, as depth, and transposed.
template <typename Real, typename Element = ElementOf<Real>>
struct Matrix {
  std::vector<ValueOf<Element>> rows;
  std::vector<Element> turned, space;
  int64_t padded, depth;

  Matrix(int64_t frames, int64_t padded_)
      : rows((frames + MOST_ROWS) * padded_), padded(padded_), depth(padded_ / VALUES<Element>) {}

  void read(const Real* from, int64_t frame, int64_t frames, int64_t width) {
    load(from, frame, frames, width, padded, rows.data());
  }
  Left<Element> left() const { return {elements<Element>(rows.data()), depth, 1}; }
  const Element* across(int64_t frames, int64_t columns) {
    turned.resize(depth * columns);
    transpose(elements<Element>(rows.data()), depth, frames, columns, turned.data());
    return turned.data();
  }
  const Element* down(int64_t frames) { return deep(rows.data(), padded, frames, padded, space); }
};

// A line of scores, times the temperature; those that are not real are the lowest, those behind the keys nothing.
inline void scale_scores(float* line, const uint8_t* real, int64_t keys, int64_t width, float temperature) {
  if (real == nullptr) {
#pragma omp simd
    for (int64_t c = 0; c < keys; ++c) line[c] *= temperature;
  } else {
#pragma omp simd
    for (int64_t c = 0; c < keys; ++c) line[c] = real[c] ? line[c] * temperature : LOWEST;
  }
  std::fill(line + keys, line + width, NOTHING);
}

// Exponentials of scores less their highest, after dropout, and their sum before it.
template <typename Value>
float exponentials(float* line, float top, int64_t width, const Drop shared, int64_t row, int64_t column, Value* to) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < width; ++c) {
    line[c] = exponential(line[c] - top);
    sum += line[c];
  }
  if (shared.threshold == 0) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) to[c] = narrow<Value>(line[c]);
  } else {
    const Drop drop = shared;
    const RowKey key(drop, row);
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) to[c] = narrow<Value>(line[c] * factor(drop, key, column + c));
  }
  return sum;
}

// Weights after dropout from scores, and gradients of the scores from those of the weights.
template <typename Value>
void slopes(const float* line, const float* grad, const float* stats, float mean, int64_t width, const Drop shared,
            int64_t row, int64_t column, Value* weights, Value* grads) {
  const float top = stats[0], inverse = stats[1];
  if (shared.threshold == 0) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const float weight = exponential(line[c] - top) * inverse;
      const float slope = weight * (grad[c] - mean);
      weights[c] = narrow<Value>(weight);
      grads[c] = narrow<Value>(slope);
    }
  } else {
    const Drop drop = shared;
    const RowKey key(drop, row);
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const float share = factor(drop, key, column + c), weight = exponential(line[c] - top) * inverse;
      const float slope = weight * (grad[c] * share - mean);
      weights[c] = narrow<Value>(weight * share);
      grads[c] = narrow<Value>(slope);
    }
  }
}

template <typename Real>
void attend(const Tensor<const Real>& q, const Tensor<const Real>& k, const Tensor<const Real>& v, const uint8_t* valid,
            const Tensor<Real>& out, float* stats, const Drop drop, const Sizes& s, int threads) {
  using Element = ElementOf<Real>;
  using Value = ValueOf<Element>;
  over_rows(s.rows * s.heads, threads, [=](int64_t first, int64_t last) {
    Matrix<Real> keys(s.frames, s.padded), values(s.frames, s.padded), queries(s.queries, s.padded);
    std::vector<float> scores(s.queries * KEYS), mixed(s.queries * s.padded), highest(s.queries), sums(s.queries);
    std::vector<Value> weights(s.queries * KEYS);
    for (int64_t pair = first; pair < last; ++pair) {
      const int64_t row = pair / s.heads, head = pair % s.heads;
      keys.read(k.at(row, head), k.frame, s.frames, s.width);
      values.read(v.at(row, head), v.frame, s.frames, s.width);
      const Element *across = keys.across(s.frames, s.columns), *down = values.down(s.frames);
      for (int64_t start = 0; start < s.frames; start += s.queries) {
        const int64_t count = std::min(s.frames - start, s.queries), filled = rounded_up(count, TILE_ROWS<Element>);
        queries.read(q.at(row, head) + start * q.frame, q.frame, count, s.width);
        std::fill(mixed.begin(), mixed.end(), 0.0f);
        std::fill(sums.begin(), sums.end(), 0.0f);
        std::fill(highest.begin(), highest.end(), LOWEST);
        for (int64_t from = 0; from < s.frames; from += KEYS) {
          const int64_t here = std::min(KEYS, s.frames - from), width = rounded_up(here, WIDTH);
          product(queries.left(), across + from, s.columns, scores.data(), KEYS, filled, width, queries.depth, false);
          for (int64_t i = 0; i < count; ++i) {
            float *line = scores.data() + i * KEYS, top = highest[i];
            scale_scores(line, valid == nullptr ? nullptr : valid + row * s.frames + from, here, width, s.temperature);
#pragma omp simd reduction(max : top)
            for (int64_t c = 0; c < width; ++c) top = line[c] > top ? line[c] : top;
            const float sum = exponentials(line, top, width, drop, pair * s.frames + start + i, from,
                                           weights.data() + i * KEYS);
            const float shrink = from == 0 ? 0.0f : exponential(highest[i] - top);
            sums[i] = sums[i] * shrink + sum;
            highest[i] = top;
            if (from != 0)
              for (int64_t j = 0; j < s.padded; ++j) mixed[i * s.padded + j] *= shrink;
          }
          product({elements<Element>(weights.data()), KEYS / VALUES<Element>, 1}, down + from / VALUES<Element> * s.padded,
                  s.padded, mixed.data(), s.padded, filled, s.padded, rounded_up(here, VALUES<Element>) / VALUES<Element>,
                  true);
        }
        for (int64_t i = 0; i < count; ++i) {
          float* kept = stats + (pair * s.frames + start + i) * 2;
          kept[0] = highest[i];
          kept[1] = 1.0f / sums[i];
          store(mixed.data() + i * s.padded, s.padded, kept[1], 1, s.width, out.frame,
                out.at(row, head) + (start + i) * out.frame);
        }
      }
    }
  });
}

template <typename Real>
struct Given {
  Tensor<const Real> q, k, v, out, grad;
};

template <typename Real>
struct Wanted {
  Tensor<Real> q, k, v;
};

template <typename Real>
void attend_backward(const Given<Real>& given, const Wanted<Real>& wanted, const uint8_t* valid, const float* stats,
                     const Drop drop, const Sizes& s, int threads) {
  using Element = ElementOf<Real>;
  using Value = ValueOf<Element>;
  over_rows(s.rows * s.heads, threads, [=](int64_t first, int64_t last) {
    Matrix<Real> keys(s.frames, s.padded), values(s.frames, s.padded);
    Matrix<Real> queries(s.queries, s.padded), grads(s.queries, s.padded), made(s.queries, s.padded);
    std::vector<float> scores(s.queries * KEYS), grad_weights(s.queries * KEYS), grad_queries(s.queries * s.padded);
    std::vector<float> means(s.queries);
    std::vector<float> grad_keys((s.frames + MOST_ROWS) * s.padded), grad_values((s.frames + MOST_ROWS) * s.padded);
    std::vector<Value> weights(s.queries * KEYS), grad_scores(s.queries * KEYS);
    std::vector<Element> weights_space, grad_scores_space;
    for (int64_t pair = first; pair < last; ++pair) {
      const int64_t row = pair / s.heads, head = pair % s.heads;
      keys.read(given.k.at(row, head), given.k.frame, s.frames, s.width);
      values.read(given.v.at(row, head), given.v.frame, s.frames, s.width);
      const Element *keys_across = keys.across(s.frames, s.columns), *keys_down = keys.down(s.frames);
      const Element* values_across = values.across(s.frames, s.columns);
      std::fill(grad_keys.begin(), grad_keys.end(), 0.0f);
      std::fill(grad_values.begin(), grad_values.end(), 0.0f);
      for (int64_t start = 0; start < s.frames; start += s.queries) {
        const int64_t count = std::min(s.frames - start, s.queries), filled = rounded_up(count, TILE_ROWS<Element>);
        const int64_t tall = rounded_up(count, VALUES<Element>) / VALUES<Element>;
        queries.read(given.q.at(row, head) + start * given.q.frame, given.q.frame, count, s.width);
        grads.read(given.grad.at(row, head) + start * given.grad.frame, given.grad.frame, count, s.width);
        made.read(given.out.at(row, head) + start * given.out.frame, given.out.frame, count, s.width);
        const Element *queries_down = queries.down(count), *grads_down = grads.down(count);
        std::fill(grad_queries.begin(), grad_queries.end(), 0.0f);
        for (int64_t i = 0; i < count; ++i) {  // of a query's gradients of weights, each by its weight
          float mean = 0.0f;
#pragma omp simd reduction(+ : mean)
          for (int64_t j = 0; j < s.padded; ++j)
            mean += widen(made.rows[i * s.padded + j]) * widen(grads.rows[i * s.padded + j]);
          means[i] = mean;
        }
        for (int64_t from = 0; from < s.frames; from += KEYS) {
          const int64_t here = std::min(KEYS, s.frames - from), width = rounded_up(here, WIDTH);
          const uint8_t* real = valid == nullptr ? nullptr : valid + row * s.frames + from;
          product(queries.left(), keys_across + from, s.columns, scores.data(), KEYS, filled, width, keys.depth, false);
          product(grads.left(), values_across + from, s.columns, grad_weights.data(), KEYS, filled, width, keys.depth,
                  false);
          for (int64_t i = 0; i < count; ++i) {
            Value* slope = grad_scores.data() + i * KEYS;
            scale_scores(scores.data() + i * KEYS, real, here, width, s.temperature);
            slopes(scores.data() + i * KEYS, grad_weights.data() + i * KEYS, stats + (pair * s.frames + start + i) * 2,
                   means[i], width, drop, pair * s.frames + start + i, from, weights.data() + i * KEYS, slope);
            if (real != nullptr)  // where no key is real, all have weight
              for (int64_t c = 0; c < here; ++c) slope[c] = real[c] ? slope[c] : Value(0);
          }
          const Element* weights_down = deep(weights.data(), KEYS, count, width, weights_space);
          const Element* grad_scores_down = deep(grad_scores.data(), KEYS, count, width, grad_scores_space);
          product({elements<Element>(grad_scores.data()), KEYS / VALUES<Element>, 1},
                  keys_down + from / VALUES<Element> * s.padded, s.padded, grad_queries.data(), s.padded, filled, s.padded,
                  rounded_up(here, VALUES<Element>) / VALUES<Element>, true);
          product({grad_scores_down, 1, KEYS}, queries_down, s.padded, grad_keys.data() + from * s.padded, s.padded,
                  rounded_up(here, TILE_ROWS<Element>), s.padded, tall, true);
          product({weights_down, 1, KEYS}, grads_down, s.padded, grad_values.data() + from * s.padded, s.padded,
                  rounded_up(here, TILE_ROWS<Element>), s.padded, tall, true);
        }
        store(grad_queries.data(), s.padded, s.temperature, count, s.width, wanted.q.frame,
              wanted.q.at(row, head) + start * wanted.q.frame);
      }
      store(grad_keys.data(), s.padded, s.temperature, s.frames, s.width, wanted.k.frame, wanted.k.at(row, head));
      store(grad_values.data(), s.padded, 1.0f, s.frames, s.width, wanted.v.frame, wanted.v.at(row, head));
    }
  });
}

template <typename Real>
Tensor<Real> whole(Real* from, const Sizes& s) {
  return {from, s.frames * s.heads * s.width, s.heads * s.width, s.width};
}

}  // namespace

// Strides are three numbers a tensor, of rows, frames and heads: of queries, keys and values, and of the gradient.
#define OSSICLE_EXPORT(NAME, REAL) \
  extern "C" void attention_##NAME(const REAL* q, const REAL* k, const REAL* v, const int64_t* strides, \
                                   const uint8_t* valid, REAL* out, float* stats, const int64_t* seed, \
                                   int64_t threshold, double scale, double temperature, int64_t rows, int64_t frames, \
                                   int64_t heads, int64_t width, int64_t threads) { \
    const Sizes s(rows, frames, heads, width, temperature); \
    attend<REAL>({q, strides[0], strides[1], strides[2]}, {k, strides[3], strides[4], strides[5]}, \
                 {v, strides[6], strides[7], strides[8]}, valid, whole(out, s), stats, Drop(seed, threshold, scale), s, \
                 int(threads)); \
  } \
  extern "C" void attention_backward_##NAME(const REAL* q, const REAL* k, const REAL* v, const REAL* grad, \
                                            const int64_t* strides, const uint8_t* valid, const REAL* out, \
                                            const float* stats, REAL* grad_q, REAL* grad_k, REAL* grad_v, \
                                            const int64_t* seed, int64_t threshold, double scale, double temperature, \
                                            int64_t rows, int64_t frames, int64_t heads, int64_t width, \
                                            int64_t threads) { \
    const Sizes s(rows, frames, heads, width, temperature); \
    attend_backward<REAL>({{q, strides[0], strides[1], strides[2]}, {k, strides[3], strides[4], strides[5]}, \
                           {v, strides[6], strides[7], strides[8]}, whole(out, s), \
                           {grad, strides[9], strides[10], strides[11]}}, \
                          {whole(grad_q, s), whole(grad_k, s), whole(grad_v, s)}, valid, stats, \
                          Drop(seed, threshold, scale), s, int(threads)); \
  }

OSSICLE_EXPORT(float, float)
OSSICLE_EXPORT(bfloat16, Bfloat16)
