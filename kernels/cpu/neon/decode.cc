// Decoding with dot products: one row of activations times one panel, straight from the packed bytes.
//
//   acc[o] = sum over groups g of  w_scale[o, g] * x_scale[g] * ( sum_i code[o, i] * x[i] - zero * sum_i x[i] )
//                                + minimum[o, g] * sum_i x[i]                      (zero = "min" only)
//
// Sums within a group are exact integers, and their scaling is accumulate's: results have the same bits.
#include "kernels/cpu/neon/blocks.h"
#include "kernels/cpu/neon/two_of_four.h"

namespace edgellm::neon {
namespace {

// A group's sums, times the scales that lie at `scales`, are added to y.
template <bool kTimes16>
void add_scaled(const Sums& sums, const uint8_t* scales, float x_scale, float32x4_t* y) {
  __asm__("" : "+r"(scales));  // or compilers load them before the sums, which need the registers
  repeat<4>([&](int i) {
    const int32x4_t sum = sums.whole(i);
    const float32x4_t exact = kTimes16 ? vcvtq_n_f32_s32(sum, 4) : vcvtq_f32_s32(sum);
    y[i] = scaled(y[i], exact, half4(scales + 8 * i), x_scale);
  });
}

// kGroups: groups a tile, 1 or 2.
template <class Block, int kGroups, bool kMinimum>
void decode_panel(const Format& f, const uint8_t* panel, const Row& x, float* acc) {
  const int32_t zero = Block::kPlain && !kMinimum ? -f.zero_point() : 0;
  const int64_t tiles = f.tiles(), per_run = f.tiles_per_run(), step = x.rows;
  const size_t scale_bytes = f.scale_bytes();
  const auto* q = reinterpret_cast<const int8_t*>(x.q);
  const float *x_scale = x.scale, *total = x.sum;
  const int32_t* codes_sum = x.codes;
  float32x4_t y[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
  for (int64_t first = 0; first < tiles; first += per_run) {
    const uint8_t* head = panel;
    panel += scale_bytes;
    for (int64_t tile = 0; tile < per_run; ++tile) {
      const uint8_t* masks = panel;
      const uint8_t* codes = panel + kBlocks * Block::kMasks;
      for (int g = 0; g < kGroups; ++g, codes_sum += step, total += step) {
        Sums sums(zero * *codes_sum);
#pragma GCC unroll 1  // all of a tile at once would not fit the registers
        for (int block = 0; block < kBlocks / kGroups; block += 2) {
          prefetch<2 * Block::kBytes>(codes + kAhead);
          Block::two(codes, masks, load(q), sums);
          codes += 2 * Block::kBytes;
          masks += 2 * Block::kMasks;
          q += 16;
        }
        const uint8_t *scales = head + 32 * g, *minima = scales + 32 * kGroups;
        add_scaled<Block::kTimes16>(sums, scales, *x_scale, y);
        if constexpr (kMinimum)
          repeat<4>([&](int i) {
            const float32x4_t minimum = vfmaq_n_f32(half4(minima + 8 * i), half4(scales + 8 * i), Block::kOffset);
            y[i] = with_minimum(y[i], minimum, *total);
          });
      }
      panel = codes;
      x_scale += step;
      q += (step - 1) * kRowBytes;
    }
  }
  repeat<4>([&](int i) { vst1q_f32(acc + 4 * i, y[i]); });
}

template <int kBits, int kGroups>
void decode_two_of_four(const Format& f, const uint8_t* panel, const Row& x, float* acc) {
  constexpr int kChunk = TwoOfFour<kBits>::kChunk;
  const int64_t tiles = f.tiles(), per_run = f.tiles_per_run();
  const size_t scale_bytes = f.scale_bytes();
  const auto* q = reinterpret_cast<const int8_t*>(x.q);
  const float* x_scale = x.scale;
  float32x4_t y[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
  for (int64_t first = 0; first < tiles; first += per_run) {
    const uint8_t* scales = panel;
    panel += scale_bytes;
    for (int64_t tile = 0; tile < per_run; ++tile) {
      for (int g = 0; g < kGroups; ++g) {
        Sums sums;
        const uint8_t* end = panel + 4 / kGroups * kChunk;
#pragma GCC unroll 1
        for (; panel < end; panel += kChunk, q += 32) {
          prefetch<kChunk>(panel + kAhead);
          TwoOfFour<kBits>::chunk(panel, q, sums);
        }
        add_scaled<kBits == 4>(sums, scales + 32 * g, *x_scale, y);
      }
      x_scale += x.rows;
      q += (x.rows - 1) * kRowBytes;
    }
  }
  repeat<4>([&](int i) { vst1q_f32(acc + 4 * i, y[i]); });
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
  if (!f.sparse()) return kBits == 4 ? dense<Dense4>(f) : dense<Dense8>(f);
  if (f.minimum || 2 * f.n != f.m || f.m > 8) return nullptr;
  if (f.along_out) return sparse<SparseOut<kBits>>(f);
  if (f.m == 8) return sparse<SparseIn<kBits>>(f);
  return f.groups_per_tile() == 2 ? decode_two_of_four<kBits, 2> : decode_two_of_four<kBits, 1>;
}

}  // namespace

Decode decoder(const Format& f) { return f.bits == 4 ? decoder_of<4>(f) : decoder_of<8>(f); }

void arrange(const Format& f, int16_t* q) {
  if (f.places()) arrange_places(q);
}

}  // namespace edgellm::neon
