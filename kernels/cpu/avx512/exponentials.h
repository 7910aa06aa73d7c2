// What needs exponentials: softmax's weights, and the activations.
#pragma once
#include <limits>

#include "kernels/cpu/avx512/quantize.h"

namespace edgellm::EDGELLM_AVX512 {

constexpr float kLowest = -87.3f;

// exp(x), x clamped to [-87.3, 88.3]: 2^round(x / ln 2) times a polynomial of degree 6 in the rest; within 2e-7.
inline __m512 exp16(__m512 x) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(kLowest)), _mm512_set1_ps(88.3f));
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), kNearest);
  const __m512 high = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
  const __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), high);
  __m512 y = _mm512_set1_ps(1.0f / 720);
  for (const float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(term));
  return _mm512_scalef_ps(y, whole);
}

inline float largest(const float* s, int n) {
  const __m512 never = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 top = never;
  for (int j = 0; j < n; j += 16) top = _mm512_max_ps(top, _mm512_mask_loadu_ps(never, some(j, n), s + j));
  return _mm512_reduce_max_ps(top);
}

// Masked slots are -inf: they become exactly 0, not the smallest that exp16 gives.
inline float exponentials(float* s, int n, float most) {
  const __m512 top = _mm512_set1_ps(most), lowest = _mm512_set1_ps(kLowest);
  __m512 sum = _mm512_setzero_ps();
  for (int j = 0; j < n; j += 16) {
    const __mmask16 here = some(j, n);
    const __m512 x = _mm512_sub_ps(_mm512_maskz_loadu_ps(here, s + j), top);
    const auto seen = __mmask16(here & _mm512_cmp_ps_mask(x, lowest, _CMP_GE_OQ));
    const __m512 y = _mm512_maskz_mov_ps(seen, exp16(x));
    _mm512_mask_storeu_ps(s + j, here, y);
    sum = _mm512_add_ps(sum, y);
  }
  return _mm512_reduce_add_ps(sum);
}

inline void silu(const float* gate, const float* up, float* y) {
  const __m512 x = _mm512_loadu_ps(gate);
  const __m512 below = _mm512_add_ps(_mm512_set1_ps(1), exp16(_mm512_sub_ps(_mm512_setzero_ps(), x)));
  _mm512_storeu_ps(y, _mm512_mul_ps(_mm512_div_ps(x, below), _mm512_loadu_ps(up)));
}

// 0.5 x (1 + tanh(z)) = x / (1 + exp(-2z))
inline void gelu_tanh(const float* gate, const float* up, float* y) {
  const __m512 x = _mm512_loadu_ps(gate), cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
  const __m512 z = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
  const __m512 below = _mm512_add_ps(_mm512_set1_ps(1), exp16(_mm512_mul_ps(z, _mm512_set1_ps(-2 * 0.7978845608f))));
  _mm512_storeu_ps(y, _mm512_mul_ps(_mm512_div_ps(x, below), _mm512_loadu_ps(up)));
}

}  // namespace edgellm::EDGELLM_AVX512
