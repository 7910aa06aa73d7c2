"""The graphs that --adapt adds to a bundle, by file."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from edgellm.export.adapt_graph import adapt_graph, head_graph
from edgellm.export.architectures import Architecture
from edgellm.export.graph import decoder_graph
from edgellm.export.nodes import Placed
from edgellm.runtime.bundle_files import ADAPT, HEAD, LORA, LORA_GRAPH, SOFT


def adapt_files(arch: Architecture, placed: dict[str, Placed], kv_bits: int) -> Iterator[tuple[str, onnx.ModelProto]]:
    """(name, graph), made one at a time, for the model whose graph is decoder_graph(arch, placed, kv_bits=kv_bits)."""
    for name, carrier in ((ADAPT, "prefix"), (SOFT, "soft"), (LORA, "lora")):
        yield name, adapt_graph(arch, placed, carrier)
    yield LORA_GRAPH, decoder_graph(arch, placed, kv_bits=kv_bits, lora=True)
    yield HEAD, head_graph(arch, placed)
