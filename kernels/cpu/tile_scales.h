// The fp16 scales and minima at the head of a run of tiles, widened for 16 outputs.
#pragma once
#include "kernels/cpu/isa.h"

namespace edgellm {

struct TileScales {
  float scale[2][kPanel];    // one or two groups a tile
  float minimum[2][kPanel];  // what every code - offset is worth beyond scale: minimum + offset * scale

  // head: the run's first byte (layout.py: scales [groups][16], then minima).
  void read(const Format& f, const uint8_t* head, const Isa& isa) {
    const int groups = f.groups_per_tile();
    isa.from_half(reinterpret_cast<const uint16_t*>(head), scale[0], groups * kPanel);
    if (!f.minimum) return;
    isa.from_half(reinterpret_cast<const uint16_t*>(head) + groups * kPanel, minimum[0], groups * kPanel);
    for (int g = 0; g < groups; ++g)
      for (int out = 0; out < kPanel; ++out) minimum[g][out] += float(offset(f)) * scale[g][out];
  }
};

// Walks a panel's tiles: each(tile index, tile bytes, scales of its groups).
template <typename Each>
void for_tiles(const Format& f, const uint8_t* panel, const Isa& isa, Each each) {
  TileScales scales;
  for (int64_t tile = 0; tile < f.tiles(); ++tile) {
    if (tile % f.tiles_per_run() == 0) {
      scales.read(f, panel, isa);
      panel += f.scale_bytes();
    }
    each(tile, panel, scales);
    panel += f.tile_bytes();
  }
}

}  // namespace edgellm
