// Attention's products with AVX-512: s[row][j] = q[row] . key[j];  y[row] += sum_j p[row][j] * value[j].
#pragma once
#include <type_traits>

#include "kernels/cpu/avx512/quantize.h"

namespace edgellm::EDGELLM_AVX512 {

constexpr int kRowsAtOnce = 4;  // 16 sums, and what they are made of, in 32 registers
constexpr __mmask16 kAll = 0xFFFF;

// Calls each(first row, rows) for runs of at most kRowsAtOnce rows; `rows` is a compile-time number.
template <typename Each>
void for_rows(int rows, Each each) {
  int row = 0;
  for (; row + 4 <= rows; row += 4) each(row, std::integral_constant<int, 4>());
  if (rows - row == 3) each(row, std::integral_constant<int, 3>());
  if (rows - row == 2) each(row, std::integral_constant<int, 2>());
  if (rows - row == 1) each(row, std::integral_constant<int, 1>());
}

// The four sums of a, b, c and d.
inline __m128 sums(__m512 a, __m512 b, __m512 c, __m512 d) {
  auto in_pairs = [](__m512 v, __m512 w) { return _mm512_add_ps(_mm512_unpacklo_ps(v, w), _mm512_unpackhi_ps(v, w)); };
  const __m512d ab = _mm512_castps_pd(in_pairs(a, b)), cd = _mm512_castps_pd(in_pairs(c, d));
  const __m512d low = _mm512_unpacklo_pd(ab, cd), high = _mm512_unpackhi_pd(ab, cd);
  const __m512 lanes = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
  return _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
}

// The lanes `here` of sixteen floats, or of as many halves or codes widened; 0 in others.
inline __m512 read(const float* x, __mmask16 here) { return _mm512_maskz_loadu_ps(here, x); }
inline __m512 read(const uint16_t* x, __mmask16 here) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(here, x)); }

inline __m512 read(const int8_t* x, __mmask16 here) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(here, x)));
}

// kRows rows by kSlots (4 or 1) slots in registers; T: float, uint16_t for half precision, or int8_t. Every sum has the
// same order whatever the tile.
template <int kRows, int kSlots, typename T>
void scores_tile(const float* q, const T* key, int dim, float* s, int stride) {
  __m512 sum[kRows][kSlots];
  unrolled<kRows>([&](auto row) { unrolled<kSlots>([&](auto j) { sum[row][j] = _mm512_setzero_ps(); }); });
  auto sixteen = [&](int i, __mmask16 here) __attribute__((always_inline)) {
    __m512 x[kRows];
    unrolled<kRows>([&](auto row) { x[row] = read(q + row * dim + i, here); });
    unrolled<kSlots>([&](auto j) {
      const __m512 k = read(key + j * pitch<T>(dim) + i, here);
      unrolled<kRows>([&](auto row) { sum[row][j] = _mm512_fmadd_ps(x[row], k, sum[row][j]); });
    });
  };
  if (dim == 64) {  // the most common
    unrolled<4>([&](auto i) { sixteen(16 * i, kAll); });
  } else {
    int i = 0;
    for (; i + 16 <= dim; i += 16) sixteen(i, kAll);
    if (i < dim) sixteen(i, some(i, dim));
  }
  unrolled<kRows>([&](auto row) {
    constexpr int kMore = kSlots == 4;
    const __m128 four = sums(sum[row][0], sum[row][kMore], sum[row][2 * kMore], sum[row][3 * kMore]);
    if constexpr (kSlots == 4)
      _mm_storeu_ps(s + row * stride, four);
    else
      _mm_store_ss(s + row * stride, four);
  });
}

template <typename T>
void scores(const float* q, int rows, const T* key, int n, int dim, float* s, int stride) {
  for_rows(rows, [&](int row, auto count) {
    const float* x = q + row * dim;
    float* to = s + row * stride;
    int j = 0;
    for (; j + 4 <= n; j += 4) {
      const T* four = key + j * pitch<T>(dim);
      if (kOfCache<T> && row == 0) fetch_four_pages(four, slots_bytes<T>(4, dim));
      scores_tile<count(), 4>(x, four, dim, to + j, stride);
    }
    for (; j < n; ++j) scores_tile<count(), 1>(x, key + j * pitch<T>(dim), dim, to + j, stride);
  });
}

// kRows rows by 16 * kWide dimensions in registers; `last` are the lanes of the last sixteen.
template <int kRows, int kWide, typename T>
void mix_tile(const float* p, int stride, const T* value, int n, int dim, float* y, __mmask16 last, bool ahead) {
  auto lanes = [=](int i) { return i == kWide - 1 ? last : kAll; };
  __m512 sum[kRows][kWide];
  unrolled<kRows>([&](auto row) {
    unrolled<kWide>([&](auto i) { sum[row][i] = read(y + row * dim + 16 * i, lanes(i)); });
  });
  for (int j = 0; j < n; ++j) {
    if (kOfCache<T> && ahead && j % 4 == 0) fetch_four_pages(value + j * pitch<T>(dim), slots_bytes<T>(4, dim));
    __m512 weight[kRows];
    unrolled<kRows>([&](auto row) { weight[row] = _mm512_set1_ps(p[row * stride + j]); });
    unrolled<kWide>([&](auto i) {
      const __m512 v = read(value + j * pitch<T>(dim) + 16 * i, lanes(i));
      unrolled<kRows>([&](auto row) { sum[row][i] = _mm512_fmadd_ps(weight[row], v, sum[row][i]); });
    });
  }
  unrolled<kRows>([&](auto row) {
    unrolled<kWide>([&](auto i) { _mm512_mask_storeu_ps(y + row * dim + 16 * i, lanes(i), sum[row][i]); });
  });
}

template <typename T>
void mix(const float* p, int stride, int rows, const T* value, int n, int dim, float* y) {
  for_rows(rows, [&](int row, auto count) {
    const float* weight = p + row * stride;
    float* to = y + row * dim;
    int i = 0;
    for (; i + 64 <= dim; i += 64)
      mix_tile<count(), 4>(weight, stride, value + i, n, dim, to + i, kAll, row == 0 && i == 0);
    for (; i < dim; i += 16)
      mix_tile<count(), 1>(weight, stride, value + i, n, dim, to + i, some(i, dim), row == 0 && i == 0);
  });
}

inline void from_int8(const int8_t* x, float* y, int n) {
  for (int i = 0; i < n; i += 16) _mm512_mask_storeu_ps(y + i, some(i, n), read(x + i, some(i, n)));
}

}  // namespace edgellm::EDGELLM_AVX512
