"""N:M at 4 bits against dense 3 bits in the same bytes: the MLP's matrices each way, everything else dense at 4 bits;
and llama.cpp's 3-bit files of the same checkpoint, where the peers are installed.

    python -m tests.benchmarks.equal_bytes MODEL.gguf TEXT.txt CALIBRATION.json -o build/bench/equal_bytes.json

2:4 and 4:8 with SparseGPT's masks take 3.25 bits a weight, 3 bits in groups of 64 take 3.25 without and 3.5 with a
minimum; all by the export's own sweep, states re-propagated through what was done before. Windows of 1024 over the
first 20k tokens of TEXT; 95 % intervals of the difference in log-perplexity to dense 3 bits of 3.25, by a paired
bootstrap over windows. 3 bits are simulated: no tile holds them.
"""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from gguf import GGUFReader
from torch import Tensor

from edgellm.export.architectures import role
from edgellm.export.calibrate import calibration_ids
from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.compress import Read, read_by_head, rounded
from edgellm.export.config import ExportConfig
from edgellm.export.decoder import window_losses
from edgellm.export.level import GROUP, Level, Sparsity
from edgellm.export.prune import SCOPES
from edgellm.export.sparsegpt import simulated
from edgellm.kernels.layout import dequantize
from tests.benchmarks.contenders import Contender
from tests.benchmarks.layerwise import layerwise
from tests.benchmarks.peer_files import OUT, llama_cpp, make_all
from tests.benchmarks.process import Failed, ask
from tests.benchmarks.prune_table import WINDOW, dense, interval
from tests.benchmarks.recovered import Weights

BITS = {"dense 3": 3.25, "dense 3 with a minimum": 3.5, "2:4": 3.25, "4:8": 3.25, "dense 4": 4.5}  # a weight of the MLP
Q3 = ("Q3_K_S", "Q3_K_M")
THREE = {"dense 3": "symmetric", "dense 3 with a minimum": "min"}  # the first is what others are compared with
LEVELS = {name: Level(4, Sparsity.parse(f"sparsegpt:{name}")) for name in ("2:4", "4:8")} | {"dense 4": Level(4)}


def matrix(kind: str, model: Path, name: str, weight: Tensor, read: Read) -> Tensor:
    """A matrix as this row of the table has it."""
    mlp = role(name) in SCOPES["mlp"]
    if mlp and kind in THREE:
        return simulated(weight, read.hessians.feedback(role(name), GROUP), GROUP, 3, THREE[kind])
    config = ExportConfig(model, model, levels={name: LEVELS[kind] if mlp else Level(4)})
    return torch.from_numpy(dequantize(rounded(config, name, weight, read)))


@click.command()
@click.argument("model", type=Path)
@click.argument("text", type=Path)
@click.argument("calibration", type=Path)
@click.option("-o", "--output", type=Path, default=Path("build/bench/equal_bytes.json"))
@click.option("--tokens", default=20_000)
@click.option("--sequences", default=32, help="Calibration sequences of 512 tokens.")
def main(model: Path, text: Path, calibration: Path, output: Path, tokens: int, sequences: int) -> None:
    checkpoint = open_checkpoint(model)
    arch, tensors, tokenizer = checkpoint.architecture, dense(checkpoint), checkpoint.tokenizer_json()
    words = calibration_ids(tokenizer, calibration, sequences, min(512, arch.context))
    ids = calibration_ids(tokenizer, text, 1, tokens).flatten()
    head = read_by_head(arch, Weights(tensors), words, "embedding") if arch.tied else None
    rows: list[dict[str, Any]] = []
    losses: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"model": model.name, "text": text.name, "tokens": ids.numel(), "window": WINDOW}
    facts |= {"calibration": f"{calibration.name}, {words.numel()} tokens", "rows": rows}

    def row(kind: str, bits: float) -> None:
        found: dict[str, Any] = {"mlp": kind, "bits": bits}
        found["perplexity"] = math.exp(float(losses[kind].sum() / counts.sum()))
        found["log_ratio_to_dense_3"] = interval(losses[kind], losses["dense 3"], counts)
        rows.append(found)
        print(json.dumps(found), file=sys.stderr, flush=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(facts, indent=1))

    for kind in (*THREE, *LEVELS):
        made = dict(tensors)
        if head is not None:
            made["embedding"] = matrix("dense 4", model, "embedding", tensors["embedding"], head)
        source = layerwise(arch, made, words, partial(matrix, kind, model))
        losses[kind], counts = window_losses(arch, source, ids, WINDOW)
        row(kind, BITS[kind])
    failed = make_all(model.absolute(), {f"llama_cpp-{kind}.gguf": llama_cpp(kind) for kind in Q3})
    for kind in Q3:
        path = OUT / model.stem / f"llama_cpp-{kind}.gguf"
        name, peer = f"llama.cpp {kind}", Contender(kind, "llama_cpp", path, 3)
        try:
            found = ask(peer, {"threads": torch.get_num_threads(), "score": ids.tolist(), "window": WINDOW})
        except Failed as error:
            print(f"left out: {name}: {failed.get(path.name) or error}", file=sys.stderr)
            continue
        losses[name] = torch.tensor(found["windows"], dtype=counts.dtype)
        row(name, mlp_bits(path))


def mlp_bits(path: Path) -> float:
    """Bits a weight of the MLP's matrices in a GGUF file."""
    matrices = [tensor for tensor in GGUFReader(path).tensors if ".ffn_" in tensor.name and len(tensor.shape) > 1]
    return 8 * sum(int(tensor.n_bytes) for tensor in matrices) / sum(int(tensor.n_elements) for tensor in matrices)


if __name__ == "__main__":
    main()
