// lanes.hpp for any processor, by the compiler's own vectors: slow, and what the others are tested against.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace headrace {

typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));

constexpr int MOST_ROWS = 2, ROWS_IN_TURN = 2, WIDE_ROWS_IN_TURN = 2;
constexpr bool HOLDS_CODES = true;
constexpr int MOST_QUERIES = 2, WANTED_QUERIES = 2;

inline F zeros() { return F{}; }
inline F all(float value) { return F{} + value; }

inline F load(const float* from) {
  F found;
  std::memcpy(&found, from, sizeof found);
  return found;
}

inline void store(float* to, F value) { std::memcpy(to, &value, sizeof value); }
inline F mul_add(F a, F b, F c) { return a * b + c; }
inline F larger(F a, F b) { return a > b ? a : b; }
inline F magnitude(F a) { return a < 0 ? -a : a; }

inline float sum_of(F a) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += a[i];
  return sum;
}

inline float largest_of(F a) {
  float found = a[0];
  for (int i = 1; i < LANES; ++i) found = a[i] > found ? a[i] : found;
  return found;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp(static_cast<float>(fraction), -24);
  const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
  float found;
  std::memcpy(&found, &bits, 4);
  return found;
}

inline F load_halves(const uint8_t* from) {
  F found;
  for (int i = 0; i < LANES; ++i) {
    uint16_t half;
    std::memcpy(&half, from + 2 * i, 2);
    found[i] = half_to_float(half);
  }
  return found;
}

inline I load_bytes(const uint8_t* from) {
  I found;
  std::memcpy(&found, from, sizeof found);
  return found;
}

inline I low_nibbles(I bytes) { return bytes & 0x0f0f0f0f; }
inline I high_nibbles(I bytes) { return (bytes >> 4) & 0x0f0f0f0f; }

template <int BITS>
struct Counts {
  I sums{};

  void add(I weights, const int8_t* four) {
    for (int j = 0; j < 4; ++j) sums += (weights >> (8 * j) & 255) * static_cast<int32_t>(four[j]);
  }

  F floats() const { return __builtin_convertvector(sums, F); }
};

inline int32_t store_codes(int8_t* to, F first, F second) {
  int32_t sum = 0;
  for (int i = 0; i < 2 * LANES; ++i) {
    const float value = i < LANES ? first[i] : second[i - LANES];
    to[i] = static_cast<int8_t>(std::nearbyint(value));
    sum += to[i];
  }
  return sum;
}

inline void store_bf16(uint16_t* to, F value) {
  for (int i = 0; i < LANES; ++i) {
    uint32_t bits;
    const float one = value[i];
    std::memcpy(&bits, &one, 4);
    to[i] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}

inline F dot_bf16(F sums, I lanes, const uint16_t* pair) {
  const uint32_t first = static_cast<uint32_t>(pair[0]) << 16, second = static_cast<uint32_t>(pair[1]) << 16;
  float a, b;
  std::memcpy(&a, &first, 4);
  std::memcpy(&b, &second, 4);
  const I even = lanes << 16, odd = lanes & static_cast<int32_t>(0xffff0000);
  F x, y;
  std::memcpy(&x, &even, sizeof x);
  std::memcpy(&y, &odd, sizeof y);
  return sums + x * a + y * b;
}

inline I load_pairs(const uint16_t* from) {
  I found;
  std::memcpy(&found, from, sizeof found);
  return found;
}

inline F only(F value, int first, int end, float filler) {
  for (int i = 0; i < LANES; ++i)
    if (i < first || i >= end) value[i] = filler;
  return value;
}

inline F exp2_of(F value) {
  for (int i = 0; i < LANES; ++i) value[i] = std::exp2(value[i]);
  return value;
}

inline F inverse(F value) { return 1.0f / value; }

inline void store_halves_of_pairs(uint16_t* to, const uint16_t* values, bool odd) {
  for (int i = 0; i < LANES; ++i) to[2 * i + odd] = values[i];
}

inline F where_positive(F x, F then, F otherwise) { return x >= 0 ? then : otherwise; }

}  // namespace headrace
