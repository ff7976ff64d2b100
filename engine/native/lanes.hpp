// Sixteen numbers at a time, F of floats and I of integers or bytes, by the best instructions that the compiler may use.
//
// Whoever adds a set of instructions adds a file beside these, and nothing elsewhere; lanes_avx512.hpp has all that one
// must offer, with comments.
#pragma once

namespace headrace {

constexpr int LANES = 16;

// Into the second cache: the first has no room for what many turns to come need.
inline void prefetch(const void* at) { __builtin_prefetch(at, 0, 2); }

}  // namespace headrace

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#include "lanes_avx512.hpp"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "lanes_avx2.hpp"
#else
#include "lanes_portable.hpp"
#endif

namespace headrace {

constexpr float LOG2_E = 1.44269504f;

// x * sigmoid(x)
inline F silu(F x) {
  const F small = exp2_of(magnitude(x) * all(-LOG2_E));  // of exp(-|x|): nothing overflows
  return x * where_positive(x, all(1.0f), small) * inverse(all(1.0f) + small);
}

}  // namespace headrace
