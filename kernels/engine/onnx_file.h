// An ONNX file's nodes and initializers (onnx.proto3 of github.com/onnx/onnx), without ONNX Runtime.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace edgellm {

// One of a node's; which of the three holds is the reader's to know.
struct NodeAttribute {
  int64_t integer = 0;
  float real = 0;
  std::string text;
};

// inputs: "" for an optional one that is not there. domain: "" is ONNX's own.
struct OnnxNode {
  std::string op, domain;
  std::vector<std::string> inputs, outputs;
  std::map<std::string, NodeAttribute> attributes;

  bool has(size_t input) const { return input < inputs.size() && !inputs[input].empty(); }
  std::string input(size_t i) const { return i < inputs.size() ? inputs[i] : ""; }
};

enum OnnxType : int { kOnnxFloat = 1, kOnnxUint8 = 2, kOnnxInt8 = 3, kOnnxFloat16 = 10 };

// Either its bytes, which belong to the file that was read, or where they lie in `location`.
struct OnnxTensor {
  std::vector<int64_t> shape;
  int type = 0;
  std::string_view bytes;
  std::string location;
  uint64_t offset = 0, length = 0;
};

struct OnnxGraph {
  std::vector<OnnxNode> nodes;  // in an order in which they can run
  std::map<std::string, int> inputs;  // name -> type of its elements
  std::map<std::string, OnnxTensor> initializers;
  std::map<std::string, int64_t> opsets;  // domain -> version
};

// content: of the file; must outlive the graph. Throws Error (EDGELLM_BUNDLE) for one that is no ONNX file.
OnnxGraph read_onnx(std::string_view content);

}  // namespace edgellm
