// Activations to int16 codes, and half precision.
#pragma once
#include "kernels/cpu/avx512/vectors.h"

namespace edgellm::EDGELLM_AVX512 {

inline Part quantize(const float* x, int16_t* q, float* left) {
  __m512 v[4];
  unrolled<4>([&](auto i) { v[i] = _mm512_loadu_ps(x + 16 * i); });
  const __m512 most = _mm512_max_ps(_mm512_max_ps(_mm512_abs_ps(v[0]), _mm512_abs_ps(v[1])),
                                    _mm512_max_ps(_mm512_abs_ps(v[2]), _mm512_abs_ps(v[3])));
  float peak = _mm512_reduce_max_ps(most);
  if (!(peak > 1e-30f)) peak = 0;  // its inverse would overflow
  Part part{peak / kTop, {}, {}, 0};
  const __m512 inverse = _mm512_set1_ps(peak > 0 ? kTop / peak : 0), scale = _mm512_set1_ps(part.scale);
  static constexpr Bytes kOrder = bytes_of([](int i) { return i % 16 / 8 * 8 + kPlace[i % 8 / 2] * 2 + i % 2; });
  const __m512i order = load(kOrder);
  __m512 squares = _mm512_setzero_ps();
  unrolled<2>([&](auto half) {
    const __m512 first = v[2 * half], second = v[2 * half + 1];
    const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(first, inverse));
    const __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(second, inverse));
    const __m512i low = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(a));
    const __m512i codes = _mm512_inserti64x4(low, _mm512_cvtepi32_epi16(b), 1);
    _mm512_storeu_si512(q + 32 * half, _mm512_shuffle_epi8(codes, order));
    if (left) {
      _mm512_storeu_ps(left + 32 * half, _mm512_fnmadd_ps(scale, _mm512_cvtepi32_ps(a), first));
      _mm512_storeu_ps(left + 32 * half + 16, _mm512_fnmadd_ps(scale, _mm512_cvtepi32_ps(b), second));
    }
    part.sum[half] = _mm512_reduce_add_ps(_mm512_add_ps(first, second));
    part.codes[half] = _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
    squares = _mm512_fmadd_ps(first, first, _mm512_fmadd_ps(second, second, squares));
  });
  part.squares = _mm512_reduce_add_ps(squares);
  return part;
}

// Lanes before n - i.
inline __mmask16 some(int i, int n) { return __mmask16(n - i >= 16 ? 0xFFFF : (1 << (n - i)) - 1); }

inline void to_half(const float* x, uint16_t* y, int n) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  for (int i = 0; i < n; i += 16) {
    const __mmask16 here = some(i, n);
    _mm256_mask_storeu_epi16(y + i, here, _mm512_cvtps_ph(_mm512_maskz_loadu_ps(here, x + i), kNearest));
  }
}

inline void from_half(const uint16_t* x, float* y, int n) {
  for (int i = 0; i < n; i += 16) {
    const __mmask16 here = some(i, n);
    _mm512_mask_storeu_ps(y + i, here, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(here, x + i)));
  }
}

}  // namespace edgellm::EDGELLM_AVX512
