// edgellm's operators as ONNX Runtime custom operators, domain "edgellm". Session options load this library by
// RegisterCustomOps; the shapes and meaning of every operator stand in kernels/reference.py.
#include <cstring>
#include <exception>

#include "kernels/ort/attention.h"
#include "kernels/ort/layer.h"
#include "kernels/ort/matmul.h"

namespace edgellm::ort {
namespace {

constexpr int kOperators = 4;  // kernels/library.py

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
  static const CustomOp tables[] = {Instance<NMMatMul>::table(), Instance<NMMatMulT>::table(), Instance<QuantGather>::table(),
                                    Instance<PrunedKVAttention<kFloat16>>::table(), Instance<PrunedKVAttention<kInt8>>::table(),
                                    Instance<DecoderLayerOperator<kFloat16>>::table(), Instance<DecoderLayerOperator<kInt8>>::table()};
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
