// A file's bytes, mapped for reading.
#pragma once
#include <string>
#include <string_view>
#include <utility>

namespace edgellm {

class MappedFile {
 public:
  // Throws Error (EDGELLM_BUNDLE) for a file that cannot be read.
  MappedFile(const std::string& folder, const std::string& name);
  MappedFile(MappedFile&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();
  // After all of it was read once: pages count as this process's memory again only when they are next touched.
  void let_go() const;
  // Asks for huge pages; what lies in memory already keeps its size.
  void in_huge_pages() const;
  std::string_view bytes() const { return {static_cast<const char*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace edgellm
