#include "kernels/tensorrt/fields.h"

#include <cstring>

namespace edgellm {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

PluginFieldType type_of(Kind kind) {
  return kind == Kind::integer ? PluginFieldType::kINT32
         : kind == Kind::real  ? PluginFieldType::kFLOAT32
                               : PluginFieldType::kCHAR;
}

bool number_of(const PluginField& field, double* value) {
  if (field.data == nullptr || field.length < 1) return false;
  switch (field.type) {
    case PluginFieldType::kINT32: *value = *static_cast<const int32_t*>(field.data); return true;
    case PluginFieldType::kINT64: *value = static_cast<double>(*static_cast<const int64_t*>(field.data)); return true;
    case PluginFieldType::kFLOAT32: *value = *static_cast<const float*>(field.data); return true;
    case PluginFieldType::kFLOAT64: *value = *static_cast<const double*>(field.data); return true;
    default: return false;
  }
}

}  // namespace

Fields::Fields(const std::vector<FieldName>& names) : names_(&names), values_(names.size()) {}

bool Fields::read(const nvinfer1::PluginFieldCollection& given) {
  for (size_t i = 0; i < names_->size(); ++i) {
    const FieldName& wanted = (*names_)[i];
    Value& value = values_[i];
    const PluginField* found = nullptr;
    for (int32_t j = 0; j < given.nbFields; ++j) {
      if (std::strcmp(given.fields[j].name, wanted.name) == 0) found = &given.fields[j];
    }
    double number = wanted.number;
    if (found == nullptr) {
      if (!wanted.optional) return false;
      value.word = wanted.text;
    } else if (wanted.kind == Kind::word) {
      if (found->type != PluginFieldType::kCHAR) return false;
      value.word.assign(static_cast<const char*>(found->data), static_cast<size_t>(found->length));
      while (!value.word.empty() && value.word.back() == '\0') value.word.pop_back();
    } else if (!number_of(*found, &number)) {
      return false;
    }
    value.integer = static_cast<int32_t>(number);
    value.real = static_cast<float>(number);
  }
  return true;
}

const Fields::Value& Fields::at(const char* name) const {
  static const Value nothing;
  for (size_t i = 0; i < names_->size(); ++i) {
    if (std::strcmp((*names_)[i].name, name) == 0) return values_[i];
  }
  return nothing;
}

int32_t Fields::integer(const char* name) const { return at(name).integer; }
float Fields::real(const char* name) const { return at(name).real; }
const std::string& Fields::word(const char* name) const { return at(name).word; }

const nvinfer1::PluginFieldCollection* Fields::collection() {
  fields_.clear();
  for (size_t i = 0; i < names_->size(); ++i) {
    const FieldName& field = (*names_)[i];
    const Value& value = values_[i];
    const void* data = field.kind == Kind::integer ? static_cast<const void*>(&value.integer)
                       : field.kind == Kind::real  ? static_cast<const void*>(&value.real)
                                                   : value.word.c_str();
    const int32_t length = field.kind == Kind::word ? static_cast<int32_t>(value.word.size()) + 1 : 1;
    fields_.emplace_back(field.name, data, type_of(field.kind), length);
  }
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  return &collection_;
}

std::vector<PluginField> field_names(const std::vector<FieldName>& names) {
  std::vector<PluginField> found;
  for (const FieldName& name : names) found.emplace_back(name.name, nullptr, type_of(name.kind), 1);
  return found;
}

}  // namespace edgellm
