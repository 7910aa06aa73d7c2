#include "kernels/engine/vocabulary.h"

#include <algorithm>

#include "kernels/engine/error.h"
#include "kernels/engine/manifest.h"
#include "kernels/engine/utf8.h"

namespace edgellm {
namespace {

constexpr uint64_t kBase = 0x9E3779B97F4A7C15;  // of runtime/vocabulary.py's polynomial hash

uint64_t hash_of(std::string_view token) {
  uint64_t value = 0;
  bool broken = false;
  for (size_t at = 0; at < token.size();) value = value * kBase + next_code_point(token, at, broken) + 1;
  return value;
}

uint64_t pair_hash(int32_t left, int32_t right) {
  const uint64_t mixed = (uint64_t(uint32_t(left)) << 32 | uint32_t(right)) * kBase;
  return mixed ^ mixed >> 32;
}

}  // namespace

Vocabulary::Vocabulary(const std::string& folder) : file_(folder, kTables) {
  try {
    read();
  } catch (const JsonError& error) {
    throw bundle_error(std::string(kTables) + " cannot be read: " + error.what());
  }
}

void Vocabulary::read() {
  const std::string_view all = file_.bytes();
  const size_t head = all.find('\n') + 1;
  facts_ = Json::parse(all.substr(0, head));
  const std::string_view body = all.substr(head);
  for (const Json& listed : facts_["tables"].items()) {
    if (listed.items().size() != 4) throw JsonError("a table is not [name, type, count, place]");
    const std::string name = listed.items()[0].string();
    if (name == "hashes") hashes_ = table<uint64_t>(body, listed);
    if (name == "owners") owners_ = table<int32_t>(body, listed);
    if (name == "ends") ends_ = table<int32_t>(body, listed);
    if (name == "left") left_ = table<int32_t>(body, listed);
    if (name == "right") right_ = table<int32_t>(body, listed);
    if (name == "result") result_ = table<int32_t>(body, listed);
    if (name == "text") text_ = table<uint8_t>(body, listed);
  }
  const bool alike = hashes_.count == ends_.count && owners_.count == ends_.count && left_.count == result_.count && right_.count == result_.count;
  if (!ends_.count || ends_.count >= size_t(1) << 31 || !alike) throw JsonError("its tables do not fit each other");
}

template <typename T>
Vocabulary::Table<T> Vocabulary::table(std::string_view body, const Json& listed) const {
  const std::string type = listed.items()[1].string();
  const int64_t count = listed.items()[2].integer(), at = listed.items()[3].integer();
  const char* const expected = sizeof(T) == 8 ? "<u8" : sizeof(T) == 4 ? "<i4" : "|u1";
  if (type != expected || count < 0 || at < 0 || at % int64_t(sizeof(T)) || uint64_t(at) > body.size() ||
      uint64_t(count) > (body.size() - size_t(at)) / sizeof(T) || reinterpret_cast<uintptr_t>(body.data()) % sizeof(T))
    throw JsonError("a table lies outside the file");
  return {reinterpret_cast<const T*>(body.data() + at), size_t(count)};
}

std::string_view Vocabulary::token(int32_t id) const {
  if (id < 0 || id >= size()) return {};
  const int32_t start = id ? ends_[size_t(id) - 1] : 0, end = ends_[size_t(id)];
  if (start < 0 || end < start || size_t(end) > text_.count) return {};  // a file made by others
  return {reinterpret_cast<const char*>(text_.data) + start, size_t(end - start)};
}

int32_t Vocabulary::id(std::string_view text) const {
  const uint64_t hash = hash_of(text);
  const uint64_t* const end = hashes_.data + hashes_.count;
  for (const uint64_t* at = std::lower_bound(hashes_.data, end, hash); at < end && *at == hash; ++at) {
    const int32_t owner = owners_[size_t(at - hashes_.data)];
    if (token(owner) == text) return owner;
  }
  return kNone;
}

void Vocabulary::index() const {
  size_t size = 16;
  while (size < result_.count * 3 / 2) size *= 2;
  slots_.assign(size, kNone);
  for (size_t rank = 0; rank < result_.count; ++rank) {
    size_t at = pair_hash(left_[rank], right_[rank]) & (size - 1);
    while (slots_[at] != kNone) at = (at + 1) & (size - 1);
    slots_[at] = int32_t(rank);
  }
  file_.let_go();  // all merges were read; a text needs few
}

Vocabulary::Merge Vocabulary::merge(int32_t left, int32_t right) const {
  if (slots_.empty()) index();
  const size_t mask = slots_.size() - 1;
  Merge found{kNone, kNone};
  for (size_t at = pair_hash(left, right) & mask; slots_[at] != kNone; at = (at + 1) & mask) {
    const size_t rank = size_t(slots_[at]);
    // The last of several merges of a pair holds, as in a dictionary that is filled in order.
    if (left_[rank] == left && right_[rank] == right && result_[rank] >= 0 && result_[rank] < size()) found = {int32_t(rank), result_[rank]};
  }
  return found;
}

}  // namespace edgellm
