"""Integer vectors on the pyramid P(D, K) = {y in Z^D : sum |y_i| = K}: counting, projecting, and numbering them (Fischer 1986).

    N(l, k) = N(l-1, k) + N(l, k-1) + N(l-1, k-1),  N(l, 0) = 1,  N(0, k > 0) = 0              points with l coordinates and k pulses

Projecting on it, and numbering its points with these counts and their prefix sums S(l, k) = N(l, 0) + ... + N(l, k), are ops
(``ops.pyramid``). Tables are made with Python integers and must end below 2^63.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from codeword.ops.pyramid import number, point, project

__all__ = ["LIMIT", "MAX_PULSES", "number", "point", "project", "sizes", "tables"]

LIMIT = 1 << 63
MAX_PULSES = 1 << 12


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
