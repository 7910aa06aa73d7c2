// Decoding with AVX-512: one row of activations times one panel, straight from the packed bytes.
//
//   acc[o] = sum over groups g of  w_scale[o, g] * x_scale[g] * ( sum_i code[o, i] * x[i] - zero * sum_i x[i] )
//                                + minimum[o, g] * sum_i x[i]                      (zero = "min" only)
#pragma once
#include "kernels/cpu/avx512/arrange.h"
#include "kernels/cpu/avx512/blocks.h"
#include "kernels/cpu/avx512/products.h"
#include "kernels/cpu/avx512/two_of_four.h"

namespace edgellm::EDGELLM_AVX512 {

// kGroups: groups a tile, 1 or 2.
template <class Block, int kGroups, bool kMinimum>
void decode_panel(const Format& f, const uint8_t* panel, const Row& x, float* acc) {
  constexpr int kInGroup = kBlocks / kGroups;
  const int32_t zero = kMinimum ? 0 : -f.zero_point();
  const int64_t tiles = f.tiles(), per_run = f.tiles_per_run(), step = x.rows;
  const size_t scale_bytes = f.scale_bytes();
  const int16_t* q = x.q;
  const float *x_scale = x.scale, *sum = x.sum;
  const int32_t* codes_sum = x.codes;
  __m512 y = _mm512_setzero_ps();
  for (int64_t first = 0; first < tiles; first += per_run) {
    const uint8_t* head = panel;
    panel += scale_bytes;
    for (int64_t tile = 0; tile < per_run; ++tile, q += step * kTile, x_scale += step) {
      const uint8_t* masks = panel;
      const uint8_t* codes = panel + kBlocks * Block::kMasks;
      fetch_four_pages<kBlocks * (Block::kBytes + Block::kMasks)>(panel);
      for (int g = 0; g < kGroups; ++g) {
        Products<Block::kBits> even, odd;  // two pairs of sums: additions need not wait for each other
        for (int block = g * kInGroup; block < (g + 1) * kInGroup; block += 2) {
          even.template add<Block::kWide>(Block::bytes(codes, masks), q, block);
          odd.template add<Block::kWide>(Block::bytes(codes + Block::kBytes, masks + Block::kMasks), q,
                                         Block::kWide ? block : block + 1);
          codes += 2 * Block::kBytes;
          masks += 2 * Block::kMasks;
        }
        const __m512i products =
            Block::kWide ? joined(even.sum(), odd.sum()) : _mm512_add_epi32(even.sum(), odd.sum());
        const __m512i total = _mm512_add_epi32(products, _mm512_set1_epi32(zero * *codes_sum));
        codes_sum += step;
        const uint8_t* scales = head + g * 2 * kPanel;
        y = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(total), half16(scales)), _mm512_set1_ps(*x_scale), y);
        if constexpr (kMinimum) {
          y = _mm512_fmadd_ps(half16(scales + kGroups * 2 * kPanel), _mm512_set1_ps(*sum), y);
          sum += step;
        }
      }
      panel = codes;
    }
  }
  _mm512_storeu_ps(acc, y);
}

template <class Block>
Decode dense(const Format& f) {
  const bool two = f.groups_per_tile() == 2;
  if (f.minimum) return two ? decode_panel<Block, 2, true> : decode_panel<Block, 1, true>;
  return two ? decode_panel<Block, 2, false> : decode_panel<Block, 1, false>;
}

template <class Block>
Decode sparse(const Format& f) {
  return f.groups_per_tile() == 2 ? decode_panel<Block, 2, false> : decode_panel<Block, 1, false>;
}

template <int kBits>
Decode decoder_of(const Format& f) {
  if (!f.sparse()) return dense<Dense<kBits>>(f);
  if (f.minimum || 2 * f.n != f.m || f.m > 8) return nullptr;
  if (f.along_out) return sparse<SparseOut<kBits>>(f);
  if (f.m == 8) return sparse<Sparse48In<kBits>>(f);
  return f.groups_per_tile() == 2 ? decode_two_of_four<kBits, 2> : decode_two_of_four<kBits, 1>;
}

inline Decode decoder(const Format& f) { return f.bits == 4 ? decoder_of<4>(f) : decoder_of<8>(f); }

}  // namespace edgellm::EDGELLM_AVX512
