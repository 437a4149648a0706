"""Which implementation of an op runs. Decided from the device and what was built; ``CODEWORD_OPS`` forces one.

    CODEWORD_OPS=reference   plain torch only
    CODEWORD_OPS=native      the C++ module, an error if it was not built or the tensor is not on the CPU
    CODEWORD_OPS=triton      Triton kernels, an error without triton or a CUDA tensor (any tensor in the interpreter: TRITON_INTERPRET=1);
                             ops that have no Triton kernel run the reference
    CODEWORD_ISA=baseline    the instruction set of the C++ module: baseline, avx2 or avx512, at most what the processor has
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from types import ModuleType
from typing import Any

import torch

from codeword.errors import Unsupported

OPS = (
    "nearest", "project", "hadamard", "rotate", "pack", "unpack", "segment_sum", "bit_query", "bit_scan",
    "segment_query", "segment_scan", "grid_code",
    "adjust_code", "lut_scan", "lut_tables", "additive_search", "e8_nearest",
    "pyramid_project", "pyramid_number", "pyramid_point", "fsq_round", "fsq_curve",
)


TRITON_OPS = ("nearest", "segment_sum")
"""Ops with a Triton kernel."""


@cache
def native() -> ModuleType | None:
    """The compiled module ``codeword._native``, or None where it was not built. One that was built but does not load is an error."""
    if importlib.util.find_spec("codeword._native") is None:
        return None
    module = importlib.import_module("codeword._native")
    try:
        module.isa()
    except ValueError as error:
        raise Unsupported(str(error)) from None
    return module


@cache
def has_triton() -> bool:
    """Whether Triton is installed and torch is one for CUDA (the bounds of its kernels speak of NVIDIA's tensor cores)."""
    return importlib.util.find_spec("triton") is not None and torch.version.hip is None


def triton() -> ModuleType:
    """``codeword.ops.triton``, imported at the first call that needs it."""
    return importlib.import_module("codeword.ops.triton")


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def choice(op: str, device: torch.device | str = "cpu") -> str:
    """"native", "triton" or "reference" for ``op`` on ``device``."""
    forced = os.environ.get("CODEWORD_OPS", "")
    if forced not in ("", "reference", "native", "triton"):
        raise Unsupported(f"CODEWORD_OPS={forced!r}; reference, native and triton are known")
    kind = (device if isinstance(device, torch.device) else torch.device(device)).type
    on_cpu = kind == "cpu"
    if forced == "triton":
        if not has_triton():
            raise Unsupported("CODEWORD_OPS=triton, but triton is not installed; pip install triton")
        if kind != "cuda" and not interpreted():
            raise Unsupported(f"CODEWORD_OPS=triton, but {op!r} got a tensor on {kind}; its kernels run on CUDA "
                              "(anywhere under TRITON_INTERPRET=1)")
        return "triton" if op in TRITON_OPS else "reference"
    if forced == "native" and not on_cpu:
        raise Unsupported(f"CODEWORD_OPS=native, but {op!r} got a tensor on {torch.device(device).type}; its kernels run on the CPU")
    if forced == "" and kind == "cuda" and op in TRITON_OPS and has_triton():
        return "triton"
    if forced == "reference" or not on_cpu:
        return "reference"
    module = native()
    if module is not None and hasattr(module, op):
        return "native"
    if forced == "native":
        raise Unsupported(f"CODEWORD_OPS=native, but the compiled module has no {op!r}; reinstall with a C++20 compiler")
    return "reference"


def run(op: Any, *arguments: Any) -> Any:
    """A registered op, through torch's dispatcher where something traces or differentiates it, else its function directly: the first
    call of any registered op imports torch's compiler, two seconds that encoding a vector has no use for."""
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    if (torch.compiler.is_compiling() or any(type(t) not in (torch.Tensor, torch.nn.Parameter) for t in tensors)
            or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))):
        return op(*arguments)
    return op._init_fn(*arguments)


def choices(device: torch.device | str = "cpu") -> dict[str, str]:
    """Implementation of every op on ``device``, for ``codeword doctor``."""
    return {op: choice(op, device) for op in OPS}


def native_info() -> dict[str, Any]:
    """The compiled module in words: built, isa in use, isas compiled and runnable here, threads an op may use, workers started."""
    module = native()
    if module is None:
        return {"built": False, "isa": None, "compiled": [], "runnable": [], "threads": num_threads(), "workers": 0}
    return {"built": True, "isa": module.isa(), "compiled": module.compiled_isas(), "runnable": module.runnable_isas(),
            "threads": num_threads(), "workers": module.workers()}


def available() -> tuple[str, ...]:
    return ("reference", *(("native",) if native() is not None else ()),
            *(("triton",) if has_triton() and (torch.cuda.is_available() or interpreted()) else ()))


def num_threads() -> int:
    """Threads a native op may use: torch's own setting, so that one call controls both."""
    return torch.get_num_threads()
