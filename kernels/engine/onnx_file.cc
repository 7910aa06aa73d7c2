#include "kernels/engine/onnx_file.h"

#include <cstdlib>

#include "kernels/engine/protobuf.h"

namespace edgellm {
namespace {

// Field numbers of onnx.proto3.
enum ModelField { kModelGraph = 7, kModelOpset = 8 };
enum OpsetField { kOpsetDomain = 1, kOpsetVersion = 2 };
enum GraphField { kGraphNode = 1, kGraphInitializer = 5, kGraphInput = 11 };
enum NodeField { kNodeInput = 1, kNodeOutput = 2, kNodeOp = 4, kNodeAttribute = 5, kNodeDomain = 7 };
enum AttributeField { kAttributeName = 1, kAttributeFloat = 2, kAttributeInt = 3, kAttributeString = 4 };
enum TensorField { kTensorDims = 1, kTensorType = 2, kTensorName = 8, kTensorRaw = 9, kTensorExternal = 13 };
enum EntryField { kEntryKey = 1 };  // 2: the value
enum ValueField { kValueName = 1, kValueType = 2 };
enum TypeField { kTypeTensor = 1, kTensorElements = 1 };

OnnxNode node_of(std::string_view message) {
  OnnxNode node;
  for (Fields f(message); f.next();) {
    const auto text = std::string(f.bytes);
    if (f.field == kNodeInput) node.inputs.push_back(text);
    if (f.field == kNodeOutput) node.outputs.push_back(text);
    if (f.field == kNodeOp) node.op = text;
    if (f.field == kNodeDomain) node.domain = text;
    if (f.field != kNodeAttribute) continue;
    std::string name;
    NodeAttribute value;
    for (Fields a(f.bytes); a.next();) {
      if (a.field == kAttributeName) name = a.bytes;
      if (a.field == kAttributeFloat) value.real = a.real();
      if (a.field == kAttributeInt) value.integer = int64_t(a.number);
      if (a.field == kAttributeString) value.text = a.bytes;
    }
    node.attributes[name] = value;
  }
  return node;
}

std::pair<std::string, OnnxTensor> tensor_of(std::string_view message) {
  std::string name;
  OnnxTensor tensor;
  for (Fields f(message); f.next();) {
    if (f.field == kTensorDims) f.integers([&](int64_t size) { tensor.shape.push_back(size); });
    if (f.field == kTensorType) tensor.type = int(f.number);
    if (f.field == kTensorName) name = f.bytes;
    if (f.field == kTensorRaw) tensor.bytes = f.bytes;
    if (f.field != kTensorExternal) continue;
    std::string key, value;
    for (Fields e(f.bytes); e.next();) (e.field == kEntryKey ? key : value) = e.bytes;
    if (key == "location") tensor.location = value;
    if (key == "offset") tensor.offset = std::strtoull(value.c_str(), nullptr, 10);
    if (key == "length") tensor.length = std::strtoull(value.c_str(), nullptr, 10);
  }
  return {name, tensor};
}

std::pair<std::string, int> input_of(std::string_view message) {
  std::string name;
  int type = 0;
  for (Fields f(message); f.next();) {
    if (f.field == kValueName) name = f.bytes;
    if (f.field != kValueType) continue;
    for (Fields t(f.bytes); t.next();)
      if (t.field == kTypeTensor)
        for (Fields e(t.bytes); e.next();)
          if (e.field == kTensorElements) type = int(e.number);
  }
  return {name, type};
}

}  // namespace

OnnxGraph read_onnx(std::string_view content) {
  OnnxGraph graph;
  for (Fields model(content); model.next();) {
    if (model.field == kModelOpset) {
      std::string domain;
      int64_t version = 0;
      for (Fields f(model.bytes); f.next();) {
        if (f.field == kOpsetDomain) domain = f.bytes;
        if (f.field == kOpsetVersion) version = int64_t(f.number);
      }
      graph.opsets[domain] = version;
    }
    if (model.field != kModelGraph) continue;
    for (Fields f(model.bytes); f.next();) {
      if (f.field == kGraphNode) graph.nodes.push_back(node_of(f.bytes));
      if (f.field == kGraphInput) graph.inputs.insert(input_of(f.bytes));
      if (f.field == kGraphInitializer) graph.initializers.insert(tensor_of(f.bytes));
    }
  }
  return graph;
}

}  // namespace edgellm
