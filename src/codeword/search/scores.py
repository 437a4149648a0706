"""Distances in float64 with one fixed order of addition, so that a pair's distance depends on nothing but the pair.

    l2      |q - x|^2          ip      -<q, x>          cosine      1 - <q, x> = |q - x|^2 / 2  for unit vectors q, x

Sums run in 8 interleaved lanes (the order of ``ops.nearest``). Cosine is the l2 of normalised rows: exact at small distances, where
1 - <q, x> cancels, and the estimate of codes is better, since a residual's error then counts and not a whole vector's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, ShapeError
from codeword.ops.reference import LANES
from codeword.parts import arrays

METRICS = ("l2", "ip", "cosine")

_FEW = 1 << 15

LARGEST = 1e16
"""Values beyond this could overflow float32 in a squared distance of up to 2^16 dimensions."""


def check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise CodewordError(f"metric={metric!r}; 'l2', 'ip' or 'cosine' are known")


def prepared(rows: Tensor, metric: str, what: str) -> Tensor:
    """Finite float32 rows (n, d) as they are indexed and compared: unit length for cosine, unchanged otherwise. ShapeError for NaN and
    infinity, for values beyond 1e16, whose distances float32 cannot hold, and for zero rows under cosine: they have no direction."""
    rows = rows.cpu()
    arrays.check_finite(rows, what)
    if metric == "cosine":
        lengths = exact_dot(rows, rows).sqrt().unsqueeze(1)
        if len(rows) and not float(lengths.min()) > 0:
            raise ShapeError(f"{what} got a row of zeros (row {int(lengths.argmin())} of a block); cosine needs a direction")
        return (rows.double() / lengths).float()
    if rows.numel() and float(rows.abs().max()) > LARGEST:
        raise ShapeError(f"{what} got a value of magnitude {float(rows.abs().max()):.3g}; at most {LARGEST:g} is allowed")
    return rows


def exact_distance(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """float64 distances over the last axis of *prepared* rows; broadcasts (..., d), (..., d) -> (...)."""
    if metric == "ip":
        return -exact_dot(x, y)
    difference = x.double() - y.double()
    return _sum(difference * difference) * (0.5 if metric == "cosine" else 1.0)


def scanned_metric(metric: str) -> str:
    """What lists and scans compute: "ip", or "l2" for cosine as well."""
    return "ip" if metric == "ip" else "l2"


def exact_dot(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> over the last axis in float64 (each product is exact)."""
    return _sum(x.double() * y.double())


def squares(x: Tensor) -> Tensor:
    """float32 (n,): |x|^2 of rows, ``exact_dot(x, x)`` rounded: the distance from the origin, whose additions have the same order."""
    return ops.nearest(x, torch.zeros(1, x.shape[1])).distances


def _sum(terms: Tensor) -> Tensor:
    """Sum of float64 terms over the last axis in the order of ``ops.reference.exact_distances``: lane l adds terms l, l+8, l+16, ..."""
    chunks = torch.nn.functional.pad(terms, (0, -terms.shape[-1] % LANES)).unflatten(-1, (-1, LANES))
    if chunks.numel() <= _FEW:  # one call instead of dozens; accumulate is by its definition one addition after the other
        lanes = torch.from_numpy(np.add.accumulate(chunks.numpy(), axis=-2))[..., -1, :]
    else:
        lanes = chunks[..., 0, :]
        for i in range(1, chunks.shape[-2]):
            lanes = lanes + chunks[..., i, :]
    fours = lanes[..., :4] + lanes[..., 4:]
    return (fours[..., 0] + fours[..., 2]) + (fours[..., 1] + fours[..., 3])
