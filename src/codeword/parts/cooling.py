"""Rounds on fresh random parts of the rows, growing to all of them: how an alternation gets out of the first hollow it comes to.

Steps that assign rows and move codewords stop changing at whatever is near the start. On a random part of n of N rows a codeword is a mean
that is off by noise of variance (1/n - 1/N) K times that of its rows, which carries codes out of poor places; as parts grow the noise
fades, as in annealing. n = N a / (N + a) makes it that of a independent rows, whatever N. A part also costs less than all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codeword.parts import random

Schedule = Sequence[tuple[float, int | None]]
"""Up to this share of the rounds, the noise of so many independent rows a codeword; None: no noise, all rows."""


def part_sizes(rows: int, size: int, rounds: int, schedule: Schedule) -> list[int]:
    """How many of ``rows`` each round sees, for a codebook of ``size`` codewords; at least so many as there are codewords."""
    found = []
    for turn in range(1, rounds + 1):
        many = next(many for share, many in schedule if turn <= share * rounds)
        alike = rows if many is None else round(rows * many * size / (rows + many * size))
        found.append(min(rows, max(alike, size)))
    return found


def part(rows: Tensor, weights: Tensor | None, count: int, seed: int, stream: str) -> tuple[Tensor, Tensor | None]:
    """A seeded sample of at most ``count`` rows (n, d) and their weights, in the order of the rows."""
    if len(rows) <= count:
        return rows, weights
    keep = torch.from_numpy(random.subset(seed, len(rows), count, stream=stream)).to(rows.device)
    return rows[keep], None if weights is None else weights[keep]
