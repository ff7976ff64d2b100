// lanes.hpp for processors with AVX2: two registers of eight.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace headrace {

struct F {
  __m256 low, high;
};

struct I {
  __m256i low, high;
};

constexpr int MOST_ROWS = 4;
constexpr bool HOLDS_CODES = false;  // there are 16 registers: 8 for sums, the others for 8 inputs' codes at a time
constexpr int ROWS_IN_TURN = 4, WIDE_ROWS_IN_TURN = 2;
constexpr int MOST_QUERIES = 4, WANTED_QUERIES = 3;

inline F operator+(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline F operator-(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline F operator*(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }

inline F all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline F zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline F larger(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }

inline void store(float* to, F value) {
  _mm256_storeu_ps(to, value.low);
  _mm256_storeu_ps(to + 8, value.high);
}

inline F mul_add(F a, F b, F c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

inline F magnitude(F a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}

inline float sum_of(F a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float largest_of(F a) {
  const __m256 eight = _mm256_max_ps(a.low, a.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline F load_halves(const uint8_t* from) {
  const __m128i* halves = reinterpret_cast<const __m128i*>(from);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}

inline I load_bytes(const uint8_t* from) {
  const __m256i* bytes = reinterpret_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(bytes), _mm256_loadu_si256(bytes + 1)};
}

inline __m256i low_nibbles(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
inline __m256i high_nibbles(__m256i bytes) { return low_nibbles(_mm256_srli_epi16(bytes, 4)); }
inline I low_nibbles(I bytes) { return {low_nibbles(bytes.low), low_nibbles(bytes.high)}; }
inline I high_nibbles(I bytes) { return {high_nibbles(bytes.low), high_nibbles(bytes.high)}; }

inline __m256i broadcast(const void* four_bytes) {
  int32_t word;
  std::memcpy(&word, four_bytes, 4);
  return _mm256_set1_epi32(word);
}

// Products of 4 bits and 8 are at most 15 * 127 in size: 16 of them, as many as one lane gets of a group of 32, still fit
// into 16 bits, so only the group's end widens them.
struct Nibbles {
  __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();

  void add(I weights, __m256i four) {
    low = _mm256_add_epi16(low, _mm256_maddubs_epi16(weights.low, four));
    high = _mm256_add_epi16(high, _mm256_maddubs_epi16(weights.high, four));
    asm("" : "+x"(low), "+x"(high));  // or GCC computes all products first, for which registers do not suffice
  }

  I times(short factor) const {
    const __m256i pair = _mm256_set1_epi16(factor);
    return {_mm256_madd_epi16(low, pair), _mm256_madd_epi16(high, pair)};
  }
};

inline F to_float(I counts) { return {_mm256_cvtepi32_ps(counts.low), _mm256_cvtepi32_ps(counts.high)}; }

template <int BITS>
struct Counts;

template <>
struct Counts<4> {
  Nibbles sums;

  void add(I weights, const int8_t* four) { sums.add(weights, broadcast(four)); }
  F floats() const { return to_float(sums.times(1)); }
};

// Two products of 8 bits overflow 16: their nibbles apart.
template <>
struct Counts<8> {
  Nibbles low, high;

  void add(I weights, const int8_t* four) {
    const __m256i words = broadcast(four);
    low.add(low_nibbles(weights), words);
    high.add(high_nibbles(weights), words);
  }

  F floats() const {
    const I ones = low.times(1), sixteens = high.times(16);
    return to_float({_mm256_add_epi32(ones.low, sixteens.low), _mm256_add_epi32(ones.high, sixteens.high)});
  }
};

inline int32_t store_codes(int8_t* to, F first, F second) {
  const __m256i left = _mm256_packs_epi32(_mm256_cvtps_epi32(first.low), _mm256_cvtps_epi32(first.high));
  const __m256i right = _mm256_packs_epi32(_mm256_cvtps_epi32(second.low), _mm256_cvtps_epi32(second.high));
  // Packing works in each half of a register: fours come as 0 2 4 6 1 3 5 7.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i codes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(left, right), order);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), codes);
  const __m256i unsigned_codes = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));  // 128 more than they are
  const __m256i eights = _mm256_sad_epu8(unsigned_codes, _mm256_setzero_si256());
  const __m128i pairs = _mm_add_epi64(_mm256_castsi256_si128(eights), _mm256_extracti128_si256(eights, 1));
  return _mm_cvtsi128_si32(_mm_add_epi64(pairs, _mm_unpackhi_epi64(pairs, pairs))) - 32 * 128;
}

inline __m256i to_bf16(__m256 value) {  // in the low half of each lane
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  return _mm256_srli_epi32(rounded, 16);
}

inline void store_bf16(uint16_t* to, F value) {
  const __m256i mixed = _mm256_packus_epi32(to_bf16(value.low), to_bf16(value.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(mixed, 0b11011000));
}

inline __m256 even_of(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }

inline __m256 odd_of(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000))));
}

inline F dot_bf16(F sums, I lanes, const uint16_t* pair) {
  const __m256i both = broadcast(pair);
  const __m256 even = even_of(both), odd = odd_of(both);
  sums = mul_add({even_of(lanes.low), even_of(lanes.high)}, {even, even}, sums);
  return mul_add({odd_of(lanes.low), odd_of(lanes.high)}, {odd, odd}, sums);
}

inline I load_pairs(const uint16_t* from) { return load_bytes(reinterpret_cast<const uint8_t*>(from)); }

inline F only(F value, int first, int end, float filler) {
  const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
  const auto kept = [&](__m256i lane) {
    const __m256i from = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(first - 1)), to = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane);
    return _mm256_castsi256_ps(_mm256_and_si256(from, to));
  };
  const __m256 others = _mm256_set1_ps(filler);
  return {_mm256_blendv_ps(others, value.low, kept(low)), _mm256_blendv_ps(others, value.high, kept(high))};
}

inline __m256 power_of_two(__m256 whole) {  // of integers from -126 on
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23));
}

// As lanes_avx512.hpp has it.
inline F exp2_of(F value) {
  const F turns = larger(value, all(-126.0f));
  constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const F whole = {_mm256_round_ps(turns.low, NEAREST), _mm256_round_ps(turns.high, NEAREST)};
  const F rest = turns - whole;
  F found = all(9.6709e-3f);
  for (float each : {5.5504e-2f, 2.402247e-1f, 6.931471e-1f, 1.0f}) found = mul_add(found, rest, all(each));
  return found * F{power_of_two(whole.low), power_of_two(whole.high)};
}

inline F inverse(F value) {
  const F close = {_mm256_rcp_ps(value.low), _mm256_rcp_ps(value.high)};
  return close * (all(2.0f) - value * close);
}

inline void store_halves_of_pairs(uint16_t* to, const uint16_t* values, bool odd) {
  for (int i = 0; i < LANES; ++i) to[2 * i + odd] = values[i];
}

inline F where_positive(F x, F then, F otherwise) {
  const auto one = [](__m256 lanes, __m256 yes, __m256 no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(lanes, _mm256_setzero_ps(), _CMP_GE_OQ));
  };
  return {one(x.low, then.low, otherwise.low), one(x.high, then.high, otherwise.high)};
}

}  // namespace headrace
