#include "kernels/engine/detokenizer.h"

#include "kernels/engine/utf8.h"

namespace edgellm {

std::string Detokenizer::add(const Tokenizer& tokenizer, int32_t id) {
  ids_.push_back(id);
  return next(tokenizer, false);
}

std::string Detokenizer::next(const Tokenizer& tokenizer, bool final) {
  if (!tokenizer.can_decode()) return "";
  const auto text_of = [&](size_t end) { return code_points(tokenizer.decode(ids_.data() + start_, end - start_, false)); };
  const std::u32string before = text_of(shown_);
  std::u32string text = text_of(ids_.size());
  while (final && !text.empty() && text.back() == kBroken) text.pop_back();
  if (text.size() <= before.size() || text.back() == kBroken) return "";
  start_ = shown_, shown_ = ids_.size();
  return to_utf8(std::u32string_view(text).substr(before.size()));
}

}  // namespace edgellm
