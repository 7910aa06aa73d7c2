#include "kernels/engine/tensorrt.h"

#include <map>
#include <mutex>

#include <dlfcn.h>

#include "kernels/engine/error.h"
#include "kernels/engine/libraries.h"

namespace edgellm {
namespace {

constexpr const char* kBuild =
    "It is compiled against TensorRT's headers: pip install . -C cmake.define.TENSORRT_INCLUDE=FOLDER (docs/tensorrt.md).";

TensorRt load(const std::string& kind) {
  const bool rtx = kind == "tensorrt-rtx";
  const std::string name = rtx ? "libtensorrt_rtx.so.1" : "libnvinfer.so.10";
  const std::string install = rtx ? "Install TensorRT-RTX (pip install tensorrt-rtx-cu13)" : "Install TensorRT; on a Jetson it comes with JetPack";
  const std::string hint = install + ". EDGELLM_TENSORRT may name the file.";
  const Library library = open_library(candidates("", "EDGELLM_TENSORRT", name, rtx ? "tensorrt_rtx_libs" : "tensorrt_libs", {name}),
                                       "createInferRuntime_INTERNAL");
  if (!library.symbol) throw Error(EDGELLM_FAILED, name + " cannot be loaded: " + library.why, hint);
  int parts[4];
  std::string version;
  for (int i = 0; i < 4; ++i) {
    static const char* const names[] = {"getInferLibMajorVersion", "getInferLibMinorVersion", "getInferLibPatchVersion", "getInferLibBuildVersion"};
    const auto part = reinterpret_cast<int32_t (*)()>(dlsym(library.handle, names[i]));
    if (!part) throw Error(EDGELLM_FAILED, library.path + " lacks " + names[i] + "; expected TensorRT 10 or newer", hint);
    version += (i ? "." : "") + std::to_string(parts[i] = part());
  }
  return {parts[0], parts[1], version, library.path, library.symbol, dlsym(library.handle, "getPluginRegistry")};
}

}  // namespace

bool TensorRt::is(const std::string& theirs) const { return version == theirs || version.rfind(theirs + ".", 0) == 0; }

const TensorRt& tensorrt(const std::string& kind) {
  static std::mutex mutex;
  static std::map<std::string, TensorRt>& loaded = *new std::map<std::string, TensorRt>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = loaded.find(kind);
  return found != loaded.end() ? found->second : loaded.emplace(kind, load(kind)).first->second;
}

const RunnerTable& runner_table() {
  const Library library = open_library({own_folder() + "/libedgellm_runner.so"}, "edgellm_runner");
  if (!library.symbol) throw Error(EDGELLM_FAILED, "libedgellm_runner.so, which runs engines, cannot be loaded: " + library.why, kBuild);
  const RunnerTable* table = reinterpret_cast<const RunnerTable* (*)()>(library.symbol)();
  if (table->version != kRunnerTable)
    throw Error(EDGELLM_FAILED, library.path + " is of another version of edgellm than this library", kBuild);
  return *table;
}

}  // namespace edgellm
