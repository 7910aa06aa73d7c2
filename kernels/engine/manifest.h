// edgellm.json, and the checks that run before anything is loaded: runtime/manifest.py and runtime/bundle_files.py.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/engine/engine_facts.h"
#include "kernels/engine/kv_policy.h"

namespace edgellm {

inline constexpr int64_t kOperators = 4;  // kernels/library.py
inline constexpr const char* kManifest = "edgellm.json";
inline constexpr const char* kGraph = "model.onnx";
inline constexpr const char* kWeights = "model.onnx.data";
inline constexpr const char* kTables = "tokenizer.tables";

// A packed matrix in model.onnx.data: an initializer of the graph, uint8 [bytes].
struct StoredMatrix {
  std::string name;
  size_t offset, bytes;
};

struct Manifest {
  std::string name, architecture;
  int64_t layers, heads, kv_heads, head_dim, vocabulary, context;
  int64_t bos = -1, eos = -1;  // -1: none
  bool add_bos = false;
  std::vector<int64_t> stops;
  KVPolicy kv;
  bool kv_int8 = false;  // keys and values in the graph, else float16
  std::optional<EngineFacts> engine;
  std::vector<StoredMatrix> matrices;  // whose place it says
  bool tables = false;  // whether the bundle lists tokenizer.tables
};

// Reads a bundle's manifest and checks the files it lists: sizes always; SHA-256 of the ones this library reads, of the
// weights too with `verify`. Throws Error (EDGELLM_BUNDLE), naming the first wrong file.
Manifest read_manifest(const std::string& folder, bool verify);

}  // namespace edgellm
