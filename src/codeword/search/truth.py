"""Exact nearest neighbours by brute force: what recall is measured against.

A float32 matrix product screens each block of base rows; every row inside the product's error bound is scored again in float64
(``scores.exact_distance``). So the answer is that of the float64 scan in (distance, id) order, at nearly the speed of the product.
Base rows pass in blocks and may be a memory map of half-precision numbers or bytes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codeword.errors import CodewordError, ShapeError
from codeword.ops.reference import UNIT
from codeword.parts import arrays
from codeword.search.filters import id_array
from codeword.search.scores import check_metric, exact_distance, prepared

_QUERIES, _ROWS = 512, 8192


class Hits(NamedTuple):
    """``distances`` (..., k) float32 ascending, ``ids`` (..., k) int64; a missing hit is +inf and -1."""

    distances: Any
    ids: Any


def exact_search(base: Any, queries: Any, k: int, metric: str = "l2", *, ids: Any = None) -> Hits:
    """The k rows of ``base`` (n, dim) nearest to each of ``queries`` (..., dim), ordered by (distance, id); id = row number unless
    ``ids`` (n,) are given. Raises ShapeError on wrong widths or non-finite values."""
    check_metric(metric)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise CodewordError(f"exact_search got k={k!r}; an integer >= 1 is needed")
    if not isinstance(base, (np.ndarray, Tensor)) or base.ndim != 2:
        raise ShapeError(f"exact_search got a base of shape {tuple(getattr(base, 'shape', ()))}; (n, dim) is needed")
    dim = base.shape[1]
    arrays.check_rows(base, dim, "exact_search base")
    arrays.check_rows(queries, dim, "exact_search queries")
    names = np.arange(len(base)) if ids is None else id_array(ids, "exact_search")
    if len(names) != len(base):
        raise ShapeError(f"exact_search got {len(names)} ids for {len(base)} rows")
    q = torch.cat([prepared(block, metric, "exact_search queries") for block in arrays.float_blocks(queries, dim)])
    width = min(int(k), len(base))
    distance = torch.full((len(q), width), torch.inf, dtype=torch.float64)
    found = torch.full((len(q), width), -1, dtype=torch.int64)
    start = 0
    for block in arrays.float_blocks(base, dim):
        rows = prepared(block, metric, "exact_search base")
        for part in rows.split(_ROWS):
            numbers = torch.from_numpy(names[start:start + len(part)])
            for first in range(0, len(q), _QUERIES):
                some = slice(first, first + _QUERIES)
                distance[some], found[some] = _improve(distance[some], found[some], q[some], part, numbers, metric)
            start += len(part)
    pad = (0, int(k) - width)
    lead = (*queries.shape[:-1], int(k))
    return Hits(arrays.like(torch.nn.functional.pad(distance, pad, value=math.inf).float().reshape(lead), queries),
                arrays.like(torch.nn.functional.pad(found, pad, value=-1).reshape(lead), queries))


def _improve(distance: Tensor, found: Tensor, q: Tensor, rows: Tensor, names: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Merge ``rows`` (b, d) into the running (q, k) best."""
    k, d = distance.shape[1], q.shape[1]
    if k == 0 or not len(rows):
        return distance, found
    scale = 0.5 if metric == "cosine" else 1.0  # exact distance = scale * (shift + screen)
    squares = torch.zeros(len(rows)) if metric == "ip" else rows.square().sum(1)
    screen = squares - (1 if metric == "ip" else 2) * (q @ rows.mT)
    # |error| <= gamma_{d+4} (2 |q| |x| + |x|^2) for any order of summation; the last term covers underflow.
    largest = float(rows.double().square().sum(1).max().sqrt())
    lengths = q.double().square().sum(1)
    bound = (d + 4) * UNIT * 1.01 * (2 * lengths.sqrt() * largest + largest**2) + (d + 4) * 1e-37
    shift = torch.zeros_like(lengths) if metric == "ip" else lengths
    limit = distance[:, -1] / scale - shift  # what the k-th best so far would screen as
    rounding = 1e-12 * (lengths + largest**2)
    if len(rows) >= k:
        limit = torch.minimum(limit, screen.double().kthvalue(k, dim=1).values + bound)
    near = screen.double() <= (limit + bound + rounding).unsqueeze(1)
    query, row = near.nonzero(as_tuple=True)
    exact = torch.empty(len(query), dtype=torch.float64)
    step = max(1, (1 << 21) // max(1, d))
    for first in range(0, len(query), step):
        some = slice(first, first + step)
        exact[some] = exact_distance(q[query[some]], rows[row[some]], metric)
    return _merge(distance, found, query, exact, names[row], k)


def _merge(distance: Tensor, found: Tensor, query: Tensor, exact: Tensor, names: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Best k of the kept and the new (query, distance, id) triples, by (distance, id)."""
    owner = torch.cat((torch.arange(len(distance)).repeat_interleave(k), query)).numpy()
    every = torch.cat((distance.reshape(-1), exact)).numpy()
    label = torch.cat((found.reshape(-1), names)).numpy()
    order = np.lexsort((np.where(label < 0, np.iinfo(np.int64).max, label), every, owner))
    counts = np.bincount(owner, minlength=len(distance))
    firsts = np.cumsum(counts) - counts
    pick = order[(firsts[:, None] + np.arange(k)).reshape(-1)]
    return torch.from_numpy(every[pick]).reshape(-1, k), torch.from_numpy(label[pick]).reshape(-1, k)
