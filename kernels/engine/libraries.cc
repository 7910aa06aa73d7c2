#include "kernels/engine/libraries.h"

#include <algorithm>
#include <cstdlib>

#include <dlfcn.h>
#include <glob.h>

namespace edgellm {
namespace {

std::vector<std::string> matches(const std::string& pattern) {
  glob_t found{};
  std::vector<std::string> paths;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  std::reverse(paths.begin(), paths.end());  // the newest of several versions
  return paths;
}

}  // namespace

std::string own_folder() {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<const void*>(&own_folder), &info) || !info.dli_fname) return "";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::vector<std::string> candidates(const std::string& given, const char* variable, const std::string& pattern, const std::string& package,
                                    std::vector<std::string> names) {
  if (!given.empty()) return {given};
  if (const char* named = std::getenv(variable); named && *named) return {named};
  std::vector<std::string> all;
  // In a wheel this library is edgellm/kernels/libedgellm.so.
  for (const std::string& place : {std::string("/"), "/../../" + package + "/"})
    for (std::string& path : matches(own_folder() + place + pattern)) all.push_back(std::move(path));
  all.insert(all.end(), names.begin(), names.end());
  return all;
}

Library open_library(const std::vector<std::string>& paths, const char* symbol) {
  Library none;
  for (const std::string& path : paths) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    void* found = handle ? dlsym(handle, symbol) : nullptr;
    if (Dl_info info{}; found) return {handle, found, dladdr(found, &info) && info.dli_fname ? info.dli_fname : path, ""};
    if (const char* error = dlerror(); error && none.why.empty()) none.why = error;
  }
  return none;
}

}  // namespace edgellm
