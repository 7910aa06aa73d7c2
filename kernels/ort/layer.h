// DecoderLayer: what ONNX Runtime hands over, checked.
#pragma once
#include <string>

#include "kernels/cpu/decoder_layer.h"
#include "kernels/ort/attention.h"
#include "kernels/ort/matmul.h"

namespace edgellm::ort {

template <ElementType kKV>
struct DecoderLayerOperator {
  static constexpr const char* kName = "DecoderLayer";
  // x; cos, sin, positions, control, key, value, position, score as PrunedKVAttention has them; the matrices q, o, gate_up, down;
  // attention_norm, mlp_norm; and optionally the matrices k, v; q_bias, k_bias, v_bias, o_bias; q_norm, k_norm;
  // post_attention_norm, post_mlp_norm; rows, those of y that are wanted; k_shift -> y, key, value,
  // position, score
  enum Input { kX, kQ = 9, kO, kGateUp, kDown, kAttentionNorm, kMlpNorm, kK, kV, kQBias, kKBias, kVBias, kOBias,
               kQNorm, kKNorm, kPostAttentionNorm, kPostMlpNorm, kRows, kKShift, kInputCount };
  static constexpr ElementType kInputs[] = {
      kFloat, kFloat, kFloat, kInt64, kInt64, kKV,    kKV,    kInt32, kFloat, kUint8, kUint8, kUint8, kUint8,
      kFloat, kFloat, kUint8, kUint8, kFloat, kFloat,   kFloat,   kFloat, kFloat, kFloat, kFloat, kFloat, kInt64,
      kFloat};
  static_assert(std::size(kInputs) == kInputCount);
  static constexpr ElementType kOutputs[] = {kFloat, kKV, kKV, kInt32, kFloat};
  static constexpr size_t kRequired = kK;
  DecoderLayer layer;
  int64_t row;  // of control

  explicit DecoderLayerOperator(const Attributes& a) : row(a.integer("layer")) {
    layer.attention = attention_of(a);
    layer.epsilon = a.real("epsilon");
    const bool parts = a.integer("k.n_out") != 0;  // q, k and v are matrices of their own
    for (auto [matrix, name] : {std::pair{&layer.q, "q."}, {&layer.o, "o."}, {&layer.gate_up, "gate_up."},
                                {&layer.down, "down."}, {parts ? &layer.k : nullptr, "k."}, {parts ? &layer.v : nullptr, "v."}})
      if (matrix) matrix->f = a.format(name);
    layer.activation = activation_of(a, layer.gate_up.f);
    const Attention& at = layer.attention;
    const int64_t q = at.heads * at.head_dim, kv = at.kv_heads * at.head_dim, hidden = layer.q.f.k_in;
    const bool joined = layer.q.f.n_out == q + 2 * kv && !parts;
    const bool apart = parts && layer.q.f.n_out == q && layer.k.f.n_out == kv && layer.v.f.n_out == kv &&
                       layer.k.f.k_in == hidden && layer.v.f.k_in == hidden;
    if (!(joined || apart) || layer.o.f.k_in != q || layer.o.f.n_out != hidden || layer.gate_up.f.k_in != hidden ||
        layer.gate_up.f.n_out != 2 * layer.down.f.k_in || layer.down.f.n_out != hidden || layer.activation == Activation::kNone)
      throw Failure{create_status(a.api, kInvalidArgument, "DecoderLayer: its matrices do not fit each other")};
  }

  void compute(const Call& call) const {
    DecoderLayer l = layer;
    const int64_t hidden = l.q.f.k_in;
    const Tensor x = call.input(kX);
    call.require(x.shape.size() == 2 && x.shape[1] == hidden, "DecoderLayer: x is not [T, hidden]");
    for (auto [matrix, index] : {std::pair{&l.q, kQ}, {&l.k, kK}, {&l.v, kV}, {&l.o, kO}, {&l.gate_up, kGateUp}, {&l.down, kDown}})
      if (matrix->f.n_out)
        matrix->tiles = call.constant<uint8_t>(index, known[index], {int64_t(matrix->f.nbytes())},
                                               "DecoderLayer: tiles have another size than their format");
    for (auto [matrix, index] : {std::pair{&l.q, kQBias}, {&l.k, kKBias}, {&l.v, kVBias}, {&l.o, kOBias}})
      matrix->bias = call.constant<float>(index, known[index], {matrix->f.n_out}, "DecoderLayer: a bias is not [n_out]");
    for (auto [norm, index] : {std::pair{&l.attention_norm, kAttentionNorm}, {&l.mlp_norm, kMlpNorm},
                               {&l.post_attention_norm, kPostAttentionNorm}, {&l.post_mlp_norm, kPostMlpNorm}})
      *norm = call.constant<float>(index, known[index], {hidden}, "DecoderLayer: a norm is not [hidden]");
    call.require((!l.k.f.n_out || (l.k.tiles && l.v.tiles)), "DecoderLayer: k and v are not there");
    AttentionRun run(call, l.attention, kKV == kInt8, row, x.shape[0], kQNorm, kKShift, l.epsilon);
    Wanted wanted;
    if (call.data(kRows)) {
      const Tensor rows = call.input(kRows);
      wanted = {rows.as<int64_t>(), rows.size()};
      const auto outside = [&](int64_t row) { return row < 0 || row >= x.shape[0]; };
      call.require(rows.shape.size() == 1 && std::none_of(wanted.rows, wanted.rows + wanted.count, outside),
                   "DecoderLayer: rows are not of x");
    }
    float* y = static_cast<float*>(call.output(0, {wanted.rows ? wanted.count : x.shape[0], hidden}));
    const char* why = decoder_layer(l, x.as<float>(), run.control, run.tokens, run.cache, wanted, y, call.pool());
    call.require(!why, why);
  }

 private:
  Known known[kInputCount];
};

}  // namespace edgellm::ort
