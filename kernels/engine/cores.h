// How many threads are worth starting here: devices/cores.py.
#pragma once

namespace edgellm {

// Physical cores this process may run on, within a container's quota.
int usable_cores();

// Throws Error (EDGELLM_USAGE) for a number of threads outside 1 to 1024, but for 0: the usable cores.
void check_threads(int threads);

}  // namespace edgellm
