// What the C++ of a CPU shares: float32 and bfloat16, threads, a hash that says what is dropped, exp.
//
// The hash is that of keep_mask in dropout_hash.py: two rounds of multiply and xor-shift over the column, keyed by a hash of
// seed and row. So nothing is stored for what is dropped.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "threads.hpp"

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

}  // namespace
