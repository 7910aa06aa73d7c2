#include "kernels/engine/onnxruntime.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <vector>

#include <dlfcn.h>
#include <glob.h>

#include "kernels/engine/error.h"

namespace edgellm {
namespace {

constexpr int kOldest = 23;  // of 1.x: reads opset 23, as runtime/onnx_graph.py says
constexpr const char* kInstall =
    "Install it (pip install onnxruntime has it under onnxruntime/capi) and set EDGELLM_ONNXRUNTIME to libonnxruntime.so's path.";

// Where this library's own file lies; "" if the loader does not tell.
std::string own_folder() {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<const void*>(&onnxruntime), &info) || !info.dli_fname) return "";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::vector<std::string> matches(const std::string& pattern) {
  glob_t found{};
  std::vector<std::string> paths;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  std::reverse(paths.begin(), paths.end());  // the newest of several versions
  return paths;
}

// In the order that edgellm.h promises.
std::vector<std::string> candidates(const std::string& given) {
  if (!given.empty()) return {given};
  if (const char* named = std::getenv("EDGELLM_ONNXRUNTIME"); named && *named) return {named};
  std::vector<std::string> all;
  // In a wheel this library is edgellm/kernels/libedgellm.so.
  for (const char* place : {"/libonnxruntime.so*", "/../../onnxruntime/capi/libonnxruntime.so*"})
    for (std::string& path : matches(own_folder() + place)) all.push_back(std::move(path));
  all.insert(all.end(), {"libonnxruntime.so.1", "libonnxruntime.so"});
  return all;
}

std::string real_path(const void* symbol, const std::string& otherwise) {
  Dl_info info{};
  return dladdr(symbol, &info) && info.dli_fname ? info.dli_fname : otherwise;
}

OnnxRuntime load(const std::string& given) {
  std::string why;
  for (const std::string& path : candidates(given)) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    void* symbol = library ? dlsym(library, "OrtGetApiBase") : nullptr;
    if (!symbol) {
      if (const char* error = dlerror(); error && why.empty()) why = error;
      continue;
    }
    OnnxRuntime found{reinterpret_cast<const ort::ApiBase* (*)()>(symbol)(), nullptr, nullptr, real_path(symbol, path)};
    const std::string version = found.base->version();
    if (version.rfind("1.", 0) != 0 || std::atoi(version.c_str() + 2) < kOldest)
      throw Error(EDGELLM_FAILED, found.path + " is ONNX Runtime " + version + "; edgellm needs 1.23 or newer", kInstall);
    found.api = found.base->get_api(ort::kApiVersion);
    found.check(ort::create_environment(found.api, ort::kFatal, "edgellm", &found.environment), EDGELLM_FAILED,
                found.path + " cannot start", kInstall);
    return found;
  }
  throw Error(EDGELLM_FAILED, "libonnxruntime cannot be loaded: " + why, kInstall);
}

}  // namespace

void OnnxRuntime::check(ort::Status* status, edgellm_status code, const std::string& what, const std::string& hint) const {
  if (!status) return;
  std::string said = ort::error_message(api, status);
  ort::release_status(api, status);
  said = said.substr(0, std::min<size_t>(said.find('\n'), 300));
  throw Error(code, what + ": " + said, hint);
}

const OnnxRuntime& onnxruntime(const std::string& given) {
  // Never unloaded: its threads and the operators' registration last as long as the process.
  static std::mutex mutex;
  static std::optional<OnnxRuntime>& loaded = *new std::optional<OnnxRuntime>;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!loaded) loaded = load(given);
  return *loaded;
}

}  // namespace edgellm
