// edgellm's three operators on the CPU. Meaning: kernels/reference.py, attention_reference.py. No ONNX Runtime in here.
#pragma once
#include "kernels/cpu/parallel.h"
#include "kernels/layout.h"

// What libedgellm calls in libedgellm_ort, without ONNX Runtime between.
#define EDGELLM_OPERATOR __attribute__((visibility("default")))

namespace edgellm {

enum class Activation { kNone, kSilu, kGeluTanh };

// What NMMatMul does besides its product, each null where there is none: it adds bias [n_out] and residual
// [rows, n_out], and norms x (rms_norm.h) by norm [k_in] and epsilon first.
struct Fused {
  const float *bias = nullptr, *residual = nullptr, *norm = nullptr;
  float epsilon = 0;
};

// y = x W^T + bias + residual: x [rows, k_in], tiles [f.nbytes()] -> y [rows, n_out], or [rows, n_out/2] with an
// activation, when W's outputs are 16 gate, 16 up, 16 gate, … and y = act(gate) * up (then n_out divides by 32, and
// nothing is added).
EDGELLM_OPERATOR void nm_matmul(const Format& f, Activation activation, const float* x, int64_t rows, const uint8_t* tiles,
               const Fused& fused, float* y, const Pool& pool);

// y = x W^T + bias (null: none) with x in float32, where nm_matmul rounds it to 16 bits; slower, for gradients.
void exact_matmul(const Format& f, const float* x, int64_t rows, const uint8_t* tiles, const float* bias, float* y,
                  const Pool& pool);

// dx = dy W: dy [rows, n_out], the same tiles -> dx [rows, k_in]. The way back, float32 too.
void nm_matmul_t(const Format& f, const float* dy, int64_t rows, const uint8_t* tiles, float* dx, const Pool& pool);

// y[t] = row ids[t] of W: y [count, k_in]. False when an id is not in [0, n_out).
EDGELLM_OPERATOR bool quant_gather(const Format& f, const int64_t* ids, int64_t count, const uint8_t* tiles, float* y, const Pool& pool);

struct Attention {
  int64_t heads, kv_heads, head_dim;
  float scale;
  int64_t window;  // a token sees positions above its own - window; 0: all
  float softcap;   // logits become softcap * tanh(logits / softcap); 0: they stay
};

constexpr int64_t kScaleBytes = sizeof(float);

// One layer's cache: key and value fp16 [kv_heads, capacity, head_dim], or int8 [kv_heads, capacity, head_dim +
// kScaleBytes] (kv_row.h); position [kv_heads, capacity], score [kv_heads, capacity, planes] (Plane); planes is 0 where
// nothing is scored.
struct KVCache {
  void* key;
  void* value;
  int32_t* position;
  int64_t capacity;
  float* score = nullptr;
  int64_t planes = 0;
  bool int8 = false;

  float* scores(int64_t head, int64_t slot) const { return score + (head * capacity + slot) * planes; }
  // Bytes of a slot in key or value, and where it begins in either.
  int64_t row_bytes(int64_t head_dim) const { return int8 ? head_dim + kScaleBytes : 2 * head_dim; }
  uint8_t* row(void* buffer, int64_t head, int64_t slot, int64_t head_dim) const {
    return static_cast<uint8_t*>(buffer) + (head * capacity + slot) * row_bytes(head_dim);
  }
};

enum Policy : int64_t { kFull = 0, kWindow = 1, kScore = 2 };
enum Heads : int64_t { kSum = 0, kMean = 1, kMax = 2 };
enum Plane : int64_t { kAttention = 0, kNorm = 1, kOlder = 2 };
constexpr int64_t kMillion = 1000000;

// A layer's row of the graph's `control`, in the order and with the meaning of kernels/control.py.
struct Control {
  int64_t committed, accepted, staged, budget, sinks, policy, recent, counted, forget, queries, anchor, heads, norm;

  int64_t planes() const { return policy != kScore ? 0 : queries ? kOlder + 1 : norm ? kNorm + 1 : kAttention + 1; }
};
constexpr int64_t kControl = sizeof(Control) / sizeof(int64_t);

// A run's tokens: qkv [steps, (heads + 2 * kv_heads) * head_dim], all query heads of a token, then its keys, then its
// values; cos, sin [steps, half]; positions [steps]. q_norm, k_norm [head_dim] norm each head of q and k before it is
// rotated, k_shift [kv_heads, head_dim] is taken off the keys after it; null where there is none.
struct Tokens {
  const float *qkv, *cos, *sin;
  int64_t half;
  const int64_t* positions;
  int64_t steps;
  const float *q_norm = nullptr, *k_norm = nullptr;
  float epsilon = 0;
  const float* k_shift = nullptr;
};

// Commit, stage, attend, score: y [steps, heads*head_dim]. Returns why it cannot be done, or null.
const char* pruned_kv_attention(const Attention& a, const Control& control, const Tokens& tokens, KVCache cache,
                                float* y, const Pool& pool);

}  // namespace edgellm
