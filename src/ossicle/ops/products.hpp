// Products of small matrices, as much of each at a time as fits into registers.
//
// An element is a float, or a pair of bfloat16 that lie beside each other along the depth; sums are float32.

#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

// Compiled once, and not at every place that calls it: the whole takes half as long.
#define SEPARATE __attribute__((noinline))

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
#if defined(__x86_64__) && !defined(__AVX512F__)
constexpr int PANEL = 2;  // of 16 registers 12 hold sums, 2 what stands right, 1 what stands left
#else
constexpr int PANEL = 4;  // of 32
#endif

typedef float Vector __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
using Pair = uint32_t;

template <typename Element>
struct VectorOf {
  using Type = Vector;
};
template <>
struct VectorOf<Pair> {
  using Type = Words;
};

// Rows that are multiplied at a time. All rows of a left matrix are a multiple of MOST_ROWS, or there is memory for as many.
template <typename Element>
constexpr int TILE_ROWS = std::is_same_v<Element, Pair> ? 4 : 6;
constexpr int MOST_ROWS = 12;

inline int64_t rounded_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

inline Vector add_product(Vector sum, float one, Vector many) { return sum + one * many; }
#if defined(__AVX512BF16__)
inline Vector add_product(Vector sum, Pair one, Words many) {  // the intrinsic lets sums wander between registers
  const __m512i all = _mm512_set1_epi32(int(one));
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(all), "v"(many));
  return sum;
}
#endif

// The left matrix of a product: its element of row r and column k is at from[r * row + k * column].
template <typename Element>
struct Left {
  const Element* from;
  int64_t row, column;
};

template <int VECTORS, typename Element>
inline void add_tile(const Left<Element> left, const Element* right, int64_t right_row, float* to, int64_t to_row,
                     int64_t depth, bool add) {
  using Many = typename VectorOf<Element>::Type;
  constexpr int ROWS = TILE_ROWS<Element>;
  Vector sums[ROWS][VECTORS];
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v)
      sums[r][v] = add ? *reinterpret_cast<const Vector*>(to + r * to_row + v * WIDTH) : Vector{};
  const Element* ones = left.from;
  for (int64_t k = 0; k < depth; ++k, ones += left.column, right += right_row) {
    Many many[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) many[v] = *reinterpret_cast<const Many*>(right + v * WIDTH);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) {
      const Element one = ones[r * left.row];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = add_product(sums[r][v], one, many[v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) *reinterpret_cast<Vector*>(to + r * to_row + v * WIDTH) = sums[r][v];
}

template <int VECTORS, typename Element>
SEPARATE void add_tiles(const Left<Element>& left, const Element* right, int64_t right_row, float* to, int64_t to_row,
                        int64_t rows, int64_t depth, bool add) {
  for (int64_t r = 0; r < rows; r += TILE_ROWS<Element>)
    add_tile<VECTORS, Element>({left.from + r * left.row, left.row, left.column}, right, right_row, to + r * to_row,
                               to_row, depth, add);
}

// to = left x right, or to += that. Columns are a multiple of WIDTH.
template <typename Element>
SEPARATE void product(const Left<Element>& left, const Element* right, int64_t right_row, float* to, int64_t to_row,
                      int64_t rows, int64_t columns, int64_t depth, bool add) {
  int64_t c = 0;
  for (; c + PANEL * WIDTH <= columns; c += PANEL * WIDTH)
    add_tiles<PANEL, Element>(left, right + c, right_row, to + c, to_row, rows, depth, add);
  for (; c + 2 * WIDTH <= columns; c += 2 * WIDTH)
    add_tiles<2, Element>(left, right + c, right_row, to + c, to_row, rows, depth, add);
  for (; c < columns; c += WIDTH)
    add_tiles<1, Element>(left, right + c, right_row, to + c, to_row, rows, depth, add);
}

}  // namespace
