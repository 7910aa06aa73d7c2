#include "kernels/engine/cuda.h"

#include <algorithm>

#include <dlfcn.h>

#include "kernels/engine/error.h"

namespace edgellm {

struct CudaDriver {
  int (*init)(unsigned);
  int (*device)(int*, int);
  int (*attribute)(int*, int, int);
  int (*retain)(void**, int);
  int (*release)(int);
  int (*set_current)(void*);
  int (*create_stream)(void**, unsigned);
  int (*destroy_stream)(void*);
  int (*synchronize)(void*);
  int (*allocate)(uint64_t*, size_t);
  int (*free)(uint64_t);
  int (*fill)(uint64_t, unsigned char, size_t);
  int (*upload)(uint64_t, const void*, size_t, void*);
  int (*download)(void*, uint64_t, size_t);
};

namespace {

constexpr int kMajor = 75, kMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
constexpr int kOutOfMemory = 2;

template <typename F>
bool find(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  return *function != nullptr;
}

// libcuda, initialised, once a process; null where there is no driver or it finds no GPU.
const CudaDriver* driver() {
  static const CudaDriver* loaded = []() -> const CudaDriver* {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    static CudaDriver d;
    const bool all = library && find(library, "cuInit", &d.init) && find(library, "cuDeviceGet", &d.device) &&
                     find(library, "cuDeviceGetAttribute", &d.attribute) && find(library, "cuDevicePrimaryCtxRetain", &d.retain) &&
                     find(library, "cuDevicePrimaryCtxRelease_v2", &d.release) && find(library, "cuCtxSetCurrent", &d.set_current) &&
                     find(library, "cuStreamCreate", &d.create_stream) && find(library, "cuStreamDestroy_v2", &d.destroy_stream) &&
                     find(library, "cuStreamSynchronize", &d.synchronize) && find(library, "cuMemAlloc_v2", &d.allocate) &&
                     find(library, "cuMemFree_v2", &d.free) && find(library, "cuMemsetD8_v2", &d.fill) &&
                     find(library, "cuMemcpyHtoDAsync_v2", &d.upload) && find(library, "cuMemcpyDtoH_v2", &d.download);
    return all && d.init(0) == 0 ? &d : nullptr;
  }();
  return loaded;
}

void check(int code, const char* what) {
  if (code)
    throw Error(EDGELLM_FAILED, std::string("CUDA: ") + what + " failed with code " + std::to_string(code),
                code == kOutOfMemory ? "Free memory on the GPU, or export the engine with a smaller --kv." : "See edgellm doctor.");
}

}  // namespace

std::string device_capability() {
  const CudaDriver* d = driver();
  int device = 0, major = 0, minor = 0;
  if (!d || d->device(&device, 0) || d->attribute(&major, kMajor, device) || d->attribute(&minor, kMinor, device)) return "";
  return std::to_string(major) + "." + std::to_string(minor);
}

Cuda::Cuda() : driver_(driver()) {
  if (!driver_) throw Error(EDGELLM_FAILED, "no NVIDIA GPU can be used here: libcuda.so.1 is missing or finds none", "nvidia-smi says more.");
  check(driver_->device(&device_, 0), "cuDeviceGet");
  check(driver_->retain(&context_, device_), "cuDevicePrimaryCtxRetain");
  int code = driver_->set_current(context_);
  if (!code) code = driver_->create_stream(&stream_, 0);
  if (code) driver_->release(device_);  // no destructor runs
  check(code, "cuStreamCreate");
}

Cuda::~Cuda() {
  driver_->set_current(context_);
  driver_->synchronize(stream_);
  for (uint64_t address : buffers_) driver_->free(address);
  driver_->destroy_stream(stream_);
  driver_->release(device_);
}

void Cuda::enter() const { check(driver_->set_current(context_), "cuCtxSetCurrent"); }

uint64_t Cuda::allocate(size_t bytes) {
  uint64_t address = 0;
  check(driver_->allocate(&address, std::max<size_t>(bytes, 1)), "cuMemAlloc");
  buffers_.push_back(address);
  check(driver_->fill(address, 0, bytes), "cuMemsetD8");
  return address;
}

void Cuda::upload(const void* from, size_t bytes, uint64_t address) const {
  check(driver_->upload(address, from, bytes, stream_), "cuMemcpyHtoDAsync");
}

void Cuda::wait() const { check(driver_->synchronize(stream_), "cuStreamSynchronize"); }

void Cuda::download(uint64_t address, size_t bytes, void* to) const {
  wait();
  check(driver_->download(to, address, bytes), "cuMemcpyDtoH");
}

}  // namespace edgellm
