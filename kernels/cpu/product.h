// One NMMatMul under way: its rows quantized, its outputs cut into parts that any threads may take in any order.
#pragma once
#include "kernels/cpu/operators.h"
#include "kernels/cpu/rows.h"

namespace edgellm {

constexpr int64_t kFewRows = 4;  // read the panel again from L1 instead of unpacking it

// A packed matrix and what else its product does.
struct Weights {
  Format f{};
  const uint8_t* tiles = nullptr;
  Activation activation = Activation::kNone;
  Fused fused{};
};

class Product {
 public:
  // Norms and quantizes x [rows, k_in] for y, whose rows lie `stride` apart; returns the number of parts.
  int64_t begin(const Weights& weights, const float* x, int64_t rows, float* y, int64_t stride, const Pool& pool);
  void part(int64_t i) const;

  // The memory need not rest between products: fetch the beginning of what lies behind this one in the file, which is
  // what the model reads next (export/pipeline.py).
  void prefetch_next() const;

 private:
  Weights w_;
  Rows q_;  // what x becomes; grows to the largest once, then stays
  Decode decode_ = nullptr;
  int64_t rows_ = 0, parts_ = 0, stride_ = 0;
  float* y_ = nullptr;

  bool paired() const { return w_.activation != Activation::kNone; }
  int64_t width() const { return paired() ? w_.f.n_out / 2 : w_.f.n_out; }
  int64_t units() const { return paired() ? w_.f.panels() / 2 : w_.f.panels(); }
  void unit(int64_t unit, int64_t first, int count, const Isa& isa) const;
};

}  // namespace edgellm
