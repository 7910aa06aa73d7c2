// Reading a kernel's attributes, inputs and outputs; a failed call becomes a Failure, caught where ONNX Runtime calls in.
#pragma once
#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <string>

#include "kernels/cpu/parallel.h"
#include "kernels/layout.h"
#include "kernels/ort/abi.h"

namespace edgellm::ort {

struct Failure {
  Status* status;
};

inline void check(Status* status) {
  if (status) throw Failure{status};
}

struct Attributes {
  const Api* api;
  const KernelInfo* info;

  int64_t integer(const char* name) const {
    int64_t value = 0;
    check(attribute_int(api, info, name, &value));
    return value;
  }
  float real(const char* name) const {
    float value = 0;
    check(attribute_float(api, info, name, &value));
    return value;
  }
  float real_or(const char* name, float otherwise) const {
    float value = 0;
    Status* status = attribute_float(api, info, name, &value);
    if (!status) return value;
    release_status(api, status);
    return otherwise;
  }
  std::string string(const char* name) const {
    size_t size = 0;
    check(attribute_string(api, info, name, nullptr, &size));
    std::string value(size, '\0');
    check(attribute_string(api, info, name, value.data(), &size));
    return value.c_str();  // without the terminating zero that size counts
  }
  [[noreturn]] void fail(const char* message) const { throw Failure{create_status(api, kInvalidArgument, message)}; }
};

// Up to four dimensions, not on the heap: a token reads more than a thousand shapes.
struct Shape {
  int64_t sizes[4] = {};
  size_t rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> given) : rank(given.size()) { std::copy(given.begin(), given.end(), sizes); }
  size_t size() const { return rank; }
  int64_t operator[](size_t i) const { return sizes[i]; }
  const int64_t* begin() const { return sizes; }
  const int64_t* end() const { return sizes + rank; }
  bool operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }
};

struct Tensor {
  void* data;
  Shape shape;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  int64_t size() const {
    int64_t total = 1;
    for (int64_t dimension : shape) total *= dimension;
    return total;
  }
  bool is(const Shape& expected) const { return shape == expected; }
};

// The last address whose shape was found right. Weights and caches stay where they are, and asking ONNX Runtime for a
// shape costs more than a small product.
class Known {
 public:
  Known() = default;
  Known(const Known& other) : last_(other.last_.load()) {}
  bool operator()(const void* data) const { return data == last_.load(std::memory_order_relaxed); }
  void set(const void* data) const { last_.store(data, std::memory_order_relaxed); }

 private:
  mutable std::atomic<const void*> last_{nullptr};
};

struct Call {
  const Api* api;
  KernelContext* context;

  // Null for an optional input that is not there.
  void* data(size_t index) const {
    const Value* value = nullptr;
    void* data = nullptr;
    check(context_input(api, context, index, &value));
    if (value) check(tensor_data(api, const_cast<Value*>(value), &data));
    return data;
  }
  // The same, its shape compared where this address is not known yet.
  template <typename T>
  T* constant(size_t index, const Known& known, const Shape& expected, const char* message) const {
    void* const at = data(index);
    if (at && !known(at)) {
      require(input(index).shape == expected, message);
      known.set(at);
    }
    return static_cast<T*>(at);
  }
  // An optional input that is not there has data null.
  Tensor input(size_t index) const {
    const Value* value = nullptr;
    check(context_input(api, context, index, &value));
    if (!value) return {nullptr, {}};
    TensorInfo* info = nullptr;
    check(tensor_info(api, value, &info));
    Tensor tensor{nullptr, {}};
    size_t rank = 0;
    Status* status = dimensions_count(api, info, &rank);
    if (!status && rank > 4) status = create_status(api, kInvalidArgument, "a tensor of more than four dimensions");
    if (!status) status = dimensions(api, info, tensor.shape.sizes, tensor.shape.rank = rank);
    release_tensor_info(api, info);
    check(status);
    check(tensor_data(api, const_cast<Value*>(value), &tensor.data));
    return tensor;
  }
  void* output(size_t index, const Shape& shape) const {
    Value* value = nullptr;
    void* data = nullptr;
    check(context_output(api, context, index, shape.begin(), shape.size(), &value));
    check(tensor_data(api, value, &data));
    return data;
  }
  void require(bool condition, const char* message) const {
    if (!condition) throw Failure{create_status(api, kInvalidArgument, message)};
  }
  // ONNX Runtime's own threads: no second pool beside it.
  Pool pool() const {
    return {const_cast<Call*>(this), [](void* self, void (*task)(void*, size_t), size_t count, void* data) {
              const Call* call = static_cast<const Call*>(self);
              check(parallel_for(call->api, call->context, task, count, 0, data));
            }};
  }
};

}  // namespace edgellm::ort
