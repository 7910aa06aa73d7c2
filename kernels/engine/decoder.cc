#include "kernels/engine/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "kernels/engine/cores.h"
#include "kernels/engine/error.h"
#include "kernels/engine/manifest.h"

namespace edgellm {
namespace {

constexpr int64_t kWatched = 4;    // tokens a run in which threads wait for nothing but each other
constexpr int64_t kCapped = 8192;  // logits a task

}  // namespace

std::unique_ptr<Decoder> Decoder::open(const std::string& folder, const edgellm_shape& shape, int threads) {
  const MappedFile content(folder, kGraph);
  MappedFile weights(folder, kWeights);
  weights.in_huge_pages();
  std::optional<DecoderGraph> graph = decoder_graph(content.bytes(), weights.bytes());
  if (!graph) return nullptr;
  const auto differs = [&](const GraphLayer& g) {
    return g.layer.attention.kv_heads != shape.kv_heads || g.layer.attention.head_dim != shape.head_dim;
  };
  if (int64_t(graph->layers.size()) != shape.layers || graph->vocabulary() != shape.vocabulary ||
      std::any_of(graph->layers.begin(), graph->layers.end(), differs))
    throw bundle_error(std::string(kGraph) + " does not fit the manifest: it has other layers, heads or ids");
  if (graph->bits != shape.bits)
    throw bundle_error(std::string(kGraph) + " does not match the manifest: its cache has " + std::to_string(graph->bits) + " bits");
  std::unique_ptr<Decoder> decoder(new Decoder(std::move(weights), threads ? threads : usable_cores()));
  decoder->graph_ = std::move(*graph);
  return decoder;
}

// cos and sin of every rotation at these positions, as the graph's standard nodes have them.
void Decoder::turn(const DecoderRun& run) {
  waves_.resize(graph_.rotations.size());
  for (size_t i = 0; i < waves_.size(); ++i) {
    const Rotation& rotation = graph_.rotations[i];
    const size_t half = rotation.frequency.size();
    waves_[i].cos.resize(size_t(run.steps) * half), waves_[i].sin.resize(size_t(run.steps) * half);
    float *cos = waves_[i].cos.data(), *sin = waves_[i].sin.data();
    for (int64_t t = 0; t < run.steps; ++t)
      for (const float frequency : rotation.frequency) {
        const float angle = float(run.positions[t]) * frequency;
        *cos++ = std::cos(angle) * rotation.magnitude, *sin++ = std::sin(angle) * rotation.magnitude;
      }
  }
}

// logits = cap * tanh(logits / cap)
void Decoder::cap(float* logits, int64_t count) {
  const float cap = graph_.cap;
  auto task = [&](size_t i) {
    const int64_t end = std::min(count, int64_t(i + 1) * kCapped);
    for (int64_t j = int64_t(i) * kCapped; j < end; ++j) logits[j] = cap * std::tanh(logits[j] / cap);
  };
  parallel(threads_.pool(), size_t((count + kCapped - 1) / kCapped), task);
}

void Decoder::run(const DecoderRun& run) {
  std::optional<Threads::Watch> watch;
  if (run.steps <= kWatched) watch.emplace(threads_);
  const Pool pool = threads_.pool();
  const int64_t hidden = graph_.hidden();
  const auto fail = [](const char* why) { return bundle_error(std::string(kGraph) + " failed to run: " + why, kAgain); };
  for (int64_t i = 0; i < run.count; ++i)
    if (run.rows[i] < 0 || run.rows[i] >= run.steps) throw fail("a row is not of its tokens");
  x_.resize(size_t(run.steps * hidden)), y_.resize(x_.size());
  if (!quant_gather(graph_.embedding.f, run.ids, run.steps, graph_.embedding.tiles, x_.data(), pool))
    throw fail("a token id is outside the vocabulary");
  if (graph_.scale != 1)
    for (float& x : x_) x *= graph_.scale;
  turn(run);
  for (size_t i = 0; i < graph_.layers.size(); ++i) {
    const GraphLayer& g = graph_.layers[i];
    const Waves& waves = waves_[g.rotation];
    Tokens tokens{nullptr, waves.cos.data(), waves.sin.data(), int64_t(graph_.rotations[g.rotation].frequency.size()), run.positions,
                  run.steps};
    tokens.q_norm = g.q_norm, tokens.k_norm = g.k_norm, tokens.epsilon = g.layer.epsilon, tokens.k_shift = g.k_shift;
    Control control;
    std::memcpy(&control, run.control + g.row * kControl, sizeof control);
    const Wanted wanted = g.wanted ? Wanted{run.rows, run.count} : Wanted{};
    if (const char* why = decoder_layer(g.layer, x_.data(), control, tokens, run.caches[i], wanted, y_.data(), pool)) throw fail(why);
    x_.swap(y_);
  }
  const Fused fused{graph_.head.bias, nullptr, graph_.norm, graph_.epsilon};
  nm_matmul(graph_.head.f, Activation::kNone, x_.data(), run.count, graph_.head.tiles, fused, run.logits, pool);
  if (graph_.cap) cap(run.logits, run.count * graph_.vocabulary());
}

}  // namespace edgellm
