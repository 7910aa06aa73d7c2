// A tile of activations as its decoder reads it.
#pragma once
#include "kernels/cpu/avx512/vectors.h"

namespace edgellm::EDGELLM_AVX512 {

enum class Planes {
  kSigned,    // x = 256 * high + low, both signed
  kUnsigned,  // x = 256 * high + low, low unsigned
  kOffset,    // x = 256 * (high - 128) + low, both unsigned
};

// [64 low bytes][64 high bytes] of 64 codes in the order of kPlace.
inline void to_planes(int16_t* q, Planes planes) {
  const __m512i round = _mm512_set1_epi16(planes == Planes::kSigned ? 128 : 0);
  const __m512i flip = _mm512_set1_epi8(char(planes == Planes::kOffset ? 0x80 : 0));
  static constexpr Bytes kOrder = bytes_of([](int i) { return i % 16 / 4 * 4 + kPlace[i % 4]; });
  const __m512i a = load(q), b = load(q + 32);
  auto bytes = [](__m512i first, __m512i second) {
    const __m512i both = _mm512_castsi256_si512(_mm512_cvtepi16_epi8(first));
    return _mm512_shuffle_epi8(_mm512_inserti64x4(both, _mm512_cvtepi16_epi8(second), 1), load(kOrder));
  };
  auto high = [&](__m512i v) { return _mm512_srai_epi16(_mm512_add_epi16(v, round), 8); };
  _mm512_storeu_si512(q, bytes(a, b));
  _mm512_storeu_si512(q + 32, _mm512_xor_si512(bytes(high(a), high(b)), flip));
}

inline void arrange(const Format& f, int16_t* q) {
#ifdef EDGELLM_VNNI
  to_planes(q, f.places() ? Planes::kOffset : Planes::kSigned);
#else
  if (f.bits == 4) return to_planes(q, f.places() ? Planes::kOffset : Planes::kSigned);
  if (f.places()) return to_planes(q, Planes::kUnsigned);
  if (f.reach() == 1) return;
  for (int half = 0; half < 2; ++half)  // of eight inputs 0 2 4 6, then 1 3 5 7
    _mm512_storeu_si512(q + 32 * half, _mm512_shuffle_epi32(load(q + 32 * half), _MM_PERM_DBCA));
#endif
}

}  // namespace edgellm::EDGELLM_AVX512
