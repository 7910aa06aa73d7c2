// No exception leaves the library: what every function of the C API runs its body in.
#pragma once
#include <exception>
#include <new>

#include "kernels/engine/error.h"

namespace edgellm {

// Keeps what this thread's edgellm_message says; returns the code.
edgellm_status failed(edgellm_status code, const char* what);

template <typename Body>
edgellm_status guard(Body body) {
  try {
    body();
    return EDGELLM_OK;
  } catch (const Error& error) {
    return failed(error.code, error.what());
  } catch (const std::bad_alloc&) {
    return failed(EDGELLM_FAILED, "out of memory");
  } catch (const std::exception& error) {
    return failed(EDGELLM_FAILED, error.what());
  }
}

}  // namespace edgellm
