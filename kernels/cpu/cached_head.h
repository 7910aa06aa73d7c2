// What attention multiplies with one KV head of a cache, in halves or in int8 codes and their scales (kv_row.h).
//
//   score:  s[row][j]  = q[row] . key[from + j]
//   mix:    y[row]    += sum_j s[row][j] * value[from + j]
#pragma once
#include <algorithm>
#include <vector>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kv_row.h"

namespace edgellm {

constexpr int64_t kBlock = 64;     // slots at once, at most: as floats, of 64 dimensions, they fit L1
constexpr int64_t kUnwidened = 8;  // rows that read the cache itself; more share keys and values that were widened once

struct CachedHead {
  const KVCache& cache;
  const Seen& seen;
  int64_t head;
  int dim;
  const Isa& isa;

  // q [rows, dim], s [rows] of n slots each, `stride` apart.
  void score(const float* q, int rows, int64_t from, int64_t n, float* s, int stride) const {
    each_run(cache.key, from, n, [&](const uint8_t* keys, int64_t at, int size) {
      if (rows > kUnwidened)
        isa.scores(q, rows, widened(keys, size), size, dim, s + at, stride);
      else if (cache.int8)
        isa.scores_int8(q, rows, reinterpret_cast<const int8_t*>(keys), size, dim, s + at, stride);
      else
        isa.scores_half(q, rows, reinterpret_cast<const uint16_t*>(keys), size, dim, s + at, stride);
      if (cache.int8) times_scales(keys, size, s + at, rows, stride);
    });
  }

  // y [rows, dim]. s may change.
  void mix(float* s, int rows, int64_t from, int64_t n, float* y, int stride) const {
    each_run(cache.value, from, n, [&](const uint8_t* values, int64_t at, int size) {
      if (cache.int8) times_scales(values, size, s + at, rows, stride);
      if (rows > kUnwidened)
        isa.mix(s + at, stride, rows, widened(values, size), size, dim, y);
      else if (cache.int8)
        isa.mix_int8(s + at, stride, rows, reinterpret_cast<const int8_t*>(values), size, dim, y);
      else
        isa.mix_half(s + at, stride, rows, reinterpret_cast<const uint16_t*>(values), size, dim, y);
    });
  }

 private:
  // body(where they lie, first, count) for the runs of n slots from `from` on that lie side by side, as committed and
  // staged ones each do.
  template <typename Body>
  void each_run(void* buffer, int64_t from, int64_t n, Body body) const {
    const auto run = [&](int64_t at, int64_t size) {
      body(cache.row(buffer, head, seen.slot(from + at), dim), at, int(size));
    };
    const int64_t split = std::max<int64_t>(0, std::min(n, seen.committed - from));
    if (split) run(0, split);
    if (split < n) run(split, n - split);
  }

  // Slots side by side as floats, codes without their scales; until the next call.
  const float* widened(const uint8_t* slots, int count) const {
    static thread_local std::vector<float> wide;  // grows to the largest once, then stays
    wide.resize(size_t(kBlock * dim));
    if (!cache.int8) isa.from_half(reinterpret_cast<const uint16_t*>(slots), wide.data(), count * dim);
    for (int j = 0; cache.int8 && j < count; ++j, slots += cache.row_bytes(dim))
      isa.from_int8(reinterpret_cast<const int8_t*>(slots), &wide[size_t(j * dim)], dim);
    return wide.data();
  }

  // All rows of s times the scales of n slots side by side, which products of codes lack.
  void times_scales(const uint8_t* slots, int n, float* s, int rows, int stride) const {
    float scale[kBlock];
    for (int j = 0; j < n; ++j, slots += cache.row_bytes(dim)) scale[j] = scale_of(slots, dim);
    for (int row = 0; row < rows; ++row, s += stride)
      for (int j = 0; j < n; ++j) s[j] *= scale[j];
  }
};

}  // namespace edgellm
