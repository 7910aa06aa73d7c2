// Where a shared library that is loaded at run time is looked for.
#pragma once
#include <string>
#include <vector>

namespace edgellm {

// Where this library's own file lies; "" if the loader does not tell.
std::string own_folder();

// Paths to try, in the order that edgellm.h promises: `given`, else the environment's `variable`, else what matches
// `pattern` in this library's folder or in `package` beside the Python package edgellm, else the system's `names`.
std::vector<std::string> candidates(const std::string& given, const char* variable, const std::string& pattern, const std::string& package,
                                    std::vector<std::string> names);

// The first of `paths` that the loader takes and that has `symbol`, loaded for the process's life. Both null where none
// does; `why` is then the loader's word on the first.
struct Library {
  void *handle = nullptr, *symbol = nullptr;
  std::string path, why;  // path: of the file
};
Library open_library(const std::vector<std::string>& paths, const char* symbol);

}  // namespace edgellm
