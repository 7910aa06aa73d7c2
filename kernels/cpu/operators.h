// edgellm's three operators on the CPU. Meaning: kernels/reference.py. No ONNX Runtime in here.
#pragma once
#include "kernels/cpu/parallel.h"
#include "kernels/layout.h"

namespace edgellm {

enum class Activation { kNone, kSilu, kGeluTanh };

// What NMMatMul adds to its product, each null where there is none: bias [n_out], residual [rows, n_out].
struct Added {
  const float *bias = nullptr, *residual = nullptr;
};

// y = x W^T + added: x [rows, k_in], tiles [f.nbytes()] -> y [rows, n_out], or [rows, n_out/2] with an activation, when
// W's outputs are 16 gate, 16 up, 16 gate, … and y = act(gate) * up (then n_out divides by 32, and nothing is added).
void nm_matmul(const Format& f, Activation activation, const float* x, int64_t rows, const uint8_t* tiles,
               const Added& added, float* y, const Pool& pool);

// y[t] = row ids[t] of W: y [count, k_in]. False when an id is not in [0, n_out).
bool quant_gather(const Format& f, const int64_t* ids, int64_t count, const uint8_t* tiles, float* y, const Pool& pool);

struct Attention {
  int64_t heads, kv_heads, head_dim;
  float scale;
  int64_t window;  // a token sees positions above its own - window; 0: all
  float softcap;   // logits become softcap * tanh(logits / softcap); 0: they stay
};

// One layer's cache: key and value fp16 [kv_heads, capacity, head_dim], position [kv_heads, capacity].
struct KVCache {
  uint16_t* key;
  uint16_t* value;
  int32_t* position;
  int64_t capacity;
};

enum Policy : int64_t { kFull = 0, kWindow = 1 };
struct Control {
  int64_t committed, accepted, budget, sinks, policy;
};

// Commit, stage, attend: q [steps, heads*head_dim], k, v [steps, kv_heads*head_dim], cos, sin [steps, half],
// positions [steps] -> y like q. Returns why it cannot be done, or null.
const char* pruned_kv_attention(const Attention& a, const Control& control, const float* q, const float* k,
                                const float* v, const float* cos, const float* sin, int64_t half,
                                const int64_t* positions, int64_t steps, KVCache cache, float* y, const Pool& pool);

}  // namespace edgellm
