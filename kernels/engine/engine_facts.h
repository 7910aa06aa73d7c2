// What the manifest says of a bundle's TensorRT engine: runtime/schema.py, which explains the fields.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernels/engine/json.h"
#include "kernels/layout.h"

namespace edgellm {

inline constexpr const char* kEngine = "model.engine";

// A packed matrix in model.onnx.data, from its byte `offset` on.
struct Placed {
  int64_t offset;
  Format format;
};

struct BuiltEngine {
  std::string version;
  std::vector<std::string> capabilities;  // "8.9"; none: the device's own
  std::string plugin_sha256;              // "": no plugins
};

struct EngineFacts {
  std::string kind, operators;
  int64_t capacity, planes, tokens, rows;
  std::map<std::string, Placed> matrices;  // that a session feeds it: the embedding, and with plugins every one
  std::optional<BuiltEngine> built;

  bool plugins() const { return operators == "plugins"; }
};

// Of edgellm.json; none where the bundle was exported without one. Throws JsonError.
std::optional<EngineFacts> engine_facts(const Json& data);

}  // namespace edgellm
