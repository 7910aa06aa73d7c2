/* edgellm's C API: a bundle (what `edgellm export` writes) generates text in any program, without Python.
 *
 * Link libedgellm.so. ONNX Runtime's libonnxruntime, or TensorRT, is loaded by edgellm_open where it is asked for. docs/cpp.md
 * shows how to build.
 *
 * Ownership. A session is made by edgellm_open and freed by edgellm_close; nothing else needs freeing. Pointers that a
 * function gives back (texts, logits) belong to the session and hold until the next call with it, if not said otherwise.
 * Arguments are read during the call only; a null session is a usage error.
 * Threads. A session is one sequence: calls with it must not overlap. Different sessions may run in different threads.
 * Errors. Functions return a status. Unless it is EDGELLM_OK, edgellm_message() says in this thread what happened and
 * what to do, and what the function was to give back is untouched. After a failed run the sequence is empty, and after a
 * usage error it is as it was. No C++ exception leaves the library.
 * Units. Texts are UTF-8, sizes in bytes, times in seconds, token ids int32_t from 0 to the vocabulary's size - 1. */
#ifndef EDGELLM_H
#define EDGELLM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGELLM_API __attribute__((visibility("default")))

typedef struct edgellm_session edgellm_session;

typedef enum {
  EDGELLM_OK = 0,
  EDGELLM_FAILED = 1,  /* of the machine: memory, a library that is missing or too old */
  EDGELLM_USAGE = 2,   /* a request that cannot be right whatever the machine */
  EDGELLM_BUNDLE = 3,  /* a bundle that is damaged, incomplete, or of another version */
  EDGELLM_CONTEXT = 4, /* more tokens than the model's context, or its cache, holds */
  EDGELLM_END = 5      /* edgellm_next: the text is over; not a failure, edgellm_progress has the reason */
} edgellm_status;

/* This library's version, "0.1.0". */
EDGELLM_API const char* edgellm_version(void);

/* What the last call of this thread that failed has to say: one or two lines, "" before any did. Until the next failure. */
EDGELLM_API const char* edgellm_message(void);

/* SHA-256 of some bytes, as a bundle's edgellm.json has it: 64 characters and a zero at `hex`. */
EDGELLM_API edgellm_status edgellm_sha256(const void* content, size_t bytes, char* hex);

/* ---- a session ---- */

/* All zero is fine but for `size`. */
typedef struct {
  size_t size;             /* sizeof(edgellm_options): newer fields of a newer library are then its defaults */
  const char* kv;          /* KV policy, as --kv has it: "full", "vatp:512", "window:1024,sinks=4"; null: the bundle's */
  int32_t threads;         /* 0: the physical cores this process may use */
  int32_t verify;          /* 1: hash the weights too, which reads all of them */
  const char* onnxruntime; /* path of libonnxruntime.so, where it is needed; null: see edgellm_open */
  const char* backend;     /* "cpu" (null is too), "onnxruntime", or "tensorrt": the bundle's engine, on a GPU. As --backend */
} edgellm_options;

/* Opens a bundle's folder, or its model.engine: the folder with the backend "tensorrt". options may be null.
 * This library runs a bundle's graph itself. With the backend "onnxruntime", and for graphs of separate operators, ONNX
 * Runtime does: libonnxruntime (1.23 or newer) is options->onnxruntime, else the variable EDGELLM_ONNXRUNTIME, else beside
 * libedgellm.so, else in the Python package onnxruntime beside edgellm's, else where the system's loader finds it. A
 * process loads it once: later sessions use the first one's.
 * An engine wants libedgellm_runner.so beside libedgellm.so, and TensorRT's libnvinfer.so.10 or libtensorrt_rtx.so.1: the
 * variable EDGELLM_TENSORRT, else the same places. docs/tensorrt.md; no engine has run on a GPU yet. `threads` and
 * `onnxruntime` mean nothing to it, and `kv` is then by default a full cache of the engine's size. */
EDGELLM_API edgellm_status edgellm_open(const char* bundle, const edgellm_options* options, edgellm_session** session);

/* Frees a session and its memory; null is fine. */
EDGELLM_API void edgellm_close(edgellm_session* session);

/* What a bundle and its session are. bos and eos are -1 where the model has none. */
typedef struct {
  const char* name;         /* the model's; until edgellm_close, as the others here */
  const char* architecture; /* "llama", … */
  const char* kv;           /* the policy in use, as --kv has it */
  const char* onnxruntime;  /* the library's file that was loaded: ONNX Runtime's, or TensorRT's; "" where none was */
  int32_t vocabulary;       /* ids there are: the length of a row of logits */
  int32_t context;          /* tokens the model was trained for */
  int32_t limit;            /* most tokens of prompt and continuation: the context, or less for a smaller full cache */
  int32_t bos, eos;
  size_t kv_bytes;          /* of the cache: reserved; pages are taken as they fill */
} edgellm_facts;

EDGELLM_API edgellm_status edgellm_describe(const edgellm_session* session, edgellm_facts* facts);

/* ---- text and ids ---- */

/* Ids of a text; with `begin` 1 after the model's beginning-of-sequence token, if it wants one. Special tokens written
 * out in the text ("<|im_start|>") are recognised. EDGELLM_USAGE for text that is not UTF-8, and for bundles whose kind of
 * tokenizer this library does not read: these take ids only. `ids` is the session's until its next edgellm_encode. */
EDGELLM_API edgellm_status edgellm_encode(edgellm_session* session, const char* text, size_t bytes, int begin,
                                          const int32_t** ids, size_t* count);

/* Text of ids, zero-terminated; special tokens are left out unless `special` is 1. `bytes` may be null. */
EDGELLM_API edgellm_status edgellm_decode(edgellm_session* session, const int32_t* ids, size_t count, int special,
                                          const char** text, size_t* bytes);

/* ---- a tokenizer without its model ---- */

/* Threads and ownership as a session's: calls with one tokenizer must not overlap. */
typedef struct edgellm_tokenizer edgellm_tokenizer;

/* Opens the tokenizer of a bundle's folder for a model of `vocabulary` ids. Only tokenizer.tables is read, and its hash is
 * not compared. EDGELLM_USAGE for bundles whose kind of tokenizer this library does not read. */
EDGELLM_API edgellm_status edgellm_tokenizer_open(const char* bundle, int32_t vocabulary, edgellm_tokenizer** tokenizer);
EDGELLM_API void edgellm_tokenizer_close(edgellm_tokenizer* tokenizer);

/* As edgellm_encode with `begin` 0, and edgellm_decode. */
EDGELLM_API edgellm_status edgellm_tokenizer_encode(edgellm_tokenizer* tokenizer, const char* text, size_t bytes,
                                                    const int32_t** ids, size_t* count);
EDGELLM_API edgellm_status edgellm_tokenizer_decode(edgellm_tokenizer* tokenizer, const int32_t* ids, size_t count,
                                                    int special, const char** text, size_t* bytes);

/* A token as the vocabulary writes it; "" for an id of none. */
EDGELLM_API edgellm_status edgellm_tokenizer_token(edgellm_tokenizer* tokenizer, int32_t id, const char** text, size_t* bytes);

/* ---- a decoder without its session ---- */

/* A bundle's graph, run by this library alone; for a caller that keeps the cache itself, as the Python runtime does. Threads
 * and ownership as a session's. */
typedef struct edgellm_decoder edgellm_decoder;

/* What the caller believes the graph to have. bits: of keys and values, 16 or 8. */
typedef struct {
  int64_t layers, kv_heads, head_dim, vocabulary, bits;
} edgellm_shape;

/* A layer's cache: key and value [kv_heads, capacity, head_dim] in float16, or int8 rows with a float32 scale behind each;
 * position [kv_heads, capacity], score [kv_heads, capacity, planes]. */
typedef struct {
  void *key, *value;
  int32_t* position;
  float* score;
  int64_t capacity, planes;
} edgellm_cache;

/* Opens a bundle's folder, whose manifest is not read. threads: 0 for the physical cores. *decoder is null where the graph is
 * of a kind that only ONNX Runtime runs. EDGELLM_BUNDLE for one that is damaged, or has another shape. */
EDGELLM_API edgellm_status edgellm_decoder_open(const char* bundle, const edgellm_shape* shape, int32_t threads,
                                                edgellm_decoder** decoder);
EDGELLM_API void edgellm_decoder_close(edgellm_decoder* decoder);

/* Runs ids [steps] at positions [steps]: logits [count, vocabulary] of the tokens that rows [count] name. control [layers,
 * fields] as kernels/control.py has it; caches [layers]. After a failure the caches hold nothing of use. */
EDGELLM_API edgellm_status edgellm_decoder_run(edgellm_decoder* decoder, const int64_t* ids, const int64_t* positions, size_t steps,
                                               const int64_t* rows, size_t count, const int64_t* control,
                                               const edgellm_cache* caches, float* logits);

/* ---- how tokens are chosen ---- */

/* As edgellm.runtime.sampling.Sampling: the same settings and seed give the tokens they give in Python. */
typedef struct {
  size_t size;               /* sizeof(edgellm_sampling) */
  double temperature;        /* 0 (greedy) to 100 */
  int64_t top_k;             /* 0: off */
  double top_p;              /* above 0 to 1: off. 0 is read as 1 */
  double min_p;              /* 0: off, to 1 */
  double repetition_penalty; /* 1: off. 0 is read as 1 */
  int64_t seed;              /* 0 or more; -1: another one each time */
} edgellm_sampling;

/* Of prompts from now on; null: greedy, as it is at first. */
EDGELLM_API edgellm_status edgellm_set_sampling(edgellm_session* session, const edgellm_sampling* sampling);

/* Ids that end a text, instead of the bundle's. */
EDGELLM_API edgellm_status edgellm_set_stops(edgellm_session* session, const int32_t* ids, size_t count);

/* ---- prompt, then generate ---- */

/* Begins a continuation of a text (edgellm_encode with `begin`) and runs it through the model. With `keep` 1, what the
 * cache holds of the same beginning is not run again: the next turn of a conversation costs its own tokens only. */
EDGELLM_API edgellm_status edgellm_prompt(edgellm_session* session, const char* text, size_t bytes, int keep);
EDGELLM_API edgellm_status edgellm_prompt_ids(edgellm_session* session, const int32_t* ids, size_t count, int keep);

/* Chooses the next token and gives its id and the text that it completed: "" in the middle of a character. Both may be
 * null. EDGELLM_END when the text is over, with what text was still held back. */
EDGELLM_API edgellm_status edgellm_next(edgellm_session* session, int32_t* id, const char** piece);

/* Called with each piece of text as it comes, zero-terminated and until it returns; 0 goes on, anything else stops. */
typedef int (*edgellm_callback)(const char* piece, size_t bytes, void* user);

/* edgellm_next until the text is over or has `most` tokens. callback may be null; it must not call the session. */
EDGELLM_API edgellm_status edgellm_stream(edgellm_session* session, int32_t most, edgellm_callback callback, void* user);

/* Logits [vocabulary] of what follows the prompt and the tokens so far. */
EDGELLM_API edgellm_status edgellm_logits(edgellm_session* session, const float** logits, size_t* count);

/* The text so far, without stop tokens; after edgellm_stream the whole continuation. */
EDGELLM_API edgellm_status edgellm_text(edgellm_session* session, const char** text, size_t* bytes);

/* Its ids, without stop tokens. */
EDGELLM_API edgellm_status edgellm_ids(edgellm_session* session, const int32_t** ids, size_t* count);

/* A continuation so far. The first token is part of prefill_s. */
typedef struct {
  int32_t prompt_tokens, reused_tokens; /* of the prompt; how many of them the cache already held */
  int32_t new_tokens;
  int32_t evictions;                    /* tokens that the cache holds no more: the mean over layers, rounded */
  double prefill_s, decode_s;
  const char* stop_reason;              /* "" while it goes on; "stop token", "length", "context" or "caller" */
} edgellm_state;

EDGELLM_API edgellm_status edgellm_progress(const edgellm_session* session, edgellm_state* state);

/* Forgets the sequence; the next prompt starts over whatever its `keep`. */
EDGELLM_API edgellm_status edgellm_reset(edgellm_session* session);

#ifdef __cplusplus
}
#endif
#endif
