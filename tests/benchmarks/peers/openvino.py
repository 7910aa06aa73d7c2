"""OpenVINO GenAI, over a folder in its own format. settings: "evict" (tokens that its cache keeps; default: all)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.protocol import Skipped, serve, surprise


class OpenVino:
    def __init__(self, model: str, threads: int, evict: int | None) -> None:
        import openvino_genai

        # Nothing repeats within a process, so that prefix caching has nothing to give.
        self._api: Any = openvino_genai
        self._model, self._options = model, {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        scheduled = {"scheduler_config": evicting(openvino_genai, evict)} if evict else {}
        self._pipeline = openvino_genai.LLMPipeline(model, "CPU", **scheduled, **self._options)
        self._scorer: Any = None

    def run(self, prompt: Sequence[int], new_tokens: int, first: Callable[[], None]) -> list[int]:
        import numpy as np
        import openvino

        api, ids = self._api, []

        class Watch(api.StreamerBase):  # type: ignore[misc,name-defined]
            def write(self, token: int | Sequence[int]) -> Any:
                if not ids:
                    first()
                ids.extend(token if isinstance(token, Sequence) else [token])
                return api.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        config = api.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new_tokens, True, False
        config.apply_chat_template = False
        tokens = openvino.Tensor(np.array([prompt], np.int64))
        mask = openvino.Tensor(np.ones((1, len(prompt)), np.int64))
        self._pipeline.generate(api.TokenizedInputs(tokens, mask), config, Watch())
        return ids

    def nats(self, window: Sequence[int]) -> float:
        # The pipeline gives no logits of a prompt; the same graph without it does.
        import numpy as np
        import openvino

        if self._scorer is None:
            graph = str(Path(self._model) / "openvino_model.xml")
            self._scorer = openvino.Core().compile_model(graph, "CPU", self._options).create_infer_request()
        count = len(window)
        feed = {
            "input_ids": np.array([window], np.int64),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._scorer.reset_state()
        logits = next(iter(self._scorer.infer(feed).values()))[0]
        if len(logits) != count:
            raise Skipped(f"this graph gives logits of {len(logits)} of {count} tokens")
        return surprise(logits[:-1], window[1:])


def load(model: str, threads: int, tokens: int, settings: dict[str, Any]) -> OpenVino:
    return OpenVino(model, threads, settings.get("evict"))


def evicting(api: Any, budget: int) -> Any:
    """32 first tokens, 128 recent ones, the rest of the budget by summed attention, as its documentation does."""
    config = api.SchedulerConfig()
    config.use_cache_eviction = True
    config.cache_eviction_config = api.CacheEvictionConfig(32, 128, budget, api.AggregationMode.NORM_SUM)
    return config


if __name__ == "__main__":
    serve(load)
