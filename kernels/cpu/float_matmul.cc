// Products in float32 throughout, for gradients: NMMatMul with exact = 1, and NMMatMulT, the way back through it.
//
//   y[t, o]  = sum_i x[t, i] * w[o, i] + bias[o]          dx[t, i] = sum_o dy[t, o] * w[o, i]
//   w[o, i] = scale[o, g] * (code[o, i] - offset) + minimum'[o, g] where it is kept
//
// Every tile is unpacked to floats once for a block of rows; then either product is what attention does to values
// (Isa::mix): sum[t] += sum_j p[t, j] * value[j].
#include <algorithm>

#include "kernels/cpu/operators.h"
#include "kernels/cpu/tile_scales.h"

namespace edgellm {
namespace {

constexpr int kRowBlock = 64;  // their sums stay in the first cache beside a tile

// A tile as floats: w[out * out_step + in * in_step], from int8 in quad order (isa.h).
template <int kOutStep, int kInStep>
void widen(const Format& f, const uint8_t* bytes, const TileScales& s, const Isa& isa, float* w) {
  alignas(64) int8_t weight[kPanel * kTile], kept[kPanel * kTile];
  isa.unpack(f, bytes, weight, f.minimum ? kept : nullptr);
  const int quads = 16 / f.groups_per_tile();
  for (int quad = 0; quad < 16; ++quad) {
    const float *scale = s.scale[quad / quads], *minimum = s.minimum[quad / quads];
    float* to = w + quad * 4 * kInStep;
    const int8_t *from = weight + quad * kPanel * 4, *mask = kept + quad * kPanel * 4;
    for (int out = 0; out < kPanel; ++out)
      for (int i = 0; i < 4; ++i) to[out * kOutStep + i * kInStep] = scale[out] * float(from[out * 4 + i]);
    if (!f.minimum) continue;
    for (int out = 0; out < kPanel; ++out)
      for (int i = 0; i < 4; ++i) to[out * kOutStep + i * kInStep] += minimum[out] * float(mask[out * 4 + i]);
  }
}

int64_t blocks(int64_t rows) { return (rows + kRowBlock - 1) / kRowBlock; }

}  // namespace

void exact_matmul(const Format& f, const float* x, int64_t rows, const uint8_t* tiles, const float* bias, float* y,
                  const Pool& pool) {
  const Isa& isa = edgellm::isa();
  auto part = [&](size_t task) {
    alignas(64) float w[kTile * kPanel], sum[kRowBlock * kPanel];
    const int64_t panel = int64_t(task) / blocks(rows), first = int64_t(task) % blocks(rows) * kRowBlock;
    const int64_t out = panel * kPanel;
    const int count = int(std::min<int64_t>(kRowBlock, rows - first)), outputs = int(std::min<int64_t>(kPanel, f.n_out - out));
    std::fill(sum, sum + count * kPanel, 0.0f);
    for_tiles(f, tiles + size_t(panel) * f.panel_bytes(), isa, [&](int64_t tile, const uint8_t* bytes, const TileScales& s) {
      widen<1, kPanel>(f, bytes, s, isa, w);
      isa.mix(x + first * f.k_in + tile * kTile, int(f.k_in), count, w, kTile, kPanel, sum);
    });
    for (int row = 0; row < count; ++row)
      for (int i = 0; i < outputs; ++i)
        y[(first + row) * f.n_out + out + i] = sum[row * kPanel + i] + (bias ? bias[out + i] : 0.0f);
  };
  parallel(pool, size_t(f.panels() * blocks(rows)), part);
}

void nm_matmul_t(const Format& f, const float* dy, int64_t rows, const uint8_t* tiles, float* dx, const Pool& pool) {
  const Isa& isa = edgellm::isa();
  auto part = [&](size_t task) {
    alignas(64) float w[kPanel * kTile], sum[kRowBlock * kTile];
    TileScales scales;
    const int64_t tile = int64_t(task) / blocks(rows), first = int64_t(task) % blocks(rows) * kRowBlock;
    const int64_t run = tile / f.tiles_per_run(), inner = tile % f.tiles_per_run();
    const int count = int(std::min<int64_t>(kRowBlock, rows - first));
    std::fill(sum, sum + count * kTile, 0.0f);
    for (int64_t panel = 0; panel < f.panels(); ++panel) {
      const uint8_t* head = tiles + size_t(panel) * f.panel_bytes() + size_t(run) * f.run_bytes();
      scales.read(f, head, isa);
      widen<kTile, 1>(f, head + f.scale_bytes() + size_t(inner) * f.tile_bytes(), scales, isa, w);
      const int outputs = int(std::min<int64_t>(kPanel, f.n_out - panel * kPanel));
      isa.mix(dy + first * f.n_out + panel * kPanel, int(f.n_out), count, w, outputs, kTile, sum);
    }
    for (int row = 0; row < count; ++row)
      std::copy_n(sum + row * kTile, kTile, dx + (first + row) * f.k_in + tile * kTile);
  };
  parallel(pool, size_t(f.tiles() * blocks(rows)), part);
}

}  // namespace edgellm
