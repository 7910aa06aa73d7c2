// The KV cache's buffers: their names, shapes and bytes (runtime/cache.py), in one mapping.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ort/abi.h"

namespace edgellm {

// Of a model and a policy; budgets: tokens a layer. staging is the most tokens of one run.
struct CacheLayout {
  int64_t staging, kv_heads, head_dim, planes;
  std::vector<int64_t> budgets;
  bool int8 = false;  // keys and values, else float16

  bool operator==(const CacheLayout& other) const { return budgets == other.budgets; }  // the rest never changes
};

// One of the graph's inputs: shape [kv_heads, capacity, …].
struct Buffer {
  std::string name;
  std::vector<int64_t> shape;
  ort::ElementType type;
  size_t item;    // bytes of an element
  size_t offset;  // of the buffer in the mapping
  size_t bytes() const;
};

// key.L, value.L [kv_heads, capacity, head_dim], with room for a scale where they are int8; position.L [kv_heads,
// capacity] and score.L [kv_heads, capacity, planes] of every layer, each from a 64-byte boundary.
std::vector<Buffer> buffers_of(const CacheLayout& layout);

// Zeros. Pages stay unbacked until they are written, so that an unused budget costs no memory; they are small, since one
// token in every head would otherwise back all of them.
class CacheMemory {
 public:
  CacheMemory() = default;
  // Throws Error where there is no memory.
  explicit CacheMemory(const CacheLayout& layout);
  CacheMemory(CacheMemory&& other) noexcept;
  CacheMemory& operator=(CacheMemory&& other) noexcept;
  ~CacheMemory();
  // Takes over as many first slots as both have.
  void copy_from(const CacheMemory& other);
  void* at(const Buffer& buffer) const { return static_cast<char*>(data_) + buffer.offset; }
  const std::vector<Buffer>& buffers() const { return buffers_; }
  size_t bytes() const;

 private:
  std::vector<Buffer> buffers_;
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace edgellm
