// lanes.hpp for processors with AVX-512 and its products of bytes (VNNI).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace headrace {

using F = __m512;   // 16 floats
using I = __m512i;  // 16 int32, or 64 bytes

constexpr int MOST_ROWS = 16;      // of a product: their sums, a group's codes and the rest fit into 32 registers
constexpr bool HOLDS_CODES = true;  // a group's codes stay in registers while rows take their turns
constexpr int ROWS_IN_TURN = 2;    // an instruction seldom waits for the one before
constexpr int WIDE_ROWS_IN_TURN = 2;  // of weights of 8 bits
constexpr int MOST_QUERIES = 8;    // rows of an attention's task
constexpr int WANTED_QUERIES = 6;  // which keep the multipliers busy

inline F zeros() { return _mm512_setzero_ps(); }
inline F all(float value) { return _mm512_set1_ps(value); }
inline F load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, F value) { _mm512_storeu_ps(to, value); }
inline F mul_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F larger(F a, F b) { return _mm512_max_ps(a, b); }
inline F magnitude(F a) { return _mm512_abs_ps(a); }
inline float sum_of(F a) { return _mm512_reduce_add_ps(a); }
inline float largest_of(F a) { return _mm512_reduce_max_ps(a); }

// 16 halves.
inline F load_halves(const uint8_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline I load_bytes(const uint8_t* from) { return _mm512_loadu_si512(from); }
inline I low_nibbles(I bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
inline I high_nibbles(I bytes) { return _mm512_and_si512(_mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(15)); }

// 16 sums of products of bytes. Lane i: weights[4 i .. 4 i + 3] . four[0 .. 3], weights unsigned, of so many bits, four
// signed, of at most 127 in size.
template <int BITS>
struct Counts {
  I sums = _mm512_setzero_si512();

  void add(I weights, const int8_t* four) {
    int32_t word;
    std::memcpy(&word, four, 4);
    sums = _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(word));
  }

  F floats() const { return _mm512_cvtepi32_ps(sums); }
};

// Rounds to the nearest integers, of at most 127 in size, stores them as 32 bytes, and returns their sum.
inline int32_t store_codes(int8_t* to, F first, F second) {
  const __m128i low = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(first)), high = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(second));
  const __m256i codes = _mm256_set_m128i(high, low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), codes);
  const __m256i unsigned_codes = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));  // 128 more than they are
  const __m256i eights = _mm256_sad_epu8(unsigned_codes, _mm256_setzero_si256());
  const __m128i pairs = _mm_add_epi64(_mm256_castsi256_si128(eights), _mm256_extracti128_si256(eights, 1));
  return _mm_cvtsi128_si32(_mm_add_epi64(pairs, _mm_unpackhi_epi64(pairs, pairs))) - 32 * 128;
}

// Round to nearest even. 16 values of bfloat16.
inline void store_bf16(uint16_t* to, F value) {
#ifdef __AVX512BF16__
  const __m256i narrow = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
#else
  const I bits = _mm512_castps_si512(value);
  const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const I rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m256i narrow = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow);
}

// Lane i: sums[i] + lanes[2 i] * pair[0] + lanes[2 i + 1] * pair[1], all bfloat16.
inline F dot_bf16(F sums, I lanes, const uint16_t* pair) {
  int32_t word;
  std::memcpy(&word, pair, 4);
#ifdef __AVX512BF16__
  return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(lanes), reinterpret_cast<__m512bh>(_mm512_set1_epi32(word)));
#else
  const I other = _mm512_set1_epi32(word), high = _mm512_set1_epi32(0xffff0000);
  const F even = _mm512_castsi512_ps(_mm512_slli_epi32(lanes, 16)), odd = _mm512_castsi512_ps(_mm512_and_si512(lanes, high));
  sums = _mm512_fmadd_ps(even, _mm512_castsi512_ps(_mm512_slli_epi32(other, 16)), sums);
  return _mm512_fmadd_ps(odd, _mm512_castsi512_ps(_mm512_and_si512(other, high)), sums);
#endif
}

inline I load_pairs(const uint16_t* from) { return _mm512_loadu_si512(from); }

// Lanes first <= i < end as they are, all others `filler`.
inline F only(F value, int first, int end, float filler) {
  const uint32_t below_end = end >= LANES ? 0xffff : end <= 0 ? 0 : (1u << end) - 1;
  const uint32_t from_first = first <= 0 ? 0xffff : first >= LANES ? 0 : 0xffff & ~((1u << first) - 1);
  return _mm512_mask_mov_ps(all(filler), static_cast<__mmask16>(below_end & from_first), value);
}

// 2 to the power of values of at most 0: 2^n times a polynomial on [-1/2, 1/2], relative error 4e-6.
inline F exp2_of(F value) {
  const F turns = larger(value, all(-126.0f));
  const F whole = _mm512_roundscale_ps(turns, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const F rest = _mm512_sub_ps(turns, whole);
  F found = all(9.6709e-3f);
  for (float each : {5.5504e-2f, 2.402247e-1f, 6.931471e-1f, 1.0f}) found = mul_add(found, rest, all(each));
  return _mm512_scalef_ps(found, whole);
}

inline F inverse(F value) {
  const F close = _mm512_rcp14_ps(value);
  return close * mul_add(zeros() - value, close, all(2.0f));
}

// The even lanes' 16 bits of 16 places of 32, or the odd ones': the others are left as they are, whoever writes them.
inline void store_halves_of_pairs(uint16_t* to, const uint16_t* values, bool odd) {
  const I wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
  if (odd)
    _mm512_mask_storeu_epi16(to, 0xaaaaaaaa, _mm512_slli_epi32(wide, 16));
  else
    _mm512_mask_storeu_epi16(to, 0x55555555, wide);
}

// Lanes of x that are at least 0 become those of `then`, all others those of `otherwise`.
inline F where_positive(F x, F then, F otherwise) {
  return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(x, zeros(), _CMP_GE_OQ), then);
}

}  // namespace headrace
