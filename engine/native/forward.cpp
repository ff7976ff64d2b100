// The forward pass of the Llama family on CPUs, from token ids to hidden states, and from those to logits, in one call.
// Called by decoder.py through ctypes; all memory but what a step works in belongs to the caller.
//
//     residual = embedding of ids                                       float32
//     for each layer, stage by stage, each shared out among the threads:
//         x = norm(residual), quantised
//         qkv = x W
//         norm and rotate q and k, write k and v to the cache
//         the last layer goes on with the rows that are asked for
//         x = attention, quantised
//         residual += x W
//         x = norm(residual), quantised
//         y = silu(x W_gate) * (x W_up), quantised
//         residual += y W
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "attention.hpp"
#include "draw.hpp"
#include "lanes.hpp"
#include "linear.hpp"
#include "pack.hpp"
#include "team.hpp"

namespace headrace {

struct Layer {
  const float *attn_norm, *ffn_norm;
  const float *q_norm, *k_norm;  // [head_dim], or none
  Linear qkv, o, gate_up, down;  // gate_up: the rows of gate, then those of up
  Cache cache;
  int32_t window;  // 0: none
  int32_t rotates;
};

struct Shape {
  Heads heads;
  int32_t hidden, ffn, num_layers;
  int32_t max_tokens, threads;
  float eps;
};

struct Step {
  const int64_t *ids, *positions, *slots;  // [tokens]; slots: block * block_size + place in it
  const int32_t *starts, *kv_lens;         // [seqs + 1], [seqs]
  const int32_t* tables;                   // [seqs, table_width]
  const int64_t* asked;                    // [num_asked], ascending, each once: tokens whose hidden states are wanted
  int32_t tokens, seqs, table_width, num_asked;
};

// What a layer computes once keys and values are written.
struct Rows {
  const int64_t* tokens;  // [count], ascending; or none: all
  int32_t count;
  std::vector<Task> tasks;  // of attention

  int token(int row) const { return tokens == nullptr ? row : static_cast<int>(tokens[row]); }
};

// The embedding of a token: an output of the tiles that multiply.
inline void unpack(const Linear& table, int64_t id, float* to) {
  const int bytes = group_bytes(table.bits), lane = static_cast<int>(id % LANES);
  const uint8_t* group = table.tile(static_cast<int>(id / LANES));
  for (int g = 0; g < table.in / GROUP; ++g, group += bytes) {
    float scales[LANES], least[LANES];
    store(scales, load_halves(group + bytes - 4 * LANES));
    store(least, load_halves(group + bytes - 2 * LANES));
    for (int i = 0; i < GROUP; ++i) {
      const int quad = i / 4, byte = lane * 4 + i % 4;
      const int code = table.bits == 8 ? group[64 * quad + byte] : group[64 * (quad % 4) + byte] >> (quad / 4 * 4) & 15;
      to[g * GROUP + i] = scales[lane] * static_cast<float>(code) + least[lane];
    }
  }
}

inline float inverse_rms(const float* x, int size, float eps) {
  F squares = zeros();
  for (int i = 0; i < size; i += LANES) squares = mul_add(load(x + i), load(x + i), squares);
  return 1.0f / std::sqrt(sum_of(squares) / static_cast<float>(size) + eps);
}

class Model {
 public:
  Model(const Shape& shape, const Layer* layers, const Linear& embed, const Linear& head, const float* final_norm,
        const float* cos, const float* sin)
      : shape_(shape),
        layers_(layers, layers + shape.num_layers),
        embed_(embed),
        head_(head),
        final_norm_(final_norm),
        cos_(cos),
        sin_(sin),
        team_(shape.threads),
        normed_(shape.max_tokens, shape.hidden),
        attended_(shape.max_tokens, shape.heads.heads * shape.heads.head_dim),
        gated_(shape.max_tokens, shape.ffn),
        qkv_(static_cast<size_t>(shape.max_tokens) * layers_[0].qkv.out) {}

  // residual: [tokens, hidden], to work in; its first rows become the hidden states before the final norm of those asked.
  void forward(const Step& step, float* residual) {
    set_rows(all_, step, nullptr, step.tokens);
    const bool all_asked = step.num_asked == step.tokens;
    if (!all_asked) set_rows(asked_, step, step.asked, step.num_asked);
    clears_.assign(step.tokens, 0);
    blocks_.clear();
    for (int s = 0; s < step.seqs; ++s) {
      const int start = step.starts[s], end = step.starts[s + 1];
      if (end - start == 1) {
        const int32_t* table = step.tables + static_cast<int64_t>(s) * step.table_width;
        blocks_.insert(blocks_.end(), table, table + (step.kv_lens[s] + shape_.heads.block_size - 1) / shape_.heads.block_size);
      }
      // A single token behind others in its block finds it cleared.
      if (end > start) clears_[end - 1] = end - start > 1 || step.slots[end - 1] % LANES == 0;
    }
    std::sort(blocks_.begin(), blocks_.end());  // a prefix that many share is fetched once
    blocks_.erase(std::unique(blocks_.begin(), blocks_.end()), blocks_.end());
    team_.run([&] {
      team_.each(step.tokens, [&](int t) { unpack(embed_, step.ids[t], residual + static_cast<int64_t>(t) * shape_.hidden); });
      for (const Layer& layer : layers_) {
        const Layer& next = &layer == &layers_.back() ? layers_.front() : (&layer)[1];
        norm(residual, layer.attn_norm, step.tokens);
        float* qkv = qkv_.data();
        const int width = layer.qkv.out;
        linear_stage(team_, layer.qkv, normed_.view, step.tokens, [&](int tile, int row, F values) {
          store(qkv + static_cast<int64_t>(row) * width + tile * LANES, values);
        }, nothing);
        // Neighbours of a prompt share cache lines, which threads would take from each other.
        team_.each_of(step.tokens, in_a_row(step.tokens), [&](int t) { rotate_and_write(layer, step, t); });
        // Behind the last layer's keys and values no row depends on another: what nobody asks for ends here.
        const bool drops = !all_asked && &layer == &layers_.back();
        const Rows& rows = drops ? asked_ : all_;
        if (rows.count == 0) break;
        attention(layer, step, rows);
        if (drops) team_.each(1, [&](int) { move_to_front(rows, residual); });
        add(layer.o, attended_.view, rows.count, residual, nothing);
        norm(residual, layer.ffn_norm, rows.count);
        // Attention waits for memory while products leave it idle: blocks of the next layer are fetched beside these.
        const int shared = gate_products(rows.count);
        gate(layer.gate_up, rows.count, [&](int n) { return block(next, n); });
        add(layer.down, gated_.view, rows.count, residual, [&](int n) { return block(next, shared + n); });
      }
    });
  }

  // Of hidden states before the final norm, [rows, hidden], at most max_tokens. logits: [rows, head.out].
  void head(const float* hidden, int rows, float* logits) {
    team_.run([&] {
      norm(hidden, final_norm_, rows);
      linear_stage(team_, head_, normed_.view, rows, [&](int tile, int row, F values) {
        store(logits + static_cast<int64_t>(row) * head_.out + tile * LANES, values);
      }, nothing);
    });
  }

 private:
  struct Buffer {
    Buffer(int rows, int in)
        : codes(static_cast<size_t>(rows) * in),
          scales(static_cast<size_t>(rows) * in / GROUP),
          sums(scales.size()),
          view{codes.data(), scales.data(), sums.data(), in} {}
    std::vector<int8_t> codes;
    std::vector<float> scales, sums;
    Activations view;
  };

  void set_rows(Rows& rows, const Step& step, const int64_t* tokens, int count) {
    rows.tokens = tokens;
    rows.count = count;
    rows.tasks.clear();
    const int together = std::max(1, WANTED_QUERIES / shape_.heads.heads_of_task());
    for (int s = 0, row = 0; s < step.seqs; ++s) {
      int end = row;
      while (end < count && rows.token(end) < step.starts[s + 1]) ++end;
      for (; row < end; row += rows.tasks.back().rows) rows.tasks.push_back({s, row, std::min(together, end - row)});
    }
  }

  void move_to_front(const Rows& rows, float* residual) {
    const size_t size = shape_.hidden;
    for (int row = 0; row < rows.count; ++row)
      if (const int token = rows.token(row); token != row)
        std::memcpy(residual + row * size, residual + token * size, size * sizeof(float));
  }

  // Rows that a thread takes in a row.
  int in_a_row(int rows) const { return std::min(LANES, std::max(1, rows / (team_.size() * 4))); }

  void norm(const float* from, const float* weight, int rows) {
    const int size = shape_.hidden;
    team_.each_of(rows, in_a_row(rows), [&](int row) {
      const float* x = from + static_cast<int64_t>(row) * size;
      const F scale = all(inverse_rms(x, size, shape_.eps));
      for (int g = 0; g < size / GROUP; ++g) {
        const int at = g * GROUP;
        quantise(normed_.view, row, g, load(x + at) * scale * load(weight + at),
                 load(x + at + LANES) * scale * load(weight + at + LANES));
      }
    });
  }

  template <typename Fetch>
  void add(const Linear& linear, const Activations& x, int rows, float* residual, Fetch fetch) {
    linear_stage(team_, linear, x, rows, [&](int tile, int row, F values) {
      float* at = residual + static_cast<int64_t>(row) * shape_.hidden + tile * LANES;
      store(at, load(at) + values);
    }, fetch);
  }

  // One head of q or k, in place.
  void turn(float* head, const float* weight, bool rotates, int64_t position) {
    const int size = shape_.heads.head_dim, half = size / 2;
    if (weight != nullptr) {
      const F scale = all(inverse_rms(head, size, shape_.eps));
      for (int d = 0; d < size; d += LANES) store(head + d, load(head + d) * scale * load(weight + d));
    }
    if (!rotates) return;
    const float *cos = cos_ + position * half, *sin = sin_ + position * half;
    for (int d = 0; d < half; d += LANES) {
      const F left = load(head + d), right = load(head + half + d), c = load(cos + d), s = load(sin + d);
      store(head + d, left * c - right * s);
      store(head + half + d, right * c + left * s);
    }
  }

  void rotate_and_write(const Layer& layer, const Step& step, int t) {
    const Heads& h = shape_.heads;
    float* q = qkv_.data() + static_cast<int64_t>(t) * layer.qkv.out;
    float *k = q + h.heads * h.head_dim, *v = k + h.kv_heads * h.head_dim;
    for (int i = 0; i < h.heads; ++i) turn(q + i * h.head_dim, layer.q_norm, layer.rotates, step.positions[t]);
    for (int i = 0; i < h.kv_heads; ++i) {
      turn(k + i * h.head_dim, layer.k_norm, layer.rotates, step.positions[t]);
      write_key(h, layer.cache, static_cast<int>(step.slots[t]), i, k + i * h.head_dim, v + i * h.head_dim,
                clears_[t] != 0);
    }
  }

  void attention(const Layer& layer, const Step& step, const Rows& rows) {
    const int some = shape_.heads.heads_of_task(), parts = shape_.heads.heads / some;
    team_.each(static_cast<int>(rows.tasks.size()) * parts, [&](int i) {
      static thread_local Scratch scratch;
      // The last tokens of a prompt see most: first, so that threads end together.
      const Task& task = rows.tasks[rows.tasks.size() - 1 - i / parts];
      const int first_head = i % parts * some, queries = task.rows * some;
      attend_some(queries, layer, step, rows, task, first_head, some, scratch);
    });
  }

  template <int ROWS = MOST_QUERIES>
  void attend_some(int queries, const Layer& layer, const Step& step, const Rows& rows, const Task& task, int first_head,
                   int heads, Scratch& scratch) {
    if (queries == ROWS) return attend_task<ROWS>(layer, step, rows, task, first_head, heads, scratch);
    if constexpr (ROWS > 1) attend_some<ROWS - 1>(queries, layer, step, rows, task, first_head, heads, scratch);
  }

  template <int ROWS>
  void attend_task(const Layer& layer, const Step& step, const Rows& rows, const Task& task, int first_head, int heads,
                   Scratch& scratch) {
    const Heads& h = shape_.heads;
    const float* queries[ROWS];
    int32_t positions[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      const int token = rows.token(task.first_row + r / heads);
      queries[r] = qkv_.data() + static_cast<int64_t>(token) * layer.qkv.out + (first_head + r % heads) * h.head_dim;
      positions[r] = static_cast<int32_t>(step.positions[token]);
    }
    const int32_t* table = step.tables + static_cast<int64_t>(task.seq) * step.table_width;
    const float scale = 1.0f / std::sqrt(static_cast<float>(h.head_dim));
    attend<ROWS>(h, layer.cache, table, first_head / h.group(), queries, positions, scale, layer.window, scratch,
                 [&](int r, int d, F first, F second) {
                   const int head = first_head + r % heads;
                   quantise(attended_.view, task.first_row + r / heads, (head * h.head_dim + d) / GROUP, first, second);
                 });
  }

  int gate_products(int rows) const { return shape_.ffn / GROUP * 4 * ((rows + MOST_ROWS - 1) / MOST_ROWS); }

  // The n-th of the blocks that attention will read: keys and values of all heads.
  Later block(const Layer& layer, int n) const {
    if (n >= static_cast<int>(blocks_.size())) return nothing(n);
    const int64_t at = shape_.heads.place(blocks_[n], 0, 0);
    const int numbers = shape_.heads.kv_heads * shape_.heads.block_size * shape_.heads.head_dim;
    return {layer.cache.keys + at, layer.cache.values + at, numbers * 2};
  }

  // gated = silu(gate) * up. By groups: two tiles of each.
  template <typename Fetch>
  void gate(const Linear& gate_up, int rows, Fetch fetch) {
    const int groups = shape_.ffn / GROUP, to_up = shape_.ffn / LANES;
    team_.each_of(groups, tiles_in_a_row(groups, 4 * rows, team_.size()), [&](int g) {
      F out[4][MOST_ROWS];
      for (int row = 0, some; row < rows; row += some) {
        some = rows_at_once(rows - row);
        for (int i = 0; i < 4; ++i) {
          const Later later = fetch((g * 4 + i) * ((rows + MOST_ROWS - 1) / MOST_ROWS) + row / MOST_ROWS);
          multiply_tile(gate_up, 2 * g + i % 2 + i / 2 * to_up, normed_.view, row, some, later, out[i]);
        }
        for (int r = 0; r < some; ++r) quantise(gated_.view, row + r, g, silu(out[0][r]) * out[2][r], silu(out[1][r]) * out[3][r]);
      }
    });
  }

  const Shape shape_;
  const std::vector<Layer> layers_;
  const Linear embed_, head_;
  const float *final_norm_, *cos_, *sin_;
  Team team_;
  Buffer normed_, attended_, gated_;
  std::vector<float> qkv_;
  Rows all_, asked_;
  std::vector<uint8_t> clears_;  // [tokens]
  std::vector<int32_t> blocks_;  // of sequences with one token in the step, each once
};

}  // namespace headrace

#define EXPORTED extern "C" __attribute__((visibility("default")))

using headrace::Layer;
using headrace::Linear;
using headrace::Model;
using headrace::Shape;
using headrace::Step;

EXPORTED int64_t headrace_packed_bytes(int32_t in, int32_t out, int32_t bits) {
  return static_cast<int64_t>(out / headrace::LANES) * (in / headrace::GROUP) * headrace::group_bytes(bits);
}

// codes: [rows, in], of at most `bits` bits; scales, least: [rows, in / GROUP] halves. Outputs from first_out on.
EXPORTED void headrace_pack(const uint8_t* codes, const uint16_t* scales, const uint16_t* least, int32_t in, int32_t rows,
                   int32_t first_out, int32_t bits, uint8_t* tiles) {
  const int64_t groups = in / headrace::GROUP;
  headrace::Place{tiles, in, rows, first_out, bits, nullptr}.fill([&](headrace::Group& to, int64_t row, int g) {
    std::memcpy(to.codes, codes + row * in + g * headrace::GROUP, headrace::GROUP);
    to.scale = scales[row * groups + g], to.least = least[row * groups + g];
  });
}

// The same from the blocks of a file; order: which row each output is, or none. False: a kind that is not read here.
EXPORTED bool headrace_pack_blocks(const uint8_t* blocks, int32_t kind, const int64_t* order, int32_t in, int32_t rows,
                          int32_t first_out, int32_t bits, uint8_t* tiles) {
  return headrace::Place{tiles, in, rows, first_out, bits, order}.fill_from(blocks, kind);
}

// logits: [rows, vocab]; temperatures: [rows]; keys: [rows, 2]; ids: [rows], which are drawn.
EXPORTED void headrace_draw(const float* logits, const float* temperatures, const uint32_t* keys, int32_t rows, int32_t vocab,
                   float max_gumbel, int64_t* ids) {
  for (int64_t row = 0; row < rows; ++row)
    ids[row] = headrace::draw(logits + row * vocab, vocab, temperatures[row], keys + 2 * row, max_gumbel);
}

// None where memory or threads are lacking.
EXPORTED Model* headrace_model(const Shape* shape, const Layer* layers, const Linear* embed, const Linear* head,
                      const float* final_norm, const float* cos, const float* sin) {
  try {
    return new Model(*shape, layers, *embed, *head, final_norm, cos, sin);
  } catch (...) {
    return nullptr;
  }
}

EXPORTED void headrace_free(Model* model) { delete model; }
EXPORTED void headrace_forward(Model* model, const Step* step, float* residual) { model->forward(*step, residual); }
EXPORTED void headrace_head(Model* model, const float* hidden, int32_t rows, float* logits) { model->head(hidden, rows, logits); }
