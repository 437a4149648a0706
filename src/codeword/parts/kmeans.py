"""k-means (Lloyd 1957/1982) from a seeded start of distinct rows, the same for any number of threads.

Assignment is the exact ``ops.nearest``; means are float64 sums in row order; an emptied cluster moves to the row that is served worst,
reported, never silent. Cost: iterations * n * k * d multiply-adds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError
from codeword.parts import random

ROWS_PER_CENTROID = 256
"""More training rows than this a centroid change the result by noise only (faiss uses the same)."""


class KMeans(NamedTuple):
    """``centroids`` float32 (k, d); ``objective`` mean squared error after each iteration; ``repaired`` emptied clusters refilled."""

    centroids: Tensor
    objective: list[float]
    repaired: int


def kmeans(x: Tensor, k: int, *, iterations: int = 25, seed: int = 0, weights: Tensor | None = None,
           tolerance: float = 1e-4, start: Tensor | None = None) -> KMeans:
    """Cluster float32 rows x (n, d) into k centroids. Starts from k distinct rows where there are as many (fewer: some centroids
    repeat and stay unused); stops early once the objective improves by less than ``tolerance`` (relative).
    ``start`` (k, d): centroids to begin with instead."""
    if k < 1 or len(x) < 1:
        raise CodewordError(f"kmeans got {len(x)} rows and k={k}; at least one of each is needed")
    keep = ROWS_PER_CENTROID * k
    if len(x) > keep:
        rows = torch.from_numpy(random.choice(seed, len(x), keep, stream="kmeans rows")).to(x.device)
        x, weights = x[rows], None if weights is None else weights[rows]
    centroids = _start(x, k, seed) if start is None else start.clone()
    history: list[float] = []
    repaired = 0
    for _ in range(iterations):
        found = ops.nearest(x, centroids)
        error = found.distances.double() if weights is None else found.distances.double() * weights
        history.append(float(error.sum() / (len(x) if weights is None else weights.double().sum())))
        sums, counts = ops.segment_sum(x, found.indices, k, weights)
        filled = counts > 0
        centroids = torch.where(filled.unsqueeze(1), (sums / counts.clamp(min=1e-300).unsqueeze(1)).float(), centroids)
        empty = (~filled).nonzero().squeeze(1)
        if len(empty):
            fixed = _refill(x, centroids, empty, found.distances)
            repaired += fixed
        elif len(history) > 1 and history[-2] - history[-1] <= tolerance * history[-2]:
            break
        if history[-1] == 0.0:
            break
    return KMeans(centroids, history, repaired)


def _start(x: Tensor, k: int, seed: int) -> Tensor:
    """k distinct rows in seeded order; where fewer are distinct the rest repeat them."""
    order = torch.from_numpy(random.permutation(seed, len(x), stream="kmeans start")).to(x.device)
    chosen = x[order[:k]]
    distinct = torch.unique(chosen, dim=0)
    if len(distinct) < k and len(x) > k:
        distinct = torch.unique(x, dim=0)
        pick = torch.from_numpy(random.choice(seed, len(distinct), min(k, len(distinct)), stream="kmeans distinct")).to(x.device)
        chosen = distinct[pick]
    if len(chosen) < k:
        chosen = chosen.repeat(math.ceil(k / len(chosen)), 1)[:k]
    return chosen.clone()


def _refill(x: Tensor, centroids: Tensor, empty: Tensor, distances: Tensor) -> int:
    """Move empty centroids onto the rows that are served worst, farthest first; rows served exactly need no codeword."""
    count = min(len(empty), len(x))
    worst, rows = torch.sort(distances, descending=True, stable=True)
    usable = int((worst[:count] > 0).sum())
    centroids[empty[:usable]] = x[rows[:usable]]
    return usable
