#include "kernels/engine/mapped_file.h"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/engine/error.h"

namespace edgellm {

MappedFile::MappedFile(const std::string& folder, const std::string& name) {
  const std::string path = folder + "/" + name;
  const auto failed = [&] { return bundle_error(name + " cannot be read: " + std::strerror(errno), "Check its permissions."); };
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw failed();
  struct stat facts {};
  const bool known = fstat(file, &facts) == 0;
  size_ = known ? size_t(facts.st_size) : 0;
  if (size_) data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (!known || data_ == MAP_FAILED) throw failed();
}

MappedFile::~MappedFile() {
  if (data_) munmap(data_, size_);
}

void MappedFile::let_go() const {
  if (!data_) return;
  madvise(data_, size_, MADV_DONTNEED);
}

void MappedFile::in_huge_pages() const {
  if (data_) madvise(data_, size_, MADV_HUGEPAGE);  // fails harmlessly where the kernel has none
}

}  // namespace edgellm
