"""Random models in the shape of large ones: does an export keep its memory, and is its estimate right?

    python -m tests.benchmarks.shapes 1b        exports a whole one: peak memory against the estimate
    python -m tests.benchmarks.shapes 7b        exports three and five blocks, extrapolates to all, against the estimate

Weights are bfloat16 in shards, written to a temporary folder. --export passes options on; --out writes JSON.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file

from edgellm.devices.host import detect
from edgellm.export.checkpoint import Checkpoint, open_checkpoint
from edgellm.export.config import ExportConfig
from edgellm.export.estimate import estimate
from edgellm.kernels.layout import Format
from tests.benchmarks.estimates import run
from tests.conftest import CONFIG, SPECIAL, tiny_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "1b": {  # Llama 3.2 1B
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 8192,
    },
    "7b": {  # Llama 2 7B
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32000, "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
}  # fmt: skip


class Deeper(Checkpoint):
    """A checkpoint's header with more layers than it has."""

    def __init__(self, inner: Checkpoint, layers: int) -> None:
        arch = inner.architecture
        self.architecture = replace(arch, layers=layers, layers_as=arch.layers_as[:1] * layers)
        self.chat_template = inner.chat_template
        self._inner = inner

    def tokenizer_json(self) -> str:
        return self._inner.tokenizer_json()

    def stored_format(self, name: str) -> Format | None:
        return None


def write(folder: Path, shape: str, layers: int) -> Path:
    """A Hugging Face folder of the shape with so many layers, a shard a block."""
    folder.mkdir()
    config = {**CONFIG, **SHAPES[shape], "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": SPECIAL[1], "eos_token": SPECIAL[0]}))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"filler{i}" for i in range(tokenizer.get_vocab_size(), config["vocab_size"])])
    tokenizer.save(str(folder / "tokenizer.json"))
    hidden, ff, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    index: dict[str, str] = {}

    def shard(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {
            tensor: torch.ones(size, dtype=torch.bfloat16) if len(size) == 1 else torch.randn(size).bfloat16() * 0.03
            for tensor, size in shapes.items()
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    ends: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    ends |= {} if config["tie_word_embeddings"] else {"lm_head.weight": (config["vocab_size"], hidden)}
    shard("ends.safetensors", ends | {"model.norm.weight": (hidden,)})
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes = {"q": (query, hidden), "k": (key, hidden), "v": (key, hidden), "o": (hidden, query)}
        sizes: dict[str, tuple[int, ...]] = {f"{at}.self_attn.{name}_proj.weight": s for name, s in shapes.items()}
        sizes |= {f"{at}.mlp.{name}_proj.weight": (ff, hidden) for name in ("gate", "up")}
        sizes |= {f"{at}.mlp.down_proj.weight": (hidden, ff)}
        sizes |= {f"{at}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        shard(f"block-{layer}.safetensors", sizes)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def measured(folder: Path, options: str) -> dict[str, float]:
    """Bundle bytes, peak resident bytes and seconds of an export, and what was estimated."""
    with tempfile.TemporaryDirectory() as place:
        bundle = Path(place) / "bundle"
        facts, host, seconds = run("export", folder, bundle, *shlex.split(options))
        return {"bundle_bytes": sum(file.stat().st_size for file in bundle.iterdir()), "host_bytes": host,
                "seconds": seconds, "estimate": facts["estimate"]}  # fmt: skip


@click.command()
@click.argument("shape", type=click.Choice(list(SHAPES)))
@click.option("--export", "options", default="--bits 8 --device dgx-spark", help="Options of edgellm export.")
@click.option("--out", type=Path)
def main(shape: str, options: str, out: Path | None) -> None:
    layers = SHAPES[shape]["num_hidden_layers"]
    with tempfile.TemporaryDirectory() as place:
        if shape == "1b":
            rows = measured(write(Path(place) / shape, shape, layers), options)
            expected = rows.pop("estimate")
        else:
            three = measured(write(Path(place) / "three", shape, 3), options)
            five = measured(write(Path(place) / "five", shape, 5), options)
            print(json.dumps({"three": three, "five": five}, indent=1))
            del three["estimate"], five["estimate"]
            rows = {name: five[name] + (five[name] - three[name]) / 2 * (layers - 5) for name in three}
            asked = shlex.split(options)
            text = Path(asked[asked.index("--calibration") + 1]) if "--calibration" in asked else None
            bits = int(asked[asked.index("--bits") + 1]) if "--bits" in asked else None
            source = Path(place) / "five"
            settings = ExportConfig(source, Path(place) / "bundle", bits=bits, calibration=text, device=detect())
            expected = asdict(estimate(Deeper(open_checkpoint(source), layers), settings))
    table = {name: {"estimated": expected[name], "measured": rows[name]} for name in rows}
    for name, row in table.items():
        click.echo(f"{name:13} estimated {row['estimated']:16,.0f}  measured {row['measured']:16,.0f}  "
                   f"{row['estimated'] / row['measured'] - 1:+.1%}")  # fmt: skip
    if out:
        out.write_text(json.dumps({"shape": shape, "options": options, "rows": table}, indent=1))


if __name__ == "__main__":
    main()
