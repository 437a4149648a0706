"""Product codebooks (Jegou et al. 2011) as a mechanism: M slices of equal width, each with its own codebook of K codewords.

``codebooks`` is always float32 (M, K, d / M). A slice is searched by the exact ``ops.nearest``; means are float64 sums in row order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, Unsupported
from codeword.parts import random
from codeword.parts.kmeans import kmeans

WIDTHS = (8, 7, 6, 5, 4, 3, 9, 10, 11, 12, 2, 1)
"""Bits of an index that the dial considers, best first."""


class Learned(NamedTuple):
    """``codebooks`` (M, K, d / M) and how many emptied codewords were ``repaired`` on the way."""

    codebooks: Tensor
    repaired: int


def check_shape(name: str, dim: int, num_codebooks: int, codebook_size: int, iterations: int) -> None:
    """CodewordError where ``dim`` does not divide into that many slices, a codebook has an odd size or nothing is learned."""
    if iterations < 1:
        raise CodewordError(f"{name} got iterations={iterations}; at least 1 is needed")
    if num_codebooks < 1 or dim < 1 or dim % num_codebooks:
        raise CodewordError(f"{name} got dim={dim} and num_codebooks={num_codebooks}; a divisor of dim is needed")
    if not 2 <= codebook_size <= 1 << 16:
        raise CodewordError(f"{name} got codebook_size={codebook_size}; 2..65536 are allowed")


def split_bits(name: str, dim: int, bits: float) -> tuple[int, int]:
    """(num_codebooks, codebook_size): 256 codewords a slice where the slices fit, else the next of ``WIDTHS`` that does."""
    for width in WIDTHS:
        books = bits * dim / width
        if books >= 1 and math.isclose(books, round(books), abs_tol=1e-9) and dim % round(books) == 0:
            return round(books), 1 << width
    raise Unsupported(f"{name} has no split of dim={dim} with exactly {bits} bits a dimension in codebooks of 2..4096 codewords")


def learn(rows: Tensor, num_codebooks: int, codebook_size: int, *, iterations: int, seed: int, weights: Tensor | None = None,
          start: str = "cooled", initial: Tensor | None = None) -> Learned:
    """k-means of every slice of float32 rows (n, d), each from its own seeded ``start``, or from the codebooks ``initial``."""
    found = [kmeans(part.contiguous(), codebook_size, iterations=iterations, seed=random.part_seed(seed, m), weights=weights,
                    start=start, initial=None if initial is None else initial[m])
             for m, part in enumerate(rows.split(rows.shape[1] // num_codebooks, dim=1))]
    return Learned(torch.stack([result.centroids for result in found]), sum(result.repaired for result in found))


def cluster_sums(rows: Tensor, found: ops.Nearest, size: int, weights: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """Sums (size, d) and counts (size,) of the rows by codeword, float64. An unused codeword takes the row that is served worst, farthest
    first, as far as there are rows not served exactly; how many did is the third value."""
    sums, counts = ops.segment_sum(rows, found.indices, size, weights)
    empty = (counts == 0).nonzero().squeeze(1)
    if not len(empty):
        return sums, counts, 0
    worst = torch.sort(found.distances, descending=True, stable=True).indices[:len(empty)]
    worst = worst[found.distances[worst] > 0]
    sums[empty[:len(worst)]] = rows[worst].double()
    counts[empty[:len(worst)]] = 1.0
    return sums, counts, len(worst)


def assign(rows: Tensor, codebooks: Tensor) -> Tensor:
    """int64 (n, M): the nearest codeword of every slice of rows (n, d)."""
    slices = rows.split(codebooks.shape[2], dim=1)
    return torch.stack([ops.nearest(part, book).indices for part, book in zip(slices, codebooks, strict=True)], dim=1)


def values(codebooks: Tensor, indices: Tensor) -> Tensor:
    """float32 (n, d): the codewords of int64 indices (n, M), side by side."""
    books = torch.arange(len(codebooks), device=indices.device)
    return codebooks[books, indices].flatten(1)
