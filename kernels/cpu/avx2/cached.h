// Reading keys and values with AVX2: floats, halves or the int8 codes of a cache, as floats.
#pragma once
#include "kernels/cpu/avx2/vectors.h"

namespace edgellm::EDGELLM_AVX2 {

inline __m256 load8(const float* x) { return _mm256_loadu_ps(x); }
inline __m256 load8(const uint16_t* x) { return half8(x); }
inline __m256 load8(const int8_t* x) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
}
inline float load1(const float* x) { return *x; }
inline float load1(const int8_t* x) { return *x; }
inline float load1(const uint16_t* x) { return _cvtsh_ss(*x); }

constexpr int kWideDim = 256;  // the longest head that buffers on the stack are made for

}  // namespace edgellm::EDGELLM_AVX2
