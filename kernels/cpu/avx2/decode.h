// Decoding with AVX2: one row of activations times one panel, straight from the packed bytes.
//
//   acc[o] = sum over groups g of  w_scale[o, g] * x_scale[g] * ( sum_i code[o, i] * x[i] - zero * sum_i x[i] )
//                                + minimum[o, g] * sum_i x[i]                      (zero = "min" only)
//
// Codes stay in the 16-bit lanes they were loaded in: vpmaddwd multiplies a pair of them by a pair of activations and
// leaves an int32 an output. Dense 4 bits and 2:4 along the input have files of their own.
#pragma once
#include "kernels/cpu/avx2/dense4.h"
#include "kernels/cpu/avx2/tables.h"
#include "kernels/cpu/avx2/two_of_four.h"

namespace edgellm::EDGELLM_AVX2 {

// Every block kernel adds one vector block, 64 weights of 4 inputs, to a and b: outputs 0-7 and 8-15. A wide
// block is 8 inputs of 8 outputs, two int32 each: 0-3 in a, 4-7 in b.

struct Dense8 {
  static constexpr int kBytes = 64, kMasks = 0;
  static constexpr bool kSigned = false, kWide = false;
  static void run(const uint8_t* codes, const uint8_t*, const int16_t* x, __m256i& a, __m256i& b) {
    const __m256i low = _mm256_set1_epi16(255), even = pair(x), odd = pair(x + 2);
    const __m256i v = load(codes), w = load(codes + 32);
    add(a, _mm256_and_si256(v, low), even);
    add(a, _mm256_srli_epi16(v, 8), odd);
    add(b, _mm256_and_si256(w, low), even);
    add(b, _mm256_srli_epi16(w, 8), odd);
  }
};

// Two table entries side by side: the first mask byte's from `low`, the second's from `high`.
using Shuffles = std::array<uint64_t, 256>;
inline __m128i both(const Shuffles& low, const Shuffles& high, const uint8_t* mask) {
  return _mm_set_epi64x(int64_t(high[mask[1]]), int64_t(low[mask[0]]));
}

// 4:8 along the input: activations are gathered by a table of shuffles.
template <int kBits>
struct Sparse48In {
  static constexpr int kBytes = 4 * kBits, kMasks = 8;
  static constexpr bool kSigned = true, kWide = true;
  static void run(const uint8_t* codes, const uint8_t* mask, const int16_t* x, __m256i& a, __m256i& b) {
    __m128i first, second;
    if constexpr (kBits == 4) {
      const __m128i low = _mm_set1_epi8(15), packed = load16(codes);
      first = _mm_and_si128(packed, low);
      second = _mm_and_si128(_mm_srli_epi16(packed, 4), low);
    } else {
      first = load16(codes);
      second = load16(codes + 16);
    }
    const __m256i zero = _mm256_set1_epi16(1 << (kBits - 1)), inputs = _mm256_broadcastsi128_si256(load16(x));
    const __m256i v = _mm256_set_m128i(both(kGather, kGather, mask + 2), both(kGather, kGather, mask));
    const __m256i w = _mm256_set_m128i(both(kGather, kGather, mask + 6), both(kGather, kGather, mask + 4));
    add(a, _mm256_sub_epi16(_mm256_cvtepu8_epi16(first), zero), _mm256_shuffle_epi8(inputs, v));
    add(b, _mm256_sub_epi16(_mm256_cvtepu8_epi16(second), zero), _mm256_shuffle_epi8(inputs, w));
  }
};

// 2:4 and 4:8 along the output: bits and codes run over [4 inputs][16 outputs], four codes for every eight outputs. The
// mask picks the byte shuffle that puts them in place; inputs are then interleaved in pairs.
template <int kBits>
struct SparseOut {
  static constexpr int kBytes = 4 * kBits, kMasks = 8;
  static constexpr bool kSigned = true, kWide = false;
  static void run(const uint8_t* codes, const uint8_t* mask, const int16_t* x, __m256i& a, __m256i& b) {
    __m128i first, second;  // kept codes of inputs 0 and 1, and of 2 and 3, minus the zero point
    const __m128i zero = _mm_set1_epi8(char(1 << (kBits - 1)));
    if constexpr (kBits == 4) {
      const __m128i low = _mm_set1_epi8(15), packed = load16(codes);
      first = _mm_sub_epi8(_mm_and_si128(packed, low), zero);
      second = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(packed, 4), low), zero);
    } else {
      first = _mm_sub_epi8(load16(codes), zero);
      second = _mm_sub_epi8(load16(codes + 16), zero);
    }
    // A mask byte is 8 outputs and always four codes.
    const __m128i i0 = _mm_shuffle_epi8(first, both(kSpread<0>, kSpread<4>, mask));
    const __m128i i1 = _mm_shuffle_epi8(first, both(kSpread<8>, kSpread<12>, mask + 2));
    const __m128i i2 = _mm_shuffle_epi8(second, both(kSpread<0>, kSpread<4>, mask + 4));
    const __m128i i3 = _mm_shuffle_epi8(second, both(kSpread<8>, kSpread<12>, mask + 6));
    const __m256i even = pair(x), odd = pair(x + 2);
    add(a, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(i0, i2)), even);
    add(b, _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(i0, i2)), even);
    add(a, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(i1, i3)), odd);
    add(b, _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(i1, i3)), odd);
  }
};

// kGroups: groups a tile, 1 or 2.
template <class Block, int kGroups, bool kMinimum>
void decode_panel(const Format& f, const uint8_t* panel, const Row& x, float* acc) {
  constexpr int kInGroup = kBlocks / kGroups;
  const int32_t zero = Block::kSigned || kMinimum ? 0 : -f.zero_point();
  const int64_t tiles = f.tiles(), per_run = f.tiles_per_run(), step = x.rows;
  const size_t scale_bytes = f.scale_bytes();
  const int16_t* q = x.q;
  const float *x_scale = x.scale, *sum = x.sum;
  const int32_t* codes_sum = x.codes;
  __m256 low = _mm256_setzero_ps(), high = low;
  for (int64_t first = 0; first < tiles; first += per_run) {
    const uint8_t* head = panel;
    panel += scale_bytes;
    for (int64_t tile = 0; tile < per_run; ++tile) {
      const uint8_t* masks = panel;
      const uint8_t* codes = panel + kBlocks * Block::kMasks;
      const uint8_t* at_hand = panel;
      const __m256 by = _mm256_broadcast_ss(x_scale);
      for (int g = 0; g < kGroups; ++g) {
        // A second pair of sums: additions need not wait for each other.
        __m256i a = _mm256_set1_epi32(zero * *codes_sum), b = a, c = _mm256_setzero_si256(), d = c;
        codes_sum += step;
        for (int block = 0; block < kInGroup; block += 2) {
          Block::run(codes, masks, q, a, b);
          Block::run(codes + Block::kBytes, masks + Block::kMasks, Block::kWide ? q : q + 4, c, d);
          fetch_ahead<2 * (Block::kBytes + Block::kMasks)>(at_hand, block / 2);
          at_hand += 2 * (Block::kBytes + Block::kMasks);
          codes += 2 * Block::kBytes;
          masks += 2 * Block::kMasks;
          q += 8;
        }
        const uint8_t* scales = head + g * 2 * kPanel;
        if constexpr (Block::kWide) {
          a = _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0b11011000);
          b = _mm256_permute4x64_epi64(_mm256_hadd_epi32(c, d), 0b11011000);
        } else {
          a = _mm256_add_epi32(a, c);
          b = _mm256_add_epi32(b, d);
        }
        low = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(a), half8(scales)), by, low);
        high = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(b), half8(scales + kPanel)), by, high);
        if constexpr (kMinimum) {
          const __m256 total = _mm256_broadcast_ss(sum);
          sum += step;
          low = _mm256_fmadd_ps(half8(scales + kGroups * 2 * kPanel), total, low);
          high = _mm256_fmadd_ps(half8(scales + kGroups * 2 * kPanel + kPanel), total, high);
        }
      }
      panel = codes;
      x_scale += step;
      q += (step - 1) * kTile;
    }
  }
  _mm256_storeu_ps(acc, low);
  _mm256_storeu_ps(acc + 8, high);
}

template <int kBits, int kGroups>
Decode dense(const Format& f) {
  if constexpr (kBits == 4) return f.minimum ? decode_dense4<kGroups, true> : decode_dense4<kGroups, false>;
  return f.minimum ? decode_panel<Dense8, kGroups, true> : decode_panel<Dense8, kGroups, false>;
}

template <class Block>
Decode sparse(const Format& f) {
  return f.groups_per_tile() == 2 ? decode_panel<Block, 2, false> : decode_panel<Block, 1, false>;
}

template <int kBits>
Decode decoder_of(const Format& f) {
  if (!f.sparse()) return f.groups_per_tile() == 2 ? dense<kBits, 2>(f) : dense<kBits, 1>(f);
  if (f.minimum || 2 * f.n != f.m || f.m > 8) return nullptr;
  if (f.along_out) return sparse<SparseOut<kBits>>(f);
  if (f.m == 8) return sparse<Sparse48In<kBits>>(f);
  return f.groups_per_tile() == 2 ? decode_two_of_four<kBits, 2> : decode_two_of_four<kBits, 1>;
}

inline Decode decoder(const Format& f) { return f.bits == 4 ? decoder_of<4>(f) : decoder_of<8>(f); }

inline void arrange(const Format& f, int16_t* q) {
  if (f.places()) to_planes(q, f.bits == 4 ? kOffset : kWords);
  if (!f.sparse() && f.bits == 4) to_planes(q, kSigned);
}

}  // namespace edgellm::EDGELLM_AVX2
