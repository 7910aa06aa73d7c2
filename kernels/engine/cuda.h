// Device buffers and copies through NVIDIA's driver API: all that running an engine needs of CUDA (runtime/cuda_memory.py).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace edgellm {

struct CudaDriver;  // libcuda's functions

// Compute capability of GPU 0, "8.7"; "" where there is no driver, or it finds no GPU.
std::string device_capability();

// The primary context of GPU 0, one stream and the buffers allocated through it, all given back at the end. Throws Error
// (EDGELLM_FAILED) where there is no GPU or CUDA fails.
class Cuda {
 public:
  Cuda();
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;
  ~Cuda();

  // Makes the context this thread's: sessions may wander between threads. Before any other call, and before TensorRT's.
  void enter() const;
  // The address of so many zeros.
  uint64_t allocate(size_t bytes);
  // In the stream's order; `from` must stay as it is until the next wait.
  void upload(const void* from, size_t bytes, uint64_t address) const;
  // Until all that was started before is done.
  void wait() const;
  // After that.
  void download(uint64_t address, size_t bytes, void* to) const;
  void* stream() const { return stream_; }

 private:
  const CudaDriver* driver_;
  int device_ = 0;
  void *context_ = nullptr, *stream_ = nullptr;
  std::vector<uint64_t> buffers_;
};

}  // namespace edgellm
