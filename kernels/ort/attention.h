// PrunedKVAttention: what ONNX Runtime hands over, checked.
#pragma once
#include <cstring>

#include "kernels/cpu/layer_attributes.h"
#include "kernels/cpu/operators.h"
#include "kernels/ort/tensors.h"

namespace edgellm::ort {

// A run's tokens, control and cache, which lie at inputs 1 to 8 and outputs 1 to 4 of both operators that attend.
struct AttentionRun {
  Tokens tokens;
  Control control;
  KVCache cache;

  // int8: what key and value are, else float16. layer: its row of control. q_norm and, behind it, k_norm; k_shift:
  // indices of optional inputs.
  AttentionRun(const Call& call, const Attention& a, bool int8, int64_t layer, int64_t steps, size_t q_norm, size_t k_shift,
               float epsilon) {
    const Tensor cos = call.input(1), sin = call.input(2), positions = call.input(3), given = call.input(4);
    const Tensor score = call.input(8);
    const int64_t half = cos.shape[1], capacity = score.shape[1], planes = score.shape[2];
    call.require(cos.is({steps, half}) && sin.is({steps, half}), "cos and sin are not [T, rotary/2]");
    call.require(positions.is({steps}), "positions are not [T]");
    call.require(given.shape.size() == 2 && given.shape[1] == kControl && layer >= 0 && layer < given.shape[0],
                 "control is not [layers, fields of kernels/control.py]");
    const Shape scores{a.kv_heads, capacity, planes};
    call.require(score.is(scores), "score is not [kv_heads, capacity, planes]");
    const Shape slots{a.kv_heads, capacity, int8 ? a.head_dim + kScaleBytes : a.head_dim};
    const char* unlike = "key or value is not [kv_heads, capacity, head_dim], with 4 bytes for a scale where it is int8";
    tokens = {nullptr, cos.as<float>(), sin.as<float>(), half, positions.as<int64_t>(), steps};
    tokens.q_norm = vector(call, q_norm, {a.head_dim}, "q_norm is not [head_dim]");
    tokens.k_norm = vector(call, q_norm + 1, {a.head_dim}, "k_norm is not [head_dim]");
    tokens.k_shift = vector(call, k_shift, {a.kv_heads * a.head_dim}, "k_shift is not [kv_heads * head_dim]");
    tokens.epsilon = epsilon;
    std::memcpy(&control, given.as<int64_t>() + layer * kControl, sizeof control);
    const int64_t size = int8 ? 1 : 2;
    cache = {carry(call, 1, 5, slots, size, unlike), carry(call, 2, 6, slots, size, unlike),
             static_cast<int32_t*>(carry(call, 3, 7, {a.kv_heads, capacity}, 4, "position is not [kv_heads, capacity]")),
             capacity, static_cast<float*>(carry(call, 4, 8, scores, 4, "score is not [kv_heads, capacity, planes]")), planes,
             int8};
  }

 private:
  static const float* vector(const Call& call, size_t index, const Shape& expected, const char* message) {
    if (!call.data(index)) return nullptr;
    const Tensor given = call.input(index);
    call.require(given.is(expected), message);
    return given.as<float>();
  }
  // The output buffer holding the input's content: the same buffer when the caller bound it so, a copy otherwise. ONNX
  // Runtime has seen to its shape, so that only another buffer's is asked for.
  static void* carry(const Call& call, size_t output, size_t index, const Shape& shape, int64_t item, const char* message) {
    void* to = call.output(output, shape);
    if (to == call.data(index)) return to;
    const Tensor input = call.input(index);
    call.require(input.shape == shape, message);
    if (input.size()) std::memcpy(to, input.data, size_t(input.size() * item));
    return to;
  }
};

// kKV: of key and value. ONNX Runtime tells operators of one name apart by their types.
template <ElementType kKV>
struct PrunedKVAttention {
  static constexpr const char* kName = "PrunedKVAttention";
  // qkv, cos, sin, positions, control, key, value, position, score, and optionally q_norm, k_norm, k_shift
  // -> y, key, value, position, score
  static constexpr ElementType kInputs[] = {kFloat, kFloat, kFloat, kInt64, kInt64, kKV,
                                            kKV,    kInt32, kFloat, kFloat, kFloat, kFloat};
  static constexpr ElementType kOutputs[] = {kFloat, kKV, kKV, kInt32, kFloat};
  static constexpr size_t kRequired = 9;
  Attention attention;
  int64_t layer;
  float epsilon;

  explicit PrunedKVAttention(const Attributes& a)
      : attention(attention_of(a)), layer(a.integer("layer")), epsilon(a.real_or("epsilon", 0)) {}

  void compute(const Call& call) const {
    const Attention& a = attention;
    const Tensor qkv = call.input(0);
    const int64_t steps = qkv.shape[0];
    call.require(qkv.is({steps, (a.heads + 2 * a.kv_heads) * a.head_dim}), "qkv is not [T, (heads + 2 * kv_heads) * head_dim]");
    AttentionRun run(call, a, kKV == kInt8, layer, steps, 9, 11, epsilon);
    run.tokens.qkv = qkv.as<float>();
    float* y = static_cast<float*>(call.output(0, {steps, a.heads * a.head_dim}));
    const char* why = pruned_kv_attention(a, run.control, run.tokens, run.cache, y, call.pool());
    call.require(!why, why);
  }
};

}  // namespace edgellm::ort
