// NVIDIA's driver API, loaded when the first kernel is launched: neither loading this nor building an engine needs it.
#pragma once

#include <cstddef>
#include <string>

namespace edgellm {

struct Driver {
  int (*ctx_get_device)(int*);
  int (*device_get_attribute)(int*, int, int);
  int (*module_load_data)(void**, const void*);
  int (*module_get_function)(void**, void*, const char*);
  int (*func_set_attribute)(void*, int, int);
  int (*launch_kernel)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                       void**);

  // The driver, or null with the reason in `error`.
  static const Driver* get(std::string* error);

  // "sm_87" of the current context's device; "" where it cannot be told.
  std::string target() const;
};

}  // namespace edgellm
