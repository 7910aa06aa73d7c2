#include "kernels/engine/embedding_rows.h"

#include "kernels/engine/error.h"
#include "kernels/engine/manifest.h"

// In libedgellm_ort.so: quant_gather() of kernels/cpu/operators.h, on this thread.
extern "C" bool edgellm_gather(const edgellm::Format* format, const int64_t* ids, int64_t count, const uint8_t* tiles, float* rows);

namespace edgellm {

EmbeddingRows::EmbeddingRows(const std::string& folder, const Placed& placed) : placed_(placed), weights_(folder, kWeights) {}

const float* EmbeddingRows::operator()(const int32_t* ids, int64_t count) {
  ids_.assign(ids, ids + count);
  rows_.resize(size_t(count * placed_.format.k_in));
  const auto* tiles = reinterpret_cast<const uint8_t*>(weights_.bytes().data()) + placed_.offset;
  if (!edgellm_gather(&placed_.format, ids_.data(), count, tiles, rows_.data()))
    throw usage_error("a token id is outside the embedding's " + std::to_string(placed_.format.n_out) + " rows");
  return rows_.data();
}

}  // namespace edgellm
