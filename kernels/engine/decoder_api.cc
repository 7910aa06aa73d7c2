// edgellm.h's decoder without a session.
#include <vector>

#include "kernels/engine/cores.h"
#include "kernels/engine/decoder.h"
#include "kernels/engine/guard.h"

using namespace edgellm;

struct edgellm_decoder {
  std::unique_ptr<Decoder> decoder;
  bool int8;
  std::vector<KVCache> caches = {};
};

edgellm_status edgellm_decoder_open(const char* bundle, const edgellm_shape* shape, int32_t threads, edgellm_decoder** decoder) {
  if (!bundle || !shape || !decoder) return failed(EDGELLM_USAGE, "an argument is null that must not be");
  return guard([&] {
    check_threads(threads);
    auto opened = Decoder::open(bundle, *shape, threads);
    *decoder = opened ? new edgellm_decoder{std::move(opened), shape->bits == 8} : nullptr;
  });
}

void edgellm_decoder_close(edgellm_decoder* decoder) { delete decoder; }

edgellm_status edgellm_decoder_run(edgellm_decoder* d, const int64_t* ids, const int64_t* positions, size_t steps, const int64_t* rows,
                                   size_t count, const int64_t* control, const edgellm_cache* caches, float* logits) {
  if (!d || !control || !caches || (steps && (!ids || !positions)) || (count && (!rows || !logits)))
    return failed(EDGELLM_USAGE, "an argument is null that must not be");
  return guard([&] {
    d->caches.clear();
    for (size_t i = 0; i < d->decoder->graph().layers.size(); ++i) {
      const edgellm_cache& c = caches[i];
      d->caches.push_back({c.key, c.value, c.position, c.capacity, c.score, c.planes, d->int8});
    }
    d->decoder->run({ids, positions, int64_t(steps), rows, int64_t(count), control, d->caches.data(), logits});
  });
}
