// A packed matrix and what its product does besides, how it is cut into parts, and what of it is read first.
#pragma once
#include <algorithm>

#include "kernels/cpu/operators.h"
#include "kernels/cpu/phases.h"

namespace edgellm {

constexpr size_t kFilePage = 4096;      // tensors begin on one
constexpr size_t kPartBytes = 1 << 13;  // weight bytes times rows worth a part: the last ones end together
constexpr size_t kMostParts = 128;
constexpr int64_t kSoon = 1 << 17;  // bytes that a waiting thread fetches, at most: they fit the second cache

struct Weights {
  Format f{};
  const uint8_t* tiles = nullptr;
  Activation activation = Activation::kNone;
  Fused fused{};

  bool paired() const { return activation != Activation::kNone; }
  int64_t width() const { return paired() ? f.n_out / 2 : f.n_out; }
  // 16 of y's columns each, and where one's panels begin.
  int64_t units() const { return paired() ? f.panels() / 2 : f.panels(); }
  const uint8_t* unit(int64_t i) const { return tiles + size_t(paired() ? 2 * i : i) * f.panel_bytes(); }

  // How many parts a product of so many rows has.
  int64_t parts(int64_t rows) const {
    const size_t wanted = std::min<size_t>(f.nbytes() * size_t(std::min<int64_t>(rows, 8)) / kPartBytes, kMostParts);
    return std::max<int64_t>(1, std::min(units(), int64_t(wanted)));
  }
  // What range r of `ranges` of these parts (phases.h) reads first.
  Soon soon(int64_t rows, int64_t r, int64_t ranges) const {
    const int64_t all = parts(rows);
    const uint8_t* const at = unit(units() * (all * r / ranges) / all);
    return {at, std::min<int64_t>(unit(units() * (all * (r + 1) / ranges) / all) - at, kSoon)};
  }
  // What follows in the file, which is what the model reads next (export/pipeline.py). Nothing need be there.
  const uint8_t* behind() const {
    const auto end = reinterpret_cast<uintptr_t>(tiles + f.nbytes());
    return reinterpret_cast<const uint8_t*>((end + kFilePage - 1) / kFilePage * kFilePage);
  }
};

}  // namespace edgellm
