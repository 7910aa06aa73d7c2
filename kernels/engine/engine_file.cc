#include "kernels/engine/engine_file.h"

#include <cstdio>
#include <memory>

#include <dlfcn.h>

#include "kernels/engine/error.h"

namespace edgellm {
namespace {

// First bytes of an engine: "vtrt" is what TensorRT-RTX 1.7 writes (seen), "ftrt" TensorRT's own (reported, not tried).
enum class Kind { kNone, kRtx, kTensorRT };

Kind kind_of(const std::string& path) {
  char magic[5] = {};
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), [](FILE* f) { return f ? std::fclose(f) : 0; });
  if (!file || std::fread(magic, 1, 4, file.get()) != 4) return Kind::kNone;
  const std::string found = magic;
  return found == "vtrt" ? Kind::kRtx : found == "ftrt" ? Kind::kTensorRT : Kind::kNone;
}

void* load(std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  return nullptr;
}

// Devices that the CUDA driver has; -1 without a driver.
int gpus() {
  void* driver = load({"libcuda.so.1"});
  if (!driver) return -1;
  const auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
  int found = 0;
  return init && count && init(0) == 0 && count(&found) == 0 ? found : 0;
}

}  // namespace

void check_engine_file(const std::string& path) {
  const Kind kind = kind_of(path);
  if (kind == Kind::kNone) return;
  const std::string what = path + " is a TensorRT" + (kind == Kind::kRtx ? "-RTX" : "") + " engine; ";
  const char* cpu = "The same model runs on the CPU from its bundle's folder: edgellm_open(FOLDER, …).";
  if (const int count = gpus(); count < 1)
    throw Error(EDGELLM_FAILED, what + (count < 0 ? "there is no NVIDIA driver here (libcuda.so.1)" : "the NVIDIA driver finds no GPU"), cpu);
  const bool there = kind == Kind::kRtx ? load({"libtensorrt_rtx.so.1", "libtensorrt_rtx.so"}) : load({"libnvinfer.so.10", "libnvinfer.so"});
  if (!there) {
    const char* missing = kind == Kind::kRtx ? "libtensorrt_rtx.so.1 cannot be loaded" : "libnvinfer.so.10 cannot be loaded";
    throw Error(EDGELLM_FAILED, what + missing, kind == Kind::kRtx
        ? "Install TensorRT-RTX (pip install tensorrt-rtx-cu13) and add its folder to LD_LIBRARY_PATH."
        : "Install TensorRT; on a Jetson it comes with JetPack.");
  }
  throw Error(EDGELLM_FAILED, what + "this version of the C++ library runs bundles on the CPU only", cpu);
}

}  // namespace edgellm
