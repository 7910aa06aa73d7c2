// A plugin's attributes: the names and kinds that our ONNX nodes have, read from TensorRT and given back to it.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace edgellm {

enum class Kind { integer, real, word };

// An attribute; `text` is a word's default, `number` another's. What has no default must be given.
struct FieldName {
  const char* name;
  Kind kind;
  bool optional = false;
  double number = 0;
  const char* text = "";
};

// Values in the order of their names.
class Fields {
 public:
  explicit Fields(const std::vector<FieldName>& names);

  // Takes over what TensorRT's parser or an engine file has; false where an attribute is missing or of another kind.
  bool read(const nvinfer1::PluginFieldCollection& given);

  int32_t integer(const char* name) const;
  float real(const char* name) const;
  const std::string& word(const char* name) const;

  // All of them, for the engine file; valid as long as this object and until the next call.
  const nvinfer1::PluginFieldCollection* collection();

 private:
  struct Value {
    int32_t integer = 0;
    float real = 0;
    std::string word;
  };
  const Value& at(const char* name) const;

  const std::vector<FieldName>* names_;
  std::vector<Value> values_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

// The names alone, for the parser: it looks for an attribute of each.
std::vector<nvinfer1::PluginField> field_names(const std::vector<FieldName>& names);

}  // namespace edgellm
