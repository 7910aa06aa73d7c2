// edgellm's operators as ONNX Runtime custom operators, domain "edgellm". Session options load this library by
// RegisterCustomOps; the shapes and meaning of every operator stand in kernels/reference.py.
#include <cstring>
#include <exception>
#include <initializer_list>

#include "kernels/cpu/operators.h"
#include "kernels/ort/tensors.h"

namespace edgellm::ort {
namespace {

constexpr int kOperators = 3;  // kernels/library.py

struct NMMatMul {
  static constexpr const char* kName = "NMMatMul";
  // x, tiles, and optionally bias, residual and norm
  static constexpr ElementType kInputs[] = {kFloat, kUint8, kFloat, kFloat, kFloat}, kOutputs[] = {kFloat};
  static constexpr size_t kRequired = 2;
  Format format;
  Activation activation;
  float epsilon;

  explicit NMMatMul(const Attributes& a) : format(a.format()), epsilon(a.real_or("epsilon", 0)) {
    const std::string name = a.string("activation");
    activation = name == "silu" ? Activation::kSilu : name == "gelu_tanh" ? Activation::kGeluTanh : Activation::kNone;
    if ((activation == Activation::kNone && name != "none") || (activation != Activation::kNone && format.n_out % 32))
      throw Failure{create_status(a.api, kInvalidArgument, "activation is none, or silu or gelu_tanh over pairs of 16")};
  }
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
    float* y = static_cast<float*>(call.output(0, {rows, width}));
    nm_matmul(format, activation, x.as<float>(), rows, w, fused, y, call.pool());
  }

 private:
  Known tiles, bias, norm;
};

struct QuantGather {
  static constexpr const char* kName = "QuantGather";
  static constexpr ElementType kInputs[] = {kInt64, kUint8}, kOutputs[] = {kFloat};
  static constexpr size_t kRequired = 2;
  Format format;

  explicit QuantGather(const Attributes& a) : format(a.format()) {}
  void compute(const Call& call) const {
    const Tensor ids = call.input(0), tiles = call.input(1);
    call.require(ids.shape.size() == 1, "QuantGather: ids is not [T]");
    call.require(size_t(tiles.size()) == format.nbytes(), "QuantGather: tiles have another size than their format");
    float* y = static_cast<float*>(call.output(0, {ids.size(), format.k_in}));
    call.require(quant_gather(format, ids.as<int64_t>(), ids.size(), tiles.as<uint8_t>(), y, call.pool()),
                 "QuantGather: a token id is outside the vocabulary");
  }
};

struct PrunedKVAttention {
  static constexpr const char* kName = "PrunedKVAttention";
  // qkv, cos, sin, positions, control, key, value, position, score, and optionally q_norm and k_norm
  // -> y, key, value, position, score
  static constexpr ElementType kInputs[] = {kFloat,   kFloat, kFloat, kInt64, kInt64, kFloat16,
                                            kFloat16, kInt32, kFloat, kFloat, kFloat};
  static constexpr ElementType kOutputs[] = {kFloat, kFloat16, kFloat16, kInt32, kFloat};
  static constexpr size_t kRequired = 9;
  Attention attention;
  int64_t layer;  // its row of control
  float epsilon;

  explicit PrunedKVAttention(const Attributes& a)
      : attention{a.integer("heads"), a.integer("kv_heads"), a.integer("head_dim"),
                  a.real("scale"),    a.integer("window"),   a.real("softcap")},
        layer(a.integer("layer")),
        epsilon(a.real_or("epsilon", 0)) {}

  void compute(const Call& call) const {
    const Attention& a = attention;
    const Tensor qkv = call.input(0), cos = call.input(1), sin = call.input(2);
    const int64_t steps = qkv.shape[0], half = cos.shape[1];
    call.require(qkv.is({steps, (a.heads + 2 * a.kv_heads) * a.head_dim}),
                 "PrunedKVAttention: qkv is not [T, (heads + 2 * kv_heads) * head_dim]");
    call.require(cos.is({steps, half}) && sin.is({steps, half}), "PrunedKVAttention: cos and sin are not [T, rotary/2]");
    const Tensor positions = call.input(3), control = call.input(4), position = call.input(7);
    call.require(positions.is({steps}), "PrunedKVAttention: positions are not [T]");
    call.require(control.shape.size() == 2 && control.shape[1] == kControl && layer >= 0 && layer < control.shape[0],
                 "PrunedKVAttention: control is not [layers, fields of kernels/control.py]");
    const int64_t capacity = position.shape[1];
    call.require(position.is({a.kv_heads, capacity}), "PrunedKVAttention: position's shape");
    const Shape slots{a.kv_heads, capacity, a.head_dim}, one_head{a.head_dim};
    const char* why = "PrunedKVAttention: key or value is not [kv_heads, capacity, head_dim]";
    const Tensor key = call.input(5), value = call.input(6);
    call.require(key.shape == slots && value.shape == slots, why);
    why = "PrunedKVAttention: q_norm or k_norm is not [head_dim]";
    const Tokens tokens{qkv.as<float>(), cos.as<float>(), sin.as<float>(), half, positions.as<int64_t>(), steps,
                        call.constant<float>(9, q_norm, one_head, why), call.constant<float>(10, k_norm, one_head, why), epsilon};
    const Tensor score = call.input(8);
    const int64_t planes = score.shape[2];
    call.require(score.is({a.kv_heads, capacity, planes}), "PrunedKVAttention: score is not [kv_heads, capacity, planes]");

    float* y = static_cast<float*>(call.output(0, {steps, a.heads * a.head_dim}));
    KVCache cache{carry<uint16_t>(call, 1, key), carry<uint16_t>(call, 2, value), carry<int32_t>(call, 3, position),
                  capacity, carry<float>(call, 4, score), planes};
    Control row;
    std::memcpy(&row, control.as<int64_t>() + layer * kControl, sizeof row);
    why = pruned_kv_attention(a, row, tokens, cache, y, call.pool());
    call.require(!why, why);
  }

 private:
  // The output buffer holding the input's content: the same buffer when the caller bound it so, a copy otherwise.
  template <typename T>
  static T* carry(const Call& call, size_t output, const Tensor& input) {
    T* to = static_cast<T*>(call.output(output, input.shape));
    if (to != input.data && input.size()) std::memcpy(to, input.data, size_t(input.size()) * sizeof(T));
    return to;
  }
  Known q_norm, k_norm;
};

// One kernel type as the table of C callbacks that ONNX Runtime wants.
template <typename Kernel>
struct Instance {
  const Api* api;
  Kernel kernel;

  template <typename Body>
  static Status* guard(const Api* api, Body body) {
    try {
      body();
      return nullptr;
    } catch (const Failure& failure) {
      return failure.status;
    } catch (const std::exception& error) {
      return create_status(api, kFail, error.what());
    }
  }
  static Status* create(const CustomOp*, const Api* api, const KernelInfo* info, void** out) {
    return guard(api, [&] { *out = new Instance{api, Kernel(Attributes{api, info})}; });
  }
  static Status* compute(void* self, KernelContext* context) {
    const Instance* instance = static_cast<const Instance*>(self);
    return guard(instance->api, [&] { instance->kernel.compute(Call{instance->api, context}); });
  }
  static CustomOp table() {
    CustomOp op{};
    op.version = kApiVersion;
    op.name = [](const CustomOp*) { return Kernel::kName; };
    op.provider = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU
    op.input_type = [](const CustomOp*, size_t i) { return Kernel::kInputs[i]; };
    op.input_count = [](const CustomOp*) { return std::size(Kernel::kInputs); };
    op.output_type = [](const CustomOp*, size_t i) { return Kernel::kOutputs[i]; };
    op.output_count = [](const CustomOp*) { return std::size(Kernel::kOutputs); };
    op.destroy = [](void* self) { delete static_cast<Instance*>(self); };
    op.input_characteristic = [](const CustomOp*, size_t i) { return i < Kernel::kRequired ? 0 : 1; };  // optional
    op.output_characteristic = [](const CustomOp*, size_t) { return 0; };  // required
    op.input_memory = [](const CustomOp*, size_t) { return 0; };  // default
    op.create_kernel_v2 = create;
    op.compute_v2 = compute;
    op.start_version = [](const CustomOp*) { return kOperators; };
    op.end_version = [](const CustomOp*) { return kOperators; };
    return op;
  }
};

}  // namespace
}  // namespace edgellm::ort

extern "C" __attribute__((visibility("default"))) edgellm::ort::Status* RegisterCustomOps(
    edgellm::ort::SessionOptions* options, const edgellm::ort::ApiBase* base) {
  using namespace edgellm::ort;
  static const CustomOp tables[] = {Instance<NMMatMul>::table(), Instance<QuantGather>::table(),
                                    Instance<PrunedKVAttention>::table()};
  const Api* api = base->get_api(kApiVersion);
  if (!api) return nullptr;  // older than API 17: the session then names the unknown operator
  // Lives as long as the process: sessions share it and ONNX Runtime does not own it.
  static Domain* domain = nullptr;
  if (!domain) {
    if (Status* status = create_domain(api, "edgellm", &domain)) return status;
    for (const CustomOp& table : tables)
      if (Status* status = domain_add(api, domain, &table)) return status;
  }
  return add_domain(api, options, domain);
}
