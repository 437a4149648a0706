"""Which dimensions share a segment and how many bits each segment gets: an exact dynamic program over blocks of dimensions.

Dimensions come in order of falling variance v. A segment S of n dimensions, rotated within itself and coded with b bits a dimension,
estimates inner products <o, q> of two rows from the same data with the error variance

    error(S, b) = (sum_S v)^2 / n * NOISE[b]         b >= 1     NOISE[b] = E[1/cos^2 - 1] of a rotated segment's code, ~ 4^-b
    error(S, 0) = sum_S v^2                                     the segment is left out: its estimate is 0

because the code misses the vector by noise in a random direction; errors of segments are independent, so their variances add up. The plan
minimises the sum under n b + ``overhead`` bits for each coded segment (its scale) within ``budget``. Bits do not rise from one segment
to the next, and only the last may have none. (SAQ adds up standard deviations, sum_S v / 2^b; variances gave 0 to 6 % less error.)

f[b][i][u] is the least error of the first i blocks with exactly u bits in segments of at least b bits each; going from b + 1 to b adds
segments of b bits. O(max_bits blocks^2 budget), vectorised over u, with u counted in the greatest common divisor of all costs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from codeword.errors import CodewordError

Plan = tuple[tuple[int, int], ...]
"""(dimensions, bits) of each segment."""

NOISE = (1.0, 0.56841783, 0.134321773, 0.038447661, 0.011361445, 0.0032863, 0.000902461, 0.000239959, 6.2608e-05, 1.6022e-05, 4.038e-06,
         1.016e-06, 2.54e-07, 6.4e-08)
"""By bits; measured on Gaussian vectors of width 512 with the best scale of each."""
MAX_BITS = len(NOISE) - 1
MAX_BLOCKS = 64
"""Blocks are made wider where there would be more."""


def bit_plan(variances: Sequence[float] | np.ndarray, budget: int, *, granularity: int, overhead: int, max_bits: int = MAX_BITS) -> Plan:
    """The best plan; every segment but the last is a multiple of ``granularity`` dimensions long. CodewordError where the budget does not
    pay for one bit a dimension of the first block."""
    v = np.asarray(variances, dtype=np.float64)
    edges = block_edges(len(v), granularity)
    if budget < edges[1] + overhead:
        raise CodewordError(f"a bit plan got a budget of {budget} bits a vector; at least {edges[1] + overhead} are needed for a first "
                            f"segment of {edges[1]} dimensions")
    budget = min(budget, max_bits * len(v) + overhead * (len(edges) - 1))
    unit = math.gcd(overhead, *(right - left for left, right in itertools.pairwise(edges)))
    choice, end = _tables(v / max(v.max(), 1e-300), edges, budget // unit, unit, overhead, max_bits)
    return _walk(choice, edges, end, unit, overhead)


def flat_plan(dim: int, budget: int, *, granularity: int, overhead: int, max_bits: int = MAX_BITS) -> Plan:
    """The plan for equal variances: all dimensions alike, the first ones with a bit more where that fits."""
    bits = min(max(budget - overhead, 0) // dim, max_bits)
    first = block_edges(dim, granularity)[1]
    longer = 0 if bits == max_bits else max(budget - 2 * overhead - dim * bits, 0) // first * first
    if bits == 0:
        longer = max(longer, first)
    return tuple((length, b) for length, b in ((longer, bits + 1), (dim - longer, bits)) if length)


def block_edges(dim: int, granularity: int) -> list[int]:
    """0, granularity, 2 granularity, ..., dim; multiples of it where there would be more than ``MAX_BLOCKS`` blocks."""
    step = granularity * math.ceil(dim / (granularity * MAX_BLOCKS))
    return [*range(0, dim, step), dim]


def plan_bits(plan: Sequence[Sequence[int]], overhead: int) -> int:
    """Bits a vector takes."""
    return sum(length * bits + overhead for length, bits in plan if bits)


def _tables(v: np.ndarray, edges: list[int], budget: int, unit: int, overhead: int, max_bits: int) -> tuple[np.ndarray, int]:
    """choice[b, i, u]: blocks in the last segment where it has b bits, 0 where f[b] took f[b + 1]; and the best number of units."""
    blocks = len(edges) - 1
    first, second = (np.concatenate(([0.0], np.cumsum(power)))[edges] for power in (v, v * v))
    best = np.full((blocks + 1, budget + 1), np.inf)
    best[0, 0] = 0
    choice = np.zeros((max_bits + 1, blocks + 1, budget + 1), dtype=np.uint8)
    for b in range(max_bits, -1, -1):
        for i in range(blocks) if b else range(1, blocks):
            for j in range(1, blocks - i + 1) if b else (blocks - i,):
                length = edges[i + j] - edges[i]
                cost = (length * b + overhead) // unit if b else 0
                if cost > budget:
                    break
                error = (first[i + j] - first[i]) ** 2 / length * NOISE[b] if b else second[i + j] - second[i]
                candidate, target = best[i, :budget + 1 - cost] + error, best[i + j, cost:]
                better = candidate < target
                target[better] = candidate[better]
                choice[b, i + j, cost:][better] = j
    return choice, int(best[blocks].argmin())


def _walk(choice: np.ndarray, edges: list[int], units: int, unit: int, overhead: int) -> Plan:
    plan: list[tuple[int, int]] = []
    i, b = len(edges) - 1, 0
    while i:
        while not (j := int(choice[b, i, units])):
            b += 1
        length = edges[i] - edges[i - j]
        plan.append((length, b))
        units -= (length * b + overhead) // unit if b else 0
        i -= j
    return tuple(reversed(plan))
