// A decoder as export/graph.py writes it, read from model.onnx: its operators in order, with their weights in the mapped file.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cpu/decoder_layer.h"

namespace edgellm {

// cos and sin of position * frequency[half], times magnitude.
struct Rotation {
  std::vector<float> frequency;
  float magnitude = 1;
};

struct GraphLayer {
  DecoderLayer layer;
  size_t rotation;                                                          // of DecoderGraph's
  int64_t row;                                                              // of control
  const float *q_norm = nullptr, *k_norm = nullptr, *k_shift = nullptr;     // as Tokens has them
  bool wanted = false;                                                      // only the wanted rows go on from here
};

// logits = cap(head(norm(layers(scale * embedding[ids]))))
struct DecoderGraph {
  Matrix embedding, head;
  float scale = 1;
  std::vector<Rotation> rotations;
  std::vector<GraphLayer> layers;
  const float* norm = nullptr;
  float epsilon = 0;
  int64_t bits = 0;  // of the cache's keys and values: 16 or 8
  float cap = 0;  // logits become cap * tanh(logits / cap); 0: they stay

  int64_t hidden() const { return embedding.f.k_in; }
  int64_t vocabulary() const { return head.f.n_out; }
};

// content: of model.onnx. weights: of model.onnx.data, which must outlive the graph. None for a graph of another kind, which
// ONNX Runtime is to run: separate operators, LoRA's, or Optimum's. Throws Error (EDGELLM_BUNDLE) where a tensor lies outside
// of the weights or has another size than its operator wants.
std::optional<DecoderGraph> decoder_graph(std::string_view content, std::string_view weights);

}  // namespace edgellm
