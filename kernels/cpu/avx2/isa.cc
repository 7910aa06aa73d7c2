// AVX2 with FMA and F16C. No byte expand here: sparse blocks unpack through a table of shuffles, one a mask byte.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/avx2/accumulate.h"
#include "kernels/cpu/avx2/decode.h"
#include "kernels/cpu/avx2/exponentials.h"
#include "kernels/cpu/avx2/mix.h"
#include "kernels/cpu/avx2/scores.h"
#include "kernels/cpu/avx2/tables.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/widen.h"

namespace edgellm::EDGELLM_AVX2 {
namespace {

void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

// The kept codes of one block, minus the offset, as int8 [kept]; writes up to 64 bytes, reads only the block's.
void codes_to_int8(const Format& f, const uint8_t* codes, int8_t* out) {
  if (f.bits == 8) {
    const __m128i flip = _mm_set1_epi8(char(0x80));  // code - 128
    for (int i = 0; i < f.kept(); i += 4) {          // 64n/m is a multiple of 4
      if (i + 16 <= f.kept()) {
        _mm_storeu_si128((__m128i*)(out + i), _mm_xor_si128(_mm_loadu_si128((const __m128i*)(codes + i)), flip));
        i += 12;
      } else {
        uint32_t four;
        std::memcpy(&four, codes + i, 4);
        four ^= 0x80808080u;
        std::memcpy(out + i, &four, 4);
      }
    }
    return;
  }
  const int half = f.kept() / 2;
  const __m256i low = _mm256_set1_epi8(15), zero = _mm256_set1_epi8(char(offset(f)));
  __m256i packed;
  if (half == 32) {
    packed = load(codes);
  } else {
    alignas(32) uint8_t copy[32];
    std::memcpy(copy, codes, size_t(half));
    packed = load(copy);
  }
  store(out, _mm256_sub_epi8(_mm256_and_si256(packed, low), zero));
  store(out + half, _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(packed, 4), low), zero));
}

// Spread kept codes to their places, zeros between.
void expand(const int8_t* kept, uint64_t mask, int8_t* out) {
  for (int i = 0; i < 8; ++i, mask >>= 8) {
    const size_t byte = mask & 255;
    const __m128i values = _mm_loadl_epi64((const __m128i*)kept);
    _mm_storel_epi64((__m128i*)(out + 8 * i), _mm_shuffle_epi8(values, _mm_cvtsi64_si128(int64_t(kSpread<0>[byte]))));
    kept += __builtin_popcountll(byte);
  }
}

// Block b into quad order. Along the input it is outputs [16/r] x inputs [4r] (r = 1 is quad order already), along the
// output [4 inputs][16 outputs].
void place(const Format& f, int b, const int8_t* block, int8_t* weight) {
  if (f.along_out) {
    const __m128i i0 = load16(block), i1 = load16(block + 16), i2 = load16(block + 32), i3 = load16(block + 48);
    const __m128i a = _mm_unpacklo_epi8(i0, i1), b2 = _mm_unpacklo_epi8(i2, i3);
    const __m128i c = _mm_unpackhi_epi8(i0, i1), d = _mm_unpackhi_epi8(i2, i3);
    __m128i* to = reinterpret_cast<__m128i*>(weight + 64 * b);
    _mm_storeu_si128(to, _mm_unpacklo_epi16(a, b2));
    _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(a, b2));
    _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(c, d));
    _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(c, d));
    return;
  }
  const int r = f.reach(), outputs = kPanel / r;
  for (int o = 0; o < outputs; ++o)
    for (int q = 0; q < r; ++q)
      std::memcpy(weight + ((b / r * r + q) * kPanel + b % r * outputs + o) * 4, block + (o * r + q) * 4, 4);
}

// Two kept codes of every four inputs go where their places say: a byte of an output's four takes the code whose place
// it is.
void unpack_places(const Format& f, const uint8_t* tile, int8_t* weight, int8_t* kept) {
  const __m256i first = _mm256_broadcastsi128_si256(_mm_set_epi8(6, 6, 6, 6, 4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0));
  const __m256i eight = _mm256_set1_epi8(8), one = _mm256_set1_epi8(1), place = _mm256_set1_epi32(0x03020100);
  for (int quad = 0; quad < kTile / 4; ++quad, weight += 4 * kPanel) {
    const uint8_t* chunk = tile + size_t(quad / 4) * (32 + 4 * f.block_bytes());
    const __m256i places = _mm256_and_si256(_mm256_srl_epi16(load(chunk), _mm_cvtsi32_si128(quad % 4 * 2)), _mm256_set1_epi8(3));
    __m256i code = load(chunk + 32 + 32 * (f.bits == 8 ? quad % 4 : quad % 4 / 2));
    if (f.bits == 4) code = _mm256_and_si256(_mm256_srl_epi16(code, _mm_cvtsi32_si128(quad % 2 * 4)), _mm256_set1_epi8(15));
    code = _mm256_sub_epi8(code, _mm256_set1_epi8(char(offset(f))));
    // A lane has 8 outputs, its low half the first four: two registers of [4 outputs][4 inputs] a lane.
    __m256i w[2], k[2];
    for (int half = 0; half < 2; ++half) {
      const __m256i from = half ? _mm256_add_epi8(first, eight) : first, next = _mm256_add_epi8(from, one);
      const __m256i a = _mm256_cmpeq_epi8(_mm256_shuffle_epi8(places, from), place);
      const __m256i b = _mm256_cmpeq_epi8(_mm256_shuffle_epi8(places, next), place);
      w[half] = _mm256_or_si256(_mm256_and_si256(a, _mm256_shuffle_epi8(code, from)),
                                _mm256_and_si256(b, _mm256_shuffle_epi8(code, next)));
      k[half] = _mm256_and_si256(_mm256_or_si256(a, b), one);
    }
    store(weight, _mm256_permute2x128_si256(w[0], w[1], 0x20));
    store(weight + 32, _mm256_permute2x128_si256(w[0], w[1], 0x31));
    if (!kept) continue;
    store(kept, _mm256_permute2x128_si256(k[0], k[1], 0x20));
    store(kept + 32, _mm256_permute2x128_si256(k[0], k[1], 0x31));
    kept += 4 * kPanel;
  }
}

void unpack(const Format& f, const uint8_t* tile, int8_t* weight, int8_t* kept) {
  if (f.places()) return unpack_places(f, tile, weight, kept);
  if (!f.sparse() && f.bits == 4) {  // a block's bytes hold its first 32 codes and, above them, its last
    const __m256i low = _mm256_set1_epi8(15), zero = _mm256_set1_epi8(char(offset(f)));
    for (int b = 0; b < kBlocks; ++b) {
      const __m256i packed = load(tile + 32 * b);
      store(weight + 64 * b, _mm256_sub_epi8(_mm256_and_si256(packed, low), zero));
      store(weight + 64 * b + 32, _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(packed, 4), low), zero));
    }
    if (kept) std::memset(kept, 1, 64 * kBlocks);
    return;
  }
  const size_t bytes = f.block_bytes();
  if (!f.sparse()) {
    for (int b = 0; b < kBlocks; ++b) codes_to_int8(f, tile + size_t(b) * bytes, weight + 64 * b);
    if (kept) std::memset(kept, 1, 64 * kBlocks);
    return;
  }
  const uint8_t* codes = tile + 8 * kBlocks;
  const bool in_order = f.reach() == 1 && !f.along_out;
  alignas(32) int8_t packed[96] = {}, block[64], ones[64];  // expand reads 8 bytes at any kept code, store 32 at half
  int8_t all_ones[72];
  std::memset(all_ones, 1, sizeof all_ones);
  for (int b = 0; b < kBlocks; ++b) {
    uint64_t mask;
    std::memcpy(&mask, tile + 8 * b, 8);
    codes_to_int8(f, codes + size_t(b) * bytes, packed);
    expand(packed, mask, in_order ? weight + 64 * b : block);
    if (!in_order) place(f, b, block, weight);
    if (kept) {
      expand(all_ones, mask, in_order ? kept + 64 * b : ones);
      if (!in_order) place(f, b, ones, kept);
    }
  }
}

Part quantize(const float* x, int16_t* q, float* left) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 most = _mm256_setzero_ps();
  for (int i = 0; i < kTile; i += 8) most = _mm256_max_ps(most, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)));
  float peak = largest_of(most);
  if (!(peak > 1e-30f)) peak = 0;  // kTop / peak would overflow
  Part part{peak / kTop, {}, {}, 0};
  const __m256 inverse = _mm256_set1_ps(peak > 0 ? kTop / peak : 0), scale = _mm256_set1_ps(part.scale);
  const __m256i order = _mm256_broadcastsi128_si256(  // 0 2 1 3 of every four
      _mm_set_epi8(15, 14, 11, 10, 13, 12, 9, 8, 7, 6, 3, 2, 5, 4, 1, 0));
  __m256 squares = _mm256_setzero_ps(), sum[2] = {squares, squares};
  __m256i codes[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  unrolled<2>([&](auto half) {
    for (int i = kTile / 2 * half; i < kTile / 2 * (half + 1); i += 16) {
      const __m256 v = _mm256_loadu_ps(x + i), w = _mm256_loadu_ps(x + i + 8);
      const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse)), b = _mm256_cvtps_epi32(_mm256_mul_ps(w, inverse));
      const __m256i quads = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0b11011000);
      store(q + i, _mm256_shuffle_epi8(quads, order));
      if (left) {
        _mm256_storeu_ps(left + i, _mm256_fnmadd_ps(scale, _mm256_cvtepi32_ps(a), v));
        _mm256_storeu_ps(left + i + 8, _mm256_fnmadd_ps(scale, _mm256_cvtepi32_ps(b), w));
      }
      sum[half] = _mm256_add_ps(sum[half], _mm256_add_ps(v, w));
      codes[half] = _mm256_add_epi32(codes[half], _mm256_add_epi32(a, b));
      squares = _mm256_fmadd_ps(v, v, _mm256_fmadd_ps(w, w, squares));
    }
  });
  alignas(16) float floats[4];
  _mm_store_ps(floats, sums(sum[0], sum[1], squares, squares));
  const __m256i pairs = _mm256_hadd_epi32(codes[0], codes[1]), lanes = _mm256_hadd_epi32(pairs, pairs);
  const __m128i both = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  part.sum[0] = floats[0], part.sum[1] = floats[1], part.squares = floats[2];
  part.codes[0] = _mm_cvtsi128_si32(both), part.codes[1] = _mm_extract_epi32(both, 1);
  return part;
}

float half1(uint16_t h) { return _cvtsh_ss(h); }

void to_half(const float* x, uint16_t* y, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) _mm_storeu_si128((__m128i*)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
  for (; i < n; ++i) y[i] = uint16_t(_cvtss_sh(x[i], 0));
}

void from_half(const uint16_t* x, float* y, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, half8(x + i));
  for (; i < n; ++i) y[i] = half1(x[i]);
}

void from_int8(const int8_t* x, float* y, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, load8(x + i));
  for (; i < n; ++i) y[i] = x[i];
}

constexpr Isa all(const char* name) {
  return {name,
          decoder,
          arrange,
          unpack,
          accumulate,
          quantize,
          scores<float>,
          mix<float>,
          scores<uint16_t>,
          mix<uint16_t>,
          scores<int8_t>,
          mix<int8_t>,
          largest,
          exponentials,
          silu,
          gelu_tanh,
          to_half,
          from_half,
          from_int8,
          to_floats<true>,
          to_floats<false>};
}

}  // namespace
}  // namespace edgellm::EDGELLM_AVX2

namespace edgellm {
#ifdef EDGELLM_VNNI
const Isa kAvxVnni = avx_vnni::all("avx_vnni");
#else
const Isa kAvx2 = avx2::all("avx2");
#endif
}  // namespace edgellm
