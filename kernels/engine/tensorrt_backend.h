// A bundle's TensorRT engine behind Backend, once all that can be compared beforehand was: runtime/tensorrt_backend.py.
#pragma once
#include <memory>
#include <string>

#include "kernels/engine/backend.h"
#include "kernels/engine/manifest.h"

namespace edgellm {

// The policy that an engine has where none is asked for: a full cache of its size, or the bundle's where its plugins evict.
// Throws a usage Error for a bundle without an engine.
KVPolicy engines_policy(const Manifest& manifest);

// Opens a bundle's engine. Throws Error: EDGELLM_USAGE for a bundle exported without one, or a policy it cannot have;
// EDGELLM_BUNDLE for an engine that is not built, is damaged, or is another TensorRT's, GPU's or plugin's; EDGELLM_FAILED
// where TensorRT, libedgellm_runner.so or a GPU is missing.
std::unique_ptr<Backend> tensorrt_backend(const std::string& folder, const Manifest& manifest, const KVPolicy& policy,
                                          const CacheLayout& layout);

}  // namespace edgellm
