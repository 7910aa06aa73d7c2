// Loads and index registers that the AVX-512 kernels share.
//
// These sources are compiled twice: for F, BW, VL and DQ (Skylake-X), then with VNNI, VBMI and VBMI2 beside them (Ice
// Lake, Zen 4; avx512_vnni/isa.cc). A namespace each keeps the two apart where they are linked together.
#pragma once
#include <array>
#include <cstring>

#include "kernels/cpu/ahead.h"
#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/unrolled.h"

#ifdef EDGELLM_VNNI
#define EDGELLM_AVX512 avx512_vnni
#else
#define EDGELLM_AVX512 avx512
#endif

namespace edgellm::EDGELLM_AVX512 {

inline __m512i load(const void* p) { return _mm512_loadu_si512(p); }
inline __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m512 half16(const void* p) { return _mm512_cvtph_ps(load32(p)); }
inline __m512i four_bytes(const void* p) {  // in every int32 lane
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}
inline __m512i eight_bytes(const void* p) {
  int64_t eight;
  std::memcpy(&eight, p, 8);
  return _mm512_set1_epi64(eight);
}
// Keeps a sum in its register: compilers otherwise gather the additions at a loop's end and spill what waits for them.
inline void keep(__m512i& sum) {
  __m512i kept = sum;  // an array that assembly refers to would stay in memory
  EDGELLM_KEEP(kept);
  sum = kept;
}

// 64 bytes whose i-th is each(i); loaded once, before a loop.
struct Bytes {
  alignas(64) uint8_t at[64];
};
template <typename Each>
constexpr Bytes bytes_of(Each each) {
  Bytes bytes{};
  for (int i = 0; i < 64; ++i) bytes.at[i] = uint8_t(each(i));
  return bytes;
}
inline __m512i load(const Bytes& bytes) { return _mm512_load_si512(bytes.at); }

// The same for lanes of 16, 32 and 64 bits: the lanes' low byte tells all, being an index or a count of bits.
constexpr Bytes words_of(int (*each)(int)) {
  return bytes_of([=](int i) { return i % 2 ? 0 : each(i / 2); });
}
constexpr Bytes dwords_of(int (*each)(int)) {
  return bytes_of([=](int i) { return i % 4 ? 0 : each(i / 4); });
}
constexpr Bytes qwords_of(int (*each)(int)) {
  return bytes_of([=](int i) { return i % 8 ? 0 : each(i / 8); });
}

// Nibbles as bytes: in the first 256 bits the low ones, in the others the high ones.
inline __m512i nibbles(__m512i v) {
#ifdef EDGELLM_VNNI  // on the port that vpdpbusd leaves free
  static constexpr Bytes kFrom = bytes_of([](int i) { return i % 8 * 8 + (i < 32 ? 0 : 4); });
  v = _mm512_multishift_epi64_epi8(load(kFrom), v);
#else
  static constexpr Bytes kBy = words_of([](int i) { return i < 16 ? 0 : 4; });
  v = _mm512_srlv_epi16(v, load(kBy));
#endif
  return _mm512_and_si512(v, _mm512_set1_epi8(15));
}

}  // namespace edgellm::EDGELLM_AVX512
