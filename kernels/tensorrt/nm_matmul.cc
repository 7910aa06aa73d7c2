#include "kernels/tensorrt/nm_matmul.h"

#include "kernels/tensorrt/kernels.h"

namespace edgellm {

using nvinfer1::DataType;

namespace {

constexpr int32_t PANEL = 16;          // outputs (kernels/layout.h)
constexpr int32_t FEW = 16, MANY = 64;  // rows a program of nm_rows takes

}  // namespace

const std::vector<FieldName>& NMMatMul::names() {
  static const std::vector<FieldName> names = {
      {"n_out", Kind::integer}, {"k_in", Kind::integer}, {"bits", Kind::integer}, {"group", Kind::integer},
      {"zero", Kind::word},     {"n", Kind::integer},    {"m", Kind::integer},    {"axis", Kind::word},
      {"activation", Kind::word, true, 0, "none"}};
  return names;
}

int32_t NMMatMul::width() const {
  return fields_.word("activation") == "none" ? fields_.integer("n_out") : fields_.integer("n_out") / 2;
}

int32_t NMMatMul::getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs, int32_t) const noexcept {
  outputs[0] = inputs[0];
  return 0;
}

int32_t NMMatMul::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t, const nvinfer1::DimsExprs*, int32_t,
                                  nvinfer1::DimsExprs* outputs, int32_t, nvinfer1::IExprBuilder& build) noexcept {
  outputs[0].nbDims = 2;
  outputs[0].d[0] = inputs[0].d[0];
  outputs[0].d[1] = build.constant(width());
  return 0;
}

bool NMMatMul::supportsFormatCombination(int32_t pos, const nvinfer1::DynamicPluginTensorDesc* ends, int32_t inputs,
                                         int32_t) noexcept {
  const nvinfer1::PluginTensorDesc& end = ends[pos].desc;
  if ((inputs != 2 && inputs != 3) || end.format != nvinfer1::TensorFormat::kLINEAR) return false;
  if (pos == 0) return half_type(end.type);
  if (pos == 1) return end.type == DataType::kINT32;  // the bytes as words: see export/plugin_dialect.py
  return end.type == ends[0].desc.type;
}

int32_t NMMatMul::configurePlugin(const nvinfer1::DynamicPluginTensorDesc*, int32_t inputs,
                                  const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept {
  has_bias_ = inputs == 3;
  return 0;
}

int32_t NMMatMul::onShapeChange(const nvinfer1::PluginTensorDesc*, int32_t inputs, const nvinfer1::PluginTensorDesc*,
                                int32_t) noexcept {
  has_bias_ = inputs == 3;
  return 0;
}

int32_t NMMatMul::enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc*,
                          const void* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept {
  const int32_t rows = static_cast<int32_t>(in[0].dims.d[0]), has_bias = has_bias_, has_residual = 0;
  const int32_t n_out = fields_.integer("n_out"), k_in = fields_.integer("k_in");
  const void *bias = has_bias_ ? inputs[2] : nullptr, *residual = nullptr;
  const char* type = in[0].type == DataType::kBF16 ? "bf16" : "fp16";
  Wanted wanted{{"BITS", std::to_string(fields_.integer("bits"))},
                {"GROUP", std::to_string(fields_.integer("group"))},
                {"MINIMA", fields_.word("zero") == "min" ? "1" : "0"},
                {"N", std::to_string(fields_.integer("n"))},
                {"M", std::to_string(fields_.integer("m"))},
                {"OUT", fields_.word("axis") == "out" ? "1" : "0"},
                {"ACTIVATION", fields_.word("activation")}};
  const uint32_t panels = blocks(width(), PANEL);  // of results: gate and up are one
  const Named arguments{{"x", inputs[0]},       {"tiles", inputs[1]}, {"bias", bias},
                        {"residual", residual}, {"y", outputs[0]},    {"rows", rows},
                        {"n_out", n_out},       {"k_in", k_in},       {"has_bias", has_bias},
                        {"has_residual", has_residual}};
  if (rows == 1) return launch(find_kernel("nm_decode", type, wanted), {panels, 1}, arguments, stream);
  const int32_t together = rows <= FEW ? FEW : MANY;
  wanted["ROWS"] = std::to_string(together);
  const Kernel* kernel = find_kernel("nm_rows", type, wanted);
  if (kernel == nullptr) return 1;
  const uint32_t wide = blocks(static_cast<int32_t>(panels), kernel->constant("PANELS"));
  return launch(kernel, {wide, blocks(rows, together)}, arguments, stream);
}

}  // namespace edgellm
