#include "kernels/engine/kv_policy.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <set>

#include "kernels/engine/error.h"

namespace edgellm {
namespace {

constexpr const char* kForms =
    "Expected full, or POLICY:BUDGET with POLICY one of full, window, vatp, vatp-window, h2o, a2sf, tova, "
    "e.g. vatp:512 or h2o:512,sinks=20";
const std::string kHeads[] = {"sum", "mean", "max"};
const std::set<std::string> kSettings = {"sinks", "recent", "forget", "queries", "heads", "prefill", "layers", "pool"};

// The papers' defaults; what is not told is KVPolicy's own.
struct Usual {
  const char* name;
  int64_t sinks;
  double recent, forget;
  int64_t queries;
};
constexpr Usual kPolicies[] = {
    {"full", 4, 0, 1, 0},    {"window", 4, 0, 1, 0},    {"vatp", 20, 0.5, 1, 0}, {"vatp-window", 20, 10, 1, 400},
    {"h2o", 0, 0.5, 1, 0},   {"a2sf", 0, 0, 0.99, 0},   {"tova", 0, 0, 0, 0},
};

const Usual& usual(const std::string& name) {
  for (const Usual& one : kPolicies)
    if (name == one.name) return one;
  throw usage_error("KV policy \"" + name + "\" is unknown", kForms);
}

bool is_count(const std::string& text) {
  return !text.empty() && text.size() < 19 && text.find_first_not_of("0123456789") == std::string::npos;
}

Error not_a_number(const std::string& key, const std::string& value) {
  return usage_error("KV setting \"" + key + "=" + value + "\" is not a number", kForms);
}

int64_t count_of(const std::string& key, const std::string& value) {
  if (!is_count(value)) throw not_a_number(key, value);
  return std::stoll(value);
}

double real_of(const std::string& key, const std::string& value) {
  char* end = nullptr;
  const double number = std::strtod(value.c_str(), &end);
  if (value.empty() || *end) throw not_a_number(key, value);
  return number;
}

std::string shown(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.12g", value);
  return text;
}

void check_settings(const KVPolicy& p) {
  if (!std::isfinite(p.recent) || p.recent < 0 || p.recent >= 2147483648.0)
    throw usage_error("recent=" + shown(p.recent) + "; expected a share of the budget below 1, or a number of tokens");
  if (!(p.forget >= 0 && p.forget <= 1))
    throw usage_error("forget=" + shown(p.forget) + "; expected 0 (only the last query counts) to 1 (all alike)");
  if (p.queries >= int64_t(1) << 31)
    throw usage_error("queries=" + std::to_string(p.queries) + "; expected 0 (all) or how many of the last ones count");
  if (std::find(std::begin(kHeads), std::end(kHeads), p.heads) == std::end(kHeads))
    throw usage_error("heads=" + p.heads + "; expected sum or mean or max");
  if (p.prefill != "chunked" && p.prefill != "whole")
    throw usage_error("prefill=" + p.prefill + "; expected chunked or whole");
  if (p.layers != "alike" && p.layers != "prefix") throw usage_error("layers=" + p.layers + "; expected alike or prefix");
}

void check_budget(const KVPolicy& p, int64_t budget, int64_t context) {
  const int64_t least = p.name == "full" ? 1 : p.sinks + 1, recent = p.recent_tokens(budget);
  if (budget < least || budget > context)
    throw usage_error("a KV budget of " + std::to_string(budget) + " tokens is outside " + std::to_string(least) + " to " +
                          std::to_string(context) +
                          (budget < least ? ": " + std::to_string(p.sinks) + " sinks and one more must fit" : ", the model's context"),
                      kForms);
  if (p.scored() && p.sinks + recent > budget)
    throw usage_error("a KV budget of " + std::to_string(budget) + " tokens does not hold " + std::to_string(p.sinks) +
                          " sinks and " + std::to_string(recent) + " recent ones",
                      "Give fewer, e.g. " + p.name + ":" + std::to_string(budget) + ",sinks=4,recent=0.25.");
}

}  // namespace

KVPolicy KVPolicy::make(const std::string& name, int64_t budget, int64_t context, const Settings& settings,
                        std::vector<int64_t> budgets) {
  const Usual& base = usual(name);
  KVPolicy p;
  p.name = name, p.budget = budget, p.budgets = std::move(budgets);
  p.sinks = base.sinks, p.recent = base.recent, p.forget = base.forget, p.queries = base.queries;
  for (const auto& [key, value] : settings) {
    // What a policy does not have may only be said as it is anyway: manifests list a full cache's sinks.
    const bool foreign = name == "full" || (name == "window" && key != "sinks" && key != "prefill");
    if (foreign && !(key == "sinks" && value == std::to_string(base.sinks)))
      throw usage_error("KV policy \"" + name + "\" has no setting \"" + key + "\"",
                        name == "full" ? "It has: none." : "It has: sinks, prefill.");
    if (key == "sinks") p.sinks = count_of(key, value);
    if (key == "queries") p.queries = count_of(key, value);
    if (key == "recent") p.recent = real_of(key, value);
    if (key == "forget") p.forget = real_of(key, value);
    if (key == "heads") p.heads = value;
    if (key == "prefill") p.prefill = value;
    if (key == "layers") p.layers = value;
    if (key == "pool" && count_of(key, value))
      throw usage_error("pool=" + value + ": scores are pooled by the Python runtime only", "Leave it out, or run it in Python.");
  }
  check_settings(p);
  if (name == "full" && !p.budgets.empty()) throw usage_error("KV policy \"full\" has one budget for all layers");
  check_budget(p, budget, context);
  for (int64_t one : p.budgets) check_budget(p, one, context);
  return p;
}

KVPolicy KVPolicy::parse(const std::string& text, int64_t context) {
  std::vector<std::string> parts{""};
  for (char c : text)
    if (c == ',') parts.emplace_back();
    else parts.back() += c;
  const size_t colon = parts[0].find(':');
  const std::string name = parts[0].substr(0, colon);
  const std::string number = colon == std::string::npos ? "" : parts[0].substr(colon + 1);
  usual(name);
  if (colon == std::string::npos && name != "full") throw usage_error("KV policy \"" + text + "\" has no budget", kForms);
  if (colon != std::string::npos && !is_count(number))
    throw usage_error("KV budget \"" + number + "\" is not a number of tokens", kForms);
  Settings settings;
  for (size_t i = 1; i < parts.size(); ++i) {
    const size_t equals = parts[i].find('=');
    const std::string key = parts[i].substr(0, equals);
    if (equals == std::string::npos || equals + 1 == parts[i].size() || !kSettings.count(key))
      throw usage_error("KV setting \"" + parts[i] + "\" is unknown; known: sinks=, recent=, forget=, queries=, heads=, prefill=, layers=, pool=", kForms);
    settings[key] = parts[i].substr(equals + 1);
  }
  if (const auto found = settings.find("layers"); found != settings.end() && found->second == "prefix")
    throw usage_error(text + ": budgets a layer are shared out by the Python runtime and by exports only",
                      "Export the bundle with this policy; here it is its default then.");
  return make(name, number.empty() ? context : std::stoll(number), context, settings);
}

int64_t KVPolicy::number() const { return name == "full" ? kFull : name == "window" ? kWindow : kScore; }

std::vector<int64_t> KVPolicy::layer_budgets(int64_t layers) const {
  return budgets.empty() ? std::vector<int64_t>(size_t(layers), budget) : budgets;
}

Control KVPolicy::control(int64_t of) const {
  Control row{};
  row.budget = of, row.sinks = sinks, row.policy = number(), row.forget = kMillion;
  if (!scored()) return row;
  row.recent = recent_tokens(of);
  row.forget = int64_t(std::nearbyint(forget * kMillion));
  row.queries = queries;
  row.heads = std::find(std::begin(kHeads), std::end(kHeads), heads) - std::begin(kHeads);
  row.norm = normed();
  return row;
}

std::string KVPolicy::text() const {
  const Usual& base = usual(name);
  std::string out = name + ":" + std::to_string(budget);
  if (sinks != base.sinks) out += ",sinks=" + std::to_string(sinks);
  if (recent != base.recent) out += ",recent=" + shown(recent);
  if (forget != base.forget) out += ",forget=" + shown(forget);
  if (queries != base.queries) out += ",queries=" + std::to_string(queries);
  if (heads != "sum") out += ",heads=" + heads;
  if (prefill != "chunked") out += ",prefill=" + prefill;
  if (layers != "alike") out += ",layers=" + layers;
  return out;
}

}  // namespace edgellm
