// Runs a decoder's graph by its operators alone: what ONNX Runtime does for it, without ONNX Runtime.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "kernels/engine/decoder_graph.h"
#include "kernels/engine/mapped_file.h"
#include "kernels/engine/threads.h"
#include "kernels/include/edgellm.h"

namespace edgellm {

// One run: ids [steps] at positions [steps] -> logits [count, vocabulary] of rows [count]. control [layers, kControl];
// caches [layers].
struct DecoderRun {
  const int64_t *ids, *positions;
  int64_t steps;
  const int64_t* rows;
  int64_t count;
  const int64_t* control;
  const KVCache* caches;
  float* logits;
};

class Decoder {
 public:
  // Of a bundle's folder. threads: 0 takes the physical cores. None where the graph is of another kind. Throws Error where it
  // is damaged, or not of this shape.
  static std::unique_ptr<Decoder> open(const std::string& folder, const edgellm_shape& shape, int threads);

  // Throws Error (EDGELLM_BUNDLE), after which the caches hold nothing of use.
  void run(const DecoderRun& run);
  const DecoderGraph& graph() const { return graph_; }

 private:
  struct Waves {
    std::vector<float> cos, sin;  // [steps, half]
  };

  Decoder(MappedFile&& weights, int threads) : weights_(std::move(weights)), threads_(threads) {}
  void turn(const DecoderRun& run);
  void cap(float* logits, int64_t count);

  MappedFile weights_;
  DecoderGraph graph_;  // over weights_
  Threads threads_;
  std::vector<Waves> waves_;   // by rotation
  std::vector<float> x_, y_;   // [steps, hidden]
};

}  // namespace edgellm
