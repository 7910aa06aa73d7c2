// edgellm.h's tokenizer without a model.
#include "kernels/engine/guard.h"
#include "kernels/engine/tokenizer.h"

using namespace edgellm;

struct edgellm_tokenizer {
  Tokenizer tokenizer;
  std::vector<int32_t> encoded = {};
  std::string decoded = {};
};

namespace {

template <typename Body>
edgellm_status with(const edgellm_tokenizer* tokenizer, bool arguments, Body body) {
  if (!tokenizer) return failed(EDGELLM_USAGE, "the tokenizer is null: edgellm_tokenizer_open makes one");
  if (!arguments) return failed(EDGELLM_USAGE, "an argument is null that must not be");
  return guard(body);
}

}  // namespace

edgellm_status edgellm_tokenizer_open(const char* bundle, int32_t vocabulary, edgellm_tokenizer** tokenizer) {
  if (!bundle || !tokenizer) return failed(EDGELLM_USAGE, "edgellm_tokenizer_open needs a bundle's folder and a place for the tokenizer");
  return guard([&] {
    auto opened = std::unique_ptr<edgellm_tokenizer>(new edgellm_tokenizer{Tokenizer(bundle, vocabulary, true)});
    opened->tokenizer.encode("");  // refuses what could not be read
    *tokenizer = opened.release();
  });
}

void edgellm_tokenizer_close(edgellm_tokenizer* tokenizer) { delete tokenizer; }

edgellm_status edgellm_tokenizer_encode(edgellm_tokenizer* t, const char* text, size_t bytes, const int32_t** ids, size_t* count) {
  return with(t, (text || !bytes) && ids && count, [&] {
    t->encoded = t->tokenizer.encode({text, bytes});
    *ids = t->encoded.data();
    *count = t->encoded.size();
  });
}

edgellm_status edgellm_tokenizer_decode(edgellm_tokenizer* t, const int32_t* ids, size_t count, int special, const char** text, size_t* bytes) {
  return with(t, (ids || !count) && text, [&] {
    t->decoded = t->tokenizer.decode(ids, count, special != 0);
    *text = t->decoded.c_str();
    if (bytes) *bytes = t->decoded.size();
  });
}

edgellm_status edgellm_tokenizer_token(edgellm_tokenizer* t, int32_t id, const char** text, size_t* bytes) {
  return with(t, text, [&] {
    t->decoded = t->tokenizer.token(id);
    *text = t->decoded.c_str();
    if (bytes) *bytes = t->decoded.size();
  });
}
