#include "kernels/engine/engine_facts.h"

#include <algorithm>

#include "kernels/engine/manifest.h"

namespace edgellm {
namespace {

Format format_of(const Json& matrix) {
  const std::string zero = matrix["zero"].string(), axis = matrix["axis"].string();
  const Format f{matrix["n_out"].integer(), matrix["k_in"].integer(), matrix["bits"].integer(), matrix["group"].integer(),
                 zero == "min", matrix["n"].integer(), matrix["m"].integer(), axis == "out"};
  // Sizes beyond 2**31 would overflow the products below.
  if (!f.valid() || std::max(f.n_out, f.k_in) >> 31) throw JsonError("\"matrices\": " + matrix["name"].string() + " has a format no tile holds");
  return f;
}

BuiltEngine built_of(const Json& data) {
  BuiltEngine built{data["version"].string(), {}, ""};
  for (const Json& capability : data["compute_capabilities"].items()) built.capabilities.push_back(capability.string());
  if (const Json* plugin = data.find("plugin_sha256")) built.plugin_sha256 = plugin->string();
  return built;
}

}  // namespace

std::optional<EngineFacts> engine_facts(const Json& data) {
  const Json* given = data.find("engine");
  if (!given) return std::nullopt;
  const Json& e = *given;
  const int64_t weights = data["files"][kWeights]["bytes"].integer();
  EngineFacts facts{e["kind"].string(), e["operators"].string(), e["capacity"].integer(), e["planes"].integer(),
                    e["tokens"].integer(), e["rows"].integer(), {}, std::nullopt};
  const auto size = [](int64_t value, int64_t least) { return value >= least && value >> 31 == 0; };
  if (facts.kind != "tensorrt-rtx" && facts.kind != "tensorrt") throw JsonError("\"engine.kind\" is \"" + facts.kind + "\"");
  if (!facts.plugins() && facts.operators != "standard") throw JsonError("\"engine.operators\" is \"" + facts.operators + "\"");
  if (!size(facts.capacity, 1) || !size(facts.tokens, 1) || !size(facts.rows, 1) || !size(facts.planes, 0))
    throw JsonError("\"engine\" has a size below 1");
  for (const auto& [name, offset] : e["offsets"].members()) {
    const auto& all = data["matrices"].items();
    const auto matrix = std::find_if(all.begin(), all.end(), [&n = name](const Json& m) { return m["name"].string() == n; });
    if (matrix == all.end()) throw JsonError("\"engine.offsets\" names " + name + ", which \"matrices\" does not");
    const Placed placed{offset.integer(), format_of(*matrix)};
    if (placed.offset < 0 || placed.offset > weights || placed.format.nbytes() > size_t(weights - placed.offset))
      throw JsonError("\"engine.offsets\": " + name + " lies outside model.onnx.data");
    facts.matrices.emplace(name, placed);
  }
  if (!facts.matrices.count("embedding")) throw JsonError("\"engine.offsets\" lacks the embedding");
  if (const Json* built = e.find("built")) facts.built = built_of(*built);
  return facts;
}

}  // namespace edgellm
