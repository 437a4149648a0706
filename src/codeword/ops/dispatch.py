"""Which implementation of an op runs. Decided from the device and what was built; ``CODEWORD_OPS`` forces one.

    CODEWORD_OPS=reference   plain torch only
    CODEWORD_OPS=native      the C++ module, an error if it was not built
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType

import torch

from codeword.errors import Unsupported

OPS = ("nearest", "project", "hadamard", "rotate", "pack", "unpack", "segment_sum", "bit_scan", "grid_code")


@cache
def native() -> ModuleType | None:
    """The compiled module ``codeword._native``, or None where it was not built."""
    try:
        return importlib.import_module("codeword._native")
    except ImportError:
        return None


def choice(op: str, device: torch.device | str = "cpu") -> str:
    """"native" or "reference" for ``op`` on ``device``."""
    forced = os.environ.get("CODEWORD_OPS", "")
    if forced not in ("", "reference", "native", "triton"):
        raise Unsupported(f"CODEWORD_OPS={forced!r}; reference, native or triton are known")
    on_cpu = torch.device(device).type == "cpu"
    if forced == "reference" or not on_cpu:
        return "reference"
    module = native()
    if module is not None and hasattr(module, op):
        return "native"
    if forced == "native":
        raise Unsupported(f"CODEWORD_OPS=native, but the compiled module has no {op!r}; reinstall with a C++20 compiler")
    return "reference"


def choices() -> dict[str, str]:
    """Implementation of every op on CPU, for ``codeword doctor``."""
    return {op: choice(op) for op in OPS}


def available() -> tuple[str, ...]:
    return ("reference", "native") if native() is not None else ("reference",)


def num_threads() -> int:
    """Threads a native op may use: torch's own setting, so that one call controls both."""
    return torch.get_num_threads()
