// What a node of model.onnx is made with: its attributes, and its weights in the mapped model.onnx.data.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cpu/decoder_layer.h"
#include "kernels/engine/onnx_file.h"

namespace edgellm {

// A node's attributes, as kernels/cpu/layer_attributes.h asks for them. Throws Error (EDGELLM_BUNDLE) for one it lacks.
struct NodeSource {
  const OnnxNode& node;

  [[noreturn]] void fail(const char* message) const;
  int64_t integer(const char* name) const { return at(name).integer; }
  float real(const char* name) const { return at(name).real; }
  std::string string(const char* name) const { return at(name).text; }

 private:
  const NodeAttribute& at(const char* name) const;
};

// The initializers of a graph by a node's inputs. All throw Error (EDGELLM_BUNDLE) for one that is not there, has another
// type or size, or lies outside of the weights; pointers are into these, at a multiple of kLine.
class GraphWeights {
 public:
  static constexpr uintptr_t kLine = 64;  // bytes: where every tensor begins, for the widest vectors

  // Both must outlive it.
  GraphWeights(const OnnxGraph& graph, std::string_view weights) : graph_(graph), weights_(weights) {}

  const float* reals(const OnnxNode& node, size_t input, int64_t count) const;
  const float* optional(const OnnxNode& node, size_t input, int64_t count) const;  // null: the node has no such input
  const uint8_t* tiles(const OnnxNode& node, size_t input, const Format& f) const;
  // The matrix that the node itself describes.
  Matrix matrix(const OnnxNode& node, size_t input) const;
  // A constant's content, which may lie in the graph's own file.
  std::vector<float> floats(const OnnxNode& node, size_t input, int64_t count) const;

 private:
  const OnnxGraph& graph_;
  std::string_view weights_;

  // Where an initializer of so many bytes lies. copied: it need not outlive the graph's own file.
  const char* tensor(const OnnxNode& node, size_t input, int type, size_t bytes, bool copied = false) const;
};

}  // namespace edgellm
