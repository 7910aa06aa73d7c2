// From a row of logits to the next token, and how sure the row is. Meaning: kernels/sample_reference.py.
#pragma once
#include <cstdint>

namespace edgellm {

// temperature 0: greedy. top_k 0, top_p 1, min_p 0 and penalty 1 are off.
struct Sampling {
  double temperature;
  int64_t top_k;
  double top_p, min_p, penalty;
};

// Ids that the repetition penalty applies to, ascending, each once; those outside the vocabulary are passed over.
struct Seen {
  const int64_t* ids;
  int64_t count;
};

// The id drawn at `uniform` in [0, 1), which greedy decoding ignores; -1 when a logit is NaN or +inf, or all are -inf.
int64_t sample(const float* logits, int64_t size, const Sampling& how, Seen seen, double uniform);

// Of softmax(logits): entropy in nats, ln of the sum of exponentials, the likeliest token's probability. All are NaN
// where sample gives -1.
struct Uncertainty {
  double entropy, log_sum_exp, top_probability;
};
Uncertainty uncertainty(const float* logits, int64_t size);

}  // namespace edgellm
