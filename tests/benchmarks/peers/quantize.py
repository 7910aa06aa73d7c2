"""llama.cpp's own quantizer:  python -m tests.benchmarks.peers.quantize IN.gguf OUT.gguf Q4_0

Weights that are quantized already are dequantized and rounded again.
"""

from __future__ import annotations

import sys


def main(source: str, out: str, kind: str) -> None:
    from llama_cpp import llama_cpp as api

    options = api.llama_model_quantize_default_params()
    options.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.allow_requantize = True
    failed = api.llama_model_quantize(source.encode(), out.encode(), options)
    if failed:
        sys.exit(f"llama_model_quantize returned {failed}")


if __name__ == "__main__":
    main(*sys.argv[1:])
