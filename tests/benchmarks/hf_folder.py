"""A GGUF file as a Hugging Face folder in float32, for exporters that start from one.

python -m tests.benchmarks.hf_folder MODEL.gguf OUT
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# Where a kind of layer has a rotation of its own (Gemma 3), transformers 5 nests them; ONNX Runtime GenAI's builder
# looks for these two names, and copies to the configuration what lies flat beside them.
ROPE = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}


@click.command()
@click.argument("source", type=Path)
@click.argument("out", type=Path)
def main(source: Path, out: Path) -> None:
    where: dict[str, Any] = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # A model read from GGUF counts as quantized, and quantized models are not saved.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    path = out / "config.json"
    config = json.loads(path.read_text())
    rope = config["rope_parameters"]
    if "full_attention" in rope:
        rope |= {"rope_type": "default", **{key: rope[kind]["rope_theta"] for kind, key in ROPE.items()}}
    config["rope_theta"] = rope["rope_theta"]  # where transformers 4 looks; without it, silently, 10000
    path.write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main()
