#include "kernels/tensorrt/pruned_kv_attention.h"

#include <algorithm>

#include "kernels/tensorrt/kernels.h"

namespace edgellm {
namespace {

using nvinfer1::DataType;

enum Input { QKV, COS, SIN, POSITIONS, CONTROL, KEY, VALUE, POSITION, SCORE, Q_NORM, K_NORM };
constexpr int32_t PLAIN = 9, NORMED = 11;       // inputs
constexpr int32_t CONTROL_FIELDS = 13;          // kernels/control.py
constexpr int32_t FEW = 64, SPLIT = 256;        // rows of decoding, slots a program (kernels/gpu/README.md)
constexpr int32_t ROWS_MANY = 64, SLOTS_MANY = 64, TOKENS_STAGED = 16;

int32_t size_of(const nvinfer1::Dims& dims, int32_t axis) { return static_cast<int32_t>(dims.d[axis]); }

// The workspace cut into arrays, each from a 256-byte boundary; with a null start it only adds up.
class Workspace {
 public:
  explicit Workspace(void* start) : start_(static_cast<char*>(start)) {}
  void* take(size_t bytes) {
    void* here = start_ == nullptr ? nullptr : start_ + used;
    used += (bytes + 255) / 256 * 256;
    return here;
  }
  size_t used = 0;

 private:
  char* start_;
};

struct Arrays {
  void *scratch, *query, *extent, *sums, *logits;
};

Arrays cut(Workspace* space, int32_t kv_heads, int32_t capacity, int32_t rows, int32_t head_dim) {
  const size_t heads = static_cast<size_t>(kv_heads), splits = blocks(capacity, SPLIT);
  const size_t all = static_cast<size_t>(rows), few = rows <= FEW ? all : 0, real = sizeof(float);
  Arrays arrays{};
  arrays.scratch = space->take(heads * 2 * static_cast<size_t>(capacity) * sizeof(int32_t));
  arrays.query = space->take(heads * all * static_cast<size_t>(head_dim) * 2);
  arrays.extent = space->take(heads * std::max(few * splits, all) * 2 * real);
  arrays.sums = space->take(heads * splits * few * static_cast<size_t>(head_dim) * real);
  arrays.logits = space->take(heads * few * SPLIT * splits * real);
  return arrays;
}

}  // namespace

const std::vector<FieldName>& PrunedKVAttention::names() {
  static const std::vector<FieldName> names = {
      {"heads", Kind::integer},  {"kv_heads", Kind::integer}, {"head_dim", Kind::integer},
      {"scale", Kind::real},     {"window", Kind::integer},   {"softcap", Kind::real},
      {"layer", Kind::integer},  {"epsilon", Kind::real, true}};
  return names;
}

int32_t PrunedKVAttention::getNbOutputs() const noexcept { return 5; }

int32_t PrunedKVAttention::getAliasedInput(int32_t output) noexcept { return output == 0 ? -1 : KEY + output - 1; }

int32_t PrunedKVAttention::getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs,
                                              int32_t) const noexcept {
  outputs[0] = inputs[QKV];
  for (int32_t i = 1; i < 5; ++i) outputs[i] = inputs[KEY + i - 1];
  return 0;
}

int32_t PrunedKVAttention::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t, const nvinfer1::DimsExprs*,
                                           int32_t, nvinfer1::DimsExprs* outputs, int32_t,
                                           nvinfer1::IExprBuilder& build) noexcept {
  outputs[0].nbDims = 2;
  outputs[0].d[0] = inputs[QKV].d[0];
  outputs[0].d[1] = build.constant(fields_.integer("heads") * fields_.integer("head_dim"));
  for (int32_t i = 1; i < 5; ++i) outputs[i] = inputs[KEY + i - 1];
  return 0;
}

bool PrunedKVAttention::supportsFormatCombination(int32_t pos, const nvinfer1::DynamicPluginTensorDesc* ends,
                                                  int32_t inputs, int32_t) noexcept {
  if (inputs != PLAIN && inputs != NORMED) return false;
  const nvinfer1::PluginTensorDesc& end = ends[pos].desc;
  if (end.format != nvinfer1::TensorFormat::kLINEAR) return false;
  const DataType type = end.type, activations = ends[QKV].desc.type;
  if (pos == QKV) return half_type(type);
  if (pos >= inputs) return type == (pos == inputs ? activations : ends[KEY + pos - inputs - 1].desc.type);
  switch (pos) {
    case COS: case SIN: case SCORE: return type == DataType::kFLOAT;
    case POSITIONS: case CONTROL: return type == DataType::kINT64;
    case KEY: case VALUE: return type == DataType::kHALF;
    case POSITION: return type == DataType::kINT32;
    default: return type == activations;
  }
}

int32_t PrunedKVAttention::configurePlugin(const nvinfer1::DynamicPluginTensorDesc*, int32_t inputs,
                                           const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept {
  has_norm_ = inputs == NORMED;
  return 0;
}

int32_t PrunedKVAttention::onShapeChange(const nvinfer1::PluginTensorDesc*, int32_t inputs,
                                         const nvinfer1::PluginTensorDesc*, int32_t) noexcept {
  has_norm_ = inputs == NORMED;
  return 0;
}

size_t PrunedKVAttention::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t,
                                           const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept {
  const int32_t kv_heads = fields_.integer("kv_heads"), head_dim = fields_.integer("head_dim");
  const int32_t capacity = size_of(in[KEY].max, 1), group = fields_.integer("heads") / kv_heads;
  const int32_t rows = size_of(in[QKV].max, 0) * group;
  Workspace few(nullptr), many(nullptr);
  cut(&few, kv_heads, capacity, std::min(rows, FEW), head_dim);
  cut(&many, kv_heads, capacity, rows, head_dim);
  return std::max(few.used, many.used);
}

int32_t PrunedKVAttention::enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc*,
                                   const void* const* inputs, void* const* outputs, void* workspace,
                                   cudaStream_t stream) noexcept {
  const int32_t heads = fields_.integer("heads"), kv_heads = fields_.integer("kv_heads");
  const int32_t head_dim = fields_.integer("head_dim"), window = fields_.integer("window"), has_norm = has_norm_;
  const float epsilon = fields_.real("epsilon"), scale = fields_.real("scale"), softcap = fields_.real("softcap");
  const int32_t steps = size_of(in[QKV].dims, 0), half = size_of(in[COS].dims, 1);
  const int32_t capacity = size_of(in[KEY].dims, 1), planes = size_of(in[SCORE].dims, 2);
  const int32_t rows = steps * (heads / kv_heads);
  const void *q_norm = has_norm_ ? inputs[Q_NORM] : nullptr, *k_norm = has_norm_ ? inputs[K_NORM] : nullptr;
  const void* control = static_cast<const int64_t*>(inputs[CONTROL]) + fields_.integer("layer") * CONTROL_FIELDS;
  Workspace space(workspace);
  const Arrays arrays = cut(&space, kv_heads, capacity, rows, head_dim);
  const char* type = in[QKV].type == DataType::kBF16 ? "bf16" : "fp16";
  int32_t padded = 1;
  while (padded < heads / kv_heads) padded *= 2;
  Wanted wanted{{"HEAD_DIM", std::to_string(head_dim)}, {"GROUP", std::to_string(padded)}};
  const uint32_t all = static_cast<uint32_t>(kv_heads), splits = blocks(capacity, SPLIT);
  const Named arguments{
      {"qkv", inputs[QKV]}, {"cos", inputs[COS]}, {"sin", inputs[SIN]}, {"positions", inputs[POSITIONS]},
      {"control", control}, {"q_norm", q_norm}, {"k_norm", k_norm}, {"key", outputs[1]}, {"value", outputs[2]},
      {"position", outputs[3]}, {"score", outputs[4]}, {"y", outputs[0]}, {"scratch", arrays.scratch},
      {"query", arrays.query}, {"extent", arrays.extent}, {"sums", arrays.sums}, {"logits", arrays.logits},
      {"steps", steps}, {"heads", heads}, {"capacity", capacity}, {"half", half}, {"planes", planes},
      {"has_norm", has_norm}, {"epsilon", epsilon}, {"scale", scale}, {"window", window}, {"softcap", softcap}};
  const auto start = [&](const char* entry, uint32_t x, uint32_t y) {
    return launch(find_kernel(entry, type, wanted), {x, y}, arguments, stream);
  };
  int32_t code = start("commit", all, 1);
  if (code == 0) code = start("stage", all, blocks(steps, TOKENS_STAGED));
  if (code != 0) return code;
  if (rows <= FEW) {
    wanted["ROWS"] = rows <= 16 ? "16" : rows <= 32 ? "32" : "64";
    code = start("attend_few", all, splits);
    return code != 0 ? code : start("combine_few", all, splits);
  }
  code = start("attend_many", all, blocks(rows, ROWS_MANY));
  return code != 0 ? code : start("score_many", all, blocks(capacity, SLOTS_MANY));
}

}  // namespace edgellm
