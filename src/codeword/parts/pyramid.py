"""Integer vectors on the pyramid P(D, K) = {y in Z^D : sum |y_i| = K}: counting, projecting, and numbering them (Fischer 1986).

    N(l, k) = N(l-1, k) + N(l, k-1) + N(l-1, k-1),  N(l, 0) = 1,  N(0, k > 0) = 0              points with l coordinates and k pulses

Projection is greedy: y = floor(K |w| / sum |w|), then each missing pulse goes where the cosine to w gains most. The number of a point
counts the points before it: at each coordinate 0 comes first, then +1, -1, +2, -2, ... Prefix sums S(l, k) = N(l, 0) + ... + N(l, k)
turn the inner sums into one subtraction and decoding into a binary search.

All arithmetic on a group is elementwise float64 or int64 in a fixed order, so a group's point does not depend on its batch. Tables
are made with Python integers and must end below 2^63.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from codeword.ops import dispatch

LIMIT = 1 << 63
MAX_PULSES = 1 << 12
BLOCK_GROUPS = 1 << 13
"""Groups projected at once: their float64 work arrays stay in cache."""


@cache
def sizes(group: int, limit: int) -> tuple[int, ...]:
    """N(group, 1), N(group, 2), ... while at most ``limit`` (and for at most MAX_PULSES pulses)."""
    column, found = [1] * (group + 1), []
    while len(found) < MAX_PULSES:
        following = [0]
        for left, above in zip(column[1:], column, strict=False):
            following.append(following[-1] + left + above)
        if following[group] > limit:
            break
        found.append(following[group])
        column = following
    return tuple(found)


def tables(group: int, pulses: int) -> tuple[Tensor, Tensor]:
    """N and S as int64 (group, pulses + 1) for l = 0..group-1 (the outermost count is never looked up). Every entry is below
    N(group, pulses), which must be below 2^63; S only up to pulses - 1, whose double is part of N."""
    counts = [[1] + [0] * pulses]
    for _ in range(1, group):
        above, row = counts[-1], [1]
        for k in range(1, pulses + 1):
            row.append(above[k] + row[k - 1] + above[k - 1])
        counts.append(row)
    sums = [[sum_ for sum_ in _prefix(row[:-1])] + [0] for row in counts]
    assert max(map(max, counts)) < LIMIT and max(map(max, sums)) < LIMIT
    return torch.tensor(counts, dtype=torch.int64), torch.tensor(sums, dtype=torch.int64)


def _prefix(row: list[int]) -> list[int]:
    total, out = 0, []
    for value in row:
        total += value
        out.append(total)
    return out


def project(x: Tensor, pulses: int) -> tuple[Tensor, Tensor]:
    """Points y int64 (n, D) near the direction of x (n, D) float32, and the gains x.y / |y| float64 (n,), never negative.
    A group of zeros, or one with NaN or infinity, becomes (K, 0, ..., 0) with gain 0."""
    return dispatch.run(_project_op, x, pulses)


@torch.library.custom_op("codeword::pyramid_project", mutates_args=())
def _project_op(x: Tensor, pulses: int) -> tuple[Tensor, Tensor]:
    points = torch.empty(x.shape, dtype=torch.int64, device=x.device)
    gains = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), BLOCK_GROUPS):
        part = slice(start, start + BLOCK_GROUPS)
        points[part], gains[part] = _project(x[part], pulses)
    return points, gains


@_project_op.register_fake
def _(x: Tensor, pulses: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int64), x.new_empty(len(x), dtype=torch.float64)


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
    return dispatch.run(_number_op, points, counts, sums)


@torch.library.custom_op("codeword::pyramid_number", mutates_args=())
def _number_op(points: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
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
    return points.new_empty(len(points))


def point(index: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
    """Inverse of ``number``: points int64 (n, D)."""
    return dispatch.run(_point_op, index, counts, sums)


@torch.library.custom_op("codeword::pyramid_point", mutates_args=())
def _point_op(index: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
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
    return index.new_empty(len(index), len(counts))


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
