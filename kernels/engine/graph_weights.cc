#include "kernels/engine/graph_weights.h"

#include <cstring>

#include "kernels/cpu/layer_attributes.h"
#include "kernels/engine/error.h"
#include "kernels/engine/manifest.h"

namespace edgellm {

void NodeSource::fail(const char* message) const { throw bundle_error(std::string(kGraph) + " is damaged: " + message); }

const NodeAttribute& NodeSource::at(const char* name) const {
  const auto found = node.attributes.find(name);
  if (found == node.attributes.end()) fail((node.op + " lacks " + name).c_str());
  return found->second;
}

const char* GraphWeights::tensor(const OnnxNode& node, size_t input, int type, size_t bytes, bool copied) const {
  const auto odd = [&](const std::string& why) {
    const std::string name = node.has(input) ? node.inputs[input] : "an input";
    return bundle_error(std::string(kGraph) + " does not fit " + kWeights + ": " + name + " of " + node.op + " " + why);
  };
  const auto found = node.has(input) ? graph_.initializers.find(node.inputs[input]) : graph_.initializers.end();
  if (found == graph_.initializers.end()) throw odd("is no weight");
  const OnnxTensor& t = found->second;
  const bool outside = !t.location.empty();
  if (t.type != type || (outside ? t.length : t.bytes.size()) != bytes) throw odd("has another size than it needs");
  if (!outside && copied) return t.bytes.data();
  if (t.location != kWeights || t.offset > weights_.size() || bytes > weights_.size() - t.offset) throw odd("lies outside of it");
  const char* const at = weights_.data() + t.offset;
  if (reinterpret_cast<uintptr_t>(at) % kLine) throw odd("does not begin at a multiple of 64 bytes");
  return at;
}

const float* GraphWeights::reals(const OnnxNode& node, size_t input, int64_t count) const {
  return reinterpret_cast<const float*>(tensor(node, input, kOnnxFloat, size_t(count) * sizeof(float)));
}

const float* GraphWeights::optional(const OnnxNode& node, size_t input, int64_t count) const {
  return node.has(input) ? reals(node, input, count) : nullptr;
}

std::vector<float> GraphWeights::floats(const OnnxNode& node, size_t input, int64_t count) const {
  const size_t bytes = size_t(count) * sizeof(float);
  const char* const at = tensor(node, input, kOnnxFloat, bytes, true);
  std::vector<float> values(static_cast<size_t>(count));
  std::memcpy(values.data(), at, bytes);
  return values;
}

const uint8_t* GraphWeights::tiles(const OnnxNode& node, size_t input, const Format& f) const {
  return reinterpret_cast<const uint8_t*>(tensor(node, input, kOnnxUint8, f.nbytes()));
}

Matrix GraphWeights::matrix(const OnnxNode& node, size_t input) const {
  const Format f = format_of(NodeSource{node});
  return {f, tiles(node, input, f), nullptr};
}

}  // namespace edgellm
