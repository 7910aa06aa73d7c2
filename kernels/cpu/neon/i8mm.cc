// Arm processors that multiply matrices of bytes (Neoverse V and N2, Cortex-X: Jetson Thor, DGX Spark): many rows by
// smmla, 2 x 8 bytes by 8 x 2. The first matrix is both planes of one row, the second two outputs:
//
//   | low  | * | out 0 | T  =  | low . out 0    low . out 1  |      y = 256 * the second line + the first
//   | high |   | out 1 |       | high . out 0   high . out 1 |
//
// 16 outputs by 8 inputs of a row are 8 instructions, half of what sdot takes: 2 cycles of Neoverse V's four pipes.
// Weights are put in that order once a call.
#include "kernels/cpu/neon/vectors.h"
#include "kernels/cpu/widen.h"

namespace edgellm {
namespace neon {
namespace {

// [quads][16 outputs][4 inputs] -> [quads / 2][8 pairs of outputs][2 outputs][8 inputs]
void pair_outputs(const int8_t* weight, int quads, int8_t* paired) {
  for (int quad = 0; quad < quads; quad += 2, weight += 8 * kPanel, paired += 8 * kPanel)
    repeat<4>([&](int i) {
      const int32x4_t a = vreinterpretq_s32_s8(load(weight + 16 * i));
      const int32x4_t b = vreinterpretq_s32_s8(load(weight + 4 * kPanel + 16 * i));
      vst1q_s8(paired + 32 * i, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
      vst1q_s8(paired + 32 * i + 16, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
    });
}

// One row's sums: of each pair of outputs [low, low, high, high].
struct Squares {
  int32x4_t first[4], second[4];

  Squares() {
    repeat<4>([&](int i) { first[i] = second[i] = vdupq_n_s32(0); });
  }
  int32x4_t whole(int i) const {
    const int64x2_t a = vreinterpretq_s64_s32(first[i]), b = vreinterpretq_s64_s32(second[i]);
    const int32x4_t low = vreinterpretq_s32_s64(vzip1q_s64(a, b)), high = vreinterpretq_s32_s64(vzip2q_s64(a, b));
    return vaddq_s32(low, vshlq_n_s32(high, 8));
  }
};

// For one or two rows at once, as with sdot.
template <int kRows>
void multiply_some(const int8_t* paired, int quads, const float* w_scale, const float* minimum, const int8_t* x,
                   const float* x_scale, const float* total, float* acc) {
  Squares sums[kRows];
  for (int quad = 0; quad < quads; quad += 2, paired += 8 * kPanel, x += 16) {
    int8x16_t in[kRows];
    repeat<kRows>([&](int row) { in[row] = load(x + row * kRowBytes); });
    repeat<4>([&](int i) {
      const int8x16_t v = load(paired + 32 * i), w = load(paired + 32 * i + 16);
      repeat<kRows>([&](int row) { sums[row].first[i] = vmmlaq_s32(sums[row].first[i], in[row], v); });
      repeat<kRows>([&](int row) { sums[row].second[i] = vmmlaq_s32(sums[row].second[i], in[row], w); });
    });
  }
  repeat<kRows>([&](int row) {
    const int32x4_t whole[] = {sums[row].whole(0), sums[row].whole(1), sums[row].whole(2), sums[row].whole(3)};
    add_group(acc + row * kPanel, whole, w_scale, x_scale[row], minimum, total[row]);
  });
}

void multiply(const int8_t* weight, int quads, const float* w_scale, const float* minimum, const int16_t* x,
              const float* x_scale, const float* total, int rows, float* acc) {
  if (rows == 1)  // putting the weights in order would cost what smmla saves
    return accumulate(weight, quads, w_scale, minimum, x, x_scale, total, rows, acc);
  alignas(16) int8_t paired[kPanel * kTile];
  pair_outputs(weight, quads, paired);
  const auto* planes = reinterpret_cast<const int8_t*>(x);
  for (int row = 0; row < rows; row += 2, planes += 2 * kRowBytes, acc += 2 * kPanel)
    (row + 1 < rows ? multiply_some<2> : multiply_some<1>)(paired, quads, w_scale, minimum, planes, x_scale + row,
                                                           total + row, acc);
}

}  // namespace
}  // namespace neon

const Isa kNeonI8mm = {"neon_i8mm",    neon::decoder,   neon::arrange, neon::unpack,    neon::multiply,
                       neon::quantize, neon::scores,    neon::mix, neon::scores_half, neon::mix_half,
                       neon::scores_int8, neon::mix_int8, neon::largest,   neon::exponentials,
                       neon::silu,     neon::gelu_tanh, neon::to_half, neon::from_half, neon::from_int8,
                       to_floats<true>, to_floats<false>};

}  // namespace edgellm
