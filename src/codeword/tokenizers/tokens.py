"""What tokenizers give and generators take: indices, where each belongs, which are real, and who made them.

A code of one vector has one index a position (one for VQ, several for a residual quantizer). A signal has n places, so its tokens are
(n, positions). On a regular grid the places follow in raster order and need no coordinates; dynamic tokenizers give their own.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codeword.errors import FormatError, ShapeError
from codeword.parts import arrays

SIGNALS = ("image", "audio", "motion", "action", "graph")
MAX_PLACES = 1 << 24
"""Most tokens of one signal."""


class Layout(NamedTuple):
    """What the numbers mean. ``signal``: one of SIGNALS; ``levels``: size of the alphabet at each position of a code; ``grid``: places
    along each axis, in raster order, or () where ``positions`` says where tokens lie; ``shape``: of the signal that was encoded, channels
    first, or () where it is not known."""

    signal: str
    levels: tuple[int, ...]
    grid: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()

    @property
    def bits(self) -> int:
        """Bits of one place: the sum of ceil(log2 level)."""
        return sum((level - 1).bit_length() for level in self.levels)

    def to_json(self) -> dict[str, Any]:
        """As JSON, for headers."""
        return {"grid": list(self.grid), "levels": list(self.levels), "shape": list(self.shape), "signal": self.signal}

    @classmethod
    def from_json(cls, value: Any, what: str) -> Layout:
        """Inverse of ``to_json``, believing nothing. Raises FormatError."""
        from codeword.io import canonical
        canonical.fields(value, f"layout of {what}", {"grid": list, "levels": list, "shape": list, "signal": str})
        if value["signal"] not in SIGNALS:
            raise FormatError("name", f"{what} holds tokens of {value['signal'][:40]!r}; {', '.join(SIGNALS)} are known")
        for key, most in (("grid", 4), ("levels", 4096), ("shape", 5)):
            if len(value[key]) > most or any(type(n) is not int or not 1 <= n <= 1 << 32 for n in value[key]):
                raise FormatError("header", f"layout of {what} has {key} {str(value[key])[:60]}; at most {most} positive integers are "
                                            "allowed")
        if not value["levels"]:
            raise FormatError("header", f"layout of {what} has no levels")
        if math.prod(value["grid"]) > MAX_PLACES:
            raise FormatError("limit", f"layout of {what} has a grid of {value['grid']}; at most {MAX_PLACES} places are allowed")
        return cls(value["signal"], tuple(value["levels"]), tuple(value["grid"]), tuple(value["shape"]))


class Tokens(NamedTuple):
    """``indices`` (..., n, positions) of the smallest unsigned type; ``positions`` (..., n, axes) int32, where each token lies, or None for
    the raster order of ``layout.grid``; ``mask`` (..., n) bool, False where there is no token, or None; ``fingerprint``: 16 hex digits of
    the tokenizer that made them."""

    indices: Tensor
    positions: Tensor | None
    mask: Tensor | None
    layout: Layout
    fingerprint: str

    @property
    def grid_indices(self) -> Tensor:
        """``indices`` (..., *grid, positions). Raises ShapeError where the layout has no grid."""
        if not self.layout.grid:
            raise ShapeError("these tokens have no grid; their positions say where they lie")
        return self.indices.unflatten(-2, self.layout.grid)

    def check(self) -> Tokens:
        """These tokens, every shape and value checked. Raises ShapeError."""
        indices = arrays.check_indices(self.indices, self.layout.levels, "tokens", wide=False)
        lead = tuple(indices.shape[:-1])
        if not lead:
            raise ShapeError(f"indices have shape {tuple(indices.shape)}; (..., n, positions) is needed")
        if self.layout.grid and math.prod(self.layout.grid) != lead[-1]:
            raise ShapeError(f"{lead[-1]} tokens do not fill a grid of {'×'.join(map(str, self.layout.grid))}")
        if not self.layout.grid and self.positions is None:
            raise ShapeError("tokens without a grid need positions")
        if self.positions is not None and (tuple(self.positions.shape[:-1]) != lead or self.positions.dtype != torch.int32):
            raise ShapeError(f"positions are {self.positions.dtype} {tuple(self.positions.shape)}; int32 {(*lead, 'axes')} is needed")
        if self.mask is not None and (tuple(self.mask.shape) != lead or self.mask.dtype != torch.bool):
            raise ShapeError(f"mask is {self.mask.dtype} {tuple(self.mask.shape)}; bool {lead} is needed")
        if len(self.fingerprint) != 16 or not set(self.fingerprint) <= set("0123456789abcdef"):
            raise ShapeError(f"fingerprint {self.fingerprint!r} is not 16 hex digits")
        return self

    def numpy(self) -> np.ndarray:
        """``indices`` as a numpy array."""
        return self.indices.cpu().numpy()
