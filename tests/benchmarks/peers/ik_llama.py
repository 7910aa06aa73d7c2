"""ik_llama.cpp, by its binding ik_llama_cpp. settings: "repack" (to interleaved rows, at load)."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.peers.llama import CHUNK, Llama
from tests.benchmarks.peers.protocol import serve


def load(model: str, threads: int, tokens: int, settings: dict[str, Any]) -> Llama:
    from ik_llama_cpp import _ctypes_api as api

    api.llama_backend_init()
    options = api.llama_model_default_params()
    options.n_gpu_layers = 0
    options.repack_tensors = bool(settings.get("repack"))
    options.use_mmap = not options.repack_tensors  # the mapped file cannot be rewritten
    weights = api.llama_model_load_from_file(model.encode(), options)
    if not weights:
        raise RuntimeError(f"ik_llama.cpp cannot load {model}")
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = -(-tokens // 256) * 256, CHUNK, CHUNK
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn = True
    context = api.llama_init_from_model(weights, params)
    if not context:
        raise RuntimeError("ik_llama.cpp made no context")
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(weights))
    return Llama(api, context, vocabulary, lambda: api.llama_kv_cache_clear(context))


if __name__ == "__main__":
    serve(load)
