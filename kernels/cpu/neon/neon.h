// What the files of this folder give to the tables of the two Arm instruction sets (dotprod.cc, i8mm.cc).
//
// Activations are two planes of signed bytes, x = 256 * high + low: for every eight inputs, in their order, 8 low bytes
// and then 8 high ones. So the 16 bytes of a load are two quads of both planes for sdot, and for smmla two rows of 8.
// Where smmla is not used, one file's functions serve both instruction sets.
#pragma once
#include "kernels/cpu/isa.h"

namespace edgellm::neon {

constexpr int kRowBytes = 2 * kTile;  // of one row's tile: both planes
constexpr int kAhead = 2048;          // bytes: hardware prefetchers may stop at a page's end

Decode decoder(const Format& f);
void arrange(const Format& f, int16_t* q);
void accumulate(const int8_t* weight, int quads, const float* w_scale, const float* minimum, const int16_t* x,
                const float* x_scale, const float* total, int rows, float* acc);

void unpack(const Format& f, const uint8_t* tile, int8_t* weight, int8_t* kept);

Part quantize(const float* x, int16_t* q, float* left);
void to_half(const float* x, uint16_t* y, int n);
void from_half(const uint16_t* x, float* y, int n);
void from_int8(const int8_t* x, float* y, int n);

void scores(const float* q, int rows, const float* key, int n, int dim, float* s, int stride);
void mix(const float* p, int stride, int rows, const float* value, int n, int dim, float* y);
void scores_half(const float* q, int rows, const uint16_t* key, int n, int dim, float* s, int stride);
void mix_half(const float* p, int stride, int rows, const uint16_t* value, int n, int dim, float* y);
void scores_int8(const float* q, int rows, const int8_t* key, int n, int dim, float* s, int stride);
void mix_int8(const float* p, int stride, int rows, const int8_t* value, int n, int dim, float* y);
float largest(const float* s, int n);
float exponentials(float* s, int n, float most);
void silu(const float* gate, const float* up, float* y);
void gelu_tanh(const float* gate, const float* up, float* y);

}  // namespace edgellm::neon
