"""`edgellm build-engine`: make a bundle's TensorRT engine on the device that will run it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgellm.devices.cuda import device_capability
from edgellm.runtime.bundle_files import ENGINE_WEIGHTS
from edgellm.runtime.commands.options import bundle_argument, json_option
from edgellm.runtime.commands.output import note, print_json
from edgellm.runtime.engine_build import PORTABLE, build, build_estimate
from edgellm.runtime.engine_stamp import engine_facts, stamp
from edgellm.runtime.schema import ENGINES


@click.command("build-engine")
@bundle_argument
@click.option("--engine", "kind", type=click.Choice(ENGINES), help="Whose TensorRT; default: what was exported for.")
@json_option
def command(bundle: Path, kind: str | None, as_json: bool) -> None:
    """Build a bundle's TensorRT engine on the device that will run it, from the engine.onnx that export wrote.

    \b
    edgellm export MODEL bundle --device jetson-orin-nano-8gb --engine tensorrt      # on a PC
    edgellm build-engine bundle                                                      # on the Jetson
    """
    facts = engine_facts(bundle, kind)
    weights = (bundle / ENGINE_WEIGHTS).stat().st_size
    note(f"building takes about {build_estimate(weights) / 1e9:.1f} GB of memory and some minutes")
    own = device_capability()
    portable = list(PORTABLE) if facts.kind == "tensorrt-rtx" else []
    built = stamp(bundle, facts, build(bundle, facts, [own] if own else portable))
    if as_json:
        print_json(asdict(built))
    else:
        note(f"{bundle}: model.engine is built. Run it: edgellm generate {bundle} --backend tensorrt -p TEXT")
