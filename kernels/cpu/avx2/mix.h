// Weights times values with AVX2, y[row][i] += sum_j p[row][j] * value[j][i], in the order of j.
#pragma once
#include <algorithm>

#include "kernels/cpu/avx2/cached.h"

namespace edgellm::EDGELLM_AVX2 {

// kRows rows by 8 * kWide dimensions in registers.
template <int kRows, int kWide, typename T>
void mix_tile(const float* p, int stride, const T* value, int n, int dim, float* y, bool ahead) {
  __m256 sum[kRows][kWide];
  unrolled<kRows>([&](auto row) {
    unrolled<kWide>([&](auto i) { sum[row][i] = _mm256_loadu_ps(y + row * dim + 8 * i); });
  });
  for (int j = 0; j < n; ++j) {
    if (kOfCache<T> && ahead) fetch_ahead(value + j * pitch<T>(dim), slots_bytes<T>(1, dim));
    __m256 weight[kRows];
    unrolled<kRows>([&](auto row) { weight[row] = _mm256_broadcast_ss(p + row * stride + j); });
    unrolled<kWide>([&](auto i) {
      const __m256 v = load8(value + j * pitch<T>(dim) + 8 * i);
      unrolled<kRows>([&](auto row) { sum[row][i] = _mm256_fmadd_ps(weight[row], v, sum[row][i]); });
    });
  }
  unrolled<kRows>([&](auto row) {
    unrolled<kWide>([&](auto i) { _mm256_storeu_ps(y + row * dim + 8 * i, sum[row][i]); });
  });
}

// Vectors side by side in a tile of so many rows.
constexpr int wide(int rows) { return rows > 3 ? 2 : 4; }

template <int kRows, typename T>
void mix_rows(const float* p, int stride, const T* value, int n, int dim, float* y, bool ahead) {
  constexpr int kWide = wide(kRows);
  int i = 0;
  for (; i + 8 * kWide <= dim; i += 8 * kWide) mix_tile<kRows, kWide>(p, stride, value + i, n, dim, y + i, ahead && i == 0);
  for (; i + 8 <= dim; i += 8) mix_tile<kRows, 1>(p, stride, value + i, n, dim, y + i, ahead && i == 0);
  for (; i < dim; ++i)
    for (int row = 0; row < kRows; ++row)
      for (int j = 0; j < n; ++j) y[row * dim + i] += p[row * stride + j] * load1(value + j * pitch<T>(dim) + i);
}

// Rows at once: mixing three needs the fewest loads; of what must be widened four are mixed together.
template <typename T>
constexpr int kMixRows = sizeof(T) == sizeof(float) ? 3 : 4;

template <typename T>
void mix(const float* p, int stride, int rows, const T* value, int n, int dim, float* y) {
  constexpr decltype(&mix_rows<1, T>) kSome[] = {nullptr, mix_rows<1, T>, mix_rows<2, T>, mix_rows<3, T>, mix_rows<4, T>};
  for (int row = 0; row < rows; row += kMixRows<T>)
    kSome[std::min(rows - row, kMixRows<T>)](p + row * stride, stride, value, n, dim, y + row * dim, row == 0);
}

}  // namespace edgellm::EDGELLM_AVX2
