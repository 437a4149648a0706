"""e8_nearest: the nearest of the 65,536 points of the E8P codebook (Tseng et al.: QuIP#, ICML 2024), eight dimensions in 16 bits.

    D^8    half-integer vectors of even coordinate sum
    E8P    {s p + shift (1, ..., 1)}: p one of 256 patterns of positive half-integers, s signs with s p in D^8, shift = +-1/4

Shifting by +-1/4 moves D^8 into E8 + 1/4, whose points have no symmetric zero; signs come in 2^7 even choices a pattern and shift.

    patterns   the 227 of squared norm <= 10, and of the 56 of norm 12 made of five 3/2 and three 1/2 the first 29 in ascending order of
               their coordinates, read from the left; all 256 sorted by (norm, coordinates)
    index      pattern 2^8 + b, b a byte: shift = -1/4 where b has an odd number of ones, else +1/4; bit i of b flips the sign of
               coordinate i of the pattern, bit 7 counting once more where shift = -1/4; and coordinate 7 of a pattern of odd sum is
               negative to begin with

Everything is integers: x in units of 2^-12, clamped to +-16, where a cell is about 1 wide; points in quarters, c4. So

    score = <X, c4> - 2^9 |c4|^2     largest at the nearest point, below 2^24 in all its parts: exact in float32, in any order

and the answer, ties to the lowest index, is the same on every machine. That 29 patterns of norm 12 are taken is the paper's; which
ones hardly matters (their choice is by symmetry nearly alike), so ours follow the rule above and the numbering is ours too.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import torch
from torch import Tensor

from codeword.errors import ShapeError
from codeword.ops import dispatch

DIM, POINTS, PATTERNS = 8, 1 << 16, 256
UNIT = 1 << 12
LIMIT = 16 * UNIT
"""Largest |X|."""
_NORM = 1 << 9


def e8_nearest(x: Tensor) -> Tensor:
    """Indices int64 (n,) of the points nearest to x int32 (n, 8), in units of 2^-12, within +-LIMIT."""
    if x.ndim != 2 or x.shape[1] != DIM or x.dtype != torch.int32:
        raise ShapeError(f"e8_nearest got {tuple(x.shape)} {x.dtype}; int32 (n, {DIM}) is needed")
    return dispatch.run(_e8_nearest, x.contiguous())


@torch.library.custom_op("codeword::e8_nearest", mutates_args=())
def _e8_nearest(x: Tensor) -> Tensor:
    if x.numel() and not (int(x.min()) >= -LIMIT and int(x.max()) <= LIMIT):
        raise ShapeError(f"e8_nearest got values {int(x.min())}..{int(x.max())}; -{LIMIT}..{LIMIT} are allowed")
    if dispatch.choice("e8_nearest", x.device) == "native":
        module = dispatch.native()
        assert module is not None
        out = torch.empty(len(x), dtype=torch.int64)
        module.e8_nearest(x.numpy(), patterns().T.astype(np.float32, order="C"), out.numpy(), dispatch.num_threads())
        return out
    return reference(x)


@_e8_nearest.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.int64)


def reference(x: Tensor) -> Tensor:
    """All scores in blocks of rows, the constants as a ninth coordinate; float64, in which no setting of torch's rounds a product. Of
    equal maxima ``max`` gives the first."""
    c4 = torch.from_numpy(points()).to(x.device, torch.float64)
    table = torch.cat((c4, -_NORM * c4.square().sum(1, keepdim=True)), dim=1).mT.contiguous()
    rows = torch.nn.functional.pad(x.double(), (0, 1), value=1.0)
    return torch.cat([(block @ table).max(1).indices for block in rows.split(128)])


def integers(x: Tensor) -> Tensor:
    """int32 values of real ``x`` for ``e8_nearest``: rounded and clamped; NaN counts as 0."""
    return (x.double() * UNIT).round().nan_to_num(0).clamp(-LIMIT, LIMIT).to(torch.int32)


@cache
def patterns() -> np.ndarray:
    """int64 (256, 8), in quarters: 2, 6 or 10."""
    norm = 4 * 12
    odd = np.array(list(itertools.product((1, 3, 5), repeat=DIM)))  # halves
    square = np.square(odd).sum(1)
    inner = odd[square < norm]
    edge = odd[(square == norm) & (odd.max(1) == 3)][:PATTERNS - len(inner)]  # product() yields them in ascending order
    found = np.concatenate((inner, edge))
    order = np.lexsort((*found.T[::-1], np.square(found).sum(1)))
    return 2 * found[order]


@cache
def points() -> np.ndarray:
    """int8 (65536, 8): every point in quarters, odd numbers."""
    base = patterns().copy()
    base[(base // 2).sum(1) % 4 == 2, 7] *= -1  # in halves: an even coordinate sum is a multiple of 4
    byte = np.arange(256)
    bits = (byte[:, None] >> np.arange(DIM)) & 1
    down = bits.sum(1) % 2
    bits[:, 7] ^= down
    points = base[:, None] * (1 - 2 * bits) + (1 - 2 * down)[:, None]
    return points.reshape(POINTS, DIM).astype(np.int8)
