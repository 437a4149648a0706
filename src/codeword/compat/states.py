"""A stranger's state_dict, read without running any code of it.

A safetensors file is read as such; any other file goes through ``torch.load(weights_only=True)``, which builds tensors and containers and
refuses everything else. A training checkpoint may hold the state under "state_dict", "model" or "ema", and the quantizer's part of it
under a prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from codeword.errors import CodewordError, FormatError, Unsupported

NESTED = ("state_dict", "model", "ema")
"""Names that checkpoints keep a state under."""
MOST_TENSORS = 1 << 16
SAFE_TORCH = (2, 10)
"""Releases before it run code or corrupt memory on crafted files in spite of ``weights_only`` (CVE-2025-32434, CVE-2026-24747)."""


def read(path: str | Path) -> dict[str, Any]:
    """What a safetensors file or a torch file holds. FormatError where it is neither, or holds other things than weights."""
    file = Path(path)
    if not file.is_file():
        raise FormatError("file", f"{file} is not a file; name a safetensors file or one that torch.save wrote")
    with file.open("rb") as opened:
        start = opened.read(10)
    if not start:
        raise FormatError("empty", f"{file} is empty; a safetensors file or one that torch.save wrote is needed")
    if start[8:9] == b"{":
        try:
            return dict(safetensors.torch.load_file(file))
        except (safetensors.SafetensorError, KeyError, ValueError, OverflowError) as error:
            raise FormatError("header", f"{file} is no whole safetensors file: {str(error)[:200]}") from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise Unsupported(f"torch {torch.__version__} has known holes in reading weights alone; torch {SAFE_TORCH[0]}.{SAFE_TORCH[1]} "
                          "or newer is needed, or the state_dict as a safetensors file")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the reader says to a stranger's bytes
        reason = " ".join(str(error).split())[:160]
        raise FormatError("kind", f"{file} is neither a safetensors file nor a torch file of weights alone ({reason}); save the module's "
                          "state_dict()") from None
    if not isinstance(found, Mapping):
        raise FormatError("kind", f"{file} holds {type(found).__name__}, not a state_dict")
    return dict(found)


def part(state: Mapping[str, Any], prefix: str, what: str, *, may_be_empty: bool = False) -> dict[str, Tensor]:
    """The tensors of ``state`` whose names begin with ``prefix``, without it, on the CPU; floats as finite float32. CodewordError where
    there is none, unless that is what the kind has."""
    for name in NESTED:
        inner = state.get(name)
        if isinstance(inner, Mapping) and not any(isinstance(value, Tensor) for value in state.values()):
            return part(inner, prefix, what, may_be_empty=may_be_empty)
    if len(state) > MOST_TENSORS:
        raise FormatError("limit", f"{what} has {len(state)} entries; at most {MOST_TENSORS} are read")
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not name.startswith(prefix):
            continue
        if not isinstance(value, Tensor):
            raise FormatError("kind", f"{what} holds {type(value).__name__} under {name!r}; tensors are needed")
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise FormatError("dtype", f"{what} holds a {value.dtype} {value.layout} tensor under {name!r}; dense real ones are read")
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.float()
            if not bool(torch.isfinite(value).all()):
                raise FormatError("value", f"{what} has NaN or infinity in {name!r}")
        found[name[len(prefix):]] = value
    if not found and not may_be_empty:
        names = ", ".join(sorted(str(name) for name in state)[:4])
        raise CodewordError(f"{what} has no tensor whose name begins with {prefix!r}; it has {names or 'none at all'}")
    return found
