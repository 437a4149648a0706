"""pyramid_project, pyramid_number, pyramid_point: from real groups to integer points of fixed L1 norm K, their indices, and back.

Projection is greedy: y = floor(K |w| / sum |w|), then each missing pulse goes where the cosine to w gains most, the first such coordinate
on ties. The number of a point counts the points before it: at each coordinate 0 comes first, then +1, -1, +2, -2, ... The tables N and S
(``parts.pyramid``) turn the inner sums into one subtraction and decoding into a binary search.

All arithmetic on a group is elementwise float64 or int64 in a fixed order, with one rounding an operation: the same bits everywhere.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from codeword.errors import ShapeError
from codeword.ops import dispatch

BLOCK_GROUPS = 1 << 13
"""Groups projected at once by the plain implementation: their float64 work arrays stay in cache."""


def project(x: Tensor, pulses: int) -> tuple[Tensor, Tensor]:
    """Points y int64 (n, D) near the direction of x (n, D) float32, and the gains x.y / |y| float64 (n,), never negative.
    A group of zeros, or one with NaN or infinity, becomes (K, 0, ..., 0) with gain 0."""
    if x.ndim != 2 or x.dtype != torch.float32 or not x.shape[1] or not 1 <= pulses < 1 << 20:
        raise ShapeError(f"pyramid_project got {tuple(x.shape)} {x.dtype} and {pulses} pulses; float32 (n, d >= 1) and 1..2^20 are needed")
    return dispatch.run(_project_op, x.contiguous(), pulses)


@torch.library.custom_op("codeword::pyramid_project", mutates_args=())
def _project_op(x: Tensor, pulses: int) -> tuple[Tensor, Tensor]:
    if dispatch.choice("pyramid_project", x.device) == "native":
        points, gains = torch.empty(x.shape, dtype=torch.int64), torch.empty(len(x), dtype=torch.float64)
        _native().pyramid_project(x.numpy(), pulses, points.numpy(), gains.numpy(), dispatch.num_threads())
        return points, gains
    return reference_project(x, pulses)


def reference_project(x: Tensor, pulses: int) -> tuple[Tensor, Tensor]:
    """All groups of a block step by step together."""
    points = torch.empty(x.shape, dtype=torch.int64, device=x.device)
    gains = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), BLOCK_GROUPS):
        part = slice(start, start + BLOCK_GROUPS)
        points[part], gains[part] = _project(x[part], pulses)
    return points, gains


@_project_op.register_fake
def _(x: Tensor, pulses: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int64), x.new_empty(x.shape[0], dtype=torch.float64)


def _project(x: Tensor, pulses: int) -> tuple[Tensor, Tensor]:
    size = x.double().abs()
    total = _ordered_sum(size)
    usable = torch.isfinite(total) & (total > 0)
    size = torch.where(usable.unsqueeze(1), size, 0.0)
    point = torch.where(usable.unsqueeze(1), torch.floor(size * (pulses / total).unsqueeze(1)), 0.0)
    odd = 2 * point + 1  # what one more pulse adds to |y|^2
    dot, energy = _ordered_sum(size * point), point.square().sum(1)  # integers below 2^53 add up exactly in any order
    missing = pulses - point.sum(1).to(torch.int64)
    order = torch.argsort(missing, descending=True, stable=True)  # groups that still miss a pulse stand in front
    size, odd, dot, energy, missing = size[order], odd[order], dot[order], energy[order], missing[order]
    rows = torch.arange(len(x), device=x.device)
    for step in range(int(missing.max()) if len(x) else 0):
        m = int((missing > step).sum())
        score = (dot[:m].unsqueeze(1) + size[:m]).square_().div_(energy[:m].unsqueeze(1) + odd[:m])
        best = torch.argmax(score, dim=1)
        energy[:m] += odd[rows[:m], best]
        dot[:m] += size[rows[:m], best]
        odd[rows[:m], best] += 2
    points, gains = torch.empty(x.shape, dtype=torch.int64, device=x.device), torch.empty_like(dot)
    points[order] = ((odd - 1) / 2).to(torch.int64)
    gains[order] = dot / energy.sqrt()
    return torch.where(x < 0, -points, points), gains


def _ordered_sum(x: Tensor) -> Tensor:
    """Sum over the last axis in ascending order."""
    total = x[:, 0].clone()
    for i in range(1, x.shape[1]):
        total += x[:, i]
    return total


def number(points: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
    """Index int64 (n,) in 0..N-1 of points (n, D) with the tables of their (D, K)."""
    return dispatch.run(_number_op, points.contiguous(), counts, sums)


@torch.library.custom_op("codeword::pyramid_number", mutates_args=())
def _number_op(points: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
    if dispatch.choice("pyramid_number", points.device) == "native":
        index = torch.empty(len(points), dtype=torch.int64)
        _native().pyramid_number(points.numpy(), counts.numpy(), sums.numpy(), index.numpy(), dispatch.num_threads())
        return index
    return reference_number(points, counts, sums)


def reference_number(points: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
    """Coordinate by coordinate."""
    group, last = points.shape[1], counts.shape[1] - 1
    index = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    left = torch.full_like(index, last)
    for i in range(group):
        y = points[:, i]
        size = y.abs()
        count, total = counts[group - 1 - i], sums[group - 1 - i]
        before = count[left] + 2 * (total[(left - 1).clamp(min=0)] - total[(left - size).clamp(min=0)])
        left = left - size
        index += torch.where(size > 0, before + torch.where(y < 0, count[left], 0), 0)
    return index


@_number_op.register_fake
def _(points: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
    return points.new_empty(points.shape[0])


def point(index: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
    """Inverse of ``number``: points int64 (n, D)."""
    return dispatch.run(_point_op, index.contiguous(), counts, sums)


@torch.library.custom_op("codeword::pyramid_point", mutates_args=())
def _point_op(index: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
    if dispatch.choice("pyramid_point", index.device) == "native":
        points = torch.empty(len(index), len(counts), dtype=torch.int64)
        _native().pyramid_point(index.numpy(), counts.numpy(), sums.numpy(), points.numpy(), dispatch.num_threads())
        return points
    return reference_point(index, counts, sums)


def reference_point(index: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
    """Coordinate by coordinate, each by binary search."""
    group, last = len(counts), counts.shape[1] - 1
    rest, left = index, torch.full_like(index, last)
    columns = []
    for i in range(group):
        count, total = counts[group - 1 - i], sums[group - 1 - i]
        after = rest - count[left]  # below 0: this coordinate is 0
        size = _search(after, left, total, last)
        rest = torch.where(size > 0, after - _before(size, left, total), rest)
        positive = count[left - size]
        negative = (size > 0) & (rest >= positive)
        rest = torch.where(negative, rest - positive, rest)
        columns.append(torch.where(negative, -size, size))
        left = left - size
    return torch.stack(columns, dim=1)


@_point_op.register_fake
def _(index: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
    return index.new_empty(index.shape[0], len(counts))


def _before(size: Tensor, left: Tensor, total: Tensor) -> Tensor:
    """Points whose coordinate is nonzero and smaller than ``size`` in magnitude: 2 (N(k-1) + ... + N(k-size+1))."""
    return 2 * (total[(left - 1).clamp(min=0)] - total[(left - size).clamp(min=0)])


def _search(after: Tensor, left: Tensor, total: Tensor, last: int) -> Tensor:
    """The largest size in 1..left with _before(size) <= after, or 0 where after < 0."""
    low, high = torch.zeros_like(left), torch.where(after >= 0, left, 0)
    for _ in range(last.bit_length()):
        middle = (low + high + 1) >> 1
        fits = (middle > 0) & (_before(middle, left, total) <= after)
        low, high = torch.where(fits, middle, low), torch.where(fits, high, (middle - 1).clamp(min=0))
    return low


def _native() -> ModuleType:
    module = dispatch.native()
    assert module is not None
    return module
