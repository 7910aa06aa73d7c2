// A TensorRT and a CUDA driver of a few rules, for machines without either: one library under both names. The driver's
// memory is the host's, and copies are made only when something waits for them. The "engine" reads a plan of words: each
// of its inputs and outputs, and what goes wrong. Its logits follow the rule that tests/test_door_engine.py has in NumPy.
#include <NvInferRuntime.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "stubs.h"  // generated: every method of the three classes, ending the process

#define FAKE extern "C" __attribute__((visibility("default")))

namespace {

using namespace nvinfer1;

int alive = 0;  // engines, contexts, runtimes, buffers, streams and retained devices
thread_local void* current = nullptr;
std::vector<std::tuple<uint64_t, const void*, size_t>> copies;  // not made yet
ILogger* logger = nullptr;

struct Counted {
  Counted() { ++alive; }
  Counted(const Counted&) = delete;
  ~Counted() { --alive; }
};

void settle() {
  for (const auto& [to, from, bytes] : copies) std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  copies.clear();
}

bool failed(const std::string& why) {
  logger->log(ILogger::Severity::kERROR, why.c_str());
  return false;
}

struct End {
  bool input;
  DataType type;
  Dims shape;
};

struct Plan {
  std::map<std::string, End> ends;
  std::vector<std::string> names;
  int64_t most = 0;  // of a size that differs
  std::string wrong;
};

// Whole numbers from 0 to 250 as halves.
uint16_t half(int64_t value) {
  int e = 0;
  while (value >> (e + 1)) ++e;
  return value ? uint16_t((e + 15) << 10 | ((value << (10 - e)) & 1023)) : 0;
}
int64_t whole(uint16_t half) { return half ? (1024 + (half & 1023)) >> (25 - (half >> 10)) : 0; }

struct Context : IExecutionContext, ContextStubs, Counted {
  explicit Context(const Plan& given) : plan(given) { mImpl = this; }

  bool setInputShape(const char* name, const Dims& shape) noexcept override {
    const auto found = plan.ends.find(name);
    if (found == plan.ends.end() || !found->second.input || shape.nbDims != found->second.shape.nbDims) return failed("no such input");
    for (int i = 0; i < shape.nbDims; ++i) {
      const int64_t size = found->second.shape.d[i];
      if (size == -1 ? shape.d[i] < 1 || shape.d[i] > plan.most : shape.d[i] != size) return failed(std::string(name) + " is out of its profile");
    }
    shapes[name] = shape;
    return true;
  }
  bool setTensorAddress(const char* name, void* address) noexcept override {
    addresses[name] = address;
    return plan.ends.count(name) != 0;
  }
  bool enqueueV3(cudaStream_t) noexcept override {
    if (!current) return failed("no context is current");
    if (plan.wrong == "fails") return failed("the fake fails as it was told to\nwith a second line");
    settle();
    for (const auto& [name, end] : plan.ends) {
      if (!addresses.count(name)) return failed(name + " has no address");
      const bool cache = plan.ends.count(name + ".out") != 0;
      if (cache && addresses[name] != addresses[name + ".out"]) return failed(name + " is not in place");
      if (end.input && !cache && !shapes.count(name)) return failed(name + " has no shape");
    }
    compute();
    return true;
  }

  template <typename T>
  T* at(const std::string& name) const {
    return static_cast<T*>(addresses.at(name));
  }

  void compute() {
    const int64_t tokens = shapes["embedded"].d[0], hidden = shapes["embedded"].d[1], asked = shapes["rows"].d[0];
    const Dims cache = plan.ends["key.0"].shape;  // [(1,) heads, slots, size]
    const int64_t heads = cache.d[cache.nbDims - 3], slots = cache.d[cache.nbDims - 2], size = cache.d[cache.nbDims - 1];
    const int64_t vocabulary = plan.ends["logits"].shape.d[1];
    int64_t base = 0, mix = 0;
    if (plan.ends.count("control")) {
      base = at<int64_t>("control")[2];  // staged
      for (int64_t i = 0; i < shapes["control"].d[0] * shapes["control"].d[1]; ++i) mix += at<int64_t>("control")[i] * (i + 1);
      for (const auto& [name, end] : plan.ends)
        for (int64_t i = 0; name.rfind("tiles.", 0) == 0 && i < 4 * end.shape.d[0]; ++i) mix += at<uint8_t>(name)[i];
    } else {
      base = *at<int64_t>("start");
    }
    std::vector<int64_t> sums(size_t(base + tokens));
    for (int64_t layer = 0; plan.ends.count("key." + std::to_string(layer)); ++layer) {
      auto* key = at<uint16_t>("key." + std::to_string(layer));
      auto* value = at<uint16_t>("value." + std::to_string(layer));
      for (int64_t t = 0; t < tokens; ++t) {
        double felt = 0;
        for (int64_t i = 0; i < hidden; ++i) felt += std::fabs(double(at<float>("embedded")[t * hidden + i])) * 64 * double(i % 7 + 1);
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t d = 0; d < size; ++d) {
            key[(h * slots + base + t) * size + d] = half((at<int64_t>("positions")[t] + layer + 2 * h + d) % 251);
            value[(h * slots + base + t) * size + d] = half((int64_t(felt) + 3 * layer + 5 * h + 7 * d) % 251);
          }
      }
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t s = 0; s < base + tokens; ++s)
          for (int64_t d = 0; d < size; ++d) sums[size_t(s)] += whole(value[(h * slots + s) * size + d]) + 2 * whole(key[(h * slots + s) * size + d]);
    }
    for (int64_t r = 0; r < asked; ++r) {
      int64_t total = mix;
      for (int64_t s = 0; s <= base + at<int64_t>("rows")[r]; ++s) total += sums[size_t(s)] * (s + 1);
      for (int64_t v = 0; v < vocabulary; ++v) at<float>("logits")[r * vocabulary + v] = float(total % 99991 * (v + 1) % 997);
    }
  }

  Plan plan;
  std::map<std::string, Dims> shapes;
  std::map<std::string, void*> addresses;
};

struct Loaded : ICudaEngine, EngineStubs, Counted {
  explicit Loaded(Plan given) : plan(std::move(given)) { mImpl = this; }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override { return new Context(plan); }
  int32_t getNbIOTensors() const noexcept override { return int32_t(plan.names.size()); }
  const char* getIOTensorName(int32_t index) const noexcept override { return plan.names[size_t(index)].c_str(); }
  TensorIOMode getTensorIOMode(const char* name) const noexcept override {
    return plan.ends.at(name).input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  Dims getTensorShape(const char* name) const noexcept override { return plan.ends.at(name).shape; }
  DataType getTensorDataType(const char* name) const noexcept override { return plan.ends.at(name).type; }
  Plan plan;
};

struct Runtime : IRuntime, RuntimeStubs, Counted {
  Runtime() { mImpl = this; }
  ICudaEngine* deserializeCudaEngine(const void* blob, size_t size) noexcept override {
    std::istringstream lines(std::string(static_cast<const char*>(blob), size).substr(32));
    Plan plan;
    for (std::string word; lines >> word;) {
      if (word == "most") {
        lines >> plan.most;
      } else if (word == "wrong") {
        lines >> plan.wrong;
      } else {
        std::string name;
        int type = 0;
        Dims shape{};
        lines >> name >> type >> shape.nbDims;
        for (int i = 0; i < shape.nbDims; ++i) lines >> shape.d[i];
        plan.names.push_back(name);
        plan.ends[name] = {word == "input", DataType(type), shape};
      }
    }
    if (plan.wrong != "refused") return new Loaded(plan);
    failed("the fake refuses this plan");
    return nullptr;
  }
};

struct Registry : PluginStubs {
  PluginLibraryHandle loadLibrary(const AsciiChar* path) noexcept override {
    return std::strstr(path, "libedgellm_tensorrt.so") ? this : nullptr;
  }
} registry;

int version(int part) {
  const char* given = std::getenv("FAKE_TENSORRT");  // "10.14.1.48"
  int parts[4] = {};
  std::sscanf(given, "%d.%d.%d.%d", &parts[0], &parts[1], &parts[2], &parts[3]);
  return parts[part];
}

}  // namespace

FAKE int fake_alive() { return alive; }
FAKE void* createInferRuntime_INTERNAL(void* log, int32_t) noexcept {
  logger = static_cast<ILogger*>(log);
  return static_cast<IRuntime*>(new Runtime);
}
FAKE IPluginRegistry* getPluginRegistry() noexcept { return &registry; }
FAKE int32_t getInferLibMajorVersion() noexcept { return version(0); }
FAKE int32_t getInferLibMinorVersion() noexcept { return version(1); }
FAKE int32_t getInferLibPatchVersion() noexcept { return version(2); }
FAKE int32_t getInferLibBuildVersion() noexcept { return version(3); }

FAKE int cuInit(unsigned) { return 0; }
FAKE int cuDeviceGet(int* device, int) { return *device = 0; }
FAKE int cuDeviceGetAttribute(int* value, int attribute, int) { return *value = attribute == 75 ? 8 : 9, 0; }
FAKE int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &alive, ++alive, 0; }
FAKE int cuDevicePrimaryCtxRelease_v2(int) { return --alive, 0; }
FAKE int cuCtxSetCurrent(void* context) { return current = context, 0; }
FAKE int cuStreamCreate(void** stream, unsigned) { return *stream = &copies, ++alive, 0; }
FAKE int cuStreamDestroy_v2(void*) { return --alive, 0; }
FAKE int cuStreamSynchronize(void*) { return settle(), current ? 0 : 201; }
FAKE int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  if (!current) return 201;
  if (bytes > size_t(1) << 30) return 2;
  void* memory = std::malloc(bytes);
  std::memset(memory, 0xAA, bytes);
  *address = reinterpret_cast<uint64_t>(memory);
  return ++alive, 0;
}
FAKE int cuMemFree_v2(uint64_t address) { return std::free(reinterpret_cast<void*>(address)), --alive, 0; }
FAKE int cuMemsetD8_v2(uint64_t address, unsigned char value, size_t bytes) {
  return std::memset(reinterpret_cast<void*>(address), value, bytes), 0;
}
FAKE int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void*) {
  if (!current) return 201;
  return copies.emplace_back(to, from, bytes), 0;
}
FAKE int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) { return std::memcpy(to, reinterpret_cast<void*>(from), bytes), 0; }
