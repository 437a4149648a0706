"""grid_code: the point of a midpoint grid whose direction is closest to a given one.

For magnitudes a >= 0 (d,) and K cells the candidates are u = min(floor(t a), K-1) for all t > 0, and the best is the one with the
largest cosine,

    max_t  <u + 1/2, a>^2 / |u + 1/2|^2.

u changes only where t passes a breakpoint j / a_i (1 <= j < K), so walking the d (K-1) breakpoints in ascending order and updating
both sums visits every candidate: the exact optimum of Extended RaBitQ. Magnitudes are integers 0..2^30 (the caller scales by the
largest), hence both sums are exact whatever their order, and score, walk and ties are the same on every machine:

    breakpoints  j * (1 / a_i) in float64, ascending; equal ones in order of i; the state after each single step is a candidate
    score        N * N / D in float64 with N = sum (2u+1) a, D = sum (2u+1)^2; the first of equal scores wins
"""

from __future__ import annotations

import torch
from torch import Tensor

from codeword.errors import ShapeError
from codeword.ops import dispatch

TOP = 1 << 30
"""Largest magnitude."""


def grid_code(magnitudes: Tensor, cells: int) -> Tensor:
    """Cells uint8 (n, d) of magnitudes int32 (n, d), 0..2^30; ``cells`` K is 1..256."""
    if magnitudes.ndim != 2 or magnitudes.dtype != torch.int32 or not 1 <= cells <= 256:
        got = f"{tuple(magnitudes.shape)} {magnitudes.dtype} and {cells} cells"
        raise ShapeError(f"grid_code got {got}; int32 (n, d) and 1..256 cells are needed")
    if cells == 1:
        return torch.zeros_like(magnitudes, dtype=torch.uint8)
    return dispatch.run(_grid_code, magnitudes.contiguous(), cells)


@torch.library.custom_op("codeword::grid_code", mutates_args=())
def _grid_code(magnitudes: Tensor, cells: int) -> Tensor:
    if magnitudes.numel() and not (int(magnitudes.min()) >= 0 and int(magnitudes.max()) <= TOP):
        raise ShapeError(f"grid_code got magnitudes {int(magnitudes.min())}..{int(magnitudes.max())}; 0..{TOP} are allowed")
    if dispatch.choice("grid_code", magnitudes.device) == "native":
        module = dispatch.native()
        assert module is not None
        out = torch.empty(magnitudes.shape, dtype=torch.uint8)
        module.grid_code(magnitudes.numpy(), cells, out.numpy(), dispatch.num_threads())
        return out
    return reference(magnitudes, cells)


@_grid_code.register_fake
def _(magnitudes: Tensor, cells: int) -> Tensor:
    return magnitudes.new_empty(magnitudes.shape, dtype=torch.uint8)


def reference(magnitudes: Tensor, cells: int) -> Tensor:
    """All breakpoints, sorted; both sums by prefix sums. O(d K log(d K)) a row, in blocks of rows."""
    n, d = magnitudes.shape
    out = torch.zeros(n, d, dtype=torch.uint8, device=magnitudes.device)
    step = max(1, (1 << 21) // max(1, d * (cells - 1)))
    for start in range(0, n if d else 0, step):
        out[start:start + step] = _walk(magnitudes[start:start + step].to(torch.int64), cells)
    return out


def _walk(a: Tensor, cells: int) -> Tensor:
    n, d = a.shape
    levels = torch.arange(1, cells, device=a.device)
    crossing = (levels.double() * (1 / a.double()).unsqueeze(2)).flatten(1)  # a zero never leaves cell 0: its breakpoints are infinite
    order = torch.argsort(crossing, dim=1, stable=True)
    entry = order // (cells - 1)
    level = order % (cells - 1) + 1
    total = torch.cat((a.sum(1, keepdim=True), 2 * a.gather(1, entry)), dim=1).cumsum(1)
    square = torch.cat((torch.full((n, 1), d, device=a.device), 8 * level), dim=1).cumsum(1)
    score = total.double() * total.double() / square.double()
    place = torch.arange(score.shape[1], device=a.device).expand_as(score)
    best = torch.where(score == score.amax(1, keepdim=True), place, score.shape[1]).amin(1)
    passed = (place[:, 1:] <= best.unsqueeze(1)).to(torch.int64)
    return torch.zeros_like(a).scatter_add_(1, entry, passed).to(torch.uint8)
