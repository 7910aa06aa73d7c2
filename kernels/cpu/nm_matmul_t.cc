// NMMatMulT: dx[t, i] = sum_o dy[t, o] * w[o, i], the way back through NMMatMul, from the same packed tiles.
//
//   w[o, i] = scale[o, g] * (code[o, i] - offset) + minimum'[o, g] where it is kept, float32 throughout
//
// A part is one column of tiles (64 inputs) for a block of rows: every tile of it is unpacked once, for all these rows.
#include <algorithm>

#include "kernels/cpu/operators.h"
#include "kernels/cpu/tile_scales.h"

namespace edgellm {
namespace {

constexpr int kRowBlock = 64;  // sums of 64 rows and inputs stay in the first cache beside a tile

// A tile as float [16 outputs][64 inputs], from int8 in quad order (isa.h).
void widen(const Format& f, const uint8_t* bytes, const TileScales& s, const Isa& isa, float* w) {
  alignas(64) int8_t weight[kPanel * kTile], kept[kPanel * kTile];
  isa.unpack(f, bytes, weight, f.minimum ? kept : nullptr);
  const int quads = 16 / f.groups_per_tile();
  for (int quad = 0; quad < 16; ++quad) {
    const int g = quad / quads;
    for (int out = 0; out < kPanel; ++out)
      for (int i = 0; i < 4; ++i) {
        const int at = (quad * kPanel + out) * 4 + i;
        const float least = f.minimum ? s.minimum[g][out] * float(kept[at]) : 0.0f;
        w[out * kTile + quad * 4 + i] = s.scale[g][out] * float(weight[at]) + least;
      }
  }
}

}  // namespace

void nm_matmul_t(const Format& f, const float* dy, int64_t rows, const uint8_t* tiles, float* dx, const Pool& pool) {
  const Isa& isa = edgellm::isa();
  const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
  auto part = [&](size_t task) {
    alignas(64) float w[kPanel * kTile], sum[kRowBlock * kTile];
    TileScales scales;
    const int64_t tile = int64_t(task) / blocks, first = int64_t(task) % blocks * kRowBlock;
    const int64_t run = tile / f.tiles_per_run(), inner = tile % f.tiles_per_run();
    const int count = int(std::min<int64_t>(kRowBlock, rows - first));
    std::fill(sum, sum + count * kTile, 0.0f);
    for (int64_t panel = 0; panel < f.panels(); ++panel) {
      const uint8_t* head = tiles + size_t(panel) * f.panel_bytes() + size_t(run) * f.run_bytes();
      scales.read(f, head, isa);
      widen(f, head + f.scale_bytes() + size_t(inner) * f.tile_bytes(), scales, isa, w);
      const int outputs = int(std::min<int64_t>(kPanel, f.n_out - panel * kPanel));
      // What attention does to values: sum[t] += sum_o dy[t, o] * w[o].
      isa.mix(dy + first * f.n_out + panel * kPanel, int(f.n_out), count, w, outputs, kTile, sum);
    }
    for (int row = 0; row < count; ++row)
      std::copy_n(sum + row * kTile, kTile, dx + (first + row) * f.k_in + tile * kTile);
  };
  parallel(pool, size_t(f.tiles() * blocks), part);
}

}  // namespace edgellm
