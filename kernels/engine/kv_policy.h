// Which tokens a KV cache of a fixed budget keeps: runtime/kv_policy.py, with the same names, defaults and checks.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/cpu/operators.h"

namespace edgellm {

// One setting's value as it was written: a number or a word.
using Settings = std::map<std::string, std::string>;

struct KVPolicy {
  std::string name;
  int64_t budget = 0;  // tokens
  int64_t sinks = 0;
  double recent = 0;  // below 1 a share of the budget, else tokens
  double forget = 1;
  int64_t queries = 0;
  std::string heads = "sum", prefill = "chunked", layers = "alike";
  std::vector<int64_t> budgets;  // one a layer, or none: `budget` for all

  // A checked policy for a model of `context` tokens; settings: instead of the paper's. Throws a usage Error.
  static KVPolicy make(const std::string& name, int64_t budget, int64_t context, const Settings& settings = {},
                       std::vector<int64_t> budgets = {});
  // Reads "full", "vatp:512" or "h2o:512,sinks=20". Throws as `make` does.
  static KVPolicy parse(const std::string& text, int64_t context);

  int64_t number() const;  // kernels/control.py: FULL, WINDOW, SCORE
  bool scored() const { return number() == 2; }
  bool normed() const { return name == "vatp" || name == "vatp-window"; }
  int64_t planes() const { return !scored() ? 0 : queries ? 3 : normed() ? 2 : 1; }
  int64_t recent_tokens(int64_t of) const { return int64_t(recent < 1 ? recent * double(of) : recent); }
  std::vector<int64_t> layer_budgets(int64_t layers) const;
  // What is always the same in a layer's row of the graph's input `control`.
  Control control(int64_t budget) const;
  std::string text() const;
};

}  // namespace edgellm
