// Arm processors with dot products (Cortex-A76, A78: Raspberry Pi 5, Jetson Orin): many rows by sdot.
//
//   acc[row][out] += w_scale[out] * x_scale[row] * sum_i w[out][i] * ( 256 * high[row][i] + low[row][i] )
//                  + minimum[out] * total[row]
//
// An sdot is 16 multiplications of bytes: 16 outputs by 8 inputs of a row are 16 of them, 8 cycles of two pipes, and
// nothing else is in the loop but loads. A group's end adds about 22 cycles a row to the 64 that 64 inputs take.
#include "kernels/cpu/neon/vectors.h"
#include "kernels/cpu/widen.h"

namespace edgellm {
namespace neon {
namespace {

// For one or two rows at once: the sums of two are 16 registers, and no longer wait for each other.
template <int kRows>
void accumulate_some(const int8_t* weight, int quads, const float* w_scale, const float* minimum, const int8_t* x,
                     const float* x_scale, const float* total, float* acc) {
  Sums sums[kRows];
  for (int quad = 0; quad < quads; quad += 2, weight += 8 * kPanel, x += 16) {
    int8x16_t in[kRows];
    repeat<kRows>([&](int row) { in[row] = load(x + row * kRowBytes); });
    repeat<4>([&](int i) {
      const int8x16_t w = load(weight + 16 * i);
      repeat<kRows>([&](int row) { sums[row].template add<0>(i, w, in[row]); });
    });
    repeat<4>([&](int i) {
      const int8x16_t w = load(weight + 4 * kPanel + 16 * i);
      repeat<kRows>([&](int row) { sums[row].template add<1>(i, w, in[row]); });
    });
  }
  repeat<kRows>([&](int row) {
    const int32x4_t whole[] = {sums[row].whole(0), sums[row].whole(1), sums[row].whole(2), sums[row].whole(3)};
    add_group(acc + row * kPanel, whole, w_scale, x_scale[row], minimum, total[row]);
  });
}

}  // namespace

void accumulate(const int8_t* weight, int quads, const float* w_scale, const float* minimum, const int16_t* x,
                const float* x_scale, const float* total, int rows, float* acc) {
  const auto* planes = reinterpret_cast<const int8_t*>(x);
  for (int row = 0; row < rows; row += 2, planes += 2 * kRowBytes, acc += 2 * kPanel)
    (row + 1 < rows ? accumulate_some<2> : accumulate_some<1>)(weight, quads, w_scale, minimum, planes, x_scale + row,
                                                               total + row, acc);
}

}  // namespace neon

const Isa kNeonDotprod = {"neon_dotprod",   neon::decoder,   neon::arrange,  neon::unpack,       neon::accumulate,
                          neon::quantize,   neon::scores,    neon::mix, neon::scores_half, neon::mix_half,
                          neon::scores_int8, neon::mix_int8, neon::largest,      neon::exponentials,
                          neon::silu,       neon::gelu_tanh, neon::to_half,  neon::from_half, neon::from_int8,
                          to_floats<true>, to_floats<false>};

}  // namespace edgellm
