// A bundle's graph in ONNX Runtime, with the cache's buffers bound in place: runtime/onnx_decoder.py.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "kernels/engine/backend.h"
#include "kernels/engine/onnxruntime.h"
#include "kernels/engine/weights.h"

namespace edgellm {

class Graph : public Backend {
 public:
  // threads: 0 takes the physical cores. Throws Error.
  Graph(const OnnxRuntime& runtime, const std::string& folder, const CacheLayout& layout, const Manifest& manifest, int threads);

  const float* run(const int32_t* ids, int64_t count, int64_t first, const std::vector<int64_t>& control) override;
  void resize(const CacheLayout& layout) override;
  size_t kv_bytes() const override { return cache_.bytes(); }
  const std::string& library() const override { return runtime_.path; }

 private:
  void open(const std::string& folder, const std::vector<Buffer>& buffers, int threads);
  void check_ends(const std::vector<Buffer>& buffers) const;
  std::vector<std::string> ends(bool outputs) const;
  void bind(const char* name, void* data, size_t bytes, const std::vector<int64_t>& shape, ort::ElementType type, bool output);
  void bind_cache(const CacheLayout& layout);
  void bind_inputs(int64_t tokens);
  void check(ort::Status* status) const;

  const OnnxRuntime& runtime_;
  int64_t vocabulary_;
  Weights weights_;    // outlives the session
  CacheMemory cache_;  // outlives what is bound to it
  std::vector<int64_t> ids_, positions_, rows_, control_;
  std::vector<float> logits_;
  int64_t bound_ = 0;  // tokens of the runs that the inputs are bound for
  ort::Held<ort::MemoryInfo> memory_;
  ort::Held<ort::Session> session_;
  std::map<std::string, ort::Held<ort::Value>> values_;  // by input, or output
  ort::Held<ort::Binding> binding_;
};

}  // namespace edgellm
