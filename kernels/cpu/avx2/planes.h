// Activations as two planes of bytes, x = 256 * high + low: a tile is [64 low][64 high].
#pragma once
#include "kernels/cpu/avx2/vectors.h"

namespace edgellm::EDGELLM_AVX2 {

// A tile of codes in the order of kPlace; high is (code + bias) / 256, rounded down. kSigned makes low, as it is read, a
// number from -128 to 127; kWords leaves a code's own bytes; with kOffset both are unsigned, and high is 128 more.
enum Bias : int { kWords = 0, kSigned = 0x80, kOffset = 0x8000 };
inline void to_planes(int16_t* q, Bias bias) {
  uint8_t low[kTile], high[kTile];
  for (int i = 0; i < kTile; ++i) {
    const int code = q[i / 4 * 4 + kPlace[i % 4]];
    low[i] = uint8_t(code);
    high[i] = uint8_t((code + bias) >> 8);
  }
  std::memcpy(q, low, kTile);
  std::memcpy(reinterpret_cast<uint8_t*>(q) + kTile, high, kTile);
}

inline __m256i quad_of(const uint8_t* plane, int quad) {
  int32_t four;
  std::memcpy(&four, plane + 4 * quad, 4);
  return _mm256_set1_epi32(four);
}

}  // namespace edgellm::EDGELLM_AVX2
