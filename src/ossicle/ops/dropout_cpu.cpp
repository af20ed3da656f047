// Dropout on a CPU in one pass over a contiguous matrix, in float32 or bfloat16.

#include "native.hpp"

namespace {

constexpr int64_t few = 1 << 15;  // values below which a second thread costs more than it saves

template <typename Real>
void dropout_all(const Real* from, Real* to, const Drop shared, int64_t rows, int64_t columns, int threads) {
  over_rows(rows, rows * columns < few ? 1 : threads, [=](int64_t start, int64_t end) {
    const Drop drop = shared;
    for (int64_t row = start; row < end; ++row) {
      const RowKey key(drop, row);
      const Real* source = from + row * columns;
      Real* kept = to + row * columns;
#pragma omp simd
      for (int64_t c = 0; c < columns; ++c) kept[c] = narrow<Real>(widen(source[c]) * factor(drop, key, c));
    }
  });
}

}  // namespace

#define OSSICLE_EXPORT(NAME, REAL) \
  extern "C" void dropout_##NAME(const REAL* from, REAL* to, const int64_t* seed, int64_t threshold, double scale, \
                                 int64_t rows, int64_t columns, int64_t threads) { \
    dropout_all<REAL>(from, to, Drop(seed, threshold, scale), rows, columns, int(threads)); \
  }

OSSICLE_EXPORT(float, float)
OSSICLE_EXPORT(bfloat16, Bfloat16)
