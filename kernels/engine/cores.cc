#include "kernels/engine/cores.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <set>
#include <string>

#include <sched.h>

#include "kernels/engine/error.h"

namespace edgellm {
namespace {

// A file's first line; "" if it cannot be read.
std::string line_of(const std::string& path) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "r"), [](FILE* f) { return f ? std::fclose(f) : 0; });
  char line[256];
  return file && std::fgets(line, sizeof line, file.get()) ? line : "";
}

}  // namespace

int usable_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof allowed, &allowed);
  std::set<std::string> siblings;  // a second thread on the same core only takes its bandwidth
  for (int number = 0; number < CPU_SETSIZE; ++number) {
    if (!CPU_ISSET(number, &allowed)) continue;
    const std::string listed = line_of("/sys/devices/system/cpu/cpu" + std::to_string(number) + "/topology/thread_siblings_list");
    siblings.insert(listed.empty() ? std::to_string(number) : listed);
  }
  double cores = double(siblings.size());
  double most = 0, period = 0;  // "max" is no number: no quota
  if (std::sscanf(line_of("/sys/fs/cgroup/cpu.max").c_str(), "%lf %lf", &most, &period) == 2 && period > 0)
    cores = std::min(cores, std::ceil(most / period));
  return std::max(1, int(cores));
}

void check_threads(int threads) {
  if (threads < 0 || threads > 1024) throw usage_error(std::to_string(threads) + " threads; expected 1 to 1024, or 0");
}

}  // namespace edgellm
