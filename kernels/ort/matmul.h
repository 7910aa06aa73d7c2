// NMMatMul, NMMatMulT and QuantGather: what ONNX Runtime hands over, checked.
#pragma once
#include "kernels/cpu/layer_attributes.h"
#include "kernels/cpu/operators.h"
#include "kernels/ort/tensors.h"

namespace edgellm::ort {

struct NMMatMul {
  static constexpr const char* kName = "NMMatMul";
  // x, tiles, and optionally bias, residual and norm
  static constexpr ElementType kInputs[] = {kFloat, kUint8, kFloat, kFloat, kFloat}, kOutputs[] = {kFloat};
  static constexpr size_t kRequired = 2;
  Format format;
  Activation activation;
  float epsilon;
  bool exact;

  explicit NMMatMul(const Attributes& a)
      : format(format_of(a)), activation(activation_of(a, format)), epsilon(a.real_or("epsilon", 0)),
        exact(a.real_or("exact", 0) != 0) {}
  void compute(const Call& call) const {
    const Tensor x = call.input(0);
    call.require(x.shape.size() == 2 && x.shape[1] == format.k_in, "NMMatMul: x is not [T, k_in]");
    const bool plain = activation == Activation::kNone;
    const int64_t rows = x.shape[0], width = plain ? format.n_out : format.n_out / 2;
    const uint8_t* w = call.constant<uint8_t>(1, tiles, {int64_t(format.nbytes())},
                                              "NMMatMul: tiles have another size than their format");
    Fused fused;
    fused.bias = call.constant<float>(2, bias, {plain ? width : -1}, "NMMatMul: bias is not [n_out], or beside an activation");
    fused.norm = call.constant<float>(4, norm, {format.k_in}, "NMMatMul: norm is not [k_in]");
    fused.epsilon = epsilon;
    if (fused.residual = static_cast<float*>(call.data(3)); fused.residual)
      call.require(plain && call.input(3).is({rows, width}), "NMMatMul: residual is not [T, n_out], or beside an activation");
    call.require(!exact || (plain && !fused.norm && !fused.residual), "NMMatMul: what is exact adds a bias and no more");
    float* y = static_cast<float*>(call.output(0, {rows, width}));
    if (exact) return exact_matmul(format, x.as<float>(), rows, w, fused.bias, y, call.pool());
    nm_matmul(format, activation, x.as<float>(), rows, w, fused, y, call.pool());
  }

 private:
  Known tiles, bias, norm;
};

struct NMMatMulT {
  static constexpr const char* kName = "NMMatMulT";
  static constexpr ElementType kInputs[] = {kFloat, kUint8}, kOutputs[] = {kFloat};
  static constexpr size_t kRequired = 2;
  Format format;

  explicit NMMatMulT(const Attributes& a) : format(format_of(a)) {}
  void compute(const Call& call) const {
    const Tensor dy = call.input(0), tiles = call.input(1);
    call.require(dy.shape.size() == 2 && dy.shape[1] == format.n_out, "NMMatMulT: dy is not [T, n_out]");
    call.require(size_t(tiles.size()) == format.nbytes(), "NMMatMulT: tiles have another size than their format");
    float* dx = static_cast<float*>(call.output(0, {dy.shape[0], format.k_in}));
    nm_matmul_t(format, dy.as<float>(), dy.shape[0], tiles.as<uint8_t>(), dx, call.pool());
  }
};

struct QuantGather {
  static constexpr const char* kName = "QuantGather";
  static constexpr ElementType kInputs[] = {kInt64, kUint8}, kOutputs[] = {kFloat};
  static constexpr size_t kRequired = 2;
  Format format;

  explicit QuantGather(const Attributes& a) : format(format_of(a)) {}
  void compute(const Call& call) const {
    const Tensor ids = call.input(0), tiles = call.input(1);
    call.require(ids.shape.size() == 1, "QuantGather: ids is not [T]");
    call.require(size_t(tiles.size()) == format.nbytes(), "QuantGather: tiles have another size than their format");
    float* y = static_cast<float*>(call.output(0, {ids.size(), format.k_in}));
    call.require(quant_gather(format, ids.as<int64_t>(), ids.size(), tiles.as<uint8_t>(), y, call.pool()),
                 "QuantGather: a token id is outside the vocabulary");
  }
};

}  // namespace edgellm::ort
