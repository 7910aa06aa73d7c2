// How many threads are worth starting here: devices/cores.py.
#pragma once

namespace edgellm {

// Physical cores this process may run on, within a container's quota.
int usable_cores();

}  // namespace edgellm
