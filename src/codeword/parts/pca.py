"""Principal axes of rows, the same for any number of threads.

    mean = E[x],   C = E[(x - mean)(x - mean)'] = V' diag(variances) V,   y = V (x - mean)

C is added up in float64, a block of rows at a time on one thread, so memory stays at a block and two (dim, dim) matrices. Each axis is
signed so that its largest entry is positive. Cost: n d^2 + O(d^3) multiply-adds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from codeword.errors import CodewordError
from codeword.parts import arrays
from codeword.parts.moments import moments
from codeword.parts.threads import one_thread


class PCA(NamedTuple):
    """``mean`` float32 (dim,); ``axes`` float32 (count, dim), orthonormal rows, largest variance first; ``variances`` float64 (count,)."""

    mean: Tensor
    axes: Tensor
    variances: Tensor


def pca(rows: Tensor, count: int | None = None, weights: Tensor | None = None) -> PCA:
    """The leading ``count`` (default: all) principal axes of float32 rows (n, dim), optionally weighted (n,)."""
    mean = moments(rows, weights)[0].float()
    with one_thread():
        covariance = _covariance(rows, mean, weights)
        values, vectors = torch.linalg.eigh(covariance)
        axes = vectors.mT.flip(0)[:count]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return PCA(mean, (axes * torch.sign(largest)).float(), values.flip(0)[:count].clamp(min=0))


def _covariance(rows: Tensor, mean: Tensor, weights: Tensor | None) -> Tensor:
    """float64 (dim, dim). The rows are brought near 1 by a power of two first, so that their squares neither vanish nor overflow."""
    blocks = [slice(start, start + arrays.block_rows(rows.shape[1])) for start in range(0, len(rows), arrays.block_rows(rows.shape[1]))]
    largest = torch.stack([(rows[block] - mean).abs().amax() for block in blocks]).amax()
    if not bool(torch.isfinite(largest)):
        raise CodewordError("fit got rows whose spread leaves the range of float32; scale them down")
    exponent = torch.frexp(largest).exponent.clamp(-120, 120)
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for block in blocks:
        centred = torch.ldexp(rows[block] - mean, -exponent).double()
        total += centred.mT @ (centred if weights is None else centred * weights[block].double().unsqueeze(1))
    share = len(rows) if weights is None else float(weights.double().sum())
    return torch.ldexp(total / share, 2 * exponent)
