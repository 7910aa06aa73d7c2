// q . key with AVX2, s[row][j] = sum_i q[row][i] * key[j][i], straight from what a cache holds.
#pragma once
#include <algorithm>

#include "kernels/cpu/avx2/exponentials.h"
#include "kernels/cpu/avx2/scores_turned.h"

namespace edgellm::EDGELLM_AVX2 {

// Lanes of a and b added in pairs: a0 + a1, a2 + a3, b0 + b1, b2 + b3, and the same of the upper halves.
inline __m256 in_pairs(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}

// The sums of eight vectors, in their order.
inline __m256 eight_sums(const __m256 (&a)[8]) {
  const __m256 low = in_pairs(in_pairs(a[0], a[1]), in_pairs(a[2], a[3]));
  const __m256 high = in_pairs(in_pairs(a[4], a[5]), in_pairs(a[6], a[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

// Rows by four, two or one slots in registers: 7 by 2 sums and the keys fill them; one or two rows need four slots to
// have work while a sum is on its way. T: float, uint16_t for half precision, or int8_t. Every sum has the same order
// whatever the tile. Inputs from dim / 8 * 8 on are left.
template <int kRows, int kSlots, typename T>
inline __attribute__((always_inline)) void scores_tile(const float* q, const T* key, int dim, float* s, int stride) {
  __m256 sum[kSlots][8];
  unrolled<8>([&](auto row) { unrolled<kSlots>([&](auto j) { sum[j][row] = _mm256_setzero_ps(); }); });
  for (int i = 0; i + 8 <= dim; i += 8) {
    if constexpr (kRows * kSlots == 12) {  // the sums leave no room for four keys: one after the other, rows from memory
      unrolled<kSlots>([&](auto j) {
        const __m256 k = load8(key + j * pitch<T>(dim) + i);
        unrolled<kRows>([&](auto row) { sum[j][row] = _mm256_fmadd_ps(k, _mm256_loadu_ps(q + kRows * i + 8 * row), sum[j][row]); });
      });
      continue;
    }
    __m256 k[kSlots];
    unrolled<kSlots>([&](auto j) { k[j] = load8(key + j * pitch<T>(dim) + i); });
    unrolled<kRows>([&](auto row) {
      __m256 x = _mm256_loadu_ps(q + kRows * i + 8 * row);
      if constexpr (kSlots > 1 && kRows < 7) keep(x);  // or it is read again for every slot
      unrolled<kSlots>([&](auto j) { sum[j][row] = _mm256_fmadd_ps(x, k[j], sum[j][row]); });
    });
  }
  if constexpr (kSlots == 4) {
    unrolled<kRows>([&](auto row) { _mm_storeu_ps(s + row * stride, sums(sum[0][row], sum[1][row], sum[2][row], sum[3][row])); });
    return;
  }
  const __m256 a = eight_sums(sum[0]), b = eight_sums(sum[kSlots - 1]);
  const __m256 pairs[2] = {_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)};  // rows 0 1 4 5, 2 3 6 7
  unrolled<kRows>([&](auto row) {
    const __m256 rows = pairs[row / 2 % 2];
    const __m128 two = row < 4 ? _mm256_castps256_ps128(rows) : _mm256_extractf128_ps(rows, 1);
    auto* to = reinterpret_cast<__m64*>(s + row * stride);
    if constexpr (kSlots == 1)
      _mm_store_ss(s + row * stride, row % 2 ? _mm_movehl_ps(two, two) : two);
    else if constexpr (row % 2)
      _mm_storeh_pi(to, two);
    else
      _mm_storel_pi(to, two);
  });
}

// q [rows][dim]; dim is at most kWideDim where there are several. Rows at the same place would fall on the same banks of
// L1 and be read one a cycle: eights of all rows are put side by side.
template <int kRows, typename T>
void scores_rows(const float* q, const T* key, int n, int dim, float* s, int stride, bool ahead) {
  alignas(32) float eights[kRows > 1 ? kRows * kWideDim : 8];
  const float* x = kRows > 1 ? eights : q;
  for (int i = 0; kRows > 1 && i + 8 <= dim; i += 8)
    for (int row = 0; row < kRows; ++row) _mm256_store_ps(eights + kRows * i + 8 * row, _mm256_loadu_ps(q + row * dim + i));
  int j = 0;
  auto tile = [&](auto slots) __attribute__((always_inline)) {
    const T* some = key + j * pitch<T>(dim);
    if (kOfCache<T> && ahead) fetch_ahead(some, slots_bytes<T>(slots, dim));
    scores_tile<kRows, slots()>(x, some, dim, s + j, stride);
  };
  for (; kRows <= 3 && j + 4 <= n; j += 4) tile(std::integral_constant<int, 4>());
  for (; j + 2 <= n; j += 2) tile(std::integral_constant<int, 2>());
  if (j < n) tile(std::integral_constant<int, 1>());
  for (int i = dim / 8 * 8; i < dim; ++i)
    for (int row = 0; row < kRows; ++row)
      for (j = 0; j < n; ++j) s[row * stride + j] += q[row * dim + i] * load1(key + j * pitch<T>(dim) + i);
}

constexpr int kScoresRows = 7;  // at once

template <typename T>
void scores(const float* q, int rows, const T* key, int n, int dim, float* s, int stride) {
  constexpr decltype(&scores_rows<1, T>) kSome[] = {nullptr, scores_rows<1, T>, scores_rows<2, T>, scores_rows<3, T>,
                                                    scores_rows<4, T>, scores_rows<5, T>, scores_rows<6, T>, scores_rows<7, T>};
  if constexpr (sizeof(T) == sizeof(float)) {
    if (rows >= kManyRows && n <= kSlotsBlock && dim <= kWideDim && dim % 8 == 0) {
      const int done = scores_many(q, rows, key, n, dim, s, stride);
      key += done * dim, n -= done, s += done;
    }
  }
  const int at_once = dim > kWideDim ? 1 : kScoresRows;
  for (int row = 0; row < rows; row += at_once)
    kSome[std::min(rows - row, at_once)](q + row * dim, key, n, dim, s + row * stride, stride, row == 0);
}

}  // namespace edgellm::EDGELLM_AVX2
