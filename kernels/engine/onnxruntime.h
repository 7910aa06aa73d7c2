// libonnxruntime, found and loaded at run time, once a process: the wheel and the system may have any version of it.
#pragma once
#include <string>

#include "kernels/engine/error.h"
#include "kernels/ort/session_abi.h"

namespace edgellm {

struct OnnxRuntime {
  const ort::ApiBase* base;
  const ort::Api* api;
  ort::Environment* environment;
  std::string path;

  // Throws Error with what ONNX Runtime says, and releases the status.
  void check(ort::Status* status, edgellm_status code, const std::string& what, const std::string& hint) const;
};

// given: a path, or "" to look for it. Throws Error (EDGELLM_FAILED) where there is none, or one older than 1.23.
const OnnxRuntime& onnxruntime(const std::string& given);

}  // namespace edgellm
