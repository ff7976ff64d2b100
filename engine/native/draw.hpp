// Draws from the whole vocabulary: the noise of engine/noise.py, bit by bit, hashed only for ids that can still win.
#pragma once

#include "lanes.hpp"

#include <cmath>

namespace headrace {

inline uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

// keys: low and high 32 bits.
inline float score(float scaled, uint32_t token, const uint32_t* keys) {
  const uint32_t hash = mix(mix(token ^ keys[0]) + keys[1]);
  const double u = (static_cast<double>(hash) + 0.5) * 0x1p-32;
  return scaled + static_cast<float>(-std::log(-std::log(u)));
}

constexpr int AT_ONCE = 4 * LANES;

inline float largest_of_some(const float* from) {
  const F first = larger(load(from), load(from + LANES)), second = larger(load(from + 2 * LANES), load(from + 3 * LANES));
  return largest_of(larger(first, second));
}

inline int32_t most_likely(const float* logits, int32_t vocab) {
  int32_t i = 0;
  float largest = logits[0];
  for (; i + AT_ONCE <= vocab; i += AT_ONCE) {
    const float some = largest_of_some(logits + i);
    if (some > largest) largest = some;
  }
  for (; i < vocab; ++i)
    if (logits[i] > largest) largest = logits[i];
  for (i = 0; i < vocab; ++i)
    if (logits[i] == largest) return i;
  return 0;  // none is a number
}

// max_gumbel: no noise is larger. Of equal scores the lowest id wins.
inline int32_t draw(const float* logits, int32_t vocab, float temperature, const uint32_t* keys, float max_gumbel) {
  int32_t best_id = most_likely(logits, vocab);
  float best = score(logits[best_id] / temperature, best_id, keys), floor = best - max_gumbel;
  const auto look_at = [&](int32_t token) {
    const float scaled = logits[token] / temperature;
    if (scaled < floor) return;
    const float found = score(scaled, token, keys);
    if (found > best || (found == best && token < best_id)) best = found, best_id = token, floor = best - max_gumbel;
  };
  int32_t i = 0;
  for (; i + AT_ONCE <= vocab; i += AT_ONCE) {
    if (largest_of_some(logits + i) / temperature < floor) continue;
    for (int32_t token = i; token < i + AT_ONCE; ++token) look_at(token);
  }
  for (; i < vocab; ++i) look_at(i);
  return best_id;
}

}  // namespace headrace
