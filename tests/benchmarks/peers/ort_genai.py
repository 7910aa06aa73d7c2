"""ONNX Runtime GenAI, over a folder its builder made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.protocol import serve, surprise


class OrtGenai:
    def __init__(self, api: Any, model: Any, tokens: int) -> None:
        self._api, self._model, self._tokens = api, model, tokens

    def run(self, prompt: Sequence[int], new_tokens: int, first: Callable[[], None]) -> list[int]:
        # Where the folder's end-of-text would end the run, `least` keeps its probability at zero.
        generator = self._generator(least=len(prompt) + new_tokens)
        generator.append_tokens(list(prompt))
        generator.generate_next_token()
        ids = [int(generator.get_next_tokens()[0])]
        first()
        while len(ids) < new_tokens:
            generator.generate_next_token()
            ids.append(int(generator.get_next_tokens()[0]))
        return ids

    def nats(self, window: Sequence[int]) -> float:
        generator = self._generator(least=0)
        generator.append_tokens(list(window))
        logits = generator.get_output("logits")[0]
        return surprise(logits[: len(window) - 1], window[1:])

    def _generator(self, least: int) -> Any:
        params = self._api.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, max_length=self._tokens, min_length=least)
        return self._api.Generator(self._model, params)


def load(model: str, threads: int, tokens: int, settings: dict[str, Any]) -> OrtGenai:
    import onnxruntime_genai as api

    api.disable_telemetry_events()
    config = api.Config(model)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    decoder = json.loads((Path(model) / "genai_config.json").read_text())["model"]["decoder"]
    window = decoder.get("sliding_window", {}).get("window_size", 0)  # the least a cache may hold
    return OrtGenai(api, api.Model(config), max(tokens, window))


if __name__ == "__main__":
    serve(load)
