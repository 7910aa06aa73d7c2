// The few entries of ONNX Runtime's C ABI that edgellm uses, declared by index: the wheels ship no headers, and the
// ABI is append-only (an entry's index never changes). 17 is the lowest API version that has them all (ParallelFor).
#pragma once
#include <cstddef>
#include <cstdint>

namespace edgellm::ort {

constexpr uint32_t kApiVersion = 17;

// Opaque to us.
struct Status;
struct Value;
struct TensorInfo;
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct KernelContext;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kFloat16 = 10 };

// OrtApi is a struct of function pointers: entry<Signature>(api, index).
struct Api;
template <typename Signature>
Signature* entry(const Api* api, size_t index) {
  return reinterpret_cast<Signature* const*>(api)[index];
}

inline Status* create_status(const Api* api, ErrorCode code, const char* message) {
  return entry<Status*(ErrorCode, const char*)>(api, 0)(code, message);
}
inline Status* create_domain(const Api* api, const char* name, Domain** out) {
  return entry<Status*(const char*, Domain**)>(api, 26)(name, out);
}
inline Status* domain_add(const Api* api, Domain* domain, const struct CustomOp* op) {
  return entry<Status*(Domain*, const CustomOp*)>(api, 27)(domain, op);
}
inline Status* add_domain(const Api* api, SessionOptions* options, Domain* domain) {
  return entry<Status*(SessionOptions*, Domain*)>(api, 28)(options, domain);
}
inline Status* tensor_data(const Api* api, Value* value, void** out) {
  return entry<Status*(Value*, void**)>(api, 51)(value, out);
}
inline Status* dimensions_count(const Api* api, const TensorInfo* info, size_t* out) {
  return entry<Status*(const TensorInfo*, size_t*)>(api, 61)(info, out);
}
inline Status* dimensions(const Api* api, const TensorInfo* info, int64_t* out, size_t count) {
  return entry<Status*(const TensorInfo*, int64_t*, size_t)>(api, 62)(info, out, count);
}
inline Status* tensor_info(const Api* api, const Value* value, TensorInfo** out) {
  return entry<Status*(const Value*, TensorInfo**)>(api, 65)(value, out);
}
inline Status* attribute_float(const Api* api, const KernelInfo* info, const char* name, float* out) {
  return entry<Status*(const KernelInfo*, const char*, float*)>(api, 85)(info, name, out);
}
inline Status* attribute_int(const Api* api, const KernelInfo* info, const char* name, int64_t* out) {
  return entry<Status*(const KernelInfo*, const char*, int64_t*)>(api, 86)(info, name, out);
}
inline Status* attribute_string(const Api* api, const KernelInfo* info, const char* name, char* out, size_t* size) {
  return entry<Status*(const KernelInfo*, const char*, char*, size_t*)>(api, 87)(info, name, out, size);
}
inline Status* context_input(const Api* api, const KernelContext* context, size_t index, const Value** out) {
  return entry<Status*(const KernelContext*, size_t, const Value**)>(api, 90)(context, index, out);
}
inline Status* context_output(const Api* api, KernelContext* context, size_t index, const int64_t* shape, size_t rank,
                              Value** out) {
  using Signature = Status*(KernelContext*, size_t, const int64_t*, size_t, Value**);
  return entry<Signature>(api, 91)(context, index, shape, rank, out);
}
inline void release_status(const Api* api, Status* status) { entry<void(Status*)>(api, 93)(status); }
inline void release_tensor_info(const Api* api, TensorInfo* info) { entry<void(TensorInfo*)>(api, 99)(info); }
inline Status* parallel_for(const Api* api, const KernelContext* context, void (*task)(void*, size_t), size_t total,
                            size_t batches, void* data) {
  using Signature = Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*);
  return entry<Signature>(api, 274)(context, task, total, batches, data);
}

struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*version)();
};

// OrtCustomOp as of API 17; ONNX Runtime reads no field newer than `version` says.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy)(void*);
  int (*input_characteristic)(const CustomOp*, size_t);
  int (*output_characteristic)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_minimum)(const CustomOp*);
  int (*variadic_input_homogeneous)(const CustomOp*);
  int (*variadic_output_minimum)(const CustomOp*);
  int (*variadic_output_homogeneous)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, KernelContext*);
  Status* (*infer_shapes)(const CustomOp*, void*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
};

}  // namespace edgellm::ort
