"""`edgellm` where a socket is death:  python -m tests.offline VERB …

A Python audit hook sees what Python opens. What native code opens (onnxruntime, tokenizers, torch), the kernel sees:
on Linux a seccomp filter ends the process with SIGSYS at the first socket() of any kind.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence

SOCKET = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}  # machine: AUDIT_ARCH_*, number of socket()
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF: load a word at k; skip jt or jf instructions; return k
KILL_PROCESS, ALLOW = 0x80000000, 0x7FFF0000
NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2  # of prctl()


def forbid_in_python() -> None:
    """End the process at any `socket.*` audit event: creating one, connecting, resolving a name."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith("socket."):
            print(f"{event} {arguments}", file=sys.stderr, flush=True)
            os._exit(99)

    sys.addaudithook(hook)


def forbid_in_the_kernel() -> bool:
    """Install the filter; whether this system has it. It cannot be taken off again, and children inherit it."""
    if sys.platform != "linux" or platform.machine() not in SOCKET:
        return False
    arch, number = SOCKET[platform.machine()]
    program = [
        (LOAD, 0, 0, 4), (EQUAL, 0, 3, arch), (LOAD, 0, 0, 0), (EQUAL, 0, 1, number),
        (RETURN, 0, 0, KILL_PROCESS), (RETURN, 0, 0, ALLOW),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(prctl(SET_SECCOMP, FILTER, ctypes.addressof(header), 0, 0) == 0)


def main(arguments: Sequence[str]) -> None:
    """Run the command line; `--probe python|native` opens a socket instead, to see that the guard holds."""
    from edgellm.runtime.cli import main as edgellm

    if arguments[:2] != ["--probe", "native"]:
        forbid_in_python()
    guarded = forbid_in_the_kernel()
    if arguments[:1] == ["--probe"]:
        if arguments[1] == "python":
            import socket

            socket.socket()
        elif guarded:
            ctypes.CDLL(None).socket(2, 1, 0)
        else:
            sys.exit(98)
        return
    edgellm(list(arguments), prog_name="edgellm")


if __name__ == "__main__":
    main(sys.argv[1:])
