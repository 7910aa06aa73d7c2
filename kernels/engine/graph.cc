#include "kernels/engine/graph.h"

#include <algorithm>
#include <mutex>
#include <numeric>

#include "kernels/engine/cores.h"
#include "kernels/engine/error.h"
#include "kernels/engine/manifest.h"

// In libedgellm_ort.so, beside this library.
extern "C" edgellm::ort::Status* RegisterCustomOps(edgellm::ort::SessionOptions* options, const edgellm::ort::ApiBase* base);

namespace edgellm {

Graph::Graph(const OnnxRuntime& runtime, const std::string& folder, const CacheLayout& layout, const Manifest& manifest, int threads)
    : runtime_(runtime),
      vocabulary_(manifest.vocabulary),
      weights_(runtime, folder, manifest.matrices),
      memory_(runtime.api),
      session_(runtime.api),
      binding_(runtime.api) {
  open(folder, buffers_of(layout), threads);
  check(ort::cpu_memory(runtime_.api, memory_.put()));
  check(ort::create_binding(runtime_.api, session_.get(), binding_.put()));
  bind_cache(layout);
}

void Graph::check(ort::Status* status) const {
  runtime_.check(status, EDGELLM_BUNDLE, std::string(kGraph) + " failed to run", kAgain);
}

// The options are those of runtime/onnx_graph.py and onnx_decoder.py, which give the reasons.
void Graph::open(const std::string& folder, const std::vector<Buffer>& buffers, int threads) {
  const ort::Api* api = runtime_.api;
  ort::Held<ort::SessionOptions> options(api);
  check(ort::create_options(api, options.put()));
  check(ort::set_intra_threads(api, options.get(), threads ? threads : usable_cores()));
  check(ort::set_inter_threads(api, options.get(), 1));
  check(ort::set_log_severity(api, options.get(), ort::kFatal));
  check(ort::disable_arena(api, options.get()));
  check(ort::disable_memory_pattern(api, options.get()));
  check(ort::add_config(api, options.get(), "session.disable_prepacking", "1"));
  check(ort::add_config(api, options.get(), "session.intra_op.spin_duration_us", "20"));
  {
    static std::mutex registering;  // the operators are made known to the process once, by whoever comes first
    const std::lock_guard<std::mutex> lock(registering);
    check(RegisterCustomOps(options.get(), runtime_.base));
  }
  weights_.give(options.get());
  runtime_.check(ort::create_session(api, runtime_.environment, (folder + "/" + kGraph).c_str(), options.get(), session_.put()),
                 EDGELLM_BUNDLE, std::string(kGraph) + " cannot be loaded", kAgain);
  check_ends(buffers);
}

std::vector<std::string> Graph::ends(bool outputs) const {
  const ort::Api* api = runtime_.api;
  ort::Allocator* allocator = nullptr;  // the process's own: not released
  check(ort::default_allocator(api, &allocator));
  size_t count = 0;
  check(ort::end_count(api, session_.get(), outputs, &count));
  std::vector<std::string> names;
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    check(ort::end_name(api, session_.get(), outputs, i, allocator, &name));
    names.emplace_back(name);
    check(ort::allocator_free(api, allocator, name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

void Graph::check_ends(const std::vector<Buffer>& buffers) const {
  std::vector<std::string> inputs{"ids", "positions", "rows", "control"}, outputs{"logits"};
  for (const Buffer& buffer : buffers) inputs.push_back(buffer.name), outputs.push_back(buffer.name + ".out");
  const auto has = ends(false), gives = ends(true);
  const auto fail = [](const std::string& odd) {
    throw bundle_error(std::string(kGraph) + " does not fit the manifest: it " + odd);
  };
  for (const std::string& name : inputs)
    if (!std::binary_search(has.begin(), has.end(), name)) fail("lacks " + name);
  for (const std::string& name : outputs)
    if (!std::binary_search(gives.begin(), gives.end(), name)) fail("lacks " + name);
  for (const std::string& name : has)
    if (std::find(inputs.begin(), inputs.end(), name) == inputs.end()) fail("asks for an unknown input " + name);
}

void Graph::bind(const char* name, void* data, size_t bytes, const std::vector<int64_t>& shape, ort::ElementType type, bool output) {
  ort::Held<ort::Value> value(runtime_.api);
  check(ort::tensor_over(runtime_.api, memory_.get(), data, bytes, shape.data(), shape.size(), type, value.put()));
  check((output ? ort::bind_output : ort::bind_input)(runtime_.api, binding_.get(), name, value.get()));
  values_.insert_or_assign(name, std::move(value));
}

void Graph::bind_cache(const CacheLayout& layout) {
  CacheMemory wanted(layout);
  if (!cache_.buffers().empty()) wanted.copy_from(cache_);
  for (const Buffer& buffer : wanted.buffers()) {
    bind(buffer.name.c_str(), wanted.at(buffer), buffer.bytes(), buffer.shape, buffer.type, false);
    bind((buffer.name + ".out").c_str(), wanted.at(buffer), buffer.bytes(), buffer.shape, buffer.type, true);
  }
  cache_ = std::move(wanted);
}

void Graph::bind_inputs(int64_t tokens) {
  const int64_t layers = int64_t(cache_.buffers().size() / 4);
  bound_ = 0;
  ids_.resize(size_t(tokens)), positions_.resize(size_t(tokens)), rows_.resize(1);
  control_.resize(size_t(layers * kControl));
  logits_.resize(size_t(vocabulary_));
  const auto input = [&](const char* name, std::vector<int64_t>& from, const std::vector<int64_t>& shape) {
    bind(name, from.data(), from.size() * sizeof(int64_t), shape, ort::kInt64, false);
  };
  input("ids", ids_, {tokens});
  input("positions", positions_, {tokens});
  input("rows", rows_, {1});
  input("control", control_, {layers, kControl});
  bind("logits", logits_.data(), logits_.size() * sizeof(float), {1, vocabulary_}, ort::kFloat, true);
  bound_ = tokens;
}

const float* Graph::run(const int32_t* ids, int64_t count, int64_t first, const std::vector<int64_t>& control) {
  if (bound_ != count) bind_inputs(count);  // runs alike, as decoding's are, only fill them again
  std::copy(ids, ids + count, ids_.begin());
  std::iota(positions_.begin(), positions_.end(), first);
  rows_[0] = count - 1;
  std::copy(control.begin(), control.end(), control_.begin());
  check(ort::run_with_binding(runtime_.api, session_.get(), nullptr, binding_.get()));
  return logits_.data();
}

void Graph::resize(const CacheLayout& layout) { bind_cache(layout); }

}  // namespace edgellm
