// The operators without ONNX Runtime or Python, for processors at hand only through an emulator: reads cases that
// tests/kernels/test_native.py wrote with the NumPy reference, runs them, compares. Prints "N passed, M failed" after
// the instruction set in use: the best of this processor, or the one that is asked for (exit code 3: it has none).
//
// A case: int64 header[16], then float/int64/uint8 arrays in the order read below. header[0]: 0 NMMatMul, 1 QuantGather,
// 2 PrunedKVAttention, 3 sample and uncertainty, 4 NMMatMulT.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/operators.h"
#include "kernels/cpu/sample.h"
#include "kernels/cpu/weights.h"
#include "tests/native/layer.h"
#include "tests/native/rows.h"

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

bool close(const std::vector<float>& got, const std::vector<float>& expected, double tolerance = 2e-3) {
  double error = 0, size = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    error = std::fmax(error, std::fabs(double(got[i]) - expected[i]));
    size = std::fmax(size, std::fabs(double(expected[i])));
    if (std::isnan(got[i])) return false;
  }
  return error <= tolerance * size;
}

// Whether every row gets the same bits alone, as when it is decoded, as among others. On x86 minima round another way
// in decoders than in tiles that are unpacked, save those of dense 4 bits.
bool alone_as_among(const edgellm::Format& f, edgellm::Activation activation, const std::vector<float>& x, int64_t rows,
                    const uint8_t* tiles, const std::vector<float>& y) {
#if defined(__x86_64__)
  if (f.minimum && (f.bits == 8 || f.sparse())) return true;
#endif
  const size_t width = y.size() / size_t(rows);
  std::vector<float> one(width);
  for (int64_t row = 0; row < rows; ++row) {
    edgellm::nm_matmul(f, activation, &x[size_t(row * f.k_in)], 1, tiles, {}, one.data(), kSerial);
    if (std::memcmp(one.data(), &y[size_t(row) * width], width * sizeof(float))) return false;
  }
  return true;
}

bool check_sample(const std::vector<int64_t>& h) {
  // size, seen, top_k and the token; then temperature, top_p, min_p, penalty, uniform and the three of Uncertainty
  const auto r = take<double>(8);
  const auto logits = take<float>(h[1]);
  const auto seen = take<int64_t>(h[2]);
  const edgellm::Sampling how{r[0], h[3], r[1], r[2], r[3]};
  const int64_t token = edgellm::sample(logits.data(), h[1], how, {seen.data(), h[2]}, r[4]);
  const auto found = edgellm::uncertainty(logits.data(), h[1]);
  const auto near = [](double got, double want) { return std::fabs(got - want) <= 1e-5 * (1 + std::fabs(want)); };
  if (token != h[4]) return false;
  if (token < 0) return std::isnan(found.entropy) && std::isnan(found.log_sum_exp) && std::isnan(found.top_probability);
  return near(found.entropy, r[5]) && near(found.log_sum_exp, r[6]) && near(found.top_probability, r[7]);
}

bool run(const std::vector<int64_t>& h) {
  const edgellm::Format f{h[1], h[2], h[3], h[4], h[5] != 0, h[6], h[7], h[8] != 0};
  if (h[0] == 0) {
    const int64_t rows = h[9], width = h[10] ? f.n_out / 2 : f.n_out;
    const auto x = take<float>(rows * f.k_in);
    const auto tiles = take<uint8_t>(int64_t(f.nbytes()));
    const auto expected = take<float>(rows * width);
    std::vector<float> y(expected.size());
    const auto activation = edgellm::Activation(h[10]);
    edgellm::nm_matmul(f, activation, x.data(), rows, tiles.data(), {}, y.data(), kSerial);
    return close(y, expected, 2e-4) && alone_as_among(f, activation, x, rows, tiles.data(), y);
  }
  if (h[0] == 1) {
    const auto ids = take<int64_t>(h[9]);
    const auto tiles = take<uint8_t>(int64_t(f.nbytes()));
    const auto expected = take<float>(h[9] * f.k_in);
    std::vector<float> y(expected.size());
    return edgellm::quant_gather(f, ids.data(), h[9], tiles.data(), y.data(), kSerial) && close(y, expected);
  }
  if (h[0] == 3) return check_sample(h);
  if (h[0] == 4) {
    const auto dy = take<float>(h[9] * f.n_out);
    const auto tiles = take<uint8_t>(int64_t(f.nbytes()));
    const auto expected = take<float>(h[9] * f.k_in);
    std::vector<float> dx(expected.size());
    edgellm::nm_matmul_t(f, dy.data(), h[9], tiles.data(), dx.data(), kSerial);
    return close(dx, expected, 1e-5);
  }
  // heads, kv_heads, head_dim, steps, capacity, half, window, softcap, planes, bits
  const edgellm::Attention a{h[1], h[2], h[3], 1 / std::sqrt(float(h[3])), h[7], float(h[8])};
  const int64_t steps = h[4], capacity = h[5], half = h[6], planes = h[9];
  edgellm::Control control;
  std::memcpy(&control, take<int64_t>(edgellm::kControl).data(), sizeof control);
  const auto qkv = take<float>(steps * (a.heads + 2 * a.kv_heads) * a.head_dim);
  const auto cos = take<float>(steps * half), sin = take<float>(steps * half);
  const auto positions = take<int64_t>(steps);
  const bool int8 = h[10] == 8;
  const int64_t bytes = a.kv_heads * capacity * (int8 ? a.head_dim + edgellm::kScaleBytes : 2 * a.head_dim);
  auto key = take<uint8_t>(bytes), value = take<uint8_t>(bytes);
  auto position = take<int32_t>(a.kv_heads * capacity);
  auto score = take<float>(a.kv_heads * capacity * planes);
  const auto expected = take<float>(steps * a.heads * a.head_dim);
  const auto positions_after = take<int32_t>(a.kv_heads * capacity);
  const auto score_after = take<float>(a.kv_heads * capacity * planes);
  std::vector<float> y(expected.size());
  const char* why = edgellm::pruned_kv_attention(
      a, control, {qkv.data(), cos.data(), sin.data(), half, positions.data(), steps},
      {key.data(), value.data(), position.data(), capacity, score.data(), planes, int8}, y.data(), kSerial);
  return !why && close(y, expected) && position == positions_after && close(score, score_after);
}

// What ranges read first lies side by side, from the first byte to the last, and begins where a part does.
bool ranges_meet() {
  for (const auto activation : {edgellm::Activation::kNone, edgellm::Activation::kSilu})
    for (const int64_t n_out : {32, 96, 992})
      for (const int64_t ranges : {1, 2, 3, 16}) {
        const edgellm::Format f{n_out, 128, 4, 64, false, 1, 1, false};
        const std::vector<uint8_t> tiles(f.nbytes());
        const edgellm::Weights w{f, tiles.data(), activation, {}};
        const int64_t parts = w.parts(1);
        const uint8_t* at = w.tiles;
        for (int64_t r = 0; r < ranges; ++r) {
          const edgellm::Soon soon = w.soon(1, r, ranges);
          if (soon.at != at || soon.at != w.unit(w.units() * (parts * r / ranges) / parts)) return false;
          at += soon.bytes;
        }
        if (at != tiles.data() + tiles.size()) return false;
      }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || !(file = std::fopen(argv[1], "rb"))) return std::puts("usage: check CASES [INSTRUCTION_SET]"), 2;
  if (argc > 2 && !edgellm::use(argv[2])) return std::printf("no %s here\n", argv[2]), 3;
  int passed = 0, failed = 0;
  const std::pair<const char*, bool> kernels[] = {
      {"scores", edgellm::scores_agree()}, {"mix", edgellm::mix_agrees()}, {"half", edgellm::halves_agree()},
      {"attention over halves and codes", edgellm::narrow_attend_alike()}, {"decoder layer", edgellm::layers_agree()},
      {"ranges", ranges_meet()}};
  for (const auto& [what, fine] : kernels) {
    if (!fine) std::printf("%s: another result than the portable path's, a row's alone, or what was promised\n", what);
    ++(fine ? passed : failed);
  }
  std::vector<int64_t> header(16);
  while (std::fread(header.data(), 8, 16, file) == 16) {
    const bool fine = run(header);
    if (!fine) std::printf("case %d (operator %d) differs\n", passed + failed, int(header[0]));
    ++(fine ? passed : failed);
  }
  std::printf("%s: %d passed, %d failed\n", edgellm::isa().name, passed, failed);
  return failed || !passed;
}
