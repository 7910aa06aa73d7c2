// The operators without ONNX Runtime or Python, for processors at hand only through an emulator: reads cases that
// tests/kernels/test_native.py wrote with the NumPy reference, runs them, compares. Prints "N passed, M failed".
//
// A case: int64 header[16], then float/int64/uint8 arrays in the order read below. header[0]: 0 NMMatMul, 1 QuantGather,
// 2 PrunedKVAttention.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/operators.h"

namespace {

FILE* file;

template <typename T>
std::vector<T> take(int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  if (std::fread(values.data(), sizeof(T), values.size(), file) != values.size()) std::puts("cases file is cut");
  return values;
}

const edgellm::Pool kSerial{nullptr, [](void*, void (*task)(void*, size_t), size_t count, void* data) {
                              for (size_t i = 0; i < count; ++i) task(data, i);
                            }};

bool close(const std::vector<float>& got, const std::vector<float>& expected) {
  double error = 0, size = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    error = std::fmax(error, std::fabs(double(got[i]) - expected[i]));
    size = std::fmax(size, std::fabs(double(expected[i])));
    if (std::isnan(got[i])) return false;
  }
  return error <= 2e-3 * size;
}

// Whether every row by itself, which decodes, ends in the same bits as among others. Formats whose minima are rounded
// another way when unpacked may differ.
bool alone(const edgellm::Format& f, edgellm::Activation activation, const std::vector<float>& x, int64_t rows,
           const std::vector<uint8_t>& tiles, const std::vector<float>& y) {
  if (f.minimum && (f.bits == 8 || f.sparse())) return true;
  const size_t width = y.size() / size_t(rows), inputs = size_t(f.k_in);
  std::vector<float> one(width);
  for (size_t row = 0; row < size_t(rows); ++row) {
    edgellm::nm_matmul(f, activation, &x[row * inputs], 1, tiles.data(), {}, one.data(), kSerial);
    if (std::memcmp(one.data(), &y[row * width], width * sizeof(float))) return std::puts("one row alone:"), false;
  }
  return true;
}

bool run(const std::vector<int64_t>& h) {
  const edgellm::Format f{h[1], h[2], h[3], h[4], h[5] != 0, h[6], h[7], h[8] != 0};
  if (h[0] == 0) {
    const int64_t rows = h[9], width = h[10] ? f.n_out / 2 : f.n_out;
    const auto x = take<float>(rows * f.k_in);
    const auto tiles = take<uint8_t>(int64_t(f.nbytes()));
    const auto expected = take<float>(rows * width);
    std::vector<float> y(expected.size());
    edgellm::nm_matmul(f, edgellm::Activation(h[10]), x.data(), rows, tiles.data(), {}, y.data(), kSerial);
    return close(y, expected) && alone(f, edgellm::Activation(h[10]), x, rows, tiles, y);
  }
  if (h[0] == 1) {
    const auto ids = take<int64_t>(h[9]);
    const auto tiles = take<uint8_t>(int64_t(f.nbytes()));
    const auto expected = take<float>(h[9] * f.k_in);
    std::vector<float> y(expected.size());
    return edgellm::quant_gather(f, ids.data(), h[9], tiles.data(), y.data(), kSerial) && close(y, expected);
  }
  // heads, kv_heads, head_dim, steps, capacity, half, window, softcap, then control
  const edgellm::Attention a{h[1], h[2], h[3], 1 / std::sqrt(float(h[3])), h[7], float(h[8])};
  const int64_t steps = h[4], capacity = h[5], half = h[6];
  const auto q = take<float>(steps * a.heads * a.head_dim), k = take<float>(steps * a.kv_heads * a.head_dim);
  const auto v = take<float>(steps * a.kv_heads * a.head_dim);
  const auto cos = take<float>(steps * half), sin = take<float>(steps * half);
  const auto positions = take<int64_t>(steps);
  auto key = take<uint16_t>(a.kv_heads * capacity * a.head_dim), value = take<uint16_t>(a.kv_heads * capacity * a.head_dim);
  auto position = take<int32_t>(a.kv_heads * capacity);
  const auto expected = take<float>(steps * a.heads * a.head_dim);
  std::vector<float> y(expected.size());
  const char* why = edgellm::pruned_kv_attention(
      a, {h[9], h[10], h[11], h[12], h[13]}, q.data(), k.data(), v.data(), cos.data(), sin.data(), half,
      positions.data(), steps, {key.data(), value.data(), position.data(), capacity}, y.data(), kSerial);
  return !why && close(y, expected);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || !(file = std::fopen(argv[1], "rb"))) return std::puts("usage: check CASES [INSTRUCTION SET]"), 2;
  if (argc > 2 && !edgellm::use(argv[2])) return std::printf("this processor has no %s\n", argv[2]), 2;
  int passed = 0, failed = 0;
  std::vector<int64_t> header(16);
  while (std::fread(header.data(), 8, 16, file) == 16) {
    const bool fine = run(header);
    if (!fine) std::printf("case %d (operator %d) differs\n", passed + failed, int(header[0]));
    ++(fine ? passed : failed);
  }
  std::printf("%s: %d passed, %d failed\n", edgellm::isa().name, passed, failed);
  return failed || !passed;
}
