"""Triton's kernels run here by its interpreter, on the CPU: it must be asked for before triton is first imported."""

from __future__ import annotations

import os
import sys

assert "triton" not in sys.modules, "triton was imported before its interpreter was asked for"
os.environ["TRITON_INTERPRET"] = "1"
