"""k-means (Lloyd 1957/1982) from a seeded start, the same for any number of threads.

    label_i = argmin_j |x_i - c_j|^2  (``ops.nearest``, exact)        c_j = mean of the rows labelled j  (float64 sums in row order)

Starts: ``sample`` takes k distinct rows in seeded order; ``k-means++`` (Arthur and Vassilvitskii 2007) draws each next row with
probability proportional to its squared distance D^2 from those drawn. Here rows are proposed in batches by the D^2 before the batch and
accepted with probability D^2 now / D^2 before, which gives the same distribution for the price of about one iteration. ``cooled`` goes on
from ``sample`` with steps on random parts of the rows (``parts/cooling``): lower ends, and few steps on all rows.
An emptied cluster moves to the row that is served worst: reported, never silent, but for those that are empty in a part only.
Cost: iterations * n * k * d multiply-adds, in 8-bit integers where the processor has them; rows of other types than float32 pass in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, ShapeError
from codeword.parts import arrays, cooling, random

ROWS_PER_CENTROID = 256
"""More training rows than this a centroid change the result by noise only (faiss uses the same)."""
STARTS = ("sample", "k-means++", "cooled")
COOLING = ((1 / 2, 32), (5 / 6, 64), (1.0, 128))
"""Of the steps on parts (``cooling.Schedule``)."""
COOLED = 1
"""Steps on parts, for each iteration that may follow."""
BATCH = 64
"""Rows that k-means++ proposes at once, at most: more would mostly be rejected."""
WORK = 1 << 38
"""Multiply-adds of one call into compiled code, about a second: Ctrl-C is heard in between."""


class KMeans(NamedTuple):
    """``centroids`` float32 (k, d); ``objective`` mean squared error after each iteration; ``repaired`` emptied clusters refilled."""

    centroids: Tensor
    objective: list[float]
    repaired: int


def kmeans(x: Tensor, k: int, *, iterations: int = 25, seed: int = 0, weights: Tensor | None = None, tolerance: float = 1e-4,
           start: str = "sample", initial: Tensor | None = None, rows_per_centroid: int | None = ROWS_PER_CENTROID) -> KMeans:
    """Cluster rows x (n, d) of any real dtype into k centroids, from ``initial`` (k, d) where it is given, else from ``start``.

    Where fewer than k rows are distinct some centroids repeat and stay unused. Stops early once the objective improves by less than
    ``tolerance`` (relative). Of more than ``rows_per_centroid`` k rows a seeded sample is used; None: all rows."""
    if k < 1 or len(x) < 1:
        raise CodewordError(f"kmeans got {len(x)} rows and k={k}; at least one of each is needed")
    if start not in STARTS:
        raise CodewordError(f"kmeans got start={start!r}; {', '.join(map(repr, STARTS))} are known")
    if initial is not None and initial.shape != (k, x.shape[1]):
        raise ShapeError(f"kmeans got initial centroids {tuple(initial.shape)}; ({k}, {x.shape[1]}) are needed")
    if rows_per_centroid is not None and len(x) > rows_per_centroid * k:
        keep = rows_per_centroid * k
        rows = torch.from_numpy(random.choice(seed, len(x), keep, stream="kmeans rows")).to(x.device)
        x, weights = x[rows], None if weights is None else weights[rows]
    if initial is not None:
        centroids = initial.detach().to(x.device, torch.float32).clone()
    elif start == "cooled":
        centroids = _cooled(x, k, seed, weights, COOLED * iterations)
    else:
        centroids = _sample(x, k, seed) if start == "sample" else _plus_plus(x, k, seed, weights)
    mass = len(x) if weights is None else _sum(weights)
    history: list[float] = []
    repaired = 0
    tracker = ops.Tracker(len(x), x.device)
    for _ in range(iterations):
        centroids, distances, empty = _step(x, centroids, weights, tracker)
        history.append(_sum(distances if weights is None else distances.double() * weights) / mass)
        if len(empty):
            repaired += _refill(x, centroids, empty, distances)
        elif len(history) > 1 and history[-2] - history[-1] <= tolerance * history[-2]:
            break
        if history[-1] == 0.0:
            break
    return KMeans(centroids, history, repaired)


def _step(x: Tensor, centroids: Tensor, weights: Tensor | None, tracker: ops.Tracker) -> tuple[Tensor, Tensor, Tensor]:
    """The means of the clusters of ``centroids``, the distances of the rows to these before, and which clusters are empty."""
    distances, sums, counts = _assign(x, centroids, weights, tracker)
    filled = counts > 0
    means = torch.where(filled.unsqueeze(1), (sums / counts.clamp(min=1e-300).unsqueeze(1)).float(), centroids)
    return means, distances, (~filled).nonzero().squeeze(1)


def _assign(x: Tensor, centroids: Tensor, weights: Tensor | None, tracker: ops.Tracker) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances of the rows (n,), and per centroid the float64 sum (k, d) and mass (k,) of its rows, added in row order."""
    total = ops.SegmentSum(len(centroids), x.shape[1], x.device)
    distances = torch.empty(len(x), device=x.device)
    tracker.move(centroids)
    for rows in _blocks(x, len(centroids)):
        part = x[rows].float()
        found = tracker.nearest(part, rows.start)
        distances[rows] = found.distances
        total.add(part, found.indices, None if weights is None else weights[rows])
    return distances, total.sums, total.counts


def _blocks(x: Tensor, k: int) -> Iterator[slice]:
    step = max(1, WORK // (k * max(1, x.shape[1])))
    if x.dtype != torch.float32:
        step = min(step, arrays.block_rows(x.shape[1]))
    for start in range(0, len(x), step):
        yield slice(start, start + step)


def _sum(values: Tensor) -> float:
    """float64, in an order that does not change with the number of threads, as torch's own sum does."""
    return float(np.add.reduce(values.detach().double().cpu().numpy()))


def _sample(x: Tensor, k: int, seed: int) -> Tensor:
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
    return chosen.float().clone()


def _cooled(x: Tensor, k: int, seed: int, weights: Tensor | None, rounds: int) -> Tensor:
    """Steps on parts from a sample."""
    centroids = _sample(x, k, seed)
    for turn, count in enumerate(cooling.part_sizes(len(x), k, rounds, COOLING)):
        rows, mass = cooling.part(x, weights, count, seed, f"kmeans part {turn}")
        centroids, distances, empty = _step(rows, centroids, mass, ops.Tracker(len(rows), rows.device))
        if len(empty):
            _refill(rows, centroids, empty, distances)
    return centroids


def _plus_plus(x: Tensor, k: int, seed: int, weights: Tensor | None) -> Tensor:
    """k-means++ by batches; once every row is served exactly the rest repeat those drawn."""
    mass = np.ones(len(x)) if weights is None else weights.double().cpu().numpy()
    before = np.ones(len(x))
    chosen = torch.empty(0, x.shape[1], device=x.device)
    for turn in range(16 * k):
        total = np.cumsum(before * mass)
        if len(chosen) == k or not total[-1] > 0:
            break
        size = min(BATCH, max(1, len(chosen)), k - len(chosen))
        draw = random.uniform(seed, 2 * size, stream=f"kmeans++ {turn}")
        rows = np.minimum(np.searchsorted(total, draw[:size] * total[-1], side="right"), len(x) - 1)
        proposed = x[torch.from_numpy(rows).to(x.device)].float()
        accepted = _accept(proposed, before[rows], draw[size:])
        fresh = proposed[torch.tensor(accepted, device=x.device)]
        near = np.concatenate([ops.nearest(x[part].float(), fresh).distances.cpu().numpy() for part in _blocks(x, len(fresh))])
        before = near.astype(np.float64) if len(chosen) == 0 else np.minimum(before, near)
        chosen = torch.cat((chosen, fresh))
    return chosen.repeat(math.ceil(k / len(chosen)), 1)[:k].clone()


def _accept(proposed: Tensor, before: np.ndarray, draw: np.ndarray) -> list[int]:
    """Which of a batch stay: each with probability D^2 after those that stayed / ``before`` (the first always)."""
    accepted = [0]
    nearest = ops.nearest(proposed, proposed[:1]).distances.cpu().numpy().astype(np.float64)
    for i in range(1, len(proposed)):
        if draw[i] * before[i] < min(nearest[i], before[i]):
            accepted.append(i)
            nearest = np.minimum(nearest, ops.nearest(proposed, proposed[i:i + 1]).distances.cpu().numpy())
    return accepted


def _refill(x: Tensor, centroids: Tensor, empty: Tensor, distances: Tensor) -> int:
    """Move empty centroids onto the rows that are served worst, farthest first; rows served exactly need no codeword."""
    count = min(len(empty), len(x))
    far = (distances >= distances.topk(count).values[-1]).nonzero().squeeze(1)  # few, but for ties; then in the order of a whole sort
    worst, order = torch.sort(distances[far], descending=True, stable=True)
    usable = int((worst[:count] > 0).sum())
    centroids[empty[:usable]] = x[far[order[:usable]]].float()
    return usable
