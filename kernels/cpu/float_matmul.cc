// Products in float32 throughout, for gradients: NMMatMul with exact = 1, and NMMatMulT, the way back through it.
//
//   y[t, o]  = sum_i x[t, i] * w[o, i] + bias[o]          dx[t, i] = sum_o dy[t, o] * w[o, i]
//   w[o, i] = scale[o, g] * (code[o, i] - offset) + minimum'[o, g] where it is kept
//
// Every tile is unpacked to floats once for a block of rows; then either product is what attention does to values
// (Isa::mix): terms[t] += sum_j p[t, j] * value[j]. Parts of kPart terms are summed by themselves: added one to another, a
// head's 49152 terms would lose two digits.
#include <algorithm>

#include "kernels/cpu/operators.h"
#include "kernels/cpu/tile_scales.h"

namespace edgellm {
namespace {

constexpr int kRowBlock = 64;  // their sums stay in the first cache beside a tile's weights
constexpr int kPart = 128;     // terms: two tiles of inputs, or eight panels of outputs
constexpr int kPanels = 4;     // of a product forwards: 64 outputs, so that many sums are under way at once

// One tile by Isa::widen_columns or widen_rows.
template <auto kWiden>
void widen(const Format& f, const uint8_t* bytes, const TileScales& s, const Isa& isa, float* w, int step, int quad_step) {
  alignas(64) int8_t weight[kPanel * kTile], kept[kPanel * kTile];
  const bool masked = f.minimum && f.sparse();
  isa.unpack(f, bytes, weight, masked ? kept : nullptr);
  const int groups = f.groups_per_tile(), quads = 16 / groups;
  for (int g = 0; g < groups; ++g) {
    const int skip = g * quads * kPanel * 4;
    (isa.*kWiden)(weight + skip, masked ? kept + skip : nullptr, quads, s.scale[g], f.minimum ? s.minimum[g] : nullptr,
                  w + g * quads * quad_step, step);
  }
}

// A tile's bytes; scales: those of its run.
const uint8_t* at(const Format& f, const uint8_t* tiles, int64_t panel, int64_t tile, TileScales& scales, const Isa& isa) {
  const int64_t run = tile / f.tiles_per_run(), inner = tile % f.tiles_per_run();
  const uint8_t* head = tiles + size_t(panel) * f.panel_bytes() + size_t(run) * f.run_bytes();
  scales.read(f, head, isa);
  return head + f.scale_bytes() + size_t(inner) * f.tile_bytes();
}

// sum += terms, which begin anew.
void close(float* terms, float* sum, int count) {
  for (int i = 0; i < count; ++i) sum[i] += terms[i];
  std::fill_n(terms, count, 0.0f);
}

int64_t blocks(int64_t rows) { return (rows + kRowBlock - 1) / kRowBlock; }

}  // namespace

void exact_matmul(const Format& f, const float* x, int64_t rows, const uint8_t* tiles, const float* bias, float* y,
                  const Pool& pool) {
  const Isa& isa = edgellm::isa();
  const int64_t wide = (f.panels() + kPanels - 1) / kPanels;
  auto part = [&](size_t task) {
    constexpr int kOut = kPanels * kPanel;
    alignas(64) float w[kTile * kOut] = {}, terms[kRowBlock * kOut] = {}, sum[kRowBlock * kOut] = {};
    TileScales scales[kPanels];
    const int64_t panel = int64_t(task) / blocks(rows) * kPanels, first = int64_t(task) % blocks(rows) * kRowBlock;
    const int count = int(std::min<int64_t>(kRowBlock, rows - first));
    const int panels = int(std::min<int64_t>(kPanels, f.panels() - panel));
    for (int64_t tile = 0; tile < f.tiles(); ++tile) {
      for (int i = 0; i < panels; ++i)
        widen<&Isa::widen_columns>(f, at(f, tiles, panel + i, tile, scales[i], isa), scales[i], isa, w + i * kPanel, kOut,
                                   4 * kOut);
      isa.mix(x + first * f.k_in + tile * kTile, int(f.k_in), count, w, kTile, kOut, terms);
      if ((tile + 1) % (kPart / kTile) == 0 || tile + 1 == f.tiles()) close(terms, sum, count * kOut);
    }
    const int outputs = int(std::min<int64_t>(kOut, f.n_out - panel * kPanel));
    for (int row = 0; row < count; ++row)
      for (int i = 0; i < outputs; ++i) {
        const int64_t out = panel * kPanel + i;
        y[(first + row) * f.n_out + out] = sum[row * kOut + i] + (bias ? bias[out] : 0.0f);
      }
  };
  parallel(pool, size_t(wide * blocks(rows)), part);
}

void nm_matmul_t(const Format& f, const float* dy, int64_t rows, const uint8_t* tiles, float* dx, const Pool& pool) {
  const Isa& isa = edgellm::isa();
  auto part = [&](size_t task) {
    alignas(64) float w[kPanel * kTile], terms[kRowBlock * kTile] = {}, sum[kRowBlock * kTile] = {};
    TileScales scales;
    const int64_t tile = int64_t(task) / blocks(rows), first = int64_t(task) % blocks(rows) * kRowBlock;
    const int count = int(std::min<int64_t>(kRowBlock, rows - first));
    for (int64_t panel = 0; panel < f.panels(); ++panel) {
      widen<&Isa::widen_rows>(f, at(f, tiles, panel, tile, scales, isa), scales, isa, w, kTile, 4);
      const int outputs = int(std::min<int64_t>(kPanel, f.n_out - panel * kPanel));
      isa.mix(dy + first * f.n_out + panel * kPanel, int(f.n_out), count, w, outputs, kTile, terms);
      if ((panel + 1) % (kPart / kPanel) == 0 || panel + 1 == f.panels()) close(terms, sum, count * kTile);
    }
    for (int row = 0; row < count; ++row)
      std::copy_n(sum + row * kTile, kTile, dx + (first + row) * f.k_in + tile * kTile);
  };
  parallel(pool, size_t(f.tiles() * blocks(rows)), part);
}

}  // namespace edgellm
