"""Anisotropic product codes (Guo et al.: Accelerating Large-Scale Inference with Anisotropic Vector Quantization, ICML 2020).

For inner products with queries that match well, an error along x hurts more than one across it. With r = x - x^, u = x / |x| and T the
inner product (of a unit query) from which hits count, the codes minimise

    cost = |r|^2 + (eta - 1) <u, r>^2,   eta = (d - 1) t / (1 - t),   t = T^2 / |x|^2   (at least 1: T = 0 is the plain error)

by coordinate descent: from the nearest codes on, one slice after the other takes the codeword of least cost given the others, until a
sweep changes nothing or ``SWEEPS`` are done. Both terms come from tables of inner products with a slice's codewords c, so a sweep costs
M K operations a row. With y = x^m - o and b = c - o from the mean codeword o of the slice, so that no digits go to what both share,

    a_m(k) = |y|^2 - 2<y, b> + |b|^2,   p_m(k) = (<x^m, y> - <x^m, b>) / |x|,   cost = sum_m a_m + (eta - 1) (sum_m p_m)^2

Where a vector is coded relative to a point (``given``), r and y are of what is left, but u, |x| and the x^m of p_m are those of the
vector itself. t is capped at 1/2: beyond it T is no inner product that x can reach usefully.
A slice changes only where its cost falls, so the cost never rises. Every number of a row is computed from that row alone in a fixed
order in float64, over tables that ``ops.project`` defines; so codes depend on neither batch nor threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError
from codeword.parts import rows as row_sums
from codeword.parts import slices
from codeword.parts.codebook import center

SWEEPS = 10
TABLE_VALUES = 1 << 21
"""Entries of a table held at once."""
LARGEST_SHARE = 0.5


def check_threshold(name: str, threshold: float) -> None:
    if not 0.0 <= threshold < float("inf"):
        raise CodewordError(f"{name} got anisotropy={threshold}; a threshold T >= 0 on the inner product is needed, 0 for the plain error")


def weight(vectors: Tensor, threshold: float) -> Tensor:
    """eta float64 (n,) of vectors (n, d): how much more an error along the vector counts. Vectors of zeros have no direction: 1."""
    square = row_sums.dot(vectors, vectors)
    share = (threshold * threshold / torch.where(square > 0, square, 1.0)).clamp(max=LARGEST_SHARE)
    return torch.where(square > 0, ((vectors.shape[1] - 1) * share / (1 - share)).clamp(min=1.0), 1.0)


def assign(rows: Tensor, codebooks: Tensor, threshold: float, vectors: Tensor | None = None) -> Tensor:
    """int64 (n, M): codes of float32 ``rows`` (n, d); ``vectors`` are the rows before a point was taken off, where one was."""
    codes = slices.assign(rows, codebooks)
    vectors = rows if vectors is None else vectors
    extra = weight(vectors, threshold) - 1
    chosen = (extra > 0).nonzero().squeeze(1)
    step = max(1, TABLE_VALUES // codebooks.shape[:2].numel())
    for start in range(0, len(chosen), step):
        part = chosen[start:start + step]
        codes[part] = _descend(codes[part], *_terms(rows[part], vectors[part], codebooks), extra[part])
    return codes


def cost(rows: Tensor, decoded: Tensor, threshold: float, vectors: Tensor | None = None) -> Tensor:
    """float64 (n,): the cost that ``assign`` lowers."""
    vectors = rows if vectors is None else vectors
    left = rows - decoded
    square = row_sums.dot(vectors, vectors)
    along = row_sums.dot(vectors, left).square() / torch.where(square > 0, square, 1.0)
    return row_sums.dot(left, left) + (weight(vectors, threshold) - 1) * along


def _terms(rows: Tensor, vectors: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """a and p, float64 (M, n, K)."""
    norm = row_sums.dot(vectors, vectors).sqrt().unsqueeze(1)
    width = codebooks.shape[2]
    across, along = [], []
    for part, whole, book in zip(rows.split(width, dim=1), vectors.split(width, dim=1), codebooks, strict=True):
        middle = center(book)
        part, book = part - middle, book - middle
        across.append(row_sums.dot(part, part).unsqueeze(1) - 2 * ops.project(part, book).double() + row_sums.dot(book, book))
        along.append((row_sums.dot(whole, part).unsqueeze(1) - ops.project(whole, book).double()) / norm)
    return torch.stack(across), torch.stack(along)


def _descend(codes: Tensor, across: Tensor, along: Tensor, extra: Tensor) -> Tensor:
    codes = codes.mT.contiguous().unsqueeze(2)  # (M, n, 1)
    at = along.gather(2, codes).squeeze(2)
    total = torch.zeros_like(extra)
    for part in at:
        total = total + part
    for _ in range(SWEEPS):
        changed = False
        for m in range(len(codes)):
            rest = total - at[m]
            costs = across[m] + extra.unsqueeze(1) * (rest.unsqueeze(1) + along[m]).square()
            least, index = costs.min(1, keepdim=True)
            better = least < costs.gather(1, codes[m])
            if bool(better.any()):
                changed = True
                codes[m] = torch.where(better, index, codes[m])
                at[m] = along[m].gather(1, codes[m]).squeeze(1)
                total = torch.where(better.squeeze(1), rest + at[m], total)
        if not changed:
            break
    return codes.squeeze(2).mT
