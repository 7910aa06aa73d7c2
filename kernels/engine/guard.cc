#include "kernels/engine/guard.h"

namespace edgellm {
namespace {

thread_local std::string last_message;

}  // namespace

edgellm_status failed(edgellm_status code, const char* what) {
  try {
    last_message = what;
  } catch (...) {
    last_message.clear();
  }
  return code;
}

}  // namespace edgellm

const char* edgellm_message(void) { return edgellm::last_message.c_str(); }
