// The cubins of kernels/gpu: which one a node needs on this device, loaded once, and launched.
//
// The folder is $EDGELLM_CUBINS, or `cubins` beside this library: kernels.json and sm_XX/NAME.cubin
// (kernels/gpu/README.md says what stands in them).
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace edgellm {

using Wanted = std::map<std::string, std::string>;  // constant -> what it must be, numbers as text

struct Kernel {
  void* function = nullptr;  // CUfunction
  uint32_t threads = 0;
  uint32_t shared = 0;  // bytes
  Wanted constants;     // all that the cubin was compiled for
  std::vector<std::string> arguments;  // names, in the order of a launch

  int32_t constant(const std::string& name) const;  // a number of them, at least 1
};

// How many blocks of `size` hold `count`.
inline uint32_t blocks(int32_t count, int32_t size) { return static_cast<uint32_t>((count + size - 1) / size); }

// The kernel of this entry, compiled for activations of `type` ("fp16" | "bf16") and these constants, on the current
// context's device. Null, with the reason on stderr, where there is none or no driver.
const Kernel* find_kernel(const std::string& entry, const std::string& type, const Wanted& wanted);

// An argument of a kernel: a pointer, an int32 or a float.
class Argument {
 public:
  Argument(const void* pointer) { put(&pointer, sizeof pointer); }  // implicit: arguments are listed in braces
  Argument(void* pointer) { put(&pointer, sizeof pointer); }
  Argument(int32_t value) { put(&value, sizeof value); }
  Argument(float value) { put(&value, sizeof value); }
  void* address() { return bytes_.data(); }

 private:
  void put(const void* value, size_t size) { __builtin_memcpy(bytes_.data(), value, size); }
  alignas(8) std::array<unsigned char, 8> bytes_{};
};

using Named = std::map<std::string, Argument>;

// Starts a kernel on (x, y) programs with those of the arguments that its table names; the two pointers that Triton
// adds are null. 0, or an error code for TensorRT, with the reason on stderr.
int32_t launch(const Kernel* kernel, std::array<uint32_t, 2> grid, Named arguments, cudaStream_t stream);

}  // namespace edgellm
