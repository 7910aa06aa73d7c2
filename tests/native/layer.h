// A decoder block in one visit to the pool gives the bits that its operators give one by one, on any number of threads.
#pragma once
#include <atomic>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "kernels/cpu/decoder_layer.h"
#include "tests/native/rows.h"

namespace edgellm {

// A pool as ONNX Runtime's: whoever is free takes the next task.
template <int kThreads>
const Pool kThreaded{nullptr, [](void*, void (*task)(void*, size_t), size_t count, void* data) {
                       std::atomic<size_t> next{0};
                       auto work = [&] {
                         for (size_t i; (i = next++) < count;) task(data, i);
                       };
                       std::vector<std::thread> others;
                       for (int i = 1; i < kThreads; ++i) others.emplace_back(work);
                       work();
                       for (auto& other : others) other.join();
                     }};

inline std::vector<uint8_t> random_tiles(const Format& f) {
  static std::mt19937 random(1);
  std::vector<uint8_t> tiles(f.nbytes());
  for (auto& byte : tiles) byte = uint8_t(random());
  for (int64_t panel = 0; panel < f.panels(); ++panel)
    for (size_t at = size_t(panel) * f.panel_bytes(); at < size_t(panel + 1) * f.panel_bytes(); at += f.run_bytes())
      for (size_t i = 0; i < f.scale_bytes(); i += 2) {
        const uint16_t small = uint16_t(0x1800 + random() % 0x400);  // fp16 from 0.002
        std::memcpy(&tiles[at + i], &small, 2);
      }
  return tiles;
}

inline bool layers_agree() {
  const Attention a{6, 2, 32, 0.2f, 0, 0};
  const int64_t hidden = 128, inner = 192, budget = 600, capacity = 620, half = 16;
  const auto format = [](int64_t out, int64_t in) { return Format{out, in, 4, 64, false, 1, 1, false}; };
  const Format fq = format((6 + 2 * 2) * 32, hidden), fo = format(hidden, 6 * 32), fg = format(2 * inner, hidden),
               fd = format(hidden, inner);
  const auto q = random_tiles(fq), o = random_tiles(fo), gate_up = random_tiles(fg), down = random_tiles(fd);
  const auto norm = normals(hidden), other = normals(hidden);
  DecoderLayer layer;
  layer.attention = a;
  layer.activation = Activation::kSilu;
  layer.epsilon = 1e-5f;
  layer.q = {fq, q.data()}, layer.o = {fo, o.data()}, layer.gate_up = {fg, gate_up.data()}, layer.down = {fd, down.data()};
  layer.attention_norm = norm.data(), layer.mlp_norm = other.data();
  for (const int64_t steps : {1, 3, 7})
    for (const int64_t committed : {5, 570}) {
      const auto x = normals(int(steps * hidden)), cos = normals(int(steps * half)), sin = normals(int(steps * half));
      std::vector<int64_t> positions(static_cast<size_t>(steps), committed);
      std::vector<uint16_t> key(size_t(2 * capacity * 32), 0x3000), value(key.size(), 0x3400);
      std::vector<int32_t> at(size_t(2 * capacity));
      const std::vector<float> score(at.size());
      const Control control{committed, 1, budget, budget, 4, kScore, 20, steps, kMillion, 0, 0, kSum, 0};
      const auto run = [&](const Pool& pool, const int64_t* rows, int64_t count) {
        auto k = key, v = value;
        auto p = at;
        auto s = score;
        std::vector<float> y(size_t((rows ? count : steps) * hidden));
        const Tokens tokens{nullptr, cos.data(), sin.data(), half, positions.data(), steps};
        decoder_layer(layer, x.data(), control, tokens, {k.data(), v.data(), p.data(), capacity, s.data(), 1}, {rows, count}, y.data(), pool);
        return y;
      };
      const auto one_by_one = [&](const Pool& pool) {
        std::vector<float> qkv(size_t(steps * fq.n_out)), mixed(size_t(steps * fo.k_in)), y(size_t(steps * hidden));
        std::vector<float> gated(size_t(steps * inner)), attended(y.size());
        nm_matmul(fq, Activation::kNone, x.data(), steps, q.data(), {nullptr, nullptr, norm.data(), 1e-5f}, qkv.data(), pool);
        auto k = key, v = value;
        auto p = at;
        auto s = score;
        const Tokens tokens{qkv.data(), cos.data(), sin.data(), half, positions.data(), steps};
        pruned_kv_attention(a, control, tokens, {k.data(), v.data(), p.data(), capacity, s.data(), 1}, mixed.data(), pool);
        nm_matmul(fo, Activation::kNone, mixed.data(), steps, o.data(), {nullptr, x.data()}, attended.data(), pool);
        nm_matmul(fg, Activation::kSilu, attended.data(), steps, gate_up.data(), {nullptr, nullptr, other.data(), 1e-5f}, gated.data(), pool);
        nm_matmul(fd, Activation::kNone, gated.data(), steps, down.data(), {nullptr, attended.data()}, y.data(), pool);
        return y;
      };
      const auto expected = one_by_one(kThreaded<1>);
      const int64_t last = steps - 1;
      for (int round = 0; round < 5; ++round) {  // threads meet otherwise each time
        if (run(kThreaded<1>, nullptr, 0) != expected || run(kThreaded<3>, nullptr, 0) != expected) return false;
        if (one_by_one(kThreaded<3>) != expected) return false;
        if (!same(run(kThreaded<2>, &last, 1).data(), &expected[size_t(last * hidden)], int(hidden))) return false;
      }
    }
  return true;
}

}  // namespace edgellm
