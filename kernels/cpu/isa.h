// The small interface that every instruction set fills in, one folder or file each (isa_portable.cc, avx2/, avx512/, neon/).
//
// Activations are int16, one scale per row and 64 inputs; of every four inputs the order is 0 2 1 3 (kPlace), so that
// the low and the high bytes of 16-bit lanes of packed weights meet pairs of them. A decode kernel that wants another
// order has its tiles arranged first. An instruction set may have another order altogether, where its own quantize,
// arrange, decoders and accumulate agree: 128 bytes a tile, each half of them one half of its inputs (neon/neon.h).
#pragma once
#include "kernels/layout.h"

namespace edgellm {

constexpr int kPlace[4] = {0, 2, 1, 3};  // where input i of a quad lies

constexpr int kTop = 127 * 256 + 127;  // the largest code: as 256 * high + low, both fit a signed byte

// One row of activations as a panel reads it. Steps from tile to tile are `rows` entries: rows lie side by side.
struct Row {
  const int16_t* q;      // [tile][rows][64], arranged
  const float* scale;    // [tile][rows]
  const float* sum;      // [tile][group][rows], of a group's float inputs
  const int32_t* codes;  // [tile][group][rows], of their codes
  int64_t rows;
};

// Elements from slot to slot in what attention reads: behind int8 codes stands their scale (kv_row.h).
template <typename T>
constexpr int pitch(int dim) {
  return sizeof(T) == 1 ? dim + 4 : dim;
}
template <typename T>
constexpr int64_t slots_bytes(int n, int dim) {
  return int64_t(n) * pitch<T>(dim) * int64_t(sizeof(T));
}
template <typename T>
constexpr bool kOfCache = sizeof(T) < sizeof(float);  // read from the cache itself, not from floats made of it

// What quantize tells of 64 inputs: their scale (0 where all are 0), of each half the sum and the sum of its codes, and
// the sum of squares.
struct Part {
  float scale, sum[2];
  int32_t codes[2];
  float squares;
};

// The fast path of decoding: acc[out] = sum over all tiles of the panel, straight from the packed bytes.
using Decode = void (*)(const Format& f, const uint8_t* panel, const Row& x, float* acc);

struct Isa {
  const char* name;

  // The fast path for a format; null where there is none, and unpack and accumulate do it.
  Decode (*decoder)(const Format& f);

  // One tile of codes, int16 [64] in the order of kPlace, becomes what this format's decoder reads, in place.
  void (*arrange)(const Format& f, int16_t* q);

  // A tile as int8 in "quad order" [16 quads][16 outputs][4 inputs], quad j holding inputs 4j .. 4j+3:
  // weight[quad][out][i] = code - offset, 0 where dropped; offset(f) is 8, 128 or 0, see below.
  // kept, unless null, becomes 1 where a weight is kept and 0 where it is dropped.
  void (*unpack)(const Format& f, const uint8_t* tile, int8_t* weight, int8_t* kept);

  // One group: acc[row][out] += sum over `quads` quads of weight[quad][out][i] * x[row][4*quad + i]
  //                              * w_scale[out] * x_scale[row]   + minimum[out] * sum[row]  unless minimum is null.
  // x rows are 64 apart, in the order of kPlace; acc [rows][16]. Rounds exactly as decode does, so that a token's result
  // does not depend on how many others it came with.
  void (*accumulate)(const int8_t* weight, int quads, const float* w_scale, const float* minimum, const int16_t* x,
                     const float* x_scale, const float* sum, int rows, float* acc);

  // q[4j + kPlace[i]] = round(x[4j + i] / scale) for 64 inputs, scale = max|x| / kTop.
  // left, unless null, becomes x - scale * code, in the order of x.
  Part (*quantize)(const float* x, int16_t* q, float* left);

  // Attention over n slots: s[row][j] = q[row] . key[j];  y[row] += sum_j p[row][j] * value[j], in the order of j;
  // the largest of s;  s[j] = exp(s[j] - most), and their sum. q, y [rows][dim], key, value [n][dim]; s and p are `stride` apart.
  void (*scores)(const float* q, int rows, const float* key, int n, int dim, float* s, int stride);
  void (*mix)(const float* p, int stride, int rows, const float* value, int n, int dim, float* y);
  // The same of key and value in half precision, to the same bits: few rows do not pay for widening them first. What comes
  // behind them in memory is fetched meanwhile (ahead.h).
  void (*scores_half)(const float* q, int rows, const uint16_t* key, int n, int dim, float* s, int stride);
  void (*mix_half)(const float* p, int stride, int rows, const uint16_t* value, int n, int dim, float* y);
  // The same of int8 codes, slots pitch<int8_t>(dim) apart; their scales are left to the caller.
  void (*scores_int8)(const float* q, int rows, const int8_t* key, int n, int dim, float* s, int stride);
  void (*mix_int8)(const float* p, int stride, int rows, const int8_t* value, int n, int dim, float* y);
  float (*largest)(const float* s, int n);
  float (*exponentials)(float* s, int n, float most);

  // y[i] = act(gate[i]) * up[i] for 16 outputs: SiLU, or GELU in its tanh approximation.
  void (*silu)(const float* gate, const float* up, float* y);
  void (*gelu_tanh)(const float* gate, const float* up, float* y);

  // Half precision and back, and codes as floats, for any n.
  void (*to_half)(const float* x, uint16_t* y, int n);
  void (*from_half)(const uint16_t* x, float* y, int n);
  void (*from_int8)(const int8_t* x, float* y, int n);

  // Quads of an unpacked tile as floats, scale[out] * weight + minimum[out] * kept; minimum null: none, kept null: all
  // are. Columns: w[input * step + out], rows: w[out * step + input], inputs counted from these quads' first.
  void (*widen_columns)(const int8_t* weight, const int8_t* kept, int quads, const float* scale, const float* minimum,
                        float* w, int step);
  void (*widen_rows)(const int8_t* weight, const int8_t* kept, int quads, const float* scale, const float* minimum,
                     float* w, int step);
};

// What unpack subtracts so that a code fits int8: the zero point, or 128 for 8 bits with a minimum, 0 for 4 with one.
inline int offset(const Format& f) { return f.minimum && f.bits == 4 ? 0 : f.zero_point(); }

extern const Isa kPortable;
#if defined(__x86_64__)
extern const Isa kAvx2, kAvxVnni, kAvx512, kAvx512Vnni;
#elif defined(__aarch64__)
extern const Isa kNeonDotprod, kNeonI8mm;
#endif

// The best instruction set this processor has, chosen once; `use` overrides it (tests compare paths), false: not here.
const Isa& isa();
bool use(const char* name);

}  // namespace edgellm
