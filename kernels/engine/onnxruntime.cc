#include "kernels/engine/onnxruntime.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <optional>

#include "kernels/engine/error.h"
#include "kernels/engine/libraries.h"

namespace edgellm {
namespace {

constexpr int kOldest = 23;  // of 1.x: reads opset 23, as runtime/onnx_graph.py says
constexpr const char* kInstall =
    "Install it (pip install onnxruntime has it under onnxruntime/capi) and set EDGELLM_ONNXRUNTIME to libonnxruntime.so's path.";

OnnxRuntime load(const std::string& given) {
  const Library library = open_library(candidates(given, "EDGELLM_ONNXRUNTIME", "libonnxruntime.so*", "onnxruntime/capi",
                                                  {"libonnxruntime.so.1", "libonnxruntime.so"}),
                                       "OrtGetApiBase");
  if (!library.symbol) throw Error(EDGELLM_FAILED, "libonnxruntime cannot be loaded: " + library.why, kInstall);
  OnnxRuntime found{reinterpret_cast<const ort::ApiBase* (*)()>(library.symbol)(), nullptr, nullptr, library.path};
  const std::string version = found.base->version();
  if (version.rfind("1.", 0) != 0 || std::atoi(version.c_str() + 2) < kOldest)
    throw Error(EDGELLM_FAILED, found.path + " is ONNX Runtime " + version + "; edgellm needs 1.23 or newer", kInstall);
  // Its Linux builds (1.29 and newer) keep a device's id and upload what was run, unless this is set before they start; no
  // call of its API comes early enough. Whoever has set it otherwise is obeyed.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  found.api = found.base->get_api(ort::kApiVersion);
  found.check(ort::create_environment(found.api, ort::kFatal, "edgellm", &found.environment), EDGELLM_FAILED,
              found.path + " cannot start", kInstall);
  return found;
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
