#include "kernels/cpu/score.h"

namespace edgellm {

Votes::Votes(const Control& control, const int64_t* positions, int64_t group)
    : c_(control),
      positions_(positions),
      share_(control.heads == kMean ? 1 / float(group) : 1),
      stays_(double(control.forget) / kMillion),
      open_(control.queries && control.counted ? window(positions[control.counted - 1] + 1) : 0) {}

std::optional<Votes> Votes::of(const Control& control, const int64_t* positions, int64_t group) {
  if (control.policy != kScore || !control.counted) return std::nullopt;
  return Votes(control, positions, group);
}

bool Votes::any(int64_t first, int64_t tokens) const {
  for (int64_t t = first; t < first + tokens; ++t)
    if (weight(t) > 0) return true;
  return false;
}

float Votes::weight(int64_t t) const {
  if (t >= c_.counted || (c_.queries && window(positions_[t]) < open_ - 1)) return 0;
  return c_.forget == kMillion ? 1 : float(std::pow(stays_, double(c_.counted - 1 - t)));
}

void Votes::settle(const KVCache& cache, const Seen& seen, int64_t head, const float* sums) const {
  const float stays = float(std::pow(stays_, double(c_.counted)));
  const int64_t slots = seen.slots(), ended = c_.queries ? open_ - window(positions_[0]) : 0;
  for (int64_t i = 0; i < slots; ++i) {
    float* score = cache.scores(head, seen.slot(i));
    const float before = stays * score[kAttention];
    if (c_.queries) {
      const float older = ended == 0 ? stays * score[kOlder] : ended == 1 ? before : 0;
      score[kOlder] = older + sums[slots + i];
    }
    score[kAttention] = (ended == 0 ? before : 0) + sums[i];
  }
}

void Votes::settle(const KVCache& cache, const Seen& seen, int64_t head, std::vector<float>* sums, int64_t tasks) const {
  std::vector<float> all(size_t(this->sums() * seen.slots()), 0);
  for (int64_t i = 0; i < tasks; ++i)
    for (size_t j = 0; j < sums[i].size(); ++j) all[j] += sums[i][j];
  settle(cache, seen, head, all.data());
}

void Paid::add(const Votes& votes, int64_t first, int64_t width, const Partial& whole, float* sums, int64_t stride) {
  const auto share = [&](const Piece& piece) {
    return std::exp(piece.most - whole.most[size_t(piece.row)]) / whole.total[size_t(piece.row)];
  };
  if (votes.max())  // heads that pay less than another of their token do not count
    for (const Piece& piece : pieces_) {
      const float by = share(piece);
      float *paid = at(piece.row, piece.from), *token = at(piece.row / width * width, piece.from);
      for (int64_t j = 0; j < piece.n; ++j) {
        paid[j] *= by;
        if (paid != token) token[j] = std::max(token[j], paid[j]), paid[j] = 0;
      }
    }
  for (const Piece& piece : pieces_) {
    const int64_t t = first + piece.row / width;
    float by = votes.weight(t) * votes.share();
    if (by == 0 || (votes.max() && piece.row % width)) continue;
    if (!votes.max()) by *= share(piece);
    const float* paid = at(piece.row, piece.from);
    float* to = sums + votes.sum(t) * stride + piece.from;
    for (int64_t j = 0; j < piece.n; ++j) to[j] += by * paid[j];
  }
}

}  // namespace edgellm
