// DecoderLayer: what ONNX Runtime hands over, checked.
#pragma once
#include "kernels/cpu/layer_attributes.h"
#include "kernels/ort/attention.h"
#include "kernels/ort/matmul.h"

namespace edgellm::ort {

template <ElementType kKV>
struct DecoderLayerOperator {
  static constexpr const char* kName = "DecoderLayer";
  // Inputs: kernels/cpu/layer_attributes.h -> y, key, value, position, score
  static constexpr ElementType kInputs[] = {
      kFloat, kFloat, kFloat, kInt64, kInt64, kKV,    kKV,    kInt32, kFloat, kUint8, kUint8, kUint8, kUint8,
      kFloat, kFloat, kUint8, kUint8, kFloat, kFloat,   kFloat,   kFloat, kFloat, kFloat, kFloat, kFloat, kInt64,
      kFloat};
  static_assert(std::size(kInputs) == kLayerInputs);
  static constexpr ElementType kOutputs[] = {kFloat, kKV, kKV, kInt32, kFloat};
  static constexpr size_t kRequired = kK;
  DecoderLayer layer;
  int64_t row;  // of control

  explicit DecoderLayerOperator(const Attributes& a) : layer(layer_of(a)), row(a.integer("layer")) {}

  void compute(const Call& call) const {
    DecoderLayer l = layer;
    const int64_t hidden = l.q.f.k_in;
    const Tensor x = call.input(kX);
    call.require(x.shape.size() == 2 && x.shape[1] == hidden, "DecoderLayer: x is not [T, hidden]");
    each_matrix(l, [&](Matrix& matrix, LayerInput i) {
      matrix.tiles = call.constant<uint8_t>(i, known[i], {int64_t(matrix.f.nbytes())},
                                            "DecoderLayer: tiles have another size than their format");
    });
    each_bias(l, [&](Matrix& matrix, LayerInput i) {
      matrix.bias = call.constant<float>(i, known[i], {matrix.f.n_out}, "DecoderLayer: a bias is not [n_out]");
    });
    each_norm(l, [&](const float*& norm, LayerInput i) {
      norm = call.constant<float>(i, known[i], {hidden}, "DecoderLayer: a norm is not [hidden]");
    });
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
  Known known[kLayerInputs];
};

}  // namespace edgellm::ort
