"""k-means in progressively more dimensions, as faiss and others start residual codebooks (Liu et al. 2015: generalized RVQ).

In the order of the principal axes, k-means runs in the first few dimensions, and its centroids, with zeros for the rest, start the
next run in more, up to all. Clusters found where the variance is are a better start than random rows in all dimensions, where every two
rows are about equally far apart: some percent less error for residuals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codeword import ops
from codeword.parts.kmeans import KMeans, kmeans
from codeword.parts.moments import moments
from codeword.parts.threads import one_thread

STEPS = 10
"""Widths d^(1/STEPS), d^(2/STEPS), ..., d."""
STEP_ITERATIONS = 8
"""k-means iterations at each width but the last, at most."""
AXIS_ROWS = 1 << 14
"""Rows that the principal axes are estimated from, at most."""


def progressive_kmeans(rows: Tensor, k: int, *, iterations: int = 25, seed: int = 0, weights: Tensor | None = None) -> KMeans:
    """Cluster float32 rows (n, d) into k centroids, like ``kmeans``."""
    dim = rows.shape[1]
    mean = moments(rows, weights)[0]
    axes = _principal_axes(rows, mean)  # (d, d) float32, one axis a row
    turned = ops.project(_centred(rows, mean), axes)
    widths = sorted({round(dim ** (step / STEPS)) for step in range(1, STEPS)} - {dim})
    centroids = None
    for width in widths:
        start = None if centroids is None else torch.nn.functional.pad(centroids, (0, width - centroids.shape[1]))
        centroids = kmeans(turned[:, :width].contiguous(), k, iterations=min(iterations, STEP_ITERATIONS), seed=seed, weights=weights,
                           initial=start).centroids
    if centroids is None:
        return kmeans(rows, k, iterations=iterations, seed=seed, weights=weights)
    start = (ops.project(centroids, axes[:centroids.shape[1]].mT.contiguous()).double() + mean).float()
    return kmeans(rows, k, iterations=iterations, seed=seed, weights=weights, initial=start)


def _centred(rows: Tensor, mean: Tensor) -> Tensor:
    return rows - mean.float()


def _principal_axes(rows: Tensor, mean: Tensor) -> Tensor:
    """Most variance first, on one thread: they decide codebooks."""
    sample = _centred(rows[:AXIS_ROWS], mean)
    sample = torch.ldexp(sample, -torch.frexp(sample.abs().amax()).exponent).double()
    with one_thread():
        vectors = torch.linalg.eigh(sample.mT @ sample).eigenvectors
    return vectors.flip(1).mT.float().contiguous()
