// NMMatMul: y[t, o] = act( sum_i x[t, i] * w[o, i] ) + bias[o] + residual[t, o], w from packed tiles, x normed before
// where there is a norm.
//
//   sum_i x w = sum over groups g of  x_scale * w_scale[o, g] * sum_i q_x[i] * (code[o, i] - offset)
//                                   + minimum'[o, g] * sum_i x[i]                    (zero = "min" only)
//
// x becomes int16 once (rows.h); every panel of 16 outputs is then independent. A tile is unpacked once for a block of
// rows.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/product.h"
#include "kernels/cpu/tile_scales.h"

namespace edgellm {
namespace {

constexpr int kRowBlock = 256;  // rows that share an unpacked tile, as many as a prefill's chunk has (runtime/loading.py)
constexpr size_t kPrefetched = 1 << 14;

// acc[row][out] for rows [first, first + count) of one panel, every tile unpacked once for all of them.
void unpacked_panel(const Format& f, const uint8_t* panel, const Rows& x, int64_t first, int count, float* acc,
                    const Isa& isa) {
  alignas(64) int8_t weight[kPanel * kTile], kept[kPanel * kTile];
  const bool masked_minimum = f.minimum && f.sparse();
  const int groups = f.groups_per_tile(), quads = 16 / groups;
  std::fill(acc, acc + count * kPanel, 0.0f);
  for_tiles(f, panel, isa, [&](int64_t tile, const uint8_t* bytes, const TileScales& s) {
    isa.unpack(f, bytes, weight, masked_minimum ? kept : nullptr);
    const int64_t at = tile * x.rows + first;
    for (int g = 0; g < groups; ++g) {
      const int skip = g * quads * kPanel * 4;
      const int16_t* q = &x.q[size_t(at * kTile + 4 * quads * g)];
      const float *scale = &x.scale[size_t(at)], *sum = &x.sum[size_t((groups * tile + g) * x.rows + first)];
      const float* minimum = f.minimum && !masked_minimum ? s.minimum[g] : nullptr;
      isa.accumulate(weight + skip, quads, s.scale[g], minimum, q, scale, sum, count, acc);
      if (masked_minimum) isa.accumulate(kept + skip, quads, s.minimum[g], nullptr, q, scale, sum, count, acc);
    }
  });
}

// The second plane of these rows: of tiles, and from the first row to the last, that have one.
void add_rest(const Format& f, const uint8_t* panel, const Rows& x, int64_t first, int count, float* acc,
              const Isa& isa) {
  alignas(64) int8_t weight[kPanel * kTile], kept[kPanel * kTile];
  const bool masked_minimum = f.minimum && f.sparse();
  const int groups = f.groups_per_tile(), quads = 16 / groups;
  for_tiles(f, panel, isa, [&](int64_t tile, const uint8_t* bytes, const TileScales& s) {
    const float *all = &x.rest_scale[size_t(tile * x.rows + first)], *end = all + count;
    const float* scale = std::find_if(all, end, [](float one) { return one > 0; });
    if (scale == end) return;
    while (!(end[-1] > 0)) --end;
    const int64_t at = tile * x.rows + first + (scale - all);
    float* to = acc + (scale - all) * kPanel;
    isa.unpack(f, bytes, weight, masked_minimum ? kept : nullptr);
    for (int g = 0; g < groups; ++g) {
      const int skip = g * quads * kPanel * 4, rows = int(end - scale);
      const int16_t* q = &x.rest[size_t(at * kTile + 4 * quads * g)];
      isa.accumulate(weight + skip, quads, s.scale[g], nullptr, q, scale, scale, rows, to);
      if (masked_minimum) isa.accumulate(kept + skip, quads, s.minimum[g], nullptr, q, scale, scale, rows, to);
    }
  });
}

void panel_times_rows(const Format& f, const uint8_t* panel, const Rows& x, int64_t first, int count, float* acc,
                      Decode decode, const Isa& isa) {
  if (decode)
    for (int row = 0; row < count; ++row) decode(f, panel, x.row(first + row), acc + row * kPanel);
  else
    unpacked_panel(f, panel, x, first, count, acc, isa);
  if (x.any_rest) add_rest(f, panel, x, first, count, acc, isa);
}

}  // namespace

int64_t Product::begin(const Weights& weights, const float* x, int64_t rows, float* y, int64_t stride,
                       const Pool& pool) {
  const Isa& isa = edgellm::isa();
  w_ = weights;
  decode_ = rows <= kFewRows ? isa.decoder(w_.f) : nullptr;
  q_.quantize(w_.f, x, rows, w_.fused, decode_ != nullptr, isa, pool);
  rows_ = rows;
  y_ = y;
  stride_ = stride;
  return parts_ = w_.parts(rows);
}

void Product::part(int64_t i) const {
  const Isa& isa = edgellm::isa();
  for (int64_t unit = w_.units() * i / parts_; unit < w_.units() * (i + 1) / parts_; ++unit)
    for (int64_t first = 0; first < rows_; first += kRowBlock)
      this->unit(unit, first, int(std::min<int64_t>(kRowBlock, rows_ - first)), isa);
}

// Outputs [16 * unit, 16 * unit + 16) of y for rows [first, first + count).
void Product::unit(int64_t unit, int64_t first, int count, const Isa& isa) const {
  alignas(64) float acc[2][kRowBlock * kPanel];
  const auto& [f, tiles, activation, fused] = w_;
  const int64_t out = unit * kPanel;
  const int outputs = int(std::min<int64_t>(kPanel, w_.width() - out));
  const uint8_t* panel = w_.unit(unit);
  panel_times_rows(f, panel, q_, first, count, acc[0], decode_, isa);
  if (w_.paired()) panel_times_rows(f, panel + f.panel_bytes(), q_, first, count, acc[1], decode_, isa);
  for (int row = 0; row < count; ++row) {
    float *gate = acc[0] + row * kPanel, *to = y_ + (first + row) * stride_ + out;
    if (activation == Activation::kSilu) isa.silu(gate, acc[1] + row * kPanel, gate);
    if (activation == Activation::kGeluTanh) isa.gelu_tanh(gate, acc[1] + row * kPanel, gate);
    const float* residual = fused.residual ? fused.residual + (first + row) * w_.width() + out : nullptr;
    auto write = [&, bias = fused.bias](const auto n) {
      float sum[kPanel];  // of its own: it cannot be `to`, so that vectors do the rest
      std::memcpy(sum, gate, sizeof sum);
      for (int i = 0; bias && i < n; ++i) sum[i] += bias[out + i];
      for (int i = 0; residual && i < n; ++i) sum[i] += residual[i];
      std::memcpy(to, sum, size_t(n) * sizeof(float));
    };
    if (outputs == kPanel)  // a constant: vectors, and no call to copy one line
      write(std::integral_constant<int, kPanel>());
    else
      write(outputs);
  }
}

void nm_matmul(const Format& f, Activation activation, const float* x, int64_t rows, const uint8_t* tiles,
               const Fused& fused, float* y, const Pool& pool) {
  static thread_local Product own;
  Product& product = own;
  const int64_t width = activation == Activation::kNone ? f.n_out : f.n_out / 2;
  const int64_t parts = product.begin({f, tiles, activation, fused}, x, rows, y, width, pool);
  auto part = [&](size_t i) { product.part(int64_t(i)); };
  parallel(pool, size_t(parts), part);
  if (rows > kFewRows) return;
  // The memory need not rest between products. A prefetch of an address that is none does nothing.
  const uint8_t* next = Weights{f, tiles}.behind();
  for (size_t i = 0; i < kPrefetched; i += 64) __builtin_prefetch(next + i, 0, 2);
}

}  // namespace edgellm

// The product alone, on the caller's thread. format: n_out, k_in, bits, group, minimum, n, m, along_out, of kernels/layout.h.
// 0 for a format that is none.
extern "C" __attribute__((visibility("default"))) int edgellm_nm_matmul(const int64_t* format, const float* x, int64_t rows,
                                                                        const uint8_t* tiles, float* y) {
  using namespace edgellm;
  const Format f{format[0], format[1], format[2], format[3], format[4] != 0, format[5], format[6], format[7] != 0};
  if (f.valid()) nm_matmul(f, Activation::kNone, x, rows, tiles, {}, y, kCaller);
  return f.valid();
}
