// Activations as two planes of bytes, x = 256 * high + low: a tile is [64 low][64 high].
#pragma once
#include "kernels/cpu/avx2/vectors.h"

namespace edgellm::EDGELLM_AVX2 {

// A tile of codes in the order of kPlace; high is (code + bias) / 256, rounded down. kSigned makes low, as it is read, a
// number from -128 to 127; kWords leaves a code's own bytes; with kOffset both are unsigned, and high is 128 more.
enum Bias : int { kWords = 0, kSigned = 0x80, kOffset = 0x8000 };
inline void to_planes(int16_t* q, Bias bias) {
  const __m256i order = _mm256_broadcastsi128_si256(  // 0 2 1 3 of every four, back to 0 1 2 3
      _mm_set_epi8(15, 14, 11, 10, 13, 12, 9, 8, 7, 6, 3, 2, 5, 4, 1, 0));
  const __m256i byte = _mm256_set1_epi16(255), more = _mm256_set1_epi16(int16_t(bias));
  __m256i low[2], high[2];
  unrolled<2>([&](auto half) {
    const __m256i v = _mm256_shuffle_epi8(load(q + 32 * half), order), w = _mm256_shuffle_epi8(load(q + 32 * half + 16), order);
    // Packing works on each half of a register.
    const __m256i lows = _mm256_packus_epi16(_mm256_and_si256(v, byte), _mm256_and_si256(w, byte));
    const __m256i highs = _mm256_packus_epi16(_mm256_srli_epi16(_mm256_add_epi16(v, more), 8),
                                              _mm256_srli_epi16(_mm256_add_epi16(w, more), 8));
    low[half] = _mm256_permute4x64_epi64(lows, 0b11011000);
    high[half] = _mm256_permute4x64_epi64(highs, 0b11011000);
  });
  auto* to = reinterpret_cast<__m256i*>(q);
  _mm256_storeu_si256(to, low[0]), _mm256_storeu_si256(to + 1, low[1]);
  _mm256_storeu_si256(to + 2, high[0]), _mm256_storeu_si256(to + 3, high[1]);
}

inline __m256i quad_of(const uint8_t* plane, int quad) {
  int32_t four;
  std::memcpy(&four, plane + 4 * quad, 4);
  return _mm256_set1_epi32(four);
}

}  // namespace edgellm::EDGELLM_AVX2
