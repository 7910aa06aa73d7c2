// Plain C++: right on every processor, and the path that the others are compared with.
#include <cmath>
#include <cstring>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/widen.h"

namespace edgellm {
namespace {

// Calls each(quad, output, input, position in the block) for the 64 weights of vector block b (layout.py, to_blocks).
template <typename Each>
void for_block(const Format& f, int b, Each each) {
  const int r = f.reach(), outputs = kPanel / r;
  if (f.sparse() && f.along_out) {
    for (int i = 0; i < 4; ++i)
      for (int o = 0; o < kPanel; ++o) each(b, o, i, i * kPanel + o);
    return;
  }
  for (int o = 0; o < outputs; ++o)
    for (int i = 0; i < 4 * r; ++i) each(b / r * r + i / 4, b % r * outputs + o, i % 4, o * 4 * r + i);
}

void unpack_places(const Format& f, const uint8_t* tile, int8_t* weight, int8_t* kept) {
  std::memset(weight, 0, kPanel * kTile);
  if (kept) std::memset(kept, 0, kPanel * kTile);
  for (int quad = 0; quad < kTile / 4; ++quad) {
    const uint8_t* chunk = tile + size_t(quad / 4) * (32 + 4 * f.block_bytes());
    for (int i = 0; i < 2 * kPanel; ++i) {
      const int place = chunk[i] >> 2 * (quad % 4) & 3;
      const uint8_t* codes = chunk + 32 + 32 * (f.bits == 8 ? quad % 4 : quad % 4 / 2);
      const int code = f.bits == 8 ? codes[i] : codes[i] >> 4 * (quad % 2) & 15, at = (quad * kPanel + i / 2) * 4 + place;
      weight[at] = int8_t(code - offset(f));
      if (kept) kept[at] = 1;
    }
  }
}

void unpack(const Format& f, const uint8_t* tile, int8_t* weight, int8_t* kept) {
  if (f.places()) return unpack_places(f, tile, weight, kept);
  const uint8_t* codes = tile + (f.sparse() ? 8 * kBlocks : 0);
  const int half = f.kept() / 2, zero = offset(f);
  for (int b = 0; b < kBlocks; ++b, codes += f.block_bytes()) {
    uint64_t mask = ~uint64_t(0);
    if (f.sparse()) std::memcpy(&mask, tile + 8 * b, 8);
    int next = 0;  // for_block visits positions in order, which is the order of the kept codes
    for_block(f, b, [&](int quad, int out, int i, int position) {
      const bool here = mask >> position & 1;
      int code = 0;
      if (here) {
        code = f.bits == 8 ? codes[next] : next < half ? codes[next] & 15 : codes[next - half] >> 4;
        code -= zero;
        ++next;
      }
      const int at = (quad * kPanel + out) * 4 + i;
      weight[at] = int8_t(code);
      if (kept) kept[at] = here;
    });
  }
}

void accumulate(const int8_t* weight, int quads, const float* w_scale, const float* minimum, const int16_t* x,
                const float* x_scale, const float* total, int rows, float* acc) {
  for (int row = 0; row < rows; ++row, x += kTile, acc += kPanel)
    for (int out = 0; out < kPanel; ++out) {
      int32_t sum = 0;
      for (int quad = 0; quad < quads; ++quad)
        for (int i = 0; i < 4; ++i) sum += weight[(quad * kPanel + out) * 4 + i] * x[4 * quad + kPlace[i]];
      acc[out] += float(sum) * w_scale[out] * x_scale[row];
      if (minimum) acc[out] += minimum[out] * total[row];
    }
}

Part quantize(const float* x, int16_t* q, float* left) {
  float most = 0;
  for (int i = 0; i < kTile; ++i) most = std::fmax(most, std::fabs(x[i]));
  if (!(most > 1e-30f)) most = 0;  // kTop / most would overflow
  const float inverse = most > 0 ? kTop / most : 0;
  Part part{most / kTop, {}, {}, 0};
  for (int i = 0; i < kTile; ++i) {
    const auto code = int16_t(std::lrintf(std::fmin(std::fmax(x[i] * inverse, float(-kTop)), float(kTop))));
    q[i / 4 * 4 + kPlace[i % 4]] = code;
    if (left) left[i] = x[i] - part.scale * float(code);
    part.sum[2 * i / kTile] += x[i];
    part.codes[2 * i / kTile] += code;
    part.squares += x[i] * x[i];
  }
  return part;
}

Decode decoder(const Format&) { return nullptr; }
void arrange(const Format&, int16_t*) {}

float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  uint32_t bits;
  if (exponent == 31)
    bits = sign | 0x7f800000 | mantissa << 13;
  else if (exponent)
    bits = sign | (exponent + 112) << 23 | mantissa << 13;
  else {
    const float tiny = float(mantissa) * 0x1p-24f;
    std::memcpy(&bits, &tiny, 4);
    bits |= sign;
  }
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Round to nearest even, overflow to infinity, as F16C does.
uint16_t float_to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
  if (bits < 0x38800000) {                       // subnormal half: the addition rounds
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    return sign | uint16_t(std::lrintf(magnitude * 0x1p24f));
  }
  return sign | uint16_t((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

float widened(float x) { return x; }
float widened(uint16_t x) { return half_to_float(x); }
float widened(int8_t x) { return x; }

template <typename T>
void scores(const float* q, int rows, const T* key, int n, int dim, float* s, int stride) {
  for (int row = 0; row < rows; ++row)
    for (int j = 0; j < n; ++j) {
      float sum = 0;
      for (int i = 0; i < dim; ++i) sum += q[row * dim + i] * widened(key[j * pitch<T>(dim) + i]);
      s[row * stride + j] = sum;
    }
}

template <typename T>
void mix(const float* p, int stride, int rows, const T* value, int n, int dim, float* y) {
  for (int row = 0; row < rows; ++row)
    for (int j = 0; j < n; ++j)
      for (int i = 0; i < dim; ++i) y[row * dim + i] += p[row * stride + j] * widened(value[j * pitch<T>(dim) + i]);
}

float largest(const float* s, int n) {
  float most = s[0];
  for (int j = 1; j < n; ++j) most = s[j] > most ? s[j] : most;
  return most;
}

float exponentials(float* s, int n, float most) {
  float sum = 0;
  for (int j = 0; j < n; ++j) sum += s[j] = std::exp(s[j] - most);
  return sum;
}

void silu(const float* gate, const float* up, float* y) {
  for (int i = 0; i < kPanel; ++i) y[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
}

void gelu_tanh(const float* gate, const float* up, float* y) {
  for (int i = 0; i < kPanel; ++i) {
    const float x = gate[i];
    y[i] = 0.5f * x * (1 + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x))) * up[i];
  }
}

void to_half(const float* x, uint16_t* y, int n) {
  for (int i = 0; i < n; ++i) y[i] = float_to_half(x[i]);
}

void from_half(const uint16_t* x, float* y, int n) {
  for (int i = 0; i < n; ++i) y[i] = half_to_float(x[i]);
}

void from_int8(const int8_t* x, float* y, int n) {
  for (int i = 0; i < n; ++i) y[i] = x[i];
}

}  // namespace

const Isa kPortable = {"portable",   decoder, arrange,       unpack, accumulate, quantize, scores<float>, mix<float>,
                       scores<uint16_t>, mix<uint16_t>, scores<int8_t>, mix<int8_t>, largest, exponentials,
                       silu, gelu_tanh, to_half, from_half, from_int8, to_floats<true>, to_floats<false>};

}  // namespace edgellm
