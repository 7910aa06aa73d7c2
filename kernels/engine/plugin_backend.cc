#include "kernels/engine/plugin_backend.h"

#include <algorithm>
#include <numeric>

#include "kernels/cpu/operators.h"
#include "kernels/engine/error.h"

namespace edgellm {
namespace {

constexpr const char* kTiles = "tiles.";
constexpr int kWord = 4;  // bytes: an engine takes packed weights as int32

int64_t words(const Placed& placed) { return int64_t(placed.format.nbytes()) / kWord; }

// The matrices that it multiplies by: the embedding only where it is the head too.
std::map<std::string, Placed> fed(const EngineFacts& engine) {
  std::map<std::string, Placed> all = engine.matrices;
  if (all.count("head")) all.erase("embedding");
  return all;
}

// export/plugin_dialect.py. A session asks for one row of logits a run.
std::vector<End> ends_of(const Manifest& m) {
  const EngineFacts& e = *m.engine;
  const int64_t hidden = e.matrices.at("embedding").format.k_in;
  std::vector<End> ends{{"embedded", {e.tokens, hidden}, 4}, {"positions", {e.tokens}, 8}, {"rows", {1}, 8}, {"control", {m.layers, kControl}, 8}};
  ends.push_back({"logits", {1, m.vocabulary}, 4});
  for (const auto& [name, placed] : fed(e)) ends.push_back({kTiles + name, {words(placed)}, kWord});
  for (int64_t layer = 0; layer < m.layers; ++layer) {
    const std::string of = std::to_string(layer);
    for (const char* kind : {"key.", "value."}) ends.push_back({kind + of, {m.kv_heads, e.capacity, m.head_dim}, 2, true});
    ends.push_back({"position." + of, {m.kv_heads, e.capacity}, 4, true});
    ends.push_back({"score." + of, {m.kv_heads, e.capacity, e.planes}, 4, true});
  }
  return ends;
}

}  // namespace

PluginBackend::PluginBackend(const TensorRt& library, const std::string& folder, const Manifest& manifest, const KVPolicy& policy,
                             const CacheLayout& layout, const std::string& plugins)
    : embedded_(folder, manifest.engine->matrices.at("embedding")), capacity_(manifest.engine->capacity), planes_(manifest.engine->planes),
      policy_(policy.text()), runner_(library, folder, ends_of(manifest), plugins) {
  resize(layout);
  const MappedFile weights(folder, kWeights);
  for (const auto& [name, placed] : fed(*manifest.engine))
    runner_.feed(kTiles + name, weights.bytes().data() + placed.offset, words(placed));
  runner_.wait();
}

const float* PluginBackend::run(const int32_t* ids, int64_t count, int64_t first, const std::vector<int64_t>& control) {
  const int64_t row = count - 1;
  positions_.resize(size_t(count));
  std::iota(positions_.begin(), positions_.end(), first);
  runner_.feed("embedded", embedded_(ids, count), count);
  runner_.feed("positions", positions_.data(), count);
  runner_.feed("rows", &row, 1);
  runner_.feed("control", control.data(), int64_t(control.size()) / kControl);
  return runner_.run();
}

void PluginBackend::resize(const CacheLayout& layout) {
  const int64_t needed = *std::max_element(layout.budgets.begin(), layout.budgets.end()) + layout.staging;
  if (needed <= capacity_ && layout.planes <= planes_) return;
  throw usage_error("KV policy " + policy_ + " needs " + std::to_string(needed) + " slots and " + std::to_string(layout.planes) +
                        " scores a slot; this engine has " + std::to_string(capacity_) + " and " + std::to_string(planes_),
                    "Set options.kv to a smaller one, or export again with --engine and that --kv.");
}

}  // namespace edgellm
