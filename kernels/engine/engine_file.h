// A TensorRT engine file: recognised, and what running one would need.
#pragma once
#include <string>

namespace edgellm {

// Throws Error where the file begins as a TensorRT engine does: what is missing here to run it.
void check_engine_file(const std::string& path);

}  // namespace edgellm
