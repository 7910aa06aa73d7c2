#include "kernels/engine/tensorrt_backend.h"

#include <algorithm>

#include "kernels/engine/append_only.h"
#include "kernels/engine/cuda.h"
#include "kernels/engine/engine_file.h"
#include "kernels/engine/error.h"
#include "kernels/engine/libraries.h"
#include "kernels/engine/plugin_backend.h"
#include "kernels/engine/sha256.h"

namespace edgellm {
namespace {

constexpr const char* kPlugins = "libedgellm_tensorrt.so";

const EngineFacts& engine_of(const Manifest& manifest) {
  if (manifest.engine) return *manifest.engine;
  throw usage_error("this bundle was exported without an engine", "Export it again with --engine, or leave options.backend null.");
}

// That the file is whole and its stamp and header agree; nothing is loaded yet. Gives what to run where it is not.
std::string refuse_file(const std::string& folder, const EngineFacts& engine) {
  const std::string name = kEngine, build = "edgellm build-engine " + folder, again = "Build it again: " + build;
  if (!engine.built) throw bundle_error(name + " is not built yet", "Build it on this device: " + build);
  const EngineHeader header = read_header(folder, again);
  if (header.kind != engine.kind) throw bundle_error(name + " is a " + header.kind + " engine; the manifest says " + engine.kind, again);
  const std::string& says = engine.built->version;
  if (!header.version.empty() && header.version != says)
    throw bundle_error(name + " was built by " + engine.kind + " " + header.version + " (its header); the manifest says " + says, again);
  return again;
}

void refuse_plugin(const std::string& sha256, const std::string& again) {
  std::string here;
  try {
    here = sha256_of_file(own_folder(), kPlugins);
  } catch (const Error&) {
    throw bundle_error(std::string("the engine needs our TensorRT plugins: ") + kPlugins + " is not in " + own_folder(), "See docs/tensorrt.md.");
  }
  if (here != sha256) throw bundle_error(std::string(kEngine) + " was built with another " + kPlugins + " than the one here", again);
}

// That the engine is of this TensorRT, this plugin library and this GPU, whose compute capability is "8.7", or "" for none.
void refuse_other(const EngineFacts& engine, const TensorRt& library, const std::string& capability, const std::string& again) {
  const BuiltEngine& built = *engine.built;
  if (!library.is(built.version))
    throw bundle_error(std::string(kEngine) + " was built by " + engine.kind + " " + built.version + "; here is " + library.version, again);
  if (!built.plugin_sha256.empty()) refuse_plugin(built.plugin_sha256, again);
  runner_table();  // what is missing to run engines at all is told also where there is no GPU
  if (capability.empty())
    throw Error(EDGELLM_FAILED, "no NVIDIA GPU can be used here: libcuda.so.1 is missing or finds none",
                "Open the bundle's folder without options.backend: it runs on the CPU.");
  const auto& made = built.capabilities;
  if (made.empty() || std::find(made.begin(), made.end(), capability) != made.end()) return;
  std::string listed;
  for (const std::string& one : made) listed += (listed.empty() ? "" : ", ") + one;
  throw bundle_error(std::string(kEngine) + " is for compute capability " + listed + "; this GPU has " + capability, again);
}

}  // namespace

KVPolicy engines_policy(const Manifest& manifest) {
  const EngineFacts& engine = engine_of(manifest);
  if (engine.plugins() && manifest.kv.name != "full") return manifest.kv;
  const int64_t slots = engine.capacity - (engine.plugins() ? engine.tokens : 0);
  return KVPolicy::make("full", std::min(slots, manifest.context), manifest.context);
}

std::unique_ptr<Backend> tensorrt_backend(const std::string& folder, const Manifest& manifest, const KVPolicy& policy,
                                          const CacheLayout& layout) {
  const EngineFacts& engine = engine_of(manifest);
  const std::string again = refuse_file(folder, engine);
  const TensorRt& library = tensorrt(engine.kind);
  refuse_other(engine, library, device_capability(), again);
  if (!engine.plugins()) return std::make_unique<AppendOnly>(library, folder, manifest, policy);
  return std::make_unique<PluginBackend>(library, folder, manifest, policy, layout, own_folder() + "/" + kPlugins);
}

}  // namespace edgellm
