"""`edgellm devices`: the boards that bundles are made for, with this machine first."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from edgellm.devices.host import detect
from edgellm.devices.profile import HOST, Device, UnknownDeviceError, load, names
from edgellm.runtime.commands.options import json_option
from edgellm.runtime.commands.output import print_json
from edgellm.runtime.errors import UsageError


@click.command("devices")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the devices that `edgellm export --device NAME` knows; with NAME, one device and where its figures are from.

    \b
    edgellm devices
    edgellm devices jetson-orin-nano-8gb
    """
    if name is not None:
        device = find_device(name)
        if as_json:
            print_json(facts(device))
        else:
            show_one(device)
        return
    found = [detect(), *(load(known) for known in names())]
    if as_json:
        print_json({"devices": [facts(device) for device in found]})
    else:
        show_all(found)


def find_device(name: str) -> Device:
    """A profile, or this machine for "host". Raises UsageError that names the nearest."""
    try:
        return detect() if name == HOST else load(name)
    except UnknownDeviceError as error:
        raise UsageError(str(error), f"Did you mean {error.nearest}?" if error.nearest else "") from None


def facts(device: Device) -> dict[str, Any]:
    """A device's keys in --json: its fields and usable_bytes."""
    found = asdict(device) | {"usable_bytes": device.usable_bytes}
    del found["boards"]  # how it is recognised, not what it is
    return found


def show_all(found: list[Device]) -> None:
    """The table for people, on stdout."""
    from rich.table import Table

    table = Table(box=None)
    for title, right in (("device", 0), ("memory", 1), ("for a model", 1), ("bandwidth", 1), ("cores", 1),
                         ("instructions", 0), ("GPU", 0), ("TensorRT", 0), ("KV cache", 0)):  # fmt: skip
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    for device in found:
        table.add_row(
            device.name, gib(device.memory_bytes), gib(device.usable_bytes), bandwidth(device), str(device.cores),
            device.instruction_set, device.compute_capability or "-", device.tensorrt or "-", device.recipe.kv,
        )  # fmt: skip
    _print(table)


def show_one(device: Device) -> None:
    """One device's figures with their sources, on stdout."""
    from rich.table import Table

    table = Table(box=None, title=f"{device.name}  ({device.title})", title_justify="left")
    for title in ("figure", "value", "source"):
        table.add_column(title, overflow="fold")
    shown = {"memory_bytes": gib(device.memory_bytes), "bandwidth_gb_s": bandwidth(device)}
    for figure, value in device.figures().items():
        table.add_row(figure, shown.get(figure, str(value)), device.sources.get(figure, ""))
    _print(table)
    recipe = device.recipe
    bits = "as stored, else 8" if recipe.bits is None else recipe.bits
    click.echo(f"defaults of edgellm export: bits {bits}, KV cache {recipe.kv}, sparsity {recipe.sparsity}")


def gib(count: int | None) -> str:
    """Bytes as memory is sold."""
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"


def bandwidth(device: Device) -> str:
    """Peak bandwidth of the memory."""
    return "unknown" if device.bandwidth_gb_s is None else f"{device.bandwidth_gb_s:g} GB/s"


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table)
