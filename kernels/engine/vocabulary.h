// tokenizer.tables, mapped: tokens by id and by text, and merges by pair (runtime/vocabulary.py tells the file's layout).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/engine/json.h"
#include "kernels/engine/mapped_file.h"

namespace edgellm {

class Vocabulary {
 public:
  static constexpr int32_t kNone = -1;

  // Throws Error (EDGELLM_BUNDLE) for a file that is none of ours.
  explicit Vocabulary(const std::string& folder);

  // All but the tables: "rest" (tokenizer.json without vocabulary and merges) and "options" of the BPE. Points into the
  // mapped file; gone from here, since a tree of thousands of added tokens takes megabytes.
  Json take_facts() { return std::move(facts_); }
  // Tokens of the model, added ones outside it not counted.
  int32_t size() const { return int32_t(ends_.count); }
  std::string_view token(int32_t id) const;
  int32_t id(std::string_view token) const;  // kNone: no such token

  struct Merge {
    int32_t rank, result;
  };
  // What two neighbours become; rank kNone: nothing. Lower ranks come first.
  Merge merge(int32_t left, int32_t right) const;

 private:
  template <typename T>
  struct Table {
    const T* data = nullptr;
    size_t count = 0;
    T operator[](size_t i) const { return data[i]; }
  };
  template <typename T>
  Table<T> table(std::string_view body, const Json& listed) const;
  void read();
  void index() const;

  MappedFile file_;
  Json facts_;
  Table<uint64_t> hashes_;
  Table<int32_t> owners_, ends_, left_, right_, result_;
  Table<uint8_t> text_;
  mutable std::vector<int32_t> slots_;  // open addressing: ranks by hash of the pair, made for the first text
};

}  // namespace edgellm
