// What libedgellm.so asks of libedgellm_runner.so, which alone is compiled against TensorRT's headers. No exception
// crosses, and no type of TensorRT's.
#pragma once
#include <cstddef>
#include <cstdint>

namespace edgellm {

constexpr int32_t kRunnerTable = 1;  // another number where the table changed

struct Engine;  // one plan, and one execution context over it

// An input or output. sizes: -1 where it differs from run to run. item: bytes of an element, 0 below a byte.
struct EngineEnd {
  const char* name;  // the engine's
  bool input;
  int32_t rank;
  int64_t sizes[8];
  int32_t item;
};

struct RunnerTable {
  int32_t version;
  int32_t major, minor;  // of the TensorRT whose headers these are

  // Reads a plan; create_runtime is TensorRT's function of that name. Never null: an engine that TensorRT refused has no
  // ends, and `said` tells why.
  Engine* (*open)(void* create_runtime, const void* plan, size_t bytes);
  void (*close)(Engine* engine);
  int32_t (*ends)(const Engine* engine);
  EngineEnd (*end)(const Engine* engine, int32_t index);
  // Where an input or output lies on the device, and an input's shape in the next runs.
  bool (*set_address)(Engine* engine, const char* name, uint64_t address);
  bool (*set_shape)(Engine* engine, const char* name, const int64_t* sizes, int32_t rank);
  // Starts a run in a stream (CUstream).
  bool (*run)(Engine* engine, void* stream);
  // The last error that TensorRT logged, "" before any; until the next call.
  const char* (*said)(Engine* engine);
  // Makes a plugin library's operators known; registry is TensorRT's function getPluginRegistry.
  bool (*load_plugins)(void* registry, const char* path);
};

}  // namespace edgellm
