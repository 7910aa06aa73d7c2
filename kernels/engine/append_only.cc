#include "kernels/engine/append_only.h"

#include <algorithm>
#include <numeric>

#include "kernels/engine/error.h"

namespace edgellm {
namespace {

// export/standard_dialect.py. A session asks for one row of logits a run.
std::vector<End> ends_of(const Manifest& m) {
  const EngineFacts& e = *m.engine;
  const int64_t hidden = e.matrices.at("embedding").format.k_in;
  std::vector<End> ends{{"embedded", {e.tokens, hidden}, 4}, {"positions", {e.tokens}, 8}, {"start", {1}, 8}, {"rows", {1}, 8}};
  ends.push_back({"logits", {1, m.vocabulary}, 4});
  for (int64_t layer = 0; layer < m.layers; ++layer)
    for (const char* kind : {"key.", "value."})
      ends.push_back({kind + std::to_string(layer), {1, m.kv_heads, e.capacity, m.head_dim}, 2, true});
  return ends;
}

}  // namespace

AppendOnly::AppendOnly(const TensorRt& library, const std::string& folder, const Manifest& manifest, const KVPolicy& policy)
    : embedded_(folder, manifest.engine->matrices.at("embedding")), most_(manifest.engine->tokens),
      runner_(library, folder, ends_of(manifest), "") {
  if (policy.name == "full" && policy.budget <= manifest.engine->capacity) return;
  const std::string slots = std::to_string(manifest.engine->capacity);
  throw usage_error("KV policy " + policy.text() + ": this engine is of standard operators, which evict nothing, and has " + slots + " slots",
                    "Set options.kv to full:" + slots + " or fewer, or run the bundle on the CPU.");
}

const float* AppendOnly::run(const int32_t* ids, int64_t count, int64_t first, const std::vector<int64_t>&) {
  const float* logits = nullptr;
  for (int64_t done = 0; done < count; done += most_) {
    const int64_t tokens = std::min(most_, count - done), start = first + done, row = tokens - 1;
    positions_.resize(size_t(tokens));
    std::iota(positions_.begin(), positions_.end(), start);
    runner_.feed("embedded", embedded_(ids + done, tokens), tokens);
    runner_.feed("positions", positions_.data(), tokens);
    runner_.feed("start", &start, 1);
    runner_.feed("rows", &row, 1);
    logits = runner_.run();
  }
  return logits;
}

}  // namespace edgellm
