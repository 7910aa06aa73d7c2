#include "kernels/engine/embedding_rows.h"

#include "kernels/cpu/operators.h"
#include "kernels/engine/error.h"
#include "kernels/engine/manifest.h"

namespace edgellm {

EmbeddingRows::EmbeddingRows(const std::string& folder, const Placed& placed) : placed_(placed), weights_(folder, kWeights) {}

const float* EmbeddingRows::operator()(const int32_t* ids, int64_t count) {
  ids_.assign(ids, ids + count);
  rows_.resize(size_t(count * placed_.format.k_in));
  const auto* tiles = reinterpret_cast<const uint8_t*>(weights_.bytes().data()) + placed_.offset;
  if (!quant_gather(placed_.format, ids_.data(), count, tiles, rows_.data(), kCaller))
    throw usage_error("a token id is outside the embedding's " + std::to_string(placed_.format.n_out) + " rows");
  return rows_.data();
}

}  // namespace edgellm
