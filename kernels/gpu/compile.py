"""Ahead of time, without a GPU: every kernel for every target to a cubin, and a table of what each needs.

    python -m edgellm.kernels.gpu.compile OUT [--targets 87,110] [--weights "4g64m 4g64m.silu"] [--heads 64:3]

OUT/kernels.json (README.md in this folder says how to read it) and OUT/sm_XX/NAME.cubin. Triton brings the assembler.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.kernels.gpu.variants import HEADS, TARGETS, WEIGHTS, Variant, chosen


@dataclass(frozen=True)
class Compiled:
    """A cubin and what it needs. shared: bytes of dynamic shared memory a block; registers: a thread; spills: the loads
    and stores of local memory in its code; instructions: all of them."""

    cubin: bytes
    shared: int
    registers: int
    spills: int
    instructions: int

    def facts(self) -> dict[str, int]:
        """All but the code."""
        return {
            "shared": self.shared,
            "registers": self.registers,
            "spills": self.spills,
            "instructions": self.instructions,
        }


def arguments(variant: Variant) -> list[tuple[str, str]]:
    """Name and type of the arguments of a launch, in order, without the two null pointers that follow them."""
    names = _function(variant).arg_names
    return [(name, kind) for name in names if (kind := variant.type_of(name)) != "constexpr"]


def compiled(variant: Variant, target: int) -> Compiled:
    """A variant for one compute capability, times ten. Raises ModuleNotFoundError without triton."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = _function(variant)
    types = {name: variant.type_of(name) for name in function.arg_names}
    aligned = [i for i, (name, kind) in enumerate(types.items()) if kind[0] == "*" or name in variant.aligned]
    hints = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(function, signature=types, constexprs=variant.constants, attrs=hints)
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    if made.metadata.global_scratch_size or made.metadata.profile_scratch_size:
        raise ValueError(f"{variant.name} wants scratch memory of its own; whoever launches it passes none")
    cubin = made.asm["cubin"]
    code = _tool("nvdisasm", "--print-code", cubin)
    operations = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_]*)", code, re.MULTILINE)
    usage = re.search(r"REG:(\d+)", _tool("cuobjdump", "--dump-resource-usage", cubin))
    if not operations or not usage:
        raise ValueError(f"{variant.name} for sm_{target}: Triton's disassembler says nothing about it")
    spills = sum(op in ("LDL", "STL") for op in operations)
    return Compiled(cubin, made.metadata.shared, int(usage[1]), spills, len(operations))


def write(out: Path, variants: Iterable[Variant], targets: Iterable[int]) -> dict[str, Any]:
    """Compile all and write OUT; the table, as it is in kernels.json, which is written last."""
    table: dict[str, Any] = {}
    every, targets = list(variants), list(targets)
    for n, variant in enumerate(every):
        print(f"\r{n + 1}/{len(every)} {variant.name:50}", end="", file=sys.stderr, flush=True)
        entry: dict[str, Any] = {
            "entry": variant.entry, "warps": variant.warps, "arguments": arguments(variant),
            "activations": variant.activations, "constants": variant.constants, "targets": {},
        }  # fmt: skip
        for target in targets:
            made = compiled(variant, target)
            path = out / f"sm_{target}" / f"{variant.name}.cubin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(made.cubin)
            entry["targets"][f"sm_{target}"] = made.facts()
        table[variant.name] = entry
    print(file=sys.stderr)
    (out / "kernels.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return table


def summary(table: dict[str, Any]) -> str:
    """The table in Markdown, a kernel a line: registers a thread and KB of shared memory a block for each target, and
    spills where there are any."""
    targets = list(next(iter(table.values()))["targets"]) if table else []
    lines = ["| kernel | warps | " + " | ".join(targets) + " |", "|---|---|" + "---|" * len(targets)]
    for name, entry in table.items():
        cells = [f"{name}", str(entry["warps"])]
        for target in targets:
            facts = entry["targets"][target]
            spilled = f", {facts['spills']} spills" if facts["spills"] else ""
            cells.append(f"{facts['registers']}, {facts['shared'] / 1024:.3g}{spilled}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _function(variant: Variant) -> Any:
    return getattr(importlib.import_module(f"edgellm.kernels.gpu.{variant.module}"), variant.entry)


def _tool(name: str, option: str, cubin: bytes) -> str:
    """What one of Triton's tools prints about a cubin."""
    import tempfile

    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([path, option, file.name], capture_output=True, text=True, check=True).stdout


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.kernels.gpu.compile", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)), help="compute capabilities times ten (all)")
    parser.add_argument(
        "--weights", default=WEIGHTS, help="formats, such as '4g64m 4g64m.silu 8g32.fp16.fp32' (usual ones)"
    )
    parser.add_argument("--heads", default=HEADS, help="head sizes and heads a KV head, such as '64:3' (usual ones)")
    options = parser.parse_args()
    targets = [int(target) if target.isdigit() else 0 for target in options.targets.split(",")]
    if not set(targets) <= set(TARGETS):
        parser.error(f"targets are of {', '.join(map(str, TARGETS))}")
    try:
        variants = chosen(options.weights, options.heads)
    except ValueError as error:
        parser.error(str(error))
    try:
        print(summary(write(options.out, variants, targets)))
    except ModuleNotFoundError as error:
        parser.exit(1, f"{error}\nRun: pip install 'edgellm[gpu-kernels]'\n")


if __name__ == "__main__":
    main()
