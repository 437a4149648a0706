"""Coarse labels for the codewords of a large codebook (Guo, Zhang, Shieh: Improving Autoregressive Image Generation through
Coarse-to-Fine Token Prediction, 2025).

Large codebooks are redundant: many codewords can stand in for each other. k-means over the K codewords puts such codewords into one of M
clusters, so that a token is a coarse label, which a generator must predict with care, and a rank within the cluster, which it may fill
in later:

    label(k) = argmin_m |c_k - center_m|^2,   rank(k) = how many codewords before k have its label,   (label, rank) <-> k one to one

``counts`` weighs codewords by how often they occur: without it codewords that nobody uses take part alike, and dead ones can take whole
clusters. Cost: that of k-means over K rows, once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, ShapeError
from codeword.parts import random
from codeword.parts.kmeans import kmeans


class Partition(NamedTuple):
    """``labels`` int64 (K,); ``ranks`` int64 (K,), below the label's size; ``members`` int64 (M, largest size), the codewords of a label in
    ascending order, -1 beyond; ``sizes`` int64 (M,). ``labels`` says all there is to say: ``of_labels`` makes the rest."""

    labels: Tensor
    ranks: Tensor
    members: Tensor
    sizes: Tensor


def of_labels(labels: Tensor, clusters: int) -> Partition:
    """The partition with these labels (K,) of 0 ... clusters - 1; ShapeError for others. A label may have no codewords."""
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or not len(labels) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ShapeError(f"labels of codewords are {labels.dtype} {tuple(labels.shape)}; integers of shape (K >= 1,) are needed")
    labels = labels.to(torch.int64)
    if clusters < 1 or int(labels.min()) < 0 or int(labels.max()) >= clusters:
        raise ShapeError(f"labels of codewords lie in {int(labels.min())}..{int(labels.max())}; 0..{clusters - 1} are allowed")
    sizes = torch.bincount(labels, minlength=clusters)
    order = torch.sort(labels, stable=True).indices
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels), device=labels.device) - (sizes.cumsum(0) - sizes)[labels[order]]
    members = labels.new_full((clusters, int(sizes.max())), -1)
    members[labels, ranks] = torch.arange(len(labels), device=labels.device)
    return Partition(labels, ranks, members, sizes)


def cluster(codebook: Tensor, clusters: int, *, counts: Tensor | None = None, iterations: int = 25, seed: int = 0) -> Partition:
    """Partition the codewords (K, d) into ``clusters`` by k-means, weighted by ``counts`` (K,), how often each occurs, where given; those
    that do not occur get the nearest label."""
    codebook = codebook.detach().float()
    if codebook.ndim != 2 or not 1 <= clusters <= len(codebook):
        raise CodewordError(f"cluster got {clusters} clusters for a codebook {tuple(codebook.shape)}; 1..K of (K, d) are allowed")
    weights = None
    if counts is not None:
        weights = torch.as_tensor(counts).to(codebook.device, torch.float32)
        if weights.shape != codebook.shape[:1] or not bool(torch.isfinite(weights).all()) or float(weights.min()) < 0:
            raise ShapeError(f"cluster got counts of shape {tuple(weights.shape)}; ({len(codebook)},) finite numbers >= 0 are needed")
        if int((weights > 0).sum()) < clusters:
            raise CodewordError(f"cluster got {int((weights > 0).sum())} codewords that occur for {clusters} clusters; as many are needed")
    rows = codebook if weights is None else codebook[weights > 0]
    found = kmeans(rows, clusters, iterations=iterations, seed=seed, weights=None if weights is None else weights[weights > 0],
                   rows_per_centroid=None)
    return of_labels(ops.nearest(codebook, found.centroids).indices, clusters)


def shuffled(partition: Partition, seed: int) -> Partition:
    """The same sizes, but codewords dealt out at random: what a partition must beat to mean anything."""
    order = torch.from_numpy(random.permutation(seed, len(partition.labels), stream="partition")).to(partition.labels.device)
    return of_labels(partition.labels[order], len(partition.sizes))


def split(partition: Partition, indices: Tensor) -> tuple[Tensor, Tensor]:
    """(labels, ranks) int64 of codeword numbers (...)."""
    indices = _checked(indices, len(partition.labels), "indices")
    return partition.labels[indices], partition.ranks[indices]


def join(partition: Partition, labels: Tensor, ranks: Tensor) -> Tensor:
    """Inverse of ``split``; ShapeError where a label has no such rank."""
    labels, ranks = _checked(labels, len(partition.sizes), "labels"), torch.as_tensor(ranks).to(torch.int64)
    if labels.shape != ranks.shape or bool(((ranks < 0) | (ranks >= partition.sizes[labels])).any()):
        raise ShapeError(f"join got labels {tuple(labels.shape)} and ranks {tuple(ranks.shape)}; equal shapes, and ranks below the sizes "
                         "of their labels, are needed")
    return partition.members[labels, ranks]


def allowed(partition: Partition, labels: Tensor) -> Tensor:
    """bool (..., K): the codewords of each label (...). Masking logits with it keeps a prediction inside of its cluster."""
    return partition.labels == _checked(labels, len(partition.sizes), "labels").unsqueeze(-1)


def resample(partition: Partition, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For each codeword number (...) a uniformly drawn one of the same label, maybe itself: how much does a coarse label leave open?"""
    labels, _ = split(partition, indices)
    sizes = partition.sizes[labels]
    draw = torch.rand(labels.shape, generator=generator, dtype=torch.float64, device=None if generator is None else generator.device)
    ranks = torch.minimum((draw.to(labels.device) * sizes).to(torch.int64), sizes - 1)
    return partition.members[labels, ranks]


def _checked(numbers: Tensor, limit: int, what: str) -> Tensor:
    numbers = torch.as_tensor(numbers)
    if numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise ShapeError(f"{what} are {numbers.dtype}; integers are needed")
    numbers = numbers.to(torch.int64)
    if numbers.numel() and (int(numbers.min()) < 0 or int(numbers.max()) >= limit):
        raise ShapeError(f"{what} lie in {int(numbers.min())}..{int(numbers.max())}; 0..{limit - 1} are allowed")
    return numbers
