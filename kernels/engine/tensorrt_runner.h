// An engine in TensorRT with its buffers on the GPU, bound once, the cache written where it is read:
// runtime/tensorrt_runner.py. No machine of the project has a GPU: no engine has run.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/engine/cuda.h"
#include "kernels/engine/tensorrt.h"

namespace edgellm {

// An input that the engine must have, or its output `logits`. shape: the largest of any run. item: bytes of an element.
// A cache is an output NAME.out too, in the same place.
struct End {
  std::string name;
  std::vector<int64_t> shape;
  size_t item;
  bool cache = false;

  size_t bytes() const;
};

class TensorRtRunner {
 public:
  // Reads a bundle's model.engine, whose header and stamp were compared before (tensorrt_backend.h). plugins: a library of
  // operators that it needs, "" for none. Throws Error: EDGELLM_BUNDLE where TensorRT refuses the file, or it has other
  // inputs or outputs than `ends`; EDGELLM_FAILED where a library, a GPU or memory is missing.
  TensorRtRunner(const TensorRt& library, const std::string& folder, std::vector<End> ends, const std::string& plugins);

  // Fills an input; its first size is `first`, the others stay. `from` is read until the next `run` is over.
  void feed(const std::string& name, const void* from, int64_t first);
  // Logits [vocabulary] of the one row, until the next run. Throws Error.
  const float* run();
  // Until all that was fed lies on the device.
  void wait() const { cuda_.wait(); }
  size_t kv_bytes() const;
  const std::string& library() const { return library_.path; }

 private:
  void check_ends() const;
  [[noreturn]] void refuse(const std::string& what, const std::string& hint) const;
  struct Close {
    const RunnerTable& table;
    void operator()(Engine* engine) const { table.close(engine); }
  };

  const TensorRt& library_;
  const RunnerTable& table_;
  std::vector<End> ends_;
  Cuda cuda_;  // outlives the engine
  std::map<std::string, uint64_t> addresses_;
  std::vector<float> logits_;
  std::unique_ptr<Engine, Close> engine_;
};

}  // namespace edgellm
