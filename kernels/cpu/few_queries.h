// Attention of few queries, as in decoding, in parts that any threads may take in any order.
#pragma once
#include <optional>
#include <vector>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/partial.h"
#include "kernels/cpu/score.h"

namespace edgellm {

// What attend does; a part is a segment of the cache and some heads.
class FewQueries {
 public:
  // How many parts there are. All but y must stay until `end`.
  int64_t begin(const Attention& a, const Control& control, const KVCache& cache, const Seen& seen, const Tokens& tokens);
  void part(int64_t i);
  void end(float* y);  // once all are done

 private:
  const Attention* a_ = nullptr;
  const KVCache* cache_ = nullptr;
  const Seen* seen_ = nullptr;
  const Tokens* tokens_ = nullptr;
  int64_t segments_ = 0, shares_ = 1;
  std::vector<float> q_;  // [share of the heads][steps][heads of the share][head_dim], rotated and scaled
  std::vector<Partial> sums_;
  std::optional<Votes> votes_;
  std::vector<Paid> paid_;  // by part
  std::vector<float> head_;  // votes of one KV head
};

}  // namespace edgellm
