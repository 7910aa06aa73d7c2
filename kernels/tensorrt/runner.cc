// libedgellm_runner.so: TensorRT's C++ classes behind a table of functions (runner_table.h). TensorRT itself is loaded by
// libedgellm.so, which has compared its version with that of these headers: its classes change from one to the next.
#include "kernels/tensorrt/runner_table.h"

#include <NvInferRuntime.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>

namespace edgellm {
namespace {

// Keeps the last error. TensorRT may log from threads of its own.
class Log : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    last_ = message;
  }
  const std::string& last() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return shown_ = last_;
  }

 private:
  std::mutex mutex_;
  std::string last_, shown_;
};

int32_t bytes_of(nvinfer1::DataType type) {
  using nvinfer1::DataType;
  switch (type) {
    case DataType::kINT64: return 8;
    case DataType::kFLOAT:
    case DataType::kINT32: return 4;
    case DataType::kHALF:
    case DataType::kBF16: return 2;
    case DataType::kINT8:
    case DataType::kUINT8:
    case DataType::kBOOL: return 1;
    default: return 0;
  }
}

}  // namespace

// Freed in the opposite order: the log outlives what writes to it.
struct Engine {
  Log log;
  std::unique_ptr<nvinfer1::IRuntime> runtime;
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  std::unique_ptr<nvinfer1::IExecutionContext> context;
};

namespace {

Engine* open(void* create_runtime, const void* plan, size_t bytes) {
  auto opened = std::make_unique<Engine>();
  const auto create = reinterpret_cast<void* (*)(void*, int32_t)>(create_runtime);
  nvinfer1::ILogger* log = &opened->log;
  opened->runtime.reset(static_cast<nvinfer1::IRuntime*>(create(log, NV_TENSORRT_VERSION)));
  if (opened->runtime) opened->engine.reset(opened->runtime->deserializeCudaEngine(plan, bytes));
  if (opened->engine) opened->context.reset(opened->engine->createExecutionContext());
  return opened.release();
}

void close(Engine* engine) { delete engine; }

int32_t ends(const Engine* e) { return e->context ? e->engine->getNbIOTensors() : 0; }

EngineEnd end(const Engine* e, int32_t index) {
  const char* name = e->engine->getIOTensorName(index);
  const nvinfer1::Dims shape = e->engine->getTensorShape(name);
  const bool input = e->engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
  EngineEnd found{name, input, shape.nbDims, {}, bytes_of(e->engine->getTensorDataType(name))};
  std::copy(shape.d, shape.d + std::clamp(shape.nbDims, 0, 8), found.sizes);
  return found;
}

bool set_address(Engine* e, const char* name, uint64_t address) {
  return e->context->setTensorAddress(name, reinterpret_cast<void*>(uintptr_t(address)));
}

bool set_shape(Engine* e, const char* name, const int64_t* sizes, int32_t rank) {
  nvinfer1::Dims shape{};
  if (rank > nvinfer1::Dims::MAX_DIMS) return false;
  shape.nbDims = rank;
  std::copy(sizes, sizes + rank, shape.d);
  return e->context->setInputShape(name, shape);
}

bool run(Engine* e, void* stream) { return e->context->enqueueV3(static_cast<cudaStream_t>(stream)); }

const char* said(Engine* e) { return e->log.last().c_str(); }

bool load_plugins(void* registry, const char* path) {
  return reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(registry)()->loadLibrary(path) != nullptr;
}

constexpr RunnerTable kTable{kRunnerTable, NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, open, close,       ends, end,
                             set_address,  set_shape,         run,               said, load_plugins};

}  // namespace
}  // namespace edgellm

extern "C" __attribute__((visibility("default"))) const edgellm::RunnerTable* edgellm_runner() { return &edgellm::kTable; }
