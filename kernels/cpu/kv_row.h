// How a token's key or value of one KV head lies in its slot: halves, or int8 codes and, behind them, their scale.
//
//   scale = max|x| / 127,  code = round(x / scale) to nearest even, 0 where all of x is 0
#pragma once
#include <cmath>
#include <cstring>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/operators.h"

namespace edgellm {

constexpr float kTopCode = 127;

inline float scale_of(const uint8_t* row, int64_t dim) {
  float scale;
  std::memcpy(&scale, row + dim, kScaleBytes);
  return scale;
}

// x [dim] -> row. Adding 1.5 * 2^23 leaves the nearest whole number in a float's last bits: no call, and vectors do it.
inline void store_row(const KVCache& cache, const float* x, int64_t dim, uint8_t* row, const Isa& isa) {
  if (!cache.int8) return isa.to_half(x, reinterpret_cast<uint16_t*>(row), int(dim));
  constexpr float kWhole = 12582912;
  float most = 0;
  for (int64_t i = 0; i < dim; ++i) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
  const float scale = most / kTopCode, inverse = most > 1e-30f ? kTopCode / most : 0;  // kTopCode / most would overflow
  for (int64_t i = 0; i < dim; ++i) {
    const float shifted = x[i] * inverse + kWhole;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    row[i] = uint8_t(bits);
  }
  std::memcpy(row + dim, &scale, kScaleBytes);
}

// row -> x [dim], as it is stored.
inline void load_row(const KVCache& cache, const uint8_t* row, int64_t dim, float* x, const Isa& isa) {
  if (!cache.int8) return isa.from_half(reinterpret_cast<const uint16_t*>(row), x, int(dim));
  isa.from_int8(reinterpret_cast<const int8_t*>(row), x, int(dim));
  const float scale = scale_of(row, dim);
  for (int64_t i = 0; i < dim; ++i) x[i] *= scale;
}

}  // namespace edgellm
