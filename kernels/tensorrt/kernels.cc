#include "kernels/tensorrt/kernels.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <sstream>
#include <vector>

#include "kernels/tensorrt/driver.h"
#include "kernels/tensorrt/json.h"

namespace edgellm {
namespace {

constexpr uint32_t WARP = 32, PLAIN_SHARED = 48 * 1024;
constexpr int MAX_DYNAMIC_SHARED = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

std::string folder() {
  if (const char* given = std::getenv("EDGELLM_CUBINS")) return given;
  Dl_info here{};
  if (dladdr(reinterpret_cast<void*>(&folder), &here) == 0 || here.dli_fname == nullptr) return "cubins";
  const std::string path = here.dli_fname;
  return path.substr(0, path.find_last_of('/') + 1) + "cubins";
}

bool slurp(const std::string& path, std::string* content) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream all;
  all << file.rdbuf();
  *content = all.str();
  return file.good();
}

const Json& table() {
  static const Json found = [] {
    std::string text;
    Json root;
    if (!slurp(folder() + "/kernels.json", &text) || !JsonReader(text).read(&root)) return Json{};
    return root.members.count("kernels") ? root["kernels"] : root;
  }();
  return found;
}

// Whether the kernel was compiled for these constants, where it has them, and reads and writes activations of `type`.
bool fits(const Json& entry, const std::string& type, const Wanted& wanted) {
  for (const auto& [name, value] : wanted) {
    if (entry["constants"].members.count(name) && entry["constants"][name].text != value) return false;
  }
  for (const Json& argument : entry["arguments"].items) {
    if (argument.items.size() != 2) return false;
    const std::string &name = argument.items[0].text, &kind = argument.items[1].text;
    if ((name == "x" || name == "qkv" || name == "y") && kind != "*" + type) return false;
  }
  return true;
}

// Loads a cubin into the current context. The reason of a failure goes to `error`.
bool load(const Driver& driver, const std::string& name, const Json& entry, Kernel* kernel, std::string* error) {
  const std::string target = driver.target();
  const Json& needs = entry["targets"][target];
  const std::string path = folder() + "/" + target + "/" + name + ".cubin";
  std::string cubin;
  void* module = nullptr;
  if (needs.members.empty() || !slurp(path, &cubin)) {
    *error = "no cubin for " + target + " at " + path;
  } else if (driver.module_load_data(&module, cubin.data()) != 0 ||
             driver.module_get_function(&kernel->function, module, entry["entry"].text.c_str()) != 0) {
    *error = "the driver refuses " + path;
  } else {
    kernel->threads = WARP * entry["warps"].number();
    kernel->shared = needs["shared"].number();
    for (const Json& argument : entry["arguments"].items) kernel->arguments.push_back(argument.items[0].text);
    for (const auto& [constant, value] : entry["constants"].members) kernel->constants[constant] = value.text;
    if (kernel->shared <= PLAIN_SHARED ||
        driver.func_set_attribute(kernel->function, MAX_DYNAMIC_SHARED, static_cast<int>(kernel->shared)) == 0) {
      return true;
    }
    *error = "the device has too little shared memory for " + name;
  }
  return false;
}

}  // namespace

int32_t Kernel::constant(const std::string& name) const {
  const auto found = constants.find(name);
  const int value = found == constants.end() ? 1 : std::atoi(found->second.c_str());
  return value < 1 ? 1 : value;
}

const Kernel* find_kernel(const std::string& entry, const std::string& type, const Wanted& wanted) {
  static std::mutex lock;
  static std::map<std::string, Kernel> loaded;
  const std::lock_guard<std::mutex> held(lock);
  std::string error;
  const Driver* driver = Driver::get(&error);
  if (driver != nullptr) {
    error = "no kernel " + entry + " of " + type + " with the constants asked for in " + folder() + "/kernels.json";
    for (const auto& [name, facts] : table().members) {
      if (facts["entry"].text != entry || !fits(facts, type, wanted)) continue;
      const std::string key = driver->target() + "/" + name;
      const auto found = loaded.find(key);
      if (found != loaded.end()) return &found->second;
      Kernel kernel;
      if (load(*driver, name, facts, &kernel, &error)) return &(loaded[key] = kernel);
      break;
    }
  }
  std::fprintf(stderr, "edgellm: %s\n", error.c_str());
  return nullptr;
}

int32_t launch(const Kernel* kernel, std::array<uint32_t, 2> grid, Named arguments, cudaStream_t stream) {
  std::string error;
  const Driver* driver = Driver::get(&error);
  if (kernel == nullptr || driver == nullptr) return 1;
  Argument nothing(static_cast<const void*>(nullptr));
  std::vector<void*> addresses;
  for (const std::string& name : kernel->arguments) {
    const auto found = arguments.find(name);
    if (found == arguments.end()) {
      std::fprintf(stderr, "edgellm: a kernel wants %s, unknown to these plugins: its cubin is of another version\n",
                   name.c_str());
      return 1;
    }
    addresses.push_back(found->second.address());
  }
  addresses.insert(addresses.end(), 2, nothing.address());  // Triton's global and profile scratch
  const int code = driver->launch_kernel(kernel->function, grid[0], grid[1], 1, kernel->threads, 1, 1, kernel->shared,
                                         stream, addresses.data(), nullptr);
  if (code != 0) std::fprintf(stderr, "edgellm: cuLaunchKernel failed with code %d\n", code);
  return code;
}

}  // namespace edgellm
