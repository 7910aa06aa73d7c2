// DecoderLayer:  a = x + [post] o( attend( qkv( norm(x) ) ) ),  y = a + [post] down( act(gate) * up ( norm(a) ) )
//
// A token's products are short: waking the pool for each and returning through ONNX Runtime cost SmolLM2 6 to 9 % of its
// decoding speed (AVX2, two threads). Here few rows pass through all of them in one visit to the pool (phases.h); many rows go product by
// product. Each does what NMMatMul and PrunedKVAttention do, to the same bits.
#include "kernels/cpu/decoder_layer.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/few_queries.h"
#include "kernels/cpu/phases.h"
#include "kernels/cpu/product.h"

namespace edgellm {
namespace {

enum Stage { kQ, kK, kV, kAttend, kO, kGateUp, kDown, kEnd, kStages };
static_assert(kStages <= kMostPhases);

// Buffers between the products; they grow to the largest chunk once, then stay.
struct Room {
  std::vector<float> qkv, mixed, out, attended, gated, wanted;
  Product product;
  FewQueries queries;
};

// y = x + rms_norm(out) * norm, row by row.
void add_normed(const float* x, const float* out, const float* norm, float epsilon, int64_t rows, int64_t width, float* y) {
  for (int64_t row = 0; row < rows; ++row, x += width, out += width, y += width) {
    rms_norm(out, norm, epsilon, width, y);
    for (int64_t i = 0; i < width; ++i) y[i] += x[i];
  }
}

class Run {
 public:
  Run(const DecoderLayer& layer, const float* x, const Control& control, const Tokens& tokens, const KVCache& cache,
      const Wanted& wanted, float* y, Room& room, const Pool& pool)
      : l_(layer), x_(x), control_(control), tokens_(tokens), cache_(cache), wanted_(wanted), y_(y), room_(room),
        pool_(pool), steps_(tokens.steps), rows_(tokens.steps), hidden_(layer.q.f.k_in) {
    const Attention& a = layer.attention;
    const int64_t left = wanted.rows ? wanted.count : steps_;
    room.qkv.resize(size_t(steps_ * (a.heads + 2 * a.kv_heads) * a.head_dim));
    room.mixed.resize(size_t(steps_ * a.heads * a.head_dim));
    room.attended.resize(size_t(left * hidden_));
    room.gated.resize(size_t(left * layer.down.f.k_in));
    if (layer.post_attention_norm) room.out.resize(room.attended.size());
    tokens_.qkv = room.qkv.data();
    mixed_ = room.mixed.data();
  }

  const char* problem() const { return problem_; }

  int64_t begin(int stage) {
    const int64_t kv = l_.attention.kv_heads * l_.attention.head_dim, all = l_.attention.heads * l_.attention.head_dim;
    float *qkv = room_.qkv.data(), *attended = room_.attended.data();
    if (problem_) return 0;
    switch (stage) {
      case kQ:
        if (few()) prefetch_slots(l_.attention, control_, cache_);
        return product(l_.q, l_.attention_norm, x_, qkv, all + 2 * kv);
      case kK: return product(l_.k, l_.attention_norm, x_, qkv + all, all + 2 * kv);
      case kV: return product(l_.v, l_.attention_norm, x_, qkv + all + kv, all + 2 * kv);
      case kAttend: return attention();
      case kO:
        if (few()) room_.queries.end(room_.mixed.data());
        if (wanted_.rows) keep_wanted();
        return closing(l_.o, l_.post_attention_norm, mixed_, x_, attended);
      case kGateUp:
        if (l_.post_attention_norm)
          add_normed(x_, room_.out.data(), l_.post_attention_norm, l_.epsilon, rows_, hidden_, attended);
        return product(l_.gate_up, l_.mlp_norm, attended, room_.gated.data(), l_.down.f.k_in, l_.activation);
      case kDown: return closing(l_.down, l_.post_mlp_norm, room_.gated.data(), attended, y_);
      default:
        if (l_.post_mlp_norm) add_normed(attended, room_.out.data(), l_.post_mlp_norm, l_.epsilon, rows_, hidden_, y_);
        return 0;
    }
  }

  void part(int stage, int64_t i) {
    if (stage == kAttend) return room_.queries.part(i);
    room_.product.part(i);
  }

  // Behind the last stage: the next layer, if it follows in the file and is like this one.
  Soon soon(int stage, int64_t range, int64_t ranges) const {
    switch (stage) {
      case kQ: return weights(l_.k.tiles ? l_.k : l_.o).soon(steps_, range, ranges);
      case kK: return weights(l_.v).soon(steps_, range, ranges);
      case kV: case kAttend: return weights(l_.o).soon(steps_, range, ranges);
      case kO: return weights(l_.gate_up, l_.activation).soon(steps_, range, ranges);
      case kGateUp: return weights(l_.down).soon(steps_, range, ranges);
      default: return Weights{l_.q.f, weights(l_.down).behind()}.soon(steps_, range, ranges);
    }
  }

  bool few() const { return steps_ <= kFewRows; }

 private:
  const DecoderLayer& l_;
  const float* x_;
  const Control& control_;
  Tokens tokens_;
  const KVCache& cache_;
  const Wanted& wanted_;
  const float* mixed_;
  float* y_;
  Room& room_;
  const Pool& pool_;
  int64_t steps_, rows_, hidden_;  // rows: those that are left
  Seen seen_{};
  const char* problem_ = nullptr;

  static Weights weights(const Matrix& w, Activation activation = Activation::kNone) { return {w.f, w.tiles, activation, {}}; }

  int64_t product(const Matrix& w, const float* norm, const float* x, float* y, int64_t stride,
                  Activation activation = Activation::kNone, const float* residual = nullptr) {
    if (!w.tiles) return 0;
    Weights all = weights(w, activation);
    all.fused = {w.bias, residual, norm, l_.epsilon};
    return room_.product.begin(all, x, rows_, y, stride, pool_);
  }

  // What ends attention or MLP: added to x at once, or normed first when the next stage begins.
  int64_t closing(const Matrix& w, const float* post, const float* from, const float* x, float* y) {
    return post ? product(w, nullptr, from, room_.out.data(), hidden_)
                : product(w, nullptr, from, y, hidden_, Activation::kNone, x);
  }

  // From here on nothing but the rows whose y is wanted, of what attention gave and of x.
  void keep_wanted() {
    const int64_t wide = l_.o.f.k_in;
    room_.wanted.resize(size_t(wanted_.count * (wide + hidden_)));
    float *mixed = room_.wanted.data(), *x = mixed + wanted_.count * wide;
    for (int64_t i = 0; i < wanted_.count; ++i) {
      std::copy_n(&room_.mixed[size_t(wanted_.rows[i] * wide)], wide, mixed + i * wide);
      std::copy_n(x_ + wanted_.rows[i] * hidden_, hidden_, x + i * hidden_);
    }
    mixed_ = mixed, x_ = x, rows_ = wanted_.count;
  }

  int64_t attention() {
    problem_ = commit_and_stage(l_.attention, control_, tokens_, cache_, seen_, pool_);
    if (problem_) return 0;
    if (few()) return room_.queries.begin(l_.attention, control_, cache_, seen_, tokens_);
    attend(l_.attention, control_, cache_, seen_, tokens_, room_.mixed.data(), pool_);
    return 0;
  }
};

}  // namespace

const char* decoder_layer(const DecoderLayer& layer, const float* x, const Control& control, const Tokens& tokens,
                          const KVCache& cache, const Wanted& wanted, float* y, const Pool& pool) {
  static thread_local Room room;
  if (tokens.steps <= kFewRows) {  // a thread of the pool that begins a phase has no pool of its own
    Run run(layer, x, control, tokens, cache, wanted, y, room, kCaller);
    in_phases(pool, kStages, run);
    return run.problem();
  }
  Run run(layer, x, control, tokens, cache, wanted, y, room, pool);
  for (int stage = 0; stage < kStages; ++stage) {
    auto part = [&](size_t i) { run.part(stage, int64_t(i)); };
    parallel(pool, size_t(run.begin(stage)), part);
  }
  return run.problem();
}

}  // namespace edgellm
