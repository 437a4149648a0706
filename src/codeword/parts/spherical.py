"""Directions and their clusters, for codebooks that compare by cosine.

    u = x / |x|,   |u - c|^2 = 2 - 2 cos(x, c) for unit c:  nearest by squared L2 among unit vectors is nearest by cosine

Spherical k-means (Dhillon, Modha 2001): label = argmax cos, c_j = the direction of the sum of the rows labelled j. It maximises
sum cos, as k-means minimises squared error; centroids are of unit length throughout, not only at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codeword.errors import CodewordError
from codeword.parts import random
from codeword.parts.kmeans import ROWS_PER_CENTROID, KMeans, kmeans
from codeword.parts.rows import dot


def directions(rows: Tensor) -> Tensor:
    """x / |x| over the last axis of (n, d), float32 from float64 arithmetic in a fixed order, differentiable. A row of zeros, which has no
    direction, is given e_1; rows with NaN or infinity become NaN; neither gets a gradient."""
    return _Directions.apply(rows)  # type: ignore[return-value]


class _Directions(torch.autograd.Function):
    """With u = x / |x|: dx = (g - u <u, g>) / |x|."""

    @staticmethod
    def forward(rows: Tensor) -> Tensor:
        square = dot(rows, rows).unsqueeze(-1)
        usable = torch.isfinite(square) & (square > 0)
        u = (rows / torch.where(usable, square, 1.0).sqrt()).float()
        first = torch.zeros_like(u)
        first[..., 0] = 1.0
        return torch.where(usable, u, torch.where(square == 0, first, torch.nan))

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        rows, u = ctx.saved_tensors  # type: ignore[attr-defined]
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float64)
        usable = torch.isfinite(length) & (length > 0)
        inverse = torch.where(usable, 1 / length, 0.0).to(grad.dtype)
        return torch.where(usable, (grad - u * (u * grad).sum(-1, keepdim=True)) * inverse, 0.0)


def spherical_kmeans(rows: Tensor, k: int, *, iterations: int = 25, seed: int = 0, weights: Tensor | None = None,
                     tolerance: float = 1e-4) -> KMeans:
    """Cluster the directions of rows (n, d) into k unit centroids; rows of zeros count as absent unless all are. ``objective`` is the
    mean of 2 - 2 cos before each iteration; starts, repairs and sampling are those of ``kmeans``."""
    if k < 1 or len(rows) < 1 or iterations < 0:
        raise CodewordError(f"spherical_kmeans got {len(rows)} rows, k={k} and iterations={iterations}; at least one row, k >= 1 and "
                            "iterations >= 0 are needed")
    usable = (rows != 0).any(1)
    if bool(usable.any()) and not bool(usable.all()):
        rows, weights = rows[usable], None if weights is None else weights[usable]
    if len(rows) > ROWS_PER_CENTROID * k:
        chosen = torch.from_numpy(random.choice(seed, len(rows), ROWS_PER_CENTROID * k, stream="spherical rows")).to(rows.device)
        rows, weights = rows[chosen], None if weights is None else weights[chosen]
    u = directions(rows)
    centroids = kmeans(u, k, iterations=0, seed=seed, weights=weights).centroids
    history: list[float] = []
    repaired = 0
    for _ in range(iterations):
        found = kmeans(u, k, iterations=1, seed=seed, weights=weights, initial=centroids)
        centroids = directions(found.centroids)
        history += found.objective
        repaired += found.repaired
        settled = len(history) > 1 and history[-2] - history[-1] <= tolerance * history[-2] and not found.repaired
        if settled or history[-1] == 0.0:
            break
    return KMeans(centroids, history, repaired)
