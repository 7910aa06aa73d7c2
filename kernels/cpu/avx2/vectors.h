// Loads and sums that the AVX2 kernels share.
//
// These sources are compiled twice, with AVX-VNNI the second time (avx_vnni/isa.cc). A namespace each keeps the two apart
// where they are linked together.
#pragma once
#include <cstring>

#include "kernels/cpu/ahead.h"
#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/unrolled.h"

#ifdef EDGELLM_VNNI
#define EDGELLM_AVX2 avx_vnni
#else
#define EDGELLM_AVX2 avx2
#endif

namespace edgellm::EDGELLM_AVX2 {

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256 half8(const void* p) { return _mm256_cvtph_ps(load16(p)); }
inline __m256i pair(const int16_t* x) {  // two activations in every int32 lane
  int32_t both;
  std::memcpy(&both, x, 4);
  return _mm256_set1_epi32(both);
}
// Keeps a sum in its register: compilers otherwise gather the additions at a loop's end and spill what waits for them.
inline void keep(__m256i& sum) {
  __m256i kept = sum;  // an array that assembly refers to would stay in memory
  EDGELLM_KEEP(kept);
  sum = kept;
}
inline void keep(__m256& vector) {
  __m256 kept = vector;
  EDGELLM_KEEP(kept);
  vector = kept;
}
inline void add(__m256i& sum, __m256i a, __m256i x) {
#ifdef EDGELLM_VNNI
  sum = _mm256_dpwssd_avx_epi32(sum, a, x);
#else
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, x));
#endif
}
inline __m256i product(__m256i a, __m256i x) { return _mm256_madd_epi16(a, x); }

}  // namespace edgellm::EDGELLM_AVX2
