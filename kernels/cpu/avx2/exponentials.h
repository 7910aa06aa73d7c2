// Exponentials with AVX2: attention's weights, and the activations that need them.
#pragma once
#include <cmath>

#include "kernels/cpu/avx2/vectors.h"

namespace edgellm::EDGELLM_AVX2 {

// exp(x), x clamped to [-87.3, 88.3]: 2^round(x / ln 2) times a polynomial of degree 6 in the rest; within 2e-7.
inline __m256 exp8(__m256 x) {
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87.3f)), _mm256_set1_ps(88.3f));
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __m256 whole = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), kNearest);
  const __m256 high = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0.693359375f), x);
  const __m256 rest = _mm256_fnmadd_ps(whole, _mm256_set1_ps(-2.12194440e-4f), high);
  __m256 y = _mm256_set1_ps(1.0f / 720);
  for (const float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    y = _mm256_fmadd_ps(y, rest, _mm256_set1_ps(term));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(y, _mm256_castsi256_ps(power));
}

// The four sums of a, b, c and d.
inline __m128 sums(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 lanes = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
}

inline float largest_of(__m256 lanes) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

inline float largest(const float* s, int n) {
  __m256 top = _mm256_set1_ps(s[0]);
  int j = 0;
  for (; j + 8 <= n; j += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(s + j));
  float most = largest_of(top);
  for (; j < n; ++j) most = s[j] > most ? s[j] : most;
  return most;
}

// Masked slots are -inf: they become exactly 0, not the smallest that exp8 gives.
inline __m256 exp_or_zero(__m256 x) {
  return _mm256_and_ps(exp8(x), _mm256_cmp_ps(x, _mm256_set1_ps(-87.3f), _CMP_GE_OQ));
}

inline float exponentials(float* s, int n, float most) {
  const __m256 top = _mm256_set1_ps(most);
  __m256 sum = _mm256_setzero_ps();
  int j = 0;
  for (; j + 8 <= n; j += 8) {
    const __m256 y = exp_or_zero(_mm256_sub_ps(_mm256_loadu_ps(s + j), top));
    _mm256_storeu_ps(s + j, y);
    sum = _mm256_add_ps(sum, y);
  }
  if (j == n) return _mm_cvtss_f32(sums(sum, sum, sum, sum));
  alignas(32) float rest[8];
  for (int i = 0; i < 8; ++i) rest[i] = j + i < n ? s[j + i] : -INFINITY;
  const __m256 y = exp_or_zero(_mm256_sub_ps(_mm256_load_ps(rest), top));
  _mm256_store_ps(rest, y);
  for (int i = 0; j + i < n; ++i) s[j + i] = rest[i];
  sum = _mm256_add_ps(sum, y);
  return _mm_cvtss_f32(sums(sum, sum, sum, sum));
}

inline void silu(const float* gate, const float* up, float* y) {
  const __m256 one = _mm256_set1_ps(1);
  for (int i = 0; i < kPanel; i += 8) {
    const __m256 x = _mm256_loadu_ps(gate + i);
    const __m256 below = _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), x)));
    _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_div_ps(x, below), _mm256_loadu_ps(up + i)));
  }
}

// 0.5 x (1 + tanh(z)) = x / (1 + exp(-2z))
inline void gelu_tanh(const float* gate, const float* up, float* y) {
  const __m256 one = _mm256_set1_ps(1), cubic = _mm256_set1_ps(0.044715f), twice = _mm256_set1_ps(-2 * 0.7978845608f);
  for (int i = 0; i < kPanel; i += 8) {
    const __m256 x = _mm256_loadu_ps(gate + i);
    const __m256 z = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_mul_ps(x, x), x), cubic, x);
    const __m256 below = _mm256_add_ps(one, exp8(_mm256_mul_ps(z, twice)));
    _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_div_ps(x, below), _mm256_loadu_ps(up + i)));
  }
}

}  // namespace edgellm::EDGELLM_AVX2
