// What an engine file says of itself before TensorRT sees it: runtime/engine_file.py.
#pragma once
#include <cstdint>
#include <string>

namespace edgellm {

// kind: which TensorRT wrote it, as --engine names it. version: "1.7.1.116", "" where the layout is another one's.
struct EngineHeader {
  std::string kind, version;
};

// Of a bundle's model.engine. again: what to run where it is wrong. Throws Error (EDGELLM_BUNDLE) for a file that is none,
// or is not whole.
EngineHeader read_header(const std::string& folder, const std::string& again);

// The bundle's folder where `path` is its model.engine, else "". Throws Error (EDGELLM_BUNDLE) for an engine elsewhere.
std::string bundle_of_engine(const std::string& path);

}  // namespace edgellm
