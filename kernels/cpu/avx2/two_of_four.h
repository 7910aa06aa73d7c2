// Decoding 2:4 along the input with AVX2: instead of spreading the weights, the activations are gathered.
//
//   acc[o] += w_scale[o, g] * x_scale[g] * sum over quads j, k < 2 of  code[j, o, k] * x[4j + place[j, o, k]]
//
// Activations come as two planes of bytes (planes.h), so that one vpshufb gathers 32 of them by the places of
// 16 outputs, and, for 4 bits, vpmaddubsw multiplies 32 at once without widening a code. That one wants an unsigned side:
// the high plane holds high + 128, and 32768 * sum(code) is taken off at the end of a group.
#pragma once
#include "kernels/cpu/avx2/planes.h"

namespace edgellm::EDGELLM_AVX2 {

constexpr int kChunkPlaces = 32;  // bytes of places before a chunk's codes; a chunk is four quads

// Int32 sums of 16 outputs: a holds 0-3 and 8-11, b 4-7 and 12-15, which is what unpacking within lanes gives.
struct Sums {
  __m256i a = _mm256_setzero_si256(), b = a;
};

template <int kQuad>
__m256i places_of(__m256i places) {
  return _mm256_and_si256(_mm256_srli_epi16(places, 2 * kQuad), _mm256_set1_epi8(3));
}

template <int kBits>
struct TwoOfFour;

template <>
struct TwoOfFour<4> {
  static constexpr int kChunk = kChunkPlaces + 64;
  __m256i low, high, codes = _mm256_setzero_si256();  // int16 sums of eight quads; int8 sums of a group's codes

  template <int kQuad>
  void quad(__m256i code, __m256i places, const uint8_t* x, int at) {
    const __m256i place = places_of<kQuad>(places);
    codes = _mm256_add_epi8(codes, code);
    keep(codes);
    low = _mm256_add_epi16(low, _mm256_maddubs_epi16(_mm256_shuffle_epi8(quad_of(x, at + kQuad), place), code));
    high = _mm256_add_epi16(high, _mm256_maddubs_epi16(_mm256_shuffle_epi8(quad_of(x + kTile, at + kQuad), place), code));
    keep(low);
    keep(high);
  }
  // Eight quads: 2 * 8 * 255 * 8 stays below 2^15.
  void eight(const uint8_t* chunk, const uint8_t* x, int at, Sums& sums) {
    const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_set1_epi8(8);
    low = high = _mm256_setzero_si256();
    for (int i = 0; i < 2; ++i, at += 4, chunk += kChunk) {
      const __m256i places = load(chunk), v = load(chunk + kChunkPlaces), w = load(chunk + kChunkPlaces + 32);
      quad<0>(_mm256_sub_epi8(_mm256_and_si256(v, nibble), zero), places, x, at);
      quad<1>(_mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(v, 4), nibble), zero), places, x, at);
      quad<2>(_mm256_sub_epi8(_mm256_and_si256(w, nibble), zero), places, x, at);
      quad<3>(_mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(w, 4), nibble), zero), places, x, at);
    }
    const __m256i planes = _mm256_set1_epi32(256 << 16 | 1);
    add(sums.a, _mm256_unpacklo_epi16(low, high), planes);
    add(sums.b, _mm256_unpackhi_epi16(low, high), planes);
  }
  // What the high plane's offset put in: twice 16384, for int16 holds no 32768.
  void finish(Sums& sums) const {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes), offset = _mm256_set1_epi16(-16384);
    add(sums.a, _mm256_unpacklo_epi16(pairs, pairs), offset);
    add(sums.b, _mm256_unpackhi_epi16(pairs, pairs), offset);
  }
};

template <>
struct TwoOfFour<8> {
  static constexpr int kChunk = kChunkPlaces + 128;

  template <int kQuad>
  static void quad(const uint8_t* codes, __m256i places, const uint8_t* x, int at, Sums& sums) {
    const __m256i place = places_of<kQuad>(places), code = _mm256_xor_si256(load(codes), _mm256_set1_epi8(char(0x80)));
    const __m256i low = _mm256_shuffle_epi8(quad_of(x, at + kQuad), place);
    const __m256i high = _mm256_shuffle_epi8(quad_of(x + kTile, at + kQuad), place);
    add(sums.a, _mm256_srai_epi16(_mm256_unpacklo_epi8(code, code), 8), _mm256_unpacklo_epi8(low, high));
    add(sums.b, _mm256_srai_epi16(_mm256_unpackhi_epi8(code, code), 8), _mm256_unpackhi_epi8(low, high));
  }
  void eight(const uint8_t* chunk, const uint8_t* x, int at, Sums& sums) {
    for (int i = 0; i < 2; ++i, at += 4, chunk += kChunk) {
      const __m256i places = load(chunk);
      quad<0>(chunk + kChunkPlaces, places, x, at, sums);
      quad<1>(chunk + kChunkPlaces + 32, places, x, at, sums);
      quad<2>(chunk + kChunkPlaces + 64, places, x, at, sums);
      quad<3>(chunk + kChunkPlaces + 96, places, x, at, sums);
    }
  }
  void finish(Sums&) const {}
};

// kGroups: groups a tile, 1 or 2.
template <int kBits, int kGroups>
void decode_two_of_four(const Format& f, const uint8_t* panel, const Row& x, float* acc) {
  const int64_t tiles = f.tiles(), per_run = f.tiles_per_run();
  const auto* planes = reinterpret_cast<const uint8_t*>(x.q);
  const float* x_scale = x.scale;
  __m256 a = _mm256_setzero_ps(), b = a;
  for (int64_t first = 0; first < tiles; first += per_run) {
    const uint8_t* scales = panel;
    panel += f.scale_bytes();
    for (int64_t tile = 0; tile < per_run; ++tile, x_scale += x.rows, planes += 2 * kTile * x.rows) {
      const __m256 by = _mm256_broadcast_ss(x_scale);
      for (int g = 0; g < kGroups; ++g) {
        TwoOfFour<kBits> kernel;
        Sums sums;
        for (int eight = 0; eight < 2 / kGroups; ++eight, panel += 2 * kernel.kChunk)
          fetch_ahead<2 * TwoOfFour<kBits>::kChunk>(panel, eight), kernel.eight(panel, planes, 8 * (g + eight), sums);
        kernel.finish(sums);
        const __m256i halves = _mm256_permute4x64_epi64(load(scales + 2 * kPanel * g), 0b11011000);
        const __m256 for_a = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
        const __m256 for_b = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
        a = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sums.a), for_a), by, a);
        b = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sums.b), for_b), by, b);
      }
    }
  }
  _mm256_storeu_ps(acc, _mm256_permute2f128_ps(a, b, 0x20));
  _mm256_storeu_ps(acc + 8, _mm256_permute2f128_ps(a, b, 0x31));
}

}  // namespace edgellm::EDGELLM_AVX2
