// edgellm.h over the session: every function guards against exceptions and keeps what it gives back alive.
#include <cstring>
#include <memory>
#include <optional>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "kernels/engine/cores.h"
#include "kernels/engine/engine_file.h"
#include "kernels/engine/error.h"
#include "kernels/engine/generation.h"
#include "kernels/engine/graph.h"
#include "kernels/engine/guard.h"
#include "kernels/engine/native_backend.h"
#include "kernels/engine/sha256.h"
#include "kernels/engine/tensorrt_backend.h"
#include "kernels/engine/utf8.h"

using namespace edgellm;

namespace {

// What edgellm_open was given: a bundle's folder, and what is to run it.
struct Place {
  std::string folder;
  enum Runs { kCpu, kOnnxRuntime, kTensorRt } runs;
};

Place place_of(const std::string& path, const char* backend) {
  if (const std::string folder = bundle_of_engine(path); !folder.empty()) return {folder, Place::kTensorRt};
  const std::string named = backend ? backend : "cpu";
  if (named == "cpu") return {path, Place::kCpu};
  if (named == "onnxruntime") return {path, Place::kOnnxRuntime};
  if (named == "tensorrt") return {path, Place::kTensorRt};
  throw usage_error("backend \"" + named + "\" is unknown; expected \"cpu\", \"onnxruntime\" or \"tensorrt\"");
}

}  // namespace

struct edgellm_session {
  edgellm_session(const Place& place, const edgellm_options& options)
      : manifest(read_manifest(place.folder, options.verify != 0)),
        policy(options.kv ? KVPolicy::parse(options.kv, manifest.context) : place.runs == Place::kTensorRt ? engines_policy(manifest) : manifest.kv),
        policy_text(policy.text()),
        tokenizer(place.folder, manifest.vocabulary, manifest.tables),
        sequence(backend(place, options), manifest, policy),
        stops(manifest.stops.begin(), manifest.stops.end()) {}

  std::unique_ptr<Backend> backend(const Place& place, const edgellm_options& options) const {
    const CacheLayout layout = layout_of(manifest, policy);
    if (place.runs == Place::kTensorRt) return tensorrt_backend(place.folder, manifest, policy, layout);
    if (place.runs == Place::kCpu)
      if (auto decoder = Decoder::open(place.folder, shape_of(manifest), options.threads))
        return std::make_unique<NativeBackend>(std::move(decoder), layout);
    const OnnxRuntime& runtime = onnxruntime(options.onnxruntime ? options.onnxruntime : "");
    return std::make_unique<Graph>(runtime, place.folder, layout, manifest, options.threads);
  }

  std::vector<int32_t> prompt_of(std::string_view text, bool begin) const {
    std::vector<int32_t> ids = tokenizer.encode(text);
    const int32_t bos = int32_t(manifest.bos);
    if (begin && manifest.add_bos && bos >= 0 && (ids.empty() || ids[0] != bos)) ids.insert(ids.begin(), bos);
    return ids;
  }
  void prompt(std::vector<int32_t> ids, bool keep) {
    if (ids.empty() && manifest.bos >= 0) ids.push_back(int32_t(manifest.bos));
    sequence.check(ids.data(), ids.size(), 0);
    generation.reset();
    generation.emplace(sequence, tokenizer, choice, stops, std::move(ids), keep);
  }
  Generation& current() {
    if (!generation) throw usage_error("nothing was prompted", "Call edgellm_prompt or edgellm_prompt_ids first.");
    return *generation;
  }
  // Of a call that runs the model: after a failure the sequence is empty, and nothing goes on from it.
  bool next(int32_t& id) {
    try {
      return current().next(id, piece);
    } catch (...) {
      if (sequence.tokens().empty()) generation.reset();
      throw;
    }
  }

  Manifest manifest;
  KVPolicy policy;
  std::string policy_text;
  Tokenizer tokenizer;
  Sequence sequence;
  std::set<int32_t> stops;
  Choice choice;
  std::optional<Generation> generation;
  std::vector<int32_t> encoded;
  std::string decoded, piece;
};

namespace {

// The same for calls with a session and arguments that must be there.
template <typename Body>
edgellm_status with(const edgellm_session* session, bool arguments, Body body) {
  if (!session) return failed(EDGELLM_USAGE, "the session is null: edgellm_open makes one");
  if (!arguments) return failed(EDGELLM_USAGE, "an argument is null that must not be");
  return guard(body);
}

// A caller's struct, whose size says which fields it has.
template <typename T>
T read_sized(const T* given) {
  if (given->size < sizeof(size_t)) throw usage_error("a struct's `size` is not set", "Set it to sizeof the struct.");
  T own{};
  std::memcpy(&own, given, std::min(given->size, sizeof(T)));
  return own;
}

}  // namespace

const char* edgellm_version(void) { return EDGELLM_VERSION; }

edgellm_status edgellm_sha256(const void* content, size_t bytes, char* hex) {
  if ((!content && bytes) || !hex) return failed(EDGELLM_USAGE, "an argument is null that must not be");
  return guard([&] { std::strcpy(hex, sha256({static_cast<const char*>(content), bytes}).c_str()); });
}

edgellm_status edgellm_open(const char* bundle, const edgellm_options* given, edgellm_session** session) {
  if (!bundle || !session) return failed(EDGELLM_USAGE, "edgellm_open needs a bundle's folder and a place for the session");
  return guard([&] {
    const edgellm_options options = given ? read_sized(given) : edgellm_options{};
    check_threads(options.threads);
    auto opened = std::make_unique<edgellm_session>(place_of(bundle, options.backend), options);
#ifdef __GLIBC__
    malloc_trim(0);  // reading the graph and the tokenizer leaves megabytes behind
#endif
    *session = opened.release();
  });
}

void edgellm_close(edgellm_session* session) { delete session; }

edgellm_status edgellm_describe(const edgellm_session* s, edgellm_facts* facts) {
  return with(s, facts, [&] {
    const Manifest& m = s->manifest;
    *facts = {m.name.c_str(), m.architecture.c_str(), s->policy_text.c_str(), s->sequence.library().c_str(), int32_t(m.vocabulary),
              int32_t(m.context), int32_t(s->sequence.limit()), int32_t(m.bos), int32_t(m.eos), s->sequence.kv_bytes()};
  });
}

edgellm_status edgellm_encode(edgellm_session* s, const char* text, size_t bytes, int begin, const int32_t** ids, size_t* count) {
  return with(s, (text || !bytes) && ids && count, [&] {
    s->encoded = s->prompt_of({text, bytes}, begin != 0);
    *ids = s->encoded.data();
    *count = s->encoded.size();
  });
}

edgellm_status edgellm_decode(edgellm_session* s, const int32_t* ids, size_t count, int special, const char** text, size_t* bytes) {
  return with(s, (ids || !count) && text, [&] {
    s->decoded = s->tokenizer.decode(ids, count, special != 0);
    *text = s->decoded.c_str();
    if (bytes) *bytes = s->decoded.size();
  });
}

edgellm_status edgellm_set_sampling(edgellm_session* s, const edgellm_sampling* sampling) {
  return with(s, true, [&] { s->choice = sampling ? choice_of(read_sized(sampling)) : Choice{}; });
}

edgellm_status edgellm_set_stops(edgellm_session* s, const int32_t* ids, size_t count) {
  return with(s, ids || !count, [&] { s->stops = std::set<int32_t>(ids, ids + count); });
}

edgellm_status edgellm_prompt(edgellm_session* s, const char* text, size_t bytes, int keep) {
  return with(s, text || !bytes, [&] { s->prompt(s->prompt_of({text, bytes}, true), keep != 0); });
}

edgellm_status edgellm_prompt_ids(edgellm_session* s, const int32_t* ids, size_t count, int keep) {
  return with(s, ids || !count, [&] { s->prompt(std::vector<int32_t>(ids, ids + count), keep != 0); });
}

edgellm_status edgellm_next(edgellm_session* s, int32_t* id, const char** piece) {
  bool more = false;
  const edgellm_status status = with(s, true, [&] {
    int32_t found = 0;
    more = s->next(found);
    if (id && more) *id = found;
    if (piece) *piece = s->piece.c_str();
  });
  return status == EDGELLM_OK && !more ? EDGELLM_END : status;
}

edgellm_status edgellm_stream(edgellm_session* s, int32_t most, edgellm_callback callback, void* user) {
  return with(s, true, [&] {
    if (most < 1) throw usage_error("most is " + std::to_string(most) + "; expected 1 or more");
    const auto tell = [&] { return !s->piece.empty() && callback && callback(s->piece.c_str(), s->piece.size(), user) != 0; };
    bool more = !*s->current().stop_reason();
    while (more) {
      const bool full = int64_t(s->current().ids().size()) >= most;
      int32_t id = 0;
      if (full) s->piece = s->current().finish("length");
      more = !full && s->next(id);
      if (tell() && more) s->current().finish("caller"), more = false;
    }
  });
}

edgellm_status edgellm_logits(edgellm_session* s, const float** logits, size_t* count) {
  return with(s, logits && count, [&] {
    *logits = s->current().logits();
    *count = size_t(s->manifest.vocabulary);
  });
}

edgellm_status edgellm_text(edgellm_session* s, const char** text, size_t* bytes) {
  return with(s, text, [&] {
    *text = s->current().text().c_str();
    if (bytes) *bytes = s->current().text().size();
  });
}

edgellm_status edgellm_ids(edgellm_session* s, const int32_t** ids, size_t* count) {
  return with(s, ids && count, [&] {
    *ids = s->current().ids().data();
    *count = s->current().ids().size();
  });
}

edgellm_status edgellm_progress(const edgellm_session* s, edgellm_state* state) {
  return with(s, state, [&] {
    *state = {0, int32_t(s->sequence.reused()), 0, int32_t(s->sequence.evicted()), 0, 0, ""};
    if (const auto& g = s->generation) {
      state->prompt_tokens = int32_t(g->prompt_tokens()), state->new_tokens = int32_t(g->ids().size());
      state->prefill_s = g->prefill_s, state->decode_s = g->decode_s, state->stop_reason = g->stop_reason();
    }
  });
}

edgellm_status edgellm_reset(edgellm_session* s) {
  return with(s, true, [&] {
    s->generation.reset();
    s->sequence.reset();
  });
}
