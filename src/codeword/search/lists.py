"""Lists of an inverted file (Sivic and Zisserman 2003; Jegou et al. 2011): k-means centroids route rows and queries.

A row belongs to the list of its nearest centroid in L2 (exactly, ``ops.nearest``). A query visits the ``nprobe`` lists that come first
by |q - c|^2, or by -<q, c> for the inner product; equal ones in list order. What is encoded is the residual x - c, so a scan needs,
per query and visited list,

    coarse(q, c) = |q - c|^2  (l2)      -<q, c>  (ip)

A flat index is one list with c = 0. Rows of a segment lie list by list, each list padded to a multiple of ``BLOCK`` rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codeword import ops
from codeword.parts.kmeans import kmeans
from codeword.quantizer import BLOCK
from codeword.search.scores import exact_dot, squares


class Probes(NamedTuple):
    """``lists`` (q, p) int64, nearest first, and their ``coarse`` distances (q, p) float32."""

    lists: Tensor
    coarse: Tensor


class Layout(NamedTuple):
    """Where rows lie: ``source`` (slots,) the row in each slot (padding repeats a row of its list), ``ids`` (slots,) with -1 for padding,
    ``starts`` and ``counts`` (lists,) int64; starts and slots are multiples of BLOCK."""

    source: Tensor
    ids: Tensor
    starts: Tensor
    counts: Tensor


class Lists:
    """``centroids`` (nlist, dim) float32, or None for the single list of a flat index; ``residual``: rows are encoded as x - c."""

    def __init__(self, centroids: Tensor | None, residual: bool) -> None:
        self.centroids = centroids
        self.residual = residual and centroids is not None
        self.count = 1 if centroids is None else len(centroids)
        self._squares = None if centroids is None else exact_dot(centroids, centroids).float()

    @classmethod
    def fit(cls, rows: Tensor, nlist: int | None, seed: int, residual: bool) -> tuple[Lists, int]:
        """Lists from a sample of prepared ``rows``, and the number of emptied clusters k-means repaired."""
        if nlist is None:
            return cls(None, residual), 0
        found = kmeans(rows, nlist, seed=seed)
        return cls(found.centroids, residual), found.repaired

    def assign(self, rows: Tensor) -> Tensor:
        """int64 (n,) list of each prepared row."""
        if self.centroids is None:
            return torch.zeros(len(rows), dtype=torch.int64)
        return ops.nearest(rows, self.centroids).indices

    def given(self, labels: Tensor) -> Tensor | None:
        """(n, dim) centroids subtracted before encoding, or None where nothing is."""
        return self.centroids[labels] if self.residual and self.centroids is not None else None

    @property
    def routes(self) -> tuple[Tensor, Tensor, bool] | None:
        """Centroids, their squares and whether codes are of residuals; None for one list."""
        return None if self.centroids is None or self._squares is None else (self.centroids, self._squares, self.residual)

    def probe(self, queries: Tensor, nprobe: int, metric: str) -> Probes:
        """``metric`` "l2" or "ip". The first ``nprobe`` lists of each prepared query; the same for a query alone or in any batch."""
        count = min(nprobe, self.count)
        lengths = squares(queries).unsqueeze(1) if metric == "l2" else None
        if self.centroids is None or self._squares is None:
            lists = torch.zeros(len(queries), 1, dtype=torch.int64)
            return Probes(lists, lists.float() if lengths is None else lengths)
        product = ops.project(queries, self.centroids)
        key = -product if metric == "ip" else self._squares - 2 * product
        lists = torch.arange(self.count).expand(len(queries), -1) if count == self.count else _first(key, count)
        if not self.residual:
            return Probes(lists, torch.zeros(lists.shape) if lengths is None else lengths.expand(lists.shape).contiguous())
        if lengths is None:
            return Probes(lists, -product.gather(1, lists))
        return Probes(lists, key.gather(1, lists) + lengths)


def _first(key: Tensor, count: int) -> Tensor:
    """Columns of the ``count`` least float32 values of each row, ascending, ties by column."""
    bits = key.contiguous().view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)  # order of floats as order of integers
    unique = (ordered << 32) | torch.arange(key.shape[1])
    return unique.topk(count, dim=1, largest=False, sorted=True).values & 0xFFFFFFFF


def arrange(labels: Tensor, ids: Tensor, count: int) -> Layout:
    """Slots for rows (n >= 1) with the given list labels, ascending by id inside a list, each list padded to a multiple of BLOCK."""
    order = np.lexsort((ids.numpy(), labels.numpy()))
    counts = np.bincount(labels.numpy(), minlength=count)
    padded = -(-counts // BLOCK) * BLOCK
    starts = np.cumsum(padded) - padded
    firsts = np.cumsum(counts) - counts
    slots = np.arange(len(order)) + np.repeat(starts - firsts, counts)
    filled = counts > 0
    source = np.repeat(order[firsts[filled]], padded[filled])
    source[slots] = order
    out = np.full(len(source), -1, dtype=np.int64)
    out[slots] = ids.numpy()[order]
    return Layout(torch.from_numpy(source), torch.from_numpy(out), torch.from_numpy(starts), torch.from_numpy(counts))
