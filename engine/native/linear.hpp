// Products of weights in blocks of 4 or 8 bits with activations that are quantised to 8 bits on the way.
//
// Weights: w = scale * code + least, code unsigned, for each 32 inputs of one output. A tile is 16 outputs:
//
//     group 0                                        group 1 ..           (a group: 32 inputs)
//     | codes: 32 x 16 | scales: 16 | least: 16 |    ..
//       4 bits: 256 bytes   halves      halves
//       8 bits: 512 bytes
//
// Codes come as 8 quads: inputs 4 q .. 4 q + 3 of output 0, of output 1, .. of output 15: 64 bytes, what one instruction
// multiplies with 4 activations. Of 4 bits, quad q and quad q + 4 share their bytes: low and high nibbles.
//
// Activations: a = scale * code, code signed, for each 32 of one row; `sums` are scale * (sum of codes). So
//
//     sum of w a  =  sum over groups of  w.scale * a.scale * (codes . codes)  +  w.least * a.sum
//
// with the inner sum exact in integers: as llama.cpp does it for these formats. The sums of one row do not depend on what
// other rows there are.
#pragma once

#include "lanes.hpp"
#include "team.hpp"

#include <algorithm>
#include <type_traits>

namespace headrace {

constexpr int GROUP = 32;
constexpr int QUADS = GROUP / 4;
constexpr int TILES_AHEAD = 4;  // fetched while one is multiplied

inline int group_bytes(int bits) { return bits * GROUP * LANES / 8 + 4 * LANES; }

struct Linear {
  const uint8_t* tiles;
  const float* bias;  // or none
  int32_t in, out;    // out: a multiple of LANES, padded with zeros
  int32_t bits;

  int num_tiles() const { return out / LANES; }
  const uint8_t* tile(int index) const { return tiles + static_cast<int64_t>(index) * (in / GROUP) * group_bytes(bits); }
};

struct Activations {
  int8_t* codes;  // [rows, in]
  float* scales;  // [rows, in / GROUP]
  float* sums;
  int in;

  int groups() const { return in / GROUP; }
};

// 32 activations of a row, in two halves.
inline void quantise(const Activations& x, int row, int group, F first, F second) {
  const float largest = largest_of(larger(magnitude(first), magnitude(second)));
  const F inverse = all(largest > 0 ? 127.0f / largest : 0.0f);
  int8_t* codes = x.codes + static_cast<int64_t>(row) * x.in + group * GROUP;
  const int64_t at = static_cast<int64_t>(row) * x.groups() + group;
  const float scale = largest * (1.0f / 127.0f);
  x.scales[at] = scale;
  x.sums[at] = scale * static_cast<float>(store_codes(codes, first * inverse, second * inverse));
}

// Quads q and q + 4 of a group.
template <int BITS>
inline void load_two(const uint8_t* group, int q, I& first, I& second) {
  first = load_bytes(group + 64 * q);
  if constexpr (BITS == 4)
    second = high_nibbles(first), first = low_nibbles(first);
  else
    second = load_bytes(group + 64 * (q + QUADS / 2));
}

// What a later stage will read, fetched while a tile is multiplied: two pieces of memory of so many bytes, or none.
struct Later {
  const void *first, *second;
  int bytes;
};

// The 16 outputs of a tile for ROWS rows from `row` on.
template <int ROWS, int BITS>
inline void multiply(const uint8_t* tile, const Activations& x, int row, const Later& later, F* out) {
  const int groups = x.groups();
  const int8_t* codes = x.codes + static_cast<int64_t>(row) * x.in;
  const float* scales = x.scales + static_cast<int64_t>(row) * groups;
  const float* sums = x.sums + static_cast<int64_t>(row) * groups;
  constexpr int TOGETHER = std::min(ROWS, BITS == 4 ? ROWS_IN_TURN : WIDE_ROWS_IN_TURN);
  constexpr int CODES = BITS * GROUP * LANES / 8, BYTES = CODES + 4 * LANES;
  const int64_t ahead = static_cast<int64_t>(TILES_AHEAD) * groups * BYTES;
  const int lines = (later.bytes + 64 * groups - 1) / (64 * groups);  // in each turn
  const char *first = static_cast<const char*>(later.first), *second = static_cast<const char*>(later.second);
  F found[ROWS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) found[r] = zeros();
  for (int g = 0; g < groups; ++g, tile += BYTES) {
    for (int line = 0; line < BYTES; line += 64) prefetch(tile + ahead + line);
    for (int line = 0; line < lines; ++line, first += 64, second += 64) {
      prefetch(first);
      prefetch(second);
    }
    I weights[QUADS];
    if constexpr (HOLDS_CODES)
      for (int q = 0; q < QUADS / 2; ++q) load_two<BITS>(tile, q, weights[q], weights[q + QUADS / 2]);
    const F scale = load_halves(tile + CODES), least = load_halves(tile + CODES + 2 * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r += TOGETHER) {
      Counts<BITS> counts[TOGETHER];
      const int8_t* own = codes + static_cast<int64_t>(r) * x.in + g * GROUP;
      if constexpr (HOLDS_CODES) {
#pragma GCC unroll 8
        for (int q = 0; q < QUADS; ++q)
          for (int i = 0; i < TOGETHER; ++i) counts[i].add(weights[q], own + static_cast<int64_t>(i) * x.in + 4 * q);
      } else {
#pragma GCC unroll 4
        for (int q = 0; q < QUADS / 2; ++q) {
          I first, second;
          load_two<BITS>(tile, q, first, second);
#pragma GCC unroll 4
          for (int i = 0; i < TOGETHER; ++i) {
            counts[i].add(first, own + static_cast<int64_t>(i) * x.in + 4 * q);
            counts[i].add(second, own + static_cast<int64_t>(i) * x.in + 4 * (q + QUADS / 2));
          }
        }
      }
      for (int i = 0; i < TOGETHER; ++i) {
        found[r + i] = mul_add(counts[i].floats(), scale * all(scales[(r + i) * groups + g]), found[r + i]);
        found[r + i] = mul_add(least, all(sums[(r + i) * groups + g]), found[r + i]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) out[r] = found[r];
}

// How many rows to take next, of those that are left.
inline int rows_at_once(int left) {
  int some = MOST_ROWS;
  while (some > left) some /= 2;
  return some;
}

template <int BITS, int ROWS = MOST_ROWS>
inline void multiply_some(const uint8_t* tile, const Activations& x, int row, int rows, const Later& later, F* out) {
  if (rows == ROWS) return multiply<ROWS, BITS>(tile, x, row, later, out);
  if constexpr (ROWS > 1) multiply_some<BITS, ROWS / 2>(tile, x, row, rows, later, out);
}

// rows: as rows_at_once has them.
inline void multiply_tile(const Linear& linear, int tile, const Activations& x, int row, int rows, const Later& later,
                          F* out) {
  if (linear.bits == 4)
    multiply_some<4>(linear.tile(tile), x, row, rows, later, out);
  else
    multiply_some<8>(linear.tile(tile), x, row, rows, later, out);
  if (linear.bias != nullptr) {
    const F bias = load(linear.bias + tile * LANES);
    for (int r = 0; r < rows; ++r) out[r] = out[r] + bias;
  }
}

// Tiles that a thread takes in a row: few, so that threads end together, but where there are few rows not so few that
// dealing them out takes longer than multiplying.
inline int tiles_in_a_row(int tiles, int rows, int threads) {
  return std::max(1, std::min(MOST_ROWS / rows, tiles / (threads * 8)));
}

// All outputs of all rows; put(tile, row, values) is called for each 16, and fetch(n) says what to fetch beside the n-th
// product of a tile. By all threads of a team.
template <typename Put, typename Fetch>
inline void linear_stage(Team& team, const Linear& linear, const Activations& x, int rows, Put put, Fetch fetch) {
  const int tiles = linear.num_tiles(), parts = (rows + MOST_ROWS - 1) / MOST_ROWS;
  team.each_of(tiles, tiles_in_a_row(tiles, rows, team.size()), [&](int tile) {
    F out[MOST_ROWS];
    for (int row = 0, some; row < rows; row += some) {
      some = rows_at_once(rows - row);
      multiply_tile(linear, tile, x, row, some, fetch(tile * parts + row / MOST_ROWS), out);
      for (int r = 0; r < some; ++r) put(tile, row + r, out[r]);
    }
  });
}

inline Later nothing(int) { return {nullptr, nullptr, 0}; }

}  // namespace headrace
