// A tile as int8 in quad order: what accumulate multiplies by many rows.
#pragma once
#include "kernels/cpu/avx512/blocks.h"
#include "kernels/cpu/avx512/two_of_four.h"

namespace edgellm::EDGELLM_AVX512 {

// A block's kept codes, minus the offset; reads only the block's bytes.
inline __m512i kept_codes(const Format& f, const uint8_t* codes) {
  const size_t bytes = f.block_bytes();
  const __m512i zero = _mm512_set1_epi8(char(offset(f)));
  const __m512i packed = _mm512_maskz_loadu_epi8(~uint64_t(0) >> (64 - bytes), codes);
  if (f.bits == 8) return _mm512_sub_epi8(packed, zero);
  alignas(64) uint8_t side[96];  // low nibbles, then, right after the last kept one, high nibbles
  const __m512i low = _mm512_set1_epi8(15);
  _mm512_storeu_si512(side, _mm512_and_si512(packed, low));
  const __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(side + bytes), _mm512_castsi512_si256(high));
  return _mm512_sub_epi8(_mm512_load_si512(side), zero);
}

// Kept codes to the places of the mask's set bits, zeros between.
inline __m512i expand(uint64_t mask, __m512i kept) {
#ifdef EDGELLM_VNNI
  return _mm512_maskz_expand_epi8(mask, kept);
#else  // expands only lanes of 32 bits and more
  alignas(64) int8_t codes[80] = {}, spread[64];
  _mm512_store_si512(codes, kept);
  for (int i = 0, next = 0; i < 64; i += 16, mask >>= 16) {
    const __m512i wide = _mm512_maskz_expand_epi32(__mmask16(mask), _mm512_cvtepi8_epi32(load16(codes + next)));
    _mm_store_si128(reinterpret_cast<__m128i*>(spread + i), _mm512_cvtepi32_epi8(wide));
    next += __builtin_popcount(uint16_t(mask));
  }
  return _mm512_load_si512(spread);
#endif
}

// Block b into quad order. Along the input it is outputs [16/r] x inputs [4r], along the output [4 inputs][16 outputs].
inline void place(const Format& f, int b, __m512i block, int8_t* weight) {
  const int r = f.reach(), outputs = kPanel / r;
  if (r == 1) return _mm512_storeu_si512(weight + 64 * b, f.along_out ? transposed(block) : block);
  static constexpr Bytes kTwo = dwords_of([](int i) { return i % 8 * 2 + i / 8; });
  static constexpr Bytes kFour = dwords_of([](int i) { return i % 4 * 4 + i / 4; });
  alignas(64) int8_t quads[64];
  _mm512_store_si512(quads, _mm512_permutexvar_epi32(r == 2 ? load(kTwo) : load(kFour), block));
  for (int quad = 0; quad < r; ++quad)
    std::memcpy(weight + ((b / r * r + quad) * kPanel + b % r * outputs) * 4, quads + quad * 4 * outputs,
                size_t(4 * outputs));
}

// Two kept codes of every four inputs go where their places say: a byte of an output's four takes the code whose place
// it is.
inline void unpack_places(const Format& f, const uint8_t* tile, int8_t* weight, int8_t* kept) {
  static constexpr Bytes kFirst = bytes_of([](int i) { return i % 16 / 4 * 4; });
  static constexpr Bytes kSecond = bytes_of([](int i) { return i % 16 / 4 * 4 + 1; });
  const __m512i first = load(kFirst), second = load(kSecond), place = _mm512_set1_epi32(0x03020100);
  for (int quad = 0; quad < kTile / 4; ++quad, weight += 4 * kPanel) {
    const uint8_t* chunk = tile + size_t(quad / 4) * (kChunkPlaces + 4 * f.block_bytes());
    const __m512i places =
        _mm512_and_si512(_mm512_srl_epi16(twice(chunk), _mm_cvtsi32_si128(quad % 4 * 2)), _mm512_set1_epi8(3));
    __m512i code = twice(chunk + kChunkPlaces + 32 * (f.bits == 8 ? quad % 4 : quad % 4 / 2));
    if (f.bits == 4)
      code = _mm512_and_si512(_mm512_srl_epi16(code, _mm_cvtsi32_si128(quad % 2 * 4)), _mm512_set1_epi8(15));
    code = _mm512_sub_epi8(code, _mm512_set1_epi8(char(offset(f))));
    const __mmask64 a = _mm512_cmpeq_epi8_mask(_mm512_shuffle_epi8(places, first), place);
    const __mmask64 b = _mm512_cmpeq_epi8_mask(_mm512_shuffle_epi8(places, second), place);
    _mm512_storeu_si512(weight, _mm512_mask_shuffle_epi8(_mm512_maskz_shuffle_epi8(a, code, first), b, code, second));
    if (!kept) continue;
    _mm512_storeu_si512(kept, _mm512_maskz_set1_epi8(a | b, 1));
    kept += 4 * kPanel;
  }
}

inline void unpack(const Format& f, const uint8_t* tile, int8_t* weight, int8_t* kept) {
  if (f.places()) return unpack_places(f, tile, weight, kept);
  const size_t bytes = f.block_bytes();
  const uint8_t* codes = tile + (f.sparse() ? 8 * kBlocks : 0);
  for (int b = 0; b < kBlocks; ++b, codes += bytes) {
    const __m512i block = kept_codes(f, codes);
    if (!f.sparse()) {
      _mm512_storeu_si512(weight + 64 * b, block);
      continue;
    }
    uint64_t mask;
    std::memcpy(&mask, tile + 8 * b, 8);
    place(f, b, expand(mask, block), weight);
    if (kept) place(f, b, _mm512_maskz_set1_epi8(mask, 1), kept);
  }
  if (!f.sparse() && kept) std::memset(kept, 1, size_t(kPanel * kTile));
}

}  // namespace edgellm::EDGELLM_AVX512
