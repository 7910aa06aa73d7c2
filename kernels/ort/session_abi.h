// The entries of ONNX Runtime's C ABI that run a graph, declared as in abi.h; what an entry makes, Held releases.
#pragma once
#include <utility>

#include "kernels/ort/abi.h"

namespace edgellm::ort {

// Opaque to us.
struct Environment;
struct Session;
struct RunOptions;
struct Binding;
struct MemoryInfo;
struct Allocator;

constexpr int kFatal = 4;            // of log severities: failures come back as statuses, told once
constexpr int kDeviceAllocator = 0;  // of allocator types
constexpr int kDefaultMemory = 0;    // of memory types

inline const char* error_message(const Api* api, const Status* status) {
  return entry<const char*(const Status*)>(api, 2)(status);
}
inline Status* create_environment(const Api* api, int severity, const char* name, Environment** out) {
  return entry<Status*(int, const char*, Environment**)>(api, 3)(severity, name, out);
}
inline Status* create_session(const Api* api, const Environment* env, const char* path, const SessionOptions* options,
                              Session** out) {
  using Signature = Status*(const Environment*, const char*, const SessionOptions*, Session**);
  return entry<Signature>(api, 7)(env, path, options, out);
}
inline Status* create_options(const Api* api, SessionOptions** out) {
  return entry<Status*(SessionOptions**)>(api, 10)(out);
}
inline Status* disable_memory_pattern(const Api* api, SessionOptions* options) {
  return entry<Status*(SessionOptions*)>(api, 17)(options);
}
inline Status* disable_arena(const Api* api, SessionOptions* options) {
  return entry<Status*(SessionOptions*)>(api, 19)(options);
}
inline Status* set_log_severity(const Api* api, SessionOptions* options, int severity) {
  return entry<Status*(SessionOptions*, int)>(api, 22)(options, severity);
}
inline Status* set_intra_threads(const Api* api, SessionOptions* options, int threads) {
  return entry<Status*(SessionOptions*, int)>(api, 24)(options, threads);
}
inline Status* set_inter_threads(const Api* api, SessionOptions* options, int threads) {
  return entry<Status*(SessionOptions*, int)>(api, 25)(options, threads);
}
// Of a session's inputs (outputs false) or outputs.
inline Status* end_count(const Api* api, const Session* session, bool outputs, size_t* out) {
  return entry<Status*(const Session*, size_t*)>(api, outputs ? 31 : 30)(session, out);
}
inline Status* end_name(const Api* api, const Session* session, bool outputs, size_t index, Allocator* allocator, char** out) {
  using Signature = Status*(const Session*, size_t, Allocator*, char**);
  return entry<Signature>(api, outputs ? 37 : 36)(session, index, allocator, out);
}
inline Status* tensor_over(const Api* api, const MemoryInfo* info, void* data, size_t bytes, const int64_t* shape,
                           size_t rank, ElementType type, Value** out) {
  using Signature = Status*(const MemoryInfo*, void*, size_t, const int64_t*, size_t, ElementType, Value**);
  return entry<Signature>(api, 49)(info, data, bytes, shape, rank, type, out);
}
inline Status* cpu_memory(const Api* api, MemoryInfo** out) {
  return entry<Status*(int, int, MemoryInfo**)>(api, 69)(kDeviceAllocator, kDefaultMemory, out);
}
inline Status* allocator_free(const Api* api, Allocator* allocator, void* memory) {
  return entry<Status*(Allocator*, void*)>(api, 76)(allocator, memory);
}
inline Status* default_allocator(const Api* api, Allocator** out) {
  return entry<Status*(Allocator**)>(api, 78)(out);
}
inline Status* add_config(const Api* api, SessionOptions* options, const char* key, const char* value) {
  return entry<Status*(SessionOptions*, const char*, const char*)>(api, 130)(options, key, value);
}
inline Status* run_with_binding(const Api* api, Session* session, const RunOptions* options, const Binding* binding) {
  return entry<Status*(Session*, const RunOptions*, const Binding*)>(api, 133)(session, options, binding);
}
inline Status* create_binding(const Api* api, Session* session, Binding** out) {
  return entry<Status*(Session*, Binding**)>(api, 134)(session, out);
}
inline Status* bind_input(const Api* api, Binding* binding, const char* name, const Value* value) {
  return entry<Status*(Binding*, const char*, const Value*)>(api, 136)(binding, name, value);
}
inline Status* bind_output(const Api* api, Binding* binding, const char* name, const Value* value) {
  return entry<Status*(Binding*, const char*, const Value*)>(api, 137)(binding, name, value);
}
// The value, and what lies behind it, outlive the session.
inline Status* add_initializer(const Api* api, SessionOptions* options, const char* name, const Value* value) {
  return entry<Status*(SessionOptions*, const char*, const Value*)>(api, 150)(options, name, value);
}

// Which entry releases what.
template <typename T>
constexpr size_t kRelease = 0;
template <>
inline constexpr size_t kRelease<MemoryInfo> = 94;
template <>
inline constexpr size_t kRelease<Session> = 95;
template <>
inline constexpr size_t kRelease<Value> = 96;
template <>
inline constexpr size_t kRelease<SessionOptions> = 100;
template <>
inline constexpr size_t kRelease<Binding> = 135;

// Owns one object of ONNX Runtime's; `put` hands its place to the entry that makes one.
template <typename T>
class Held {
 public:
  explicit Held(const Api* api) : api_(api) {}
  Held(Held&& other) noexcept : api_(other.api_), object_(std::exchange(other.object_, nullptr)) {}
  Held& operator=(Held&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Held() { clear(); }
  T* get() const { return object_; }
  T** put() {
    clear();
    return &object_;
  }

 private:
  void clear() {
    if (object_) entry<void(T*)>(api_, kRelease<T>)(std::exchange(object_, nullptr));
  }
  const Api* api_;
  T* object_ = nullptr;
};

}  // namespace edgellm::ort
