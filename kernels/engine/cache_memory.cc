#include "kernels/engine/cache_memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <sys/mman.h>

#include "kernels/cpu/operators.h"
#include "kernels/engine/error.h"

namespace edgellm {
namespace {

constexpr size_t kAlignment = 64;  // bytes: a cache line, and the widest vector

size_t up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

size_t Buffer::bytes() const {
  size_t total = item;
  for (int64_t size : shape) total *= size_t(size);
  return total;
}

std::vector<Buffer> buffers_of(const CacheLayout& layout) {
  std::vector<Buffer> all;
  size_t end = 0;
  const auto add = [&](const char* kind, size_t layer, std::vector<int64_t> shape, ort::ElementType type, size_t item) {
    all.push_back({kind + std::to_string(layer), std::move(shape), type, item, end});
    end += up(all.back().bytes());
  };
  for (size_t layer = 0; layer < layout.budgets.size(); ++layer) {
    const int64_t heads = layout.kv_heads, capacity = layout.budgets[layer] + layout.staging;
    const int64_t row = layout.int8 ? layout.head_dim + kScaleBytes : layout.head_dim;
    for (const char* kind : {"key.", "value."})
      add(kind, layer, {heads, capacity, row}, layout.int8 ? ort::kInt8 : ort::kFloat16, layout.int8 ? 1 : 2);
    add("position.", layer, {heads, capacity}, ort::kInt32, 4);
    add("score.", layer, {heads, capacity, layout.planes}, ort::kFloat, 4);
  }
  return all;
}

CacheMemory::CacheMemory(const CacheLayout& layout) : buffers_(buffers_of(layout)) {
  size_ = buffers_.back().offset + up(buffers_.back().bytes());
  data_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data_ == MAP_FAILED) {
    data_ = nullptr;
    throw Error(EDGELLM_FAILED, "no memory for a KV cache of " + std::to_string(size_ >> 20) + " MiB", "Try the policy window:512.");
  }
  madvise(data_, size_, MADV_NOHUGEPAGE);  // fails harmlessly where the kernel has none
}

CacheMemory::CacheMemory(CacheMemory&& other) noexcept { *this = std::move(other); }

CacheMemory& CacheMemory::operator=(CacheMemory&& other) noexcept {
  std::swap(buffers_, other.buffers_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

CacheMemory::~CacheMemory() {
  if (data_) munmap(data_, size_);
}

void CacheMemory::copy_from(const CacheMemory& other) {
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const Buffer &to = buffers_[i], &from = other.buffers_[i];
    const size_t heads = size_t(to.shape[0]), row = to.bytes() / heads, old = from.bytes() / heads;
    for (size_t head = 0; head < heads; ++head)
      std::memcpy(static_cast<char*>(at(to)) + head * row, static_cast<const char*>(other.at(from)) + head * old, std::min(row, old));
  }
}

size_t CacheMemory::bytes() const {
  size_t total = 0;
  for (const Buffer& buffer : buffers_) total += buffer.bytes();
  return total;
}

}  // namespace edgellm
