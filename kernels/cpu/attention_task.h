// Attention in the manner of FlashAttention and Flash-Decoding (arXiv 2205.14135, 2307.08691): blocks of slots with a
// running maximum, segments of blocks apart.
//
//   y[t, h] = sum_s softmax_s( scale * q[t, h] . key[h / group, s] ) value[h / group, s]
//   s over the slots seen by token t, in a sliding layer those of the last `window` positions
//
// For a segment S:  m = max_S logit,  l = sum_S exp(logit - m),  y' = sum_S exp(logit - m) value;
// two segments merge by scaling both to the larger m.
//
// Query heads that share a KV head pass together, so that its keys and values are read and widened once. Slots are
// cut into blocks and segments by their order alone: a token's result has the same bits whatever run it came in.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/cached_head.h"
#include "kernels/cpu/hadamard.h"
#include "kernels/cpu/partial.h"
#include "kernels/cpu/score.h"

namespace edgellm {

constexpr int64_t kSegment = 512;  // slots a task of decoding

// What one task works on: tokens [first, first + tokens) and query heads [lead, lead + width) of all; these share KV head
// `head`: row = token, query head.
struct Task {
  const Attention& a;
  const KVCache& cache;
  const Seen& seen;
  const Tokens& run;
  int64_t head, first, tokens, lead, width;

  int64_t rows() const { return tokens * width; }
  int64_t last() const { return seen.committed + first + tokens; }  // slots that the last token sees

  // Rotated and scaled queries, q [rows, dim].
  void rotate(float* q) const {
    for (int64_t row = 0; row < rows(); ++row) {
      const int64_t t = first + row / width;
      float* to = q + row * a.head_dim;
      turn(a, run, t, head_of(a, run, t, lead + row % width), run.q_norm, to);
      if (cache.int8) hadamard(to, a.head_dim);
      for (int64_t i = 0; i < a.head_dim; ++i) to[i] *= a.scale;
    }
  }

  // y's rows of this task, from the sums over all slots.
  void write(const Partial& sum, float* y) const {
    for (int64_t row = 0; row < rows(); ++row) {
      float* to = y + ((first + row / width) * a.heads + lead + row % width) * a.head_dim;
      for (int64_t i = 0; i < a.head_dim; ++i) to[i] = sum.y[size_t(row * a.head_dim + i)] / sum.total[size_t(row)];
    }
  }

  // Slots [begin, end), kSegment at most. paid: keeps the weights that votes need; null: there are none.
  //
  // Few rows go over all keys before the values: memory is then read in two long runs, whose pages are fetched ahead
  // (ahead.h). Block by block, keys and values took turns every two pages, and the next of either was fetched by halves:
  // 0.63 of the bandwidth where this has 0.735 (two threads of an Intel server, three rows of 64 dimensions, by hand). Many
  // rows' logits of so many slots would not fit the cache.
  void segment(const float* q, int64_t begin, int64_t end, Partial& out, Paid* paid, const Isa& isa) const {
    static thread_local std::vector<float> s;  // grows to the largest once, then stays
    const int64_t span = rows() <= kUnwidened ? kSegment : kBlock;
    const CachedHead cached{cache, seen, head, int(a.head_dim), isa};
    s.resize(size_t(rows() * span));
    const auto each_block = [&](int64_t first, auto body) {
      for (int64_t from = first; from < std::min(end, first + span); from += kBlock) {
        const int64_t n = std::min(kBlock, end - from);
        if (!a.window || near(from, n)) body(from, n, &s[size_t(from - first)]);
      }
    };
    for (int64_t first = begin; first < end; first += span) {
      each_block(first, [&](int64_t from, int64_t n, float* block) {
        cached.score(q, int(rows()), from, n, block, int(span));
      });
      each_block(first, [&](int64_t from, int64_t n, float* block) {
        for (int64_t row = 0; row < rows(); ++row) {
          weigh(row, from, n, block + row * span, out, isa);
          if (paid) paid->keep(row, from, n, block + row * span, out.most[size_t(row)]);
        }
        cached.mix(block, int(rows()), from, n, out.y.data(), int(span));
      });
    }
  }

 private:
  int64_t oldest(int64_t t) const { return run.positions[t] - a.window + 1; }

  // Whether any token of the task sees any of these slots.
  bool near(int64_t from, int64_t n) const {
    const int32_t* position = cache.position + head * cache.capacity;
    for (int64_t j = from; j < from + n; ++j)
      if (position[seen.slot(j)] >= oldest(first)) return true;
    return false;
  }

  // Logits s [n] of a row become weights relative to the row's maximum so far; unseen slots weigh 0.
  void weigh(int64_t row, int64_t from, int64_t n, float* s, Partial& out, const Isa& isa) const {
    const int64_t t = first + row / width, sees = seen.committed + t + 1;
    if (a.softcap > 0)
      for (int64_t j = 0; j < n; ++j) s[j] = a.softcap * std::tanh(s[j] / a.softcap);
    for (int64_t j = std::max<int64_t>(0, sees - from); j < n; ++j) s[j] = kNever;
    if (a.window) {
      const int32_t* position = cache.position + head * cache.capacity;
      for (int64_t j = 0; j < n; ++j)
        if (position[seen.slot(from + j)] < oldest(t)) s[j] = kNever;
    }
    const float most = std::max(out.most[size_t(row)], isa.largest(s, int(n)));
    out.raise(row, a.head_dim, most);
    if (most == kNever)
      std::fill(s, s + n, 0.0f);
    else
      out.total[size_t(row)] += isa.exponentials(s, int(n), most);
  }
};

}  // namespace edgellm
