// How kernels split work: over whatever pool the caller has (ONNX Runtime's own in kernels/ort, Threads in kernels/engine).
#pragma once
#include <cstddef>

namespace edgellm {

struct Pool {
  void* context;
  void (*run)(void* context, void (*task)(void* data, size_t index), size_t count, void* data);
};

// No pool: the caller's own thread does all.
inline constexpr Pool kCaller{nullptr, [](void*, void (*task)(void*, size_t), size_t count, void* data) {
                                for (size_t i = 0; i < count; ++i) task(data, i);
                              }};

// body(i) for i in [0, count), in any order and on any thread; inline when there is one.
template <typename Body>
void parallel(const Pool& pool, size_t count, Body& body) {
  if (count == 1) return body(0);
  if (count) pool.run(pool.context, [](void* data, size_t index) { (*static_cast<Body*>(data))(index); }, count, &body);
}

}  // namespace edgellm
