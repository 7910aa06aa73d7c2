// What goes wrong, as the C API tells it: a code, what happened with what was expected, and what to do next.
#pragma once
#include <stdexcept>
#include <string>

#include "kernels/include/edgellm.h"

namespace edgellm {

// Mirrors runtime/errors.py: `what` and `hint` are its two sentences.
struct Error : std::runtime_error {
  Error(edgellm_status code, const std::string& what, const std::string& hint = "")
      : std::runtime_error(hint.empty() ? what : what + "\n" + hint), code(code) {}
  edgellm_status code;
};

inline Error usage_error(const std::string& what, const std::string& hint = "") { return {EDGELLM_USAGE, what, hint}; }

inline constexpr const char* kAgain = "Export it again: edgellm export SOURCE OUT";
inline Error bundle_error(const std::string& what, const std::string& hint = kAgain) { return {EDGELLM_BUNDLE, what, hint}; }

}  // namespace edgellm
