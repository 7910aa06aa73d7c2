// QuantGather: y[t, i] = w[ids[t], i], from the tiles that NMMatMul multiplies by (a tied embedding is stored once).
#include "kernels/cpu/isa.h"
#include "kernels/cpu/operators.h"
#include "kernels/cpu/tile_scales.h"

namespace edgellm {

bool quant_gather(const Format& f, const int64_t* ids, int64_t count, const uint8_t* tiles, float* y,
                  const Pool& pool) {
  for (int64_t t = 0; t < count; ++t)
    if (ids[t] < 0 || ids[t] >= f.n_out) return false;
  const Isa& isa = edgellm::isa();
  auto one = [&](size_t t) {
    const int out = int(ids[t] % kPanel), groups = f.groups_per_tile(), width = kTile / groups;
    const uint8_t* panel = tiles + size_t(ids[t] / kPanel) * f.panel_bytes();
    float* row = y + int64_t(t) * f.k_in;
    for_tiles(f, panel, isa, [&](int64_t tile, const uint8_t* bytes, const TileScales& s) {
      int8_t weight[kPanel * kTile], kept[kPanel * kTile];
      isa.unpack(f, bytes, weight, f.minimum ? kept : nullptr);
      for (int i = 0; i < kTile; ++i) {
        const int at = (i / 4 * kPanel + out) * 4 + i % 4, g = i / width;
        row[tile * kTile + i] = s.scale[g][out] * weight[at] + (f.minimum && kept[at] ? s.minimum[g][out] : 0.0f);
      }
    });
  };
  parallel(pool, size_t(count), one);
  return true;
}

}  // namespace edgellm
