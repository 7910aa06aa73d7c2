// A node's attributes as the operators' settings, whoever reads them: ONNX Runtime's kernels (kernels/ort), or the engine's
// own reader of a graph (kernels/engine/onnx_file.h).
//
// A source of attributes has integer(name), real(name) and string(name), which fail for one that is not there, and
// fail(message), which does not return.
#pragma once
#include <string>
#include <utility>

#include "kernels/cpu/decoder_layer.h"

namespace edgellm {

// DecoderLayer's inputs: x; cos, sin, positions, control, key, value, position, score as PrunedKVAttention has them; the
// matrices q, o, gate_up, down; attention_norm, mlp_norm; and optionally the matrices k, v; q_bias, k_bias, v_bias, o_bias;
// q_norm, k_norm; post_attention_norm, post_mlp_norm; rows, those of y that are wanted; k_shift.
enum LayerInput { kX, kCos, kSin, kPositions, kControlRows, kKey, kValue, kPosition, kScores, kQ, kO, kGateUp, kDown,
                  kAttentionNorm, kMlpNorm, kK, kV, kQBias, kKBias, kVBias, kOBias, kQNorm, kKNorm, kPostAttentionNorm,
                  kPostMlpNorm, kRows, kKShift, kLayerInputs };

// Which matrix, bias or norm of a layer comes from which input: body(place in the layer, input) for each.
template <typename Body>
void each_matrix(DecoderLayer& l, Body body) {
  for (auto [matrix, input] : {std::pair{&l.q, kQ}, {&l.k, kK}, {&l.v, kV}, {&l.o, kO}, {&l.gate_up, kGateUp}, {&l.down, kDown}})
    if (matrix->f.n_out) body(*matrix, input);
}
template <typename Body>
void each_bias(DecoderLayer& l, Body body) {
  for (auto [matrix, input] : {std::pair{&l.q, kQBias}, {&l.k, kKBias}, {&l.v, kVBias}, {&l.o, kOBias}}) body(*matrix, input);
}
template <typename Body>
void each_norm(DecoderLayer& l, Body body) {
  for (auto [norm, input] : {std::pair{&l.attention_norm, kAttentionNorm}, {&l.mlp_norm, kMlpNorm},
                             {&l.post_attention_norm, kPostAttentionNorm}, {&l.post_mlp_norm, kPostMlpNorm}})
    body(*norm, input);
}

// A format's attributes, whose names begin with `prefix`.
template <typename Source>
Format format_of(const Source& a, const std::string& prefix = "") {
  const auto size = [&](const char* name) { return a.integer((prefix + name).c_str()); };
  const std::string zero = a.string((prefix + "zero").c_str()), axis = a.string((prefix + "axis").c_str());
  Format f{size("n_out"), size("k_in"), size("bits"), size("group"), zero == "min", size("n"), size("m"), axis == "out"};
  const bool words = (zero == "min" || zero == "symmetric") && (axis == "in" || axis == "out");
  if (!words || !f.valid()) a.fail("no such weight tile");
  return f;
}

template <typename Source>
Activation activation_of(const Source& a, const Format& f) {
  const std::string name = a.string("activation");
  const Activation activation = name == "silu"        ? Activation::kSilu
                                : name == "gelu_tanh" ? Activation::kGeluTanh
                                                      : Activation::kNone;
  if ((activation == Activation::kNone && name != "none") || (activation != Activation::kNone && f.n_out % 32))
    a.fail("activation is none, or silu or gelu_tanh over pairs of 16");
  return activation;
}

template <typename Source>
Attention attention_of(const Source& a) {
  return {a.integer("heads"), a.integer("kv_heads"), a.integer("head_dim"),
          a.real("scale"),    a.integer("window"),   a.real("softcap")};
}

// A layer without its tensors.
template <typename Source>
DecoderLayer layer_of(const Source& a) {
  DecoderLayer l;
  l.attention = attention_of(a);
  l.epsilon = a.real("epsilon");
  const bool parts = a.integer("k.n_out") != 0;  // q, k and v are matrices of their own
  for (auto [matrix, name] : {std::pair{&l.q, "q."}, {&l.o, "o."}, {&l.gate_up, "gate_up."}, {&l.down, "down."},
                              {parts ? &l.k : nullptr, "k."}, {parts ? &l.v : nullptr, "v."}})
    if (matrix) matrix->f = format_of(a, name);
  l.activation = activation_of(a, l.gate_up.f);
  const Attention& at = l.attention;
  const int64_t q = at.heads * at.head_dim, kv = at.kv_heads * at.head_dim, hidden = l.q.f.k_in;
  const bool heads = at.heads > 0 && at.kv_heads > 0 && at.head_dim > 0 && at.heads % at.kv_heads == 0;
  const bool joined = l.q.f.n_out == q + 2 * kv && !parts;
  const bool apart = parts && l.q.f.n_out == q && l.k.f.n_out == kv && l.v.f.n_out == kv && l.k.f.k_in == hidden && l.v.f.k_in == hidden;
  if (!heads || !(joined || apart) || l.o.f.k_in != q || l.o.f.n_out != hidden || l.gate_up.f.k_in != hidden ||
      l.gate_up.f.n_out != 2 * l.down.f.k_in || l.down.f.n_out != hidden || l.activation == Activation::kNone)
    a.fail("DecoderLayer: its matrices do not fit each other");
  return l;
}

}  // namespace edgellm
