// Finds where a running sum of weights comes to a target, in order of likelihood, without sorting what is not asked for.
#pragma once
#include <algorithm>
#include <cstdint>

namespace edgellm {

struct Token {
  double weight;
  int64_t id;
};

inline bool likelier(const Token& a, const Token& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
}

// The token with which the sum comes to `target`, in the order they have; or the last. before: the sum up to the first,
// then the one up to the token found.
inline Token* walk(Token* first, Token* last, double target, double& before) {
  for (; first + 1 < last && before + first->weight < target; ++first) before += first->weight;
  return first;
}

// The same with the likeliest first. Moves all that are likelier than the token found before it. O(n): the half whose sum
// tells that the token is not in it is left as it is; as few as kFew are sorted.
constexpr int64_t kFew = 128;
inline Token* reach(Token* first, Token* last, double target, double& before) {
  before = 0;
  while (last - first > kFew) {
    Token* middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, likelier);
    double sum = before;
    for (const Token* token = first; token < middle; ++token) sum += token->weight;
    if (sum >= target)
      last = middle;
    else
      first = middle, before = sum;
  }
  std::sort(first, last, likelier);
  return walk(first, last, target, before);
}

}  // namespace edgellm
