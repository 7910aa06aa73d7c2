// Rows of activations as NMMatMul reads them: normed, then int16, one scale per row and 64 inputs.
//
// Where one input dwarfs the others of its 64 (the massive activations of attention sinks, arXiv 2402.17762), what
// rounding left over becomes a second int16 plane, added by a second pass: rare, and 15 bits of the rest are kept.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/operators.h"
#include "kernels/cpu/rms_norm.h"

namespace edgellm {

constexpr float kDwarfed = 64;  // times the others' root mean square: above, a second plane

// Activations as int16: q [tile][row][64], scale [tile][row], sum and codes [tile][group][row]. rest and rest_scale, like
// q and scale, are the second plane; rest_scale is 0 where there is none.
struct Rows {
  std::vector<int16_t> q, rest;
  std::vector<float> scale, rest_scale, sum;
  std::vector<int32_t> codes;
  int64_t rows = 0, groups = 1;  // groups a tile
  bool any_rest = false;

  Row row(int64_t i) const { return {&q[size_t(i * kTile)], &scale[size_t(i)], &sum[size_t(i)], &codes[size_t(i)], rows}; }

  // x [count, f.k_in], normed first where `fused` says so. decoded: a decoder will read q, which is arranged for it.
  void quantize(const Format& f, const float* x, int64_t count, const Fused& fused, bool decoded, const Isa& isa,
                const Pool& pool) {
    const int64_t tiles = f.tiles();
    rows = count;
    groups = f.groups_per_tile();
    q.resize(size_t(tiles * rows * kTile));
    rest.resize(q.size());
    scale.resize(size_t(tiles * rows));
    rest_scale.resize(scale.size());
    sum.resize(size_t(groups * tiles * rows));
    codes.resize(sum.size());
    const int64_t step = rows < 16 ? rows : 16;
    auto some = [&](size_t task) {
      static thread_local std::vector<float> normed;
      const int64_t end = std::min(rows, int64_t(task + 1) * step);
      for (int64_t row = int64_t(task) * step; row < end; ++row) {
        const float* from = x + row * f.k_in;
        if (fused.norm) {
          normed.resize(size_t(f.k_in));
          rms_norm(from, fused.norm, fused.epsilon, f.k_in, normed.data());
          from = normed.data();
        }
        for (int64_t tile = 0; tile < tiles; ++tile) {
          one(from + tile * kTile, tile, row, isa);
          if (decoded) isa.arrange(f, &q[size_t((tile * rows + row) * kTile)]);
        }
      }
    };
    parallel(pool, size_t((rows + step - 1) / step), some);
    any_rest = std::any_of(rest_scale.begin(), rest_scale.end(), [](float one) { return one > 0; });
  }

 private:
  void one(const float* x, int64_t tile, int64_t row, const Isa& isa) {
    const int64_t at = tile * rows + row;
    const Part part = isa.quantize(x, &q[size_t(at * kTile)], nullptr);
    scale[size_t(at)] = part.scale;
    for (int64_t g = 0; g < groups; ++g) {
      const size_t to = size_t((groups * tile + g) * rows + row);
      sum[to] = groups == 2 ? part.sum[g] : part.sum[0] + part.sum[1];
      codes[to] = groups == 2 ? part.codes[g] : part.codes[0] + part.codes[1];
    }
    const float most = kTop * part.scale;
    const float others = std::sqrt(std::fmax(0.0f, part.squares - most * most) / (kTile - 1));
    rest_scale[size_t(at)] = 0;
    if (most > kDwarfed * others && std::isfinite(part.squares)) {
      float left[kTile];
      isa.quantize(x, &rest[size_t(at * kTile)], left);
      rest_scale[size_t(at)] = isa.quantize(left, &rest[size_t(at * kTile)], nullptr).scale;
    }
  }
};

}  // namespace edgellm
