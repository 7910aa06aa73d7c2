"""The abstract classes behind TensorRT's API, each with all its methods ending the process: a fake derives from them.

Written from the headers at hand, whose methods differ from version to version.
"""

from __future__ import annotations

import re
from pathlib import Path

CLASSES = (
    ("NvInferImpl.h", "VRuntime", "apiv::VRuntime", "RuntimeStubs"),
    ("NvInferImpl.h", "VCudaEngine", "apiv::VCudaEngine", "EngineStubs"),
    ("NvInferImpl.h", "VExecutionContext", "apiv::VExecutionContext", "ContextStubs"),
    ("NvInferRuntimeCommon.h", "IPluginRegistry", "IPluginRegistry", "PluginStubs"),
)


def tensorrt_stubs(headers: Path) -> str:
    """C++ of the four classes. Raises ValueError for headers that lack one."""
    stubs = (_stub(headers, *names) for names in CLASSES)
    return "\n".join(["#pragma once", "#include <cstdlib>", "namespace nvinfer1 {", *stubs, "}", ""])


def _stub(headers: Path, file: str, name: str, base: str, stub: str) -> str:
    text = re.sub(r"//[^\n]*|^#if .*?^#endif", "", (headers / file).read_text(), flags=re.M | re.S)
    found = re.search(rf"^class {name}\b[^;]*?\{{(.*?)^\}};", text, re.M | re.S)
    if found is None:
        raise ValueError(f"{file} has no class {name}")
    methods = re.findall(r"\bvirtual\b([^;]*?)=\s*0\s*;", found[1])
    bodies = "".join(f"  {' '.join(method.split())} override {{ std::abort(); }}\n" for method in methods)
    return f"struct {stub} : {base} {{\n{bodies}}};"
