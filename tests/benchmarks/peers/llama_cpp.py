"""llama.cpp, by its binding llama-cpp-python. Flash attention is its own choice ("auto")."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.peers.llama import CHUNK, Llama
from tests.benchmarks.peers.protocol import serve


def load(model: str, threads: int, tokens: int, settings: dict[str, Any]) -> Llama:
    from llama_cpp import llama_cpp as api

    api.llama_backend_init()
    options = api.llama_model_default_params()
    options.n_gpu_layers = 0
    weights = api.llama_model_load_from_file(model.encode(), options)
    if not weights:
        raise RuntimeError(f"llama.cpp cannot load {model}")
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = -(-tokens // 256) * 256, CHUNK, CHUNK
    params.n_threads = params.n_threads_batch = threads
    context = api.llama_init_from_model(weights, params)
    if not context:
        raise RuntimeError("llama.cpp made no context")
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(weights))
    memory = api.llama_get_memory(context)
    return Llama(api, context, vocabulary, lambda: api.llama_memory_clear(memory, True))


if __name__ == "__main__":
    serve(load)
