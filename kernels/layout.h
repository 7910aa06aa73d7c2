// The weight tile in C++: the same sizes and order as kernels/layout.py, which explains them.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace edgellm {

constexpr int kPanel = 16;   // outputs
constexpr int kTile = 64;    // inputs
constexpr int kBlocks = 16;  // vector blocks a tile, 64 weights each

struct Format {
  int64_t n_out, k_in, bits, group;
  bool minimum;  // zero = "min"
  int64_t n, m;
  bool along_out;  // axis = "out"

  bool valid() const {
    if (n_out < 1 || k_in < 1 || (bits != 4 && bits != 8)) return false;
    if (group != 32 && group != 64 && group != 128) return false;
    if (k_in % std::max<int64_t>(group, kTile)) return false;
    if (n == 1 && m == 1) return true;
    return (m == 4 || m == 8 || m == 16) && n > 0 && n < m && !(along_out && n_out % m);
  }
  bool sparse() const { return n < m; }
  bool places() const { return n == 2 && m == 4 && !along_out; }  // where the kept lie, instead of masks
  int reach() const { return sparse() && !along_out ? int(m / 4) : 1; }
  int zero_point() const { return 1 << (bits - 1); }
  int64_t panels() const { return (n_out + kPanel - 1) / kPanel; }
  int64_t tiles() const { return k_in / kTile; }
  int kept() const { return int(64 * n / m); }  // weights of a vector block
  size_t block_bytes() const { return size_t(kept() * bits / 8); }
  size_t tile_bytes() const { return kBlocks * (block_bytes() + (sparse() ? 8 : 0)); }
  int64_t tiles_per_run() const { return std::max<int64_t>(1, group / kTile); }
  int groups_per_tile() const { return int(std::max<int64_t>(1, kTile / group)); }
  size_t scale_bytes() const { return size_t(groups_per_tile()) * kPanel * 2 * (minimum ? 2 : 1); }
  size_t run_bytes() const { return scale_bytes() + size_t(tiles_per_run()) * tile_bytes(); }
  size_t panel_bytes() const { return size_t(tiles() / tiles_per_run()) * run_bytes(); }
  size_t nbytes() const { return size_t(panels()) * panel_bytes(); }
};

}  // namespace edgellm
