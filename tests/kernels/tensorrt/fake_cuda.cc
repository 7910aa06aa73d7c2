// A libcuda.so.1 that prints launches instead of making them. A "cubin" here is text: a letter an argument, p i or f.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace {
struct Function {
  std::string name, types;
};
}  // namespace

extern "C" {
int cuCtxGetDevice(int* device) { return *device = 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 8 : 7;
  return 0;
}
int cuModuleLoadData(void** module, const void* data) {
  *module = new std::string(static_cast<const char*>(data));
  return 0;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = new Function{name, *static_cast<std::string*>(module)};
  return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  std::printf("%s attribute %d = %d\n", static_cast<Function*>(function)->name.c_str(), attribute, value);
  return 0;
}
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                   unsigned shared, void*, void** arguments, void**) {
  const Function& one = *static_cast<Function*>(function);
  std::printf("%s grid %u,%u,%u threads %u shared %u:", one.name.c_str(), x, y, z, threads, shared);
  for (const char type : one.types) {
    const void* at = *arguments++;
    if (type == 'i') std::printf(" %d", *static_cast<const int32_t*>(at));
    if (type == 'f') std::printf(" %g", static_cast<double>(*static_cast<const float*>(at)));
    if (type == 'p') std::printf(" @%llx", static_cast<unsigned long long>(*static_cast<const uint64_t*>(at)));
  }
  for (int i = 0; i < 2; ++i) {  // Triton's scratch
    if (*static_cast<const uint64_t*>(*arguments++) != 0) std::printf(" scratch is not null");
  }
  std::printf("\n");
  return 0;
}
}
