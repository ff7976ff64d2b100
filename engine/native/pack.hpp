// Quantised blocks of GGUF files into the tiles of linear.hpp, without a detour over an array of codes: what
// engine/loaders/blocks.py reads of the simple formats, each 32 weights, w = scale * code + least.
#pragma once

#include "linear.hpp"

#include <cstring>

namespace headrace {

// What a block is read as.
struct Group {
  uint8_t codes[GROUP];
  uint16_t scale, least;  // halves
};

// half * -(2^power), exact but for what is too large for a half: that is infinite.
inline uint16_t times_minus(uint16_t half, int power) {
  const uint16_t sign = (half ^ 0x8000u) & 0x8000u;
  uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31) return static_cast<uint16_t>(sign | (half & 0x7fffu));
  if (exponent == 0) {
    if (fraction == 0) return sign;
    for (; power > 0 && fraction < 1024; --power) fraction <<= 1;
    if (fraction < 1024) return static_cast<uint16_t>(sign | fraction);
    exponent = 1, fraction &= 1023;
  }
  exponent += static_cast<uint32_t>(power);
  return static_cast<uint16_t>(exponent > 30 ? sign | 0x7c00u : sign | exponent << 10 | fraction);
}

inline uint16_t half_at(const uint8_t* at) {
  uint16_t found;
  std::memcpy(&found, at, 2);
  return found;
}

inline void read_nibbles(Group& to, const uint8_t* from) {
  for (int i = 0; i < GROUP / 2; ++i) to.codes[i] = from[i] & 15, to.codes[i + GROUP / 2] = from[i] >> 4;
}

inline void add_fifth_bits(Group& to, const uint8_t* from) {
  uint32_t bits;
  std::memcpy(&bits, from, 4);
  for (int i = 0; i < GROUP; ++i) to.codes[i] = static_cast<uint8_t>(to.codes[i] | (bits >> i & 1) << 4);
}

struct Q4_0 {
  static constexpr int BYTES = 18;
  static void read(Group& to, const uint8_t* block) {
    to.scale = half_at(block), to.least = times_minus(to.scale, 3);
    read_nibbles(to, block + 2);
  }
};

struct Q4_1 {
  static constexpr int BYTES = 20;
  static void read(Group& to, const uint8_t* block) {
    to.scale = half_at(block), to.least = half_at(block + 2);
    read_nibbles(to, block + 4);
  }
};

struct Q5_0 {
  static constexpr int BYTES = 22;
  static void read(Group& to, const uint8_t* block) {
    to.scale = half_at(block), to.least = times_minus(to.scale, 4);
    read_nibbles(to, block + 6);
    add_fifth_bits(to, block + 2);
  }
};

struct Q5_1 {
  static constexpr int BYTES = 24;
  static void read(Group& to, const uint8_t* block) {
    to.scale = half_at(block), to.least = half_at(block + 2);
    read_nibbles(to, block + 8);
    add_fifth_bits(to, block + 4);
  }
};

struct Q8_0 {
  static constexpr int BYTES = 34;
  static void read(Group& to, const uint8_t* block) {
    to.scale = half_at(block), to.least = times_minus(to.scale, 7);
    for (int i = 0; i < GROUP; ++i) to.codes[i] = block[2 + i] ^ 128;
  }
};

// A group of one output in its tile. to: the tile's group.
inline void place(uint8_t* to, int lane, int bits, const Group& group) {
  uint8_t both[GROUP / 2];
  const uint8_t* codes = group.codes;
  if (bits == 4) {
    for (int i = 0; i < GROUP / 2; ++i) both[i] = static_cast<uint8_t>(group.codes[i] | group.codes[i + GROUP / 2] << 4);
    codes = both;
  }
  const int quads = QUADS * bits / 8, bytes = group_bytes(bits);
  for (int q = 0; q < quads; ++q) std::memcpy(to + 4 * LANES * q + 4 * lane, codes + 4 * q, 4);
  std::memcpy(to + bytes - 4 * LANES + 2 * lane, &group.scale, 2);
  std::memcpy(to + bytes - 2 * LANES + 2 * lane, &group.least, 2);
}

// Where outputs go: `rows` of them from first_out on, in a matrix of `in` inputs. Row r is what read(group, s, g) gives
// for s = order[r], or r where there is no order.
struct Place {
  uint8_t* tiles;
  int in, rows, first_out, bits;
  const int64_t* order;

  template <typename Read>
  void fill(Read read) const {
    const int groups = in / GROUP, bytes = group_bytes(bits);
    Group group;
    for (int row = 0; row < rows; ++row) {
      const int64_t source = order == nullptr ? row : order[row];
      const int out = first_out + row;
      uint8_t* to = tiles + static_cast<int64_t>(out / LANES) * groups * bytes;
      for (int g = 0; g < groups; ++g, to += bytes) {
        read(group, source, g);
        place(to, out % LANES, bits, group);
      }
    }
  }

  template <typename Format>
  void fill_from(const uint8_t* blocks) const {
    const int64_t in_row = in / GROUP;
    fill([&](Group& to, int64_t row, int g) { Format::read(to, blocks + (row * in_row + g) * Format::BYTES); });
  }

  // kind: its number in GGUF files. False: none of these.
  bool fill_from(const uint8_t* blocks, int kind) const {
    switch (kind) {
      case 2: return fill_from<Q4_0>(blocks), true;
      case 3: return fill_from<Q4_1>(blocks), true;
      case 6: return fill_from<Q5_0>(blocks), true;
      case 7: return fill_from<Q5_1>(blocks), true;
      case 8: return fill_from<Q8_0>(blocks), true;
      default: return false;
    }
  }
};

}  // namespace headrace
