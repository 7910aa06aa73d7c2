// Continues a prompt with a bundle, printing the text as it comes: hello BUNDLE [PROMPT [MOST_TOKENS]]
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "edgellm.h"

static int failed(edgellm_session* session) {
  std::fprintf(stderr, "%s\n", edgellm_message());
  edgellm_close(session);
  return 1;
}

static int print(const char* piece, size_t bytes, void*) {
  std::fwrite(piece, 1, bytes, stdout);
  return std::fflush(stdout);  // 0, and the text goes on
}

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: hello BUNDLE [PROMPT [MOST_TOKENS]]\n");
    return 2;
  }
  const char* prompt = argc > 2 ? argv[2] : "Once upon a time";
  const int most = argc > 3 ? std::atoi(argv[3]) : 64;

  edgellm_session* session = nullptr;
  if (edgellm_open(argv[1], nullptr, &session)) return failed(session);
  if (edgellm_prompt(session, prompt, std::strlen(prompt), 0)) return failed(session);
  if (edgellm_stream(session, most, print, nullptr)) return failed(session);

  edgellm_state state;
  edgellm_progress(session, &state);
  std::fprintf(stderr, "\n[%d prompt tokens in %.2f s, %d new in %.2f s, stopped: %s]\n", state.prompt_tokens, state.prefill_s,
               state.new_tokens, state.decode_s, state.stop_reason);
  edgellm_close(session);
  return 0;
}
