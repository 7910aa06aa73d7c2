// Protocol buffers' wire format, as far as ONNX files need it: fields of a message, one after the other.
// https://protobuf.dev/programming-guides/encoding
#pragma once
#include <cstdint>
#include <cstring>
#include <string_view>

#include "kernels/engine/error.h"

namespace edgellm {

// Reads the fields of one message; views into its bytes stay valid as long as these do. Throws bundle_error for bytes that
// are no message: every length is compared with what is left.
class Fields {
 public:
  explicit Fields(std::string_view message) : left_(message) {}

  // The next field, or false at the end. Then exactly one of `number` (varints and fixed ones) and `bytes` is its value.
  bool next() {
    if (left_.empty()) return false;
    const uint64_t tag = varint();
    field = int(tag >> 3), number = 0, bytes = {};
    switch (tag & 7) {
      case 0: number = varint(); break;
      case 1: number = fixed<uint64_t>(); break;
      case 2: bytes = take(varint()); break;
      case 5: number = fixed<uint32_t>(); break;
      default: throw damaged();
    }
    return true;
  }
  // What a repeated integer holds: one, or where it is packed, many. body(value) for each.
  template <typename Body>
  void integers(Body body) const {
    if (bytes.empty()) return body(int64_t(number));
    for (Fields packed(bytes); !packed.left_.empty();) body(int64_t(packed.varint()));
  }
  float real() const {
    const auto low = uint32_t(number);
    float value;
    std::memcpy(&value, &low, sizeof value);
    return value;
  }

  int field = 0;
  uint64_t number = 0;
  std::string_view bytes;

 private:
  std::string_view left_;

  static Error damaged() { return bundle_error("model.onnx is damaged: it is no ONNX file"); }
  std::string_view take(uint64_t count) {
    if (count > left_.size()) throw damaged();
    const std::string_view taken = left_.substr(0, size_t(count));
    left_.remove_prefix(size_t(count));
    return taken;
  }
  template <typename T>
  T fixed() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);  // little-endian, as every processor we build for
    return value;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = uint8_t(take(1)[0]);
      value |= uint64_t(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    throw damaged();
  }
};

}  // namespace edgellm
