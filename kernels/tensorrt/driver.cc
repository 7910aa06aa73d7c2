#include "kernels/tensorrt/driver.h"

#include <dlfcn.h>

namespace edgellm {
namespace {

constexpr int MAJOR = 75, MINOR = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…

template <class F>
bool find(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  return *function != nullptr;
}

}  // namespace

const Driver* Driver::get(std::string* error) {
  static std::string reason;
  static const Driver* loaded = []() -> const Driver* {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      reason = dlerror();
      return nullptr;
    }
    static Driver driver;
    const bool all = find(library, "cuCtxGetDevice", &driver.ctx_get_device) &&
                     find(library, "cuDeviceGetAttribute", &driver.device_get_attribute) &&
                     find(library, "cuModuleLoadData", &driver.module_load_data) &&
                     find(library, "cuModuleGetFunction", &driver.module_get_function) &&
                     find(library, "cuFuncSetAttribute", &driver.func_set_attribute) &&
                     find(library, "cuLaunchKernel", &driver.launch_kernel);
    if (!all) reason = "libcuda.so.1 lacks a function";
    return all ? &driver : nullptr;
  }();
  if (loaded == nullptr) *error = reason;
  return loaded;
}

std::string Driver::target() const {
  int device = 0, major = 0, minor = 0;
  if (ctx_get_device(&device) != 0 || device_get_attribute(&major, MAJOR, device) != 0 ||
      device_get_attribute(&minor, MINOR, device) != 0) {
    return "";
  }
  return "sm_" + std::to_string(major) + std::to_string(minor);
}

}  // namespace edgellm
