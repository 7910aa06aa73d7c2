// The small interface that every instruction set fills in, one file each (isa_portable.cc, isa_avx2.cc).
//
// A tile unpacks to int8 in "quad order" [16 quads][16 outputs][4 inputs]: quad j holds inputs 4j .. 4j+3.
// Activations are int16, one scale per row and 64 inputs.
#pragma once
#include "kernels/layout.h"

namespace edgellm {

struct Isa {
  const char* name;

  // weight[quad][out][i] = code - offset, 0 where dropped; offset(f) is 8, 128 or 0, see below.
  // kept, unless null, becomes 1 where a weight is kept and 0 where it is dropped.
  void (*unpack)(const Format& f, const uint8_t* tile, int8_t* weight, int8_t* kept);

  // acc[row][out] += w_scale[out] * x_scale[row] * sum over `quads` quads of weight[quad][out][i] * x[row][4*quad + i]
  // x rows are 64 apart; acc [rows][16].
  void (*accumulate)(const int8_t* weight, int quads, const float* w_scale, const int16_t* x, const float* x_scale,
                     int rows, float* acc);

  // q[i] = round(x[i] / scale) for 64 inputs, scale = max|x| / 32767; returns the scale (0 for a row of zeros).
  float (*quantize)(const float* x, int16_t* q);

  // Half precision rows: a . b,  y += w * b,  conversions. n is any length.
  float (*dot_half)(const float* a, const uint16_t* b, int n);
  void (*add_half)(float w, const uint16_t* b, float* y, int n);
  void (*to_half)(const float* x, uint16_t* y, int n);
  void (*from_half)(const uint16_t* x, float* y, int n);
};

// What unpack subtracts so that a code fits int8: the zero point, or 128 for 8 bits with a minimum, 0 for 4 with one.
inline int offset(const Format& f) { return f.minimum && f.bits == 4 ? 0 : f.zero_point(); }

extern const Isa kPortable;
#if defined(__x86_64__)
extern const Isa kAvx2;
#endif

// The best instruction set this processor has, chosen once; `use` overrides it (tests compare paths), false: not here.
const Isa& isa();
bool use(const char* name);

}  // namespace edgellm
