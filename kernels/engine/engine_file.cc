#include "kernels/engine/engine_file.h"

#include <cstdio>
#include <memory>

#include <sys/stat.h>

#include "kernels/engine/error.h"
#include "kernels/engine/manifest.h"
#include "kernels/engine/mapped_file.h"

namespace edgellm {
namespace {

constexpr size_t kHeader = 32;  // bytes, as runtime/engine_file.py found them

// The first bytes of a file; fewer where it is shorter, none where it cannot be read.
std::string beginning(const std::string& path) {
  char bytes[kHeader];
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), [](FILE* f) { return f ? std::fclose(f) : 0; });
  return file ? std::string(bytes, std::fread(bytes, 1, sizeof bytes, file.get())) : "";
}

// As --engine has it; "" for what is no engine.
std::string kind_of(std::string_view bytes) {
  const std::string_view magic = bytes.substr(0, 4);
  return magic == "vtrt" ? "tensorrt-rtx" : magic == "ftrt" ? "tensorrt" : "";
}

uint64_t little_endian(std::string_view bytes, size_t at) {
  uint64_t value = 0;
  for (size_t i = 8; i-- > 0;) value = value << 8 | uint8_t(bytes[at + i]);
  return value;
}

bool exists(const std::string& path, struct stat& facts) { return stat(path.c_str(), &facts) == 0; }

}  // namespace

EngineHeader read_header(const std::string& folder, const std::string& again) {
  const std::string name = kEngine;
  const MappedFile file(folder, name);
  const std::string_view bytes = file.bytes();
  const std::string kind = kind_of(bytes);
  if (bytes.size() < kHeader || kind.empty()) throw bundle_error(name + " is no TensorRT engine: its first bytes are another file's", again);
  if (kind == "tensorrt") return {kind, ""};
  const uint64_t has = bytes.size(), says = little_endian(bytes, 16);
  if (says != has)
    throw bundle_error(name + " is " + (has < says ? "truncated" : "damaged") + ": " + std::to_string(has) + " bytes, its header says " +
                           std::to_string(says),
                       again);
  std::string version;
  for (size_t i = 24; i < 28; ++i) version += (i > 24 ? "." : "") + std::to_string(uint8_t(bytes[i]));
  return {kind, version};
}

std::string bundle_of_engine(const std::string& path) {
  struct stat facts {};
  if (!exists(path, facts) || !S_ISREG(facts.st_mode) || kind_of(beginning(path)).empty()) return "";
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash ? slash : 1);
  if (path.substr(slash + 1) != kEngine || !exists(folder + "/" + kManifest, facts))
    throw bundle_error(path + " is a TensorRT engine without its bundle: it has neither tokenizer nor embedding",
                       std::string("Open the folder that edgellm export wrote, with the engine in it as ") + kEngine + ".");
  return folder;
}

}  // namespace edgellm
