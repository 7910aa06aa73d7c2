#include "kernels/engine/tensorrt_runner.h"

#include <algorithm>
#include <set>

#include "kernels/engine/engine_facts.h"
#include "kernels/engine/error.h"
#include "kernels/engine/mapped_file.h"

namespace edgellm {
namespace {

constexpr const char* kLogits = "logits";
constexpr const char* kBuild = "Build it again: edgellm build-engine BUNDLE";

// Classes of C++ change from one TensorRT to the next: called with another's headers, it would crash.
void refuse_headers(const RunnerTable& table, const TensorRt& library) {
  if (table.major == library.major && table.minor == library.minor) return;
  throw Error(EDGELLM_FAILED,
              "libedgellm_runner.so was compiled against the headers of TensorRT " + std::to_string(table.major) + "." +
                  std::to_string(table.minor) + "; " + library.path + " is " + library.version,
              "Compile it against this TensorRT's headers: pip install . -C cmake.define.TENSORRT_INCLUDE=FOLDER.");
}

std::string shown(const int64_t* sizes, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

bool fits(const EngineEnd& has, const End& wants) {
  if (has.rank != int32_t(wants.shape.size()) || has.item != int32_t(wants.item)) return false;
  const auto alike = [](int64_t size, int64_t want) { return size == want || size == -1; };
  return std::equal(wants.shape.begin(), wants.shape.end(), has.sizes, [&](int64_t want, int64_t size) { return alike(size, want); });
}

}  // namespace

size_t End::bytes() const {
  size_t total = item;
  for (int64_t size : shape) total *= size_t(size);
  return total;
}

TensorRtRunner::TensorRtRunner(const TensorRt& library, const std::string& folder, std::vector<End> ends, const std::string& plugins)
    : library_(library), table_(runner_table()), ends_(std::move(ends)), engine_(nullptr, Close{table_}) {
  refuse_headers(table_, library_);
  if (!plugins.empty() && !(library_.get_plugin_registry && table_.load_plugins(library_.get_plugin_registry, plugins.c_str())))
    throw bundle_error("TensorRT cannot load " + plugins, "Build it against this TensorRT's headers.");
  {
    const MappedFile plan(folder, kEngine);
    engine_.reset(table_.open(library_.create_runtime, plan.bytes().data(), plan.bytes().size()));
  }
  check_ends();
  for (const End& end : ends_) {
    const uint64_t address = addresses_[end.name] = cuda_.allocate(end.bytes());
    bool bound = table_.set_address(engine_.get(), end.name.c_str(), address);
    if (end.cache) bound = bound && table_.set_address(engine_.get(), (end.name + ".out").c_str(), address);
    if (!bound) refuse(std::string(kEngine) + " takes no address for " + end.name, kBuild);
    if (end.name == kLogits) logits_.resize(end.bytes() / sizeof(float));
  }
}

void TensorRtRunner::check_ends() const {
  std::map<std::string, EngineEnd> inputs, outputs;
  for (int32_t i = 0; i < table_.ends(engine_.get()); ++i) {
    const EngineEnd end = table_.end(engine_.get(), i);
    (end.input ? inputs : outputs)[end.name] = end;
  }
  if (inputs.empty()) refuse(std::string("TensorRT refuses ") + kEngine, kBuild);
  const auto fail = [](const std::string& odd) { throw bundle_error(std::string(kEngine) + " does not fit the manifest: it " + odd, kBuild); };
  const auto check = [&](const std::map<std::string, EngineEnd>& there, const std::string& name, const End& end) {
    const auto found = there.find(name);
    if (found == there.end()) fail("lacks " + name);
    if (!fits(found->second, end))
      fail("has " + name + " as " + shown(found->second.sizes, size_t(std::clamp(found->second.rank, 0, 8))) + " of " +
           std::to_string(found->second.item) + " bytes; expected " + shown(end.shape.data(), end.shape.size()) + " of " + std::to_string(end.item));
  };
  std::set<std::string> known;
  for (const End& end : ends_) {
    check(end.name == kLogits ? outputs : inputs, end.name, end);
    if (end.cache) check(outputs, end.name + ".out", end);
    known.insert(end.name);
  }
  for (const auto& [name, end] : inputs)
    if (!known.count(name)) fail("asks for an unknown input " + name);
}

void TensorRtRunner::refuse(const std::string& what, const std::string& hint) const {
  const std::string said = table_.said(engine_.get());
  throw bundle_error(what + (said.empty() ? "" : ": " + said.substr(0, std::min<size_t>(said.find('\n'), 300))), hint);
}

void TensorRtRunner::feed(const std::string& name, const void* from, int64_t first) {
  const End& end = *std::find_if(ends_.begin(), ends_.end(), [&](const End& e) { return e.name == name; });
  std::vector<int64_t> shape = end.shape;
  shape[0] = first;
  cuda_.enter();
  if (!table_.set_shape(engine_.get(), name.c_str(), shape.data(), int32_t(shape.size())))
    refuse(std::string(kEngine) + " takes no " + name + " of " + shown(shape.data(), shape.size()), kBuild);
  cuda_.upload(from, end.bytes() / size_t(end.shape[0]) * size_t(first), addresses_[name]);
}

const float* TensorRtRunner::run() {
  cuda_.enter();
  if (!table_.run(engine_.get(), cuda_.stream()))
    refuse("the engine failed to run", "See docs/tensorrt.md, or run the bundle on the CPU.");
  cuda_.download(addresses_[kLogits], logits_.size() * sizeof(float), logits_.data());
  return logits_.data();
}

size_t TensorRtRunner::kv_bytes() const {
  size_t total = 0;
  for (const End& end : ends_) total += end.cache ? end.bytes() : 0;
  return total;
}

}  // namespace edgellm
