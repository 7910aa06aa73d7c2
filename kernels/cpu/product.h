// One NMMatMul under way: its rows quantized, its outputs cut into parts that any threads may take in any order.
#pragma once
#include "kernels/cpu/rows.h"
#include "kernels/cpu/weights.h"

namespace edgellm {

constexpr int64_t kFewRows = 4;  // read the panel again from L1 instead of unpacking it

class Product {
 public:
  // Norms and quantizes x [rows, k_in] for y, whose rows lie `stride` apart; returns the number of parts.
  int64_t begin(const Weights& weights, const float* x, int64_t rows, float* y, int64_t stride, const Pool& pool);
  void part(int64_t i) const;

 private:
  Weights w_;
  Rows q_;  // what x becomes; grows to the largest once, then stays
  Decode decode_ = nullptr;
  int64_t rows_ = 0, parts_ = 0, stride_ = 0;
  float* y_ = nullptr;

  void unit(int64_t unit, int64_t first, int count, const Isa& isa) const;
};

}  // namespace edgellm
