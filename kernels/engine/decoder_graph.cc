#include "kernels/engine/decoder_graph.h"

#include "kernels/cpu/layer_attributes.h"
#include "kernels/engine/graph_weights.h"
#include "kernels/engine/manifest.h"

namespace edgellm {
namespace {

enum ProductInput { kTiles = 1, kBias, kResidual, kNorm };  // NMMatMul's and QuantGather's, behind x or ids

struct OtherKind {};  // of graph

class Reading {
 public:
  Reading(const OnnxGraph& graph, std::string_view weights) : graph_(graph), weights_(graph, weights) {}

  DecoderGraph read() {
    const auto version = graph_.opsets.find("edgellm");
    if (version == graph_.opsets.end() || version->second != kOperators) throw OtherKind();
    const OnnxNode& gather = take("QuantGather", {"ids"});
    d_.embedding = weights_.matrix(gather, kTiles);
    std::string x = gather.outputs[0];
    if (is("Mul")) {
      const OnnxNode& scaled = take("Mul", {x});
      d_.scale = weights_.floats(scaled, 1, 1)[0];
      x = scaled.outputs[0];
    }
    rotations();
    while (is("DecoderLayer")) x = layer(x);
    if (d_.layers.empty() || !d_.layers.back().wanted) throw OtherKind();
    head(x);
    if (at_ != graph_.nodes.size()) throw OtherKind();
    return std::move(d_);
  }

 private:
  const OnnxGraph& graph_;
  GraphWeights weights_;
  size_t at_ = 0;
  DecoderGraph d_;
  std::vector<std::pair<std::string, std::string>> waves_;  // a rotation's cos and sin

  bool is(const char* op) const { return at_ < graph_.nodes.size() && graph_.nodes[at_].op == op; }
  // The next node, of this kind and with these first inputs.
  const OnnxNode& take(const char* op, const std::vector<std::string>& inputs) {
    if (!is(op)) throw OtherKind();
    const OnnxNode& node = graph_.nodes[at_++];
    if (node.inputs.size() < inputs.size() || node.outputs.empty()) throw OtherKind();
    for (size_t i = 0; i < inputs.size(); ++i)
      if (node.inputs[i] != inputs[i]) throw OtherKind();
    return node;
  }

  // export/graph.py's rotations(): positions as a column of floats, then every Rope's cos and sin.
  void rotations() {
    const OnnxNode& place = take("Cast", {"positions"});
    const std::string places = take("Unsqueeze", {place.outputs[0]}).outputs[0];
    while (is("Mul")) {
      const OnnxNode& angle = take("Mul", {places});
      const auto frequency = graph_.initializers.find(angle.input(1));
      if (frequency == graph_.initializers.end() || frequency->second.shape.size() != 2) throw OtherKind();
      Rotation rotation{weights_.floats(angle, 1, frequency->second.shape[1])};
      std::string cos = take("Cos", {angle.outputs[0]}).outputs[0], sin = take("Sin", {angle.outputs[0]}).outputs[0];
      if (is("Mul") && graph_.nodes[at_].input(0) == cos) {
        const OnnxNode &larger_cos = take("Mul", {cos}), &larger_sin = take("Mul", {sin});
        rotation.magnitude = weights_.floats(larger_cos, 1, 1)[0];
        if (larger_sin.input(1) != larger_cos.input(1)) throw OtherKind();
        cos = larger_cos.outputs[0], sin = larger_sin.outputs[0];
      }
      waves_.emplace_back(cos, sin);
      d_.rotations.push_back(std::move(rotation));
    }
  }

  // The bits of an input that is a layer's keys or values: one number for all.
  void cache(const std::string& name) {
    const auto input = graph_.inputs.find(name);
    const int type = input == graph_.inputs.end() ? 0 : input->second;
    const int64_t bits = type == kOnnxFloat16 ? 16 : type == kOnnxInt8 ? 8 : 0;
    if (!bits || (d_.bits && d_.bits != bits)) throw OtherKind();
    d_.bits = bits;
  }

  std::string layer(const std::string& x) {
    const OnnxNode& node = take("DecoderLayer", {x});
    const NodeSource source{node};
    GraphLayer g{layer_of(source), 0, source.integer("layer")};
    DecoderLayer& l = g.layer;
    const int64_t dim = l.attention.head_dim, hidden = l.q.f.k_in, count = int64_t(d_.layers.size());
    if (hidden != d_.hidden() || g.row != count || node.inputs.size() <= kMlpNorm) throw OtherKind();
    while (g.rotation < waves_.size() && waves_[g.rotation] != std::pair(node.inputs[kCos], node.inputs[kSin])) ++g.rotation;
    if (g.rotation == waves_.size() || int64_t(d_.rotations[g.rotation].frequency.size()) * 2 > dim) throw OtherKind();
    const std::string of = "." + std::to_string(count);
    const std::vector<std::string> ends{"positions", "control", "key" + of, "value" + of, "position" + of, "score" + of};
    for (size_t i = 0; i < ends.size(); ++i)
      if (node.inputs[kPositions + i] != ends[i]) throw OtherKind();
    for (const char* kind : {"key", "value"}) cache(kind + of);
    each_matrix(l, [&](Matrix& matrix, LayerInput i) { matrix.tiles = weights_.tiles(node, i, matrix.f); });
    each_bias(l, [&](Matrix& matrix, LayerInput i) { matrix.bias = weights_.optional(node, i, matrix.f.n_out); });
    each_norm(l, [&](const float*& norm, LayerInput i) {
      norm = i <= kMlpNorm ? weights_.reals(node, i, hidden) : weights_.optional(node, i, hidden);
    });
    g.q_norm = weights_.optional(node, kQNorm, dim), g.k_norm = weights_.optional(node, kKNorm, dim);
    g.k_shift = weights_.optional(node, kKShift, l.attention.kv_heads * dim);
    g.wanted = node.has(kRows);
    if (!d_.layers.empty() && d_.layers.back().wanted) throw OtherKind();
    d_.layers.push_back(g);
    return node.outputs[0];
  }

  void head(const std::string& x) {
    const OnnxNode& node = take("NMMatMul", {x});
    const NodeSource source{node};
    if (activation_of(source, format_of(source)) != Activation::kNone || node.has(kResidual)) throw OtherKind();
    d_.head = weights_.matrix(node, kTiles);
    d_.head.bias = weights_.optional(node, kBias, d_.head.f.n_out);
    if (d_.head.f.k_in != d_.hidden()) throw OtherKind();
    d_.norm = weights_.reals(node, kNorm, d_.hidden());
    d_.epsilon = source.real("epsilon");
    std::string logits = node.outputs[0];
    if (is("Div")) {
      const OnnxNode& low = take("Div", {logits});
      d_.cap = weights_.floats(low, 1, 1)[0];
      const OnnxNode& high = take("Mul", {take("Tanh", {low.outputs[0]}).outputs[0]});
      if (high.input(1) != low.input(1)) throw OtherKind();
      logits = high.outputs[0];
    }
    if (logits != "logits") throw OtherKind();
  }
};

}  // namespace

std::optional<DecoderGraph> decoder_graph(std::string_view content, std::string_view weights) {
  try {
    return Reading(read_onnx(content), weights).read();
  } catch (const OtherKind&) {
    return std::nullopt;
  }
}

}  // namespace edgellm
