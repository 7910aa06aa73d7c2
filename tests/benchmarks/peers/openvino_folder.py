"""OpenVINO GenAI's own reader of GGUF, its result kept:  python -m tests.benchmarks.peers.openvino_folder IN.gguf

It writes the folder's files beside the GGUF file. It knows llama, qwen2 and qwen3.
"""

from __future__ import annotations

import sys


def main(source: str) -> None:
    import openvino_genai

    openvino_genai.LLMPipeline(source, "CPU", enable_save_ov_model=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
