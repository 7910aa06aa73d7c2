// Rows of the packed embedding, read from the mapped data file: what an engine is fed instead of token ids
// (runtime/embedding_rows.py).
#pragma once
#include <string>
#include <vector>

#include "kernels/engine/engine_facts.h"
#include "kernels/engine/mapped_file.h"

namespace edgellm {

class EmbeddingRows {
 public:
  // placed: the embedding in the bundle's data file. Throws Error for a file that cannot be mapped, or is too short.
  EmbeddingRows(const std::string& folder, const Placed& placed);
  // Rows of ids [T], each within the matrix: float32 [T, k_in], until the next call.
  const float* operator()(const int32_t* ids, int64_t count);

 private:
  Placed placed_;
  MappedFile weights_;
  std::vector<int64_t> ids_;
  std::vector<float> rows_;
};

}  // namespace edgellm
