// Attention over the paged cache, for single tokens and for chunks of prompts alike.
//
// Keys and values are bfloat16, in pairs, the way one instruction multiplies them. For one block, one kv head and each 16
// of the block's keys:
//
//     keys:    [head_dim / 2][16 keys][2]     a pair: dimensions 2 i and 2 i + 1 of one key
//     values:  [8][head_dim][2]               a pair: keys 2 j and 2 j + 1 in one dimension
//
// A task is some tokens of one sequence and some query heads that share a kv head: its rows. They go over the keys
// together: all scores, then their exponentials, then the sum of values; so keys and values are read once for all rows,
// and a row's sums do not depend on what else is in the step.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "lanes.hpp"
#include "linear.hpp"

namespace headrace {

struct Cache {
  uint16_t* keys;  // [blocks, kv_heads, block_size, head_dim], each [block_size, head_dim] as above
  uint16_t* values;
};

struct Heads {
  int32_t heads, kv_heads, head_dim, block_size;

  int group() const { return heads / kv_heads; }
  // Query heads of a task: all that share a kv head, or equal parts of them.
  int heads_of_task() const {
    int most = std::min(group(), MOST_QUERIES);
    while (group() % most != 0) --most;
    return most;
  }
  // Where 16 keys begin. at: of the first, in its block.
  int64_t place(int block, int kv_head, int at) const {
    return ((static_cast<int64_t>(block) * kv_heads + kv_head) * block_size + at / LANES * LANES) * head_dim;
  }
};

struct Task {
  int32_t seq, first_row, rows;  // rows: of one token each, of those that are computed
};

struct Scratch {  // of one thread
  std::vector<uint16_t> queries, weights;
  std::vector<float> scores;
};

// clears: it is the last of its sequence so far, and what an earlier one left in the block behind it is multiplied with
// weights of zero, so it must be finite.
inline void write_key(const Heads& h, const Cache& cache, int slot, int kv_head, const float* key, const float* value,
                      bool clears) {
  const int block = slot / h.block_size, at = slot % h.block_size, lane = at % LANES;
  uint16_t* keys = cache.keys + h.place(block, kv_head, at);
  uint16_t* values = cache.values + h.place(block, kv_head, at);
  if (clears)
    for (int other = lane + 1; other < LANES; ++other)
      for (int d = 0; d < h.head_dim; ++d) values[(other / 2 * h.head_dim + d) * 2 + other % 2] = 0;
  uint16_t narrow[LANES];
  for (int d = 0; d < h.head_dim; d += LANES) {
    store_bf16(narrow, load(key + d));
    for (int i = 0; i < LANES; i += 2) std::memcpy(keys + ((d + i) / 2 * LANES + lane) * 2, narrow + i, 4);
    store_bf16(narrow, load(value + d));
    store_halves_of_pairs(values + (lane / 2 * h.head_dim + d) * 2, narrow, lane % 2 != 0);
  }
}

constexpr int AHEAD = 4;  // turns of 16 keys: memory takes longer to answer than one or two of them

// Scores of 16 keys for each row. next, values: keys to come and values of these, somewhere else in memory: fetched
// meanwhile.
template <int ROWS>
inline void score(const uint16_t* keys, const uint16_t* next, const uint16_t* values, const uint16_t* queries,
                  int head_dim, F* out) {
  F even[ROWS], odd[ROWS];  // two chains of sums each: the instruction takes several cycles
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) even[r] = odd[r] = zeros();
  for (int d = 0; d < head_dim; d += 4) {
    const I first = load_pairs(keys + d * LANES), second = load_pairs(keys + (d + 2) * LANES);
    prefetch(next + d * LANES);
    prefetch(next + (d + 2) * LANES);
    prefetch(values + d * LANES);
    prefetch(values + (d + 2) * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      even[r] = dot_bf16(even[r], first, queries + r * head_dim + d);
      odd[r] = dot_bf16(odd[r], second, queries + r * head_dim + d + 2);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) out[r] = even[r] + odd[r];
}

// queries: [ROWS, head_dim] floats, row r at rows[r], of the token at positions[r]. put(row, d, first, second): dimensions
// d .. d + 31 of the result.
template <int ROWS, typename Put>
inline void attend(const Heads& h, const Cache& cache, const int32_t* table, int kv_head, const float* const* rows,
                   const int32_t* positions, float scale, int window, Scratch& scratch, Put put) {
  const int lowest = window > 0 ? std::max(positions[0] + 1 - window, 0) : 0;
  const int begin = lowest / LANES * LANES;
  const int turns = (positions[ROWS - 1] + 1 - begin + LANES - 1) / LANES, width = turns * LANES;
  scratch.queries.resize(static_cast<size_t>(ROWS) * h.head_dim);
  if (scratch.scores.size() < static_cast<size_t>(ROWS) * width) {
    scratch.scores.resize(static_cast<size_t>(ROWS) * width);
    scratch.weights.resize(static_cast<size_t>(ROWS) * width);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int d = 0; d < h.head_dim; d += LANES) store_bf16(&scratch.queries[r * h.head_dim + d], load(rows[r] + d) * all(scale * LOG2_E));

  const auto place = [&](int turn) {
    const int key = begin + std::min(turn, turns - 1) * LANES;
    return h.place(table[key / h.block_size], kv_head, key % h.block_size);
  };
  for (int turn = 0; turn < AHEAD; ++turn)
    for (int d = 0; d < h.head_dim; d += 2) prefetch(cache.keys + place(turn) + d * LANES);
  F tops[ROWS];
  for (int r = 0; r < ROWS; ++r) tops[r] = all(-std::numeric_limits<float>::infinity());
  for (int turn = 0; turn < turns; ++turn) {
    const int key = begin + turn * LANES;
    F found[ROWS];
    score<ROWS>(cache.keys + place(turn), cache.keys + place(turn + AHEAD), cache.values + place(turn),
                scratch.queries.data(), h.head_dim, found);
    for (int r = 0; r < ROWS; ++r) {
      F scores = found[r];
      const int end = positions[r] + 1 - key, first = window > 0 ? positions[r] + 1 - window - key : 0;
      if (end < LANES || first > 0) scores = only(scores, first, end, -std::numeric_limits<float>::infinity());
      tops[r] = larger(tops[r], scores);
      store(&scratch.scores[static_cast<size_t>(r) * width + turn * LANES], scores);
    }
  }
  float shares[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    const F top = all(largest_of(tops[r]));
    F total = zeros();
    for (int at = 0; at < width; at += LANES) {
      const size_t own = static_cast<size_t>(r) * width + at;
      // Of scores of minus infinity, and of those far below the top: too small to count.
      const F weights = exp2_of(load(&scratch.scores[own]) - top);
      total = total + weights;
      store_bf16(&scratch.weights[own], weights);
    }
    shares[r] = 1.0f / sum_of(total);
  }
  for (int d = 0; d < h.head_dim; d += 2 * LANES) {
    F first[ROWS], second[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) first[r] = second[r] = zeros();
    for (int turn = 0; turn < turns; ++turn) {
      const uint16_t *values = cache.values + place(turn) + 2 * d, *next = cache.values + place(turn + 1) + 2 * d;
      const uint16_t* weights = scratch.weights.data() + turn * LANES;
      for (int pair = 0; pair < LANES / 2; ++pair, values += 2 * h.head_dim, next += 2 * h.head_dim) {
        const I left = load_pairs(values), right = load_pairs(values + 2 * LANES);
        prefetch(next);
        prefetch(next + 2 * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
          const uint16_t* both = weights + static_cast<size_t>(r) * width + 2 * pair;
          first[r] = dot_bf16(first[r], left, both);
          second[r] = dot_bf16(second[r], right, both);
        }
      }
    }
    for (int r = 0; r < ROWS; ++r) put(r, d, first[r] * all(shares[r]), second[r] * all(shares[r]));
  }
}

}  // namespace headrace
