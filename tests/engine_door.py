"""What a process of its own does with an engine through the C API: a libcuda and a TensorRT are loaded once and stay.

python -m tests.engine_door, a JSON object on stdin: library (libedgellm.so), bundle, options (of Door) and calls, each
[ids, most, keep]. On stdout the results of each, or the error, and what the fake driver still holds at the end.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.door import Door, DoorError

FAKE = "libcuda.so.1"


def main() -> None:
    asked = json.load(sys.stdin)
    options = {name: value.encode() for name, value in asked["options"].items()}
    answer: dict[str, Any] = {"results": []}
    session = None
    try:
        session = Door(Path(asked["bundle"]), Path(asked["library"]), **options)
        facts = session.facts()
        answer |= {"kv": facts.kv.decode(), "limit": facts.limit, "kv_bytes": facts.kv_bytes}
        answer["runtime"] = facts.onnxruntime.decode()
        session.call("edgellm_set_stops", None, 0)
        with ThreadPoolExecutor(1) as other:  # sessions may wander between threads
            for number, (ids, most, keep) in enumerate(asked["calls"]):
                run = other.submit(session.generate, ids, most, keep).result if number % 2 else None
                made = run() if run else session.generate(ids, most, keep)
                answer["results"].append([made, session.state().reused_tokens, session.logits().tolist()])
    except DoorError as error:
        answer |= {"code": error.code, "message": str(error)}
    del session
    if os.environ.get("FAKE_TENSORRT"):
        answer["alive"] = ctypes.CDLL(FAKE).fake_alive()
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
