// TensorRT's library, found and loaded at run time, once a process and kind. Only C functions of it are called here: what
// needs its headers is libedgellm_runner.so (kernels/tensorrt/runner_table.h).
#pragma once
#include <string>

#include "kernels/tensorrt/runner_table.h"

namespace edgellm {

struct TensorRt {
  int major, minor;
  std::string version;  // "1.7.1.116"
  std::string path;
  void *create_runtime, *get_plugin_registry;  // its functions of these names

  // Whether this is the TensorRT that calls itself `theirs`: Python's `tensorrt` leaves the last part out.
  bool is(const std::string& theirs) const;
};

// kind: "tensorrt-rtx" | "tensorrt". Throws Error (EDGELLM_FAILED), with how to get it, where it cannot be loaded.
const TensorRt& tensorrt(const std::string& kind);

// libedgellm_runner.so beside this library. Throws Error (EDGELLM_FAILED), with how to build it, where there is none.
const RunnerTable& runner_table();

}  // namespace edgellm
