// DecoderLayer: a whole decoder block as one operator.
#pragma once
#include "kernels/cpu/operators.h"

namespace edgellm {

// A packed matrix; tiles are null where the layer has none. bias [n_out] may be null.
struct Matrix {
  Format f{};
  const uint8_t* tiles = nullptr;
  const float* bias = nullptr;
};

// k and v have no tiles where q holds all three. gate_up is interleaved as NMMatMul wants it. Norms are float [hidden],
// the last two null where the model has none.
struct DecoderLayer {
  Attention attention{};
  Activation activation = Activation::kNone;
  float epsilon = 0;
  Matrix q, k, v, o, gate_up, down;
  const float *attention_norm = nullptr, *mlp_norm = nullptr, *post_attention_norm = nullptr, *post_mlp_norm = nullptr;
};

// Rows of x whose y is wanted; null: all.
struct Wanted {
  const int64_t* rows = nullptr;
  int64_t count = 0;
};

// x [steps, hidden] -> y [wanted, hidden]; tokens.qkv is not read. Returns why it cannot be done, or null.
EDGELLM_OPERATOR const char* decoder_layer(const DecoderLayer& layer, const float* x, const Control& control, const Tokens& tokens,
                          const KVCache& cache, const Wanted& wanted, float* y, const Pool& pool);

}  // namespace edgellm
