"""Mean and variance of rows, the same for any number of threads: sums in row order in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from codeword import ops


def moments(rows: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weighted mean and variance (dim,), both float64, of float32 rows (n, dim); the variance is two-pass, so an offset does no harm."""
    # Scaled to magnitudes near 1 by a power of two, so that squares of tiny or huge rows neither vanish nor overflow in float32.
    exponent = torch.frexp(rows.abs().amax()).exponent.clamp(-120, 120)
    scaled = torch.ldexp(rows, -exponent)
    label = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    sums, counts = ops.segment_sum(scaled, label, 1, weights)
    mean = sums[0] / counts[0]
    centred = scaled - mean.float()
    squares, _ = ops.segment_sum(centred.square(), label, 1, weights)
    drift, _ = ops.segment_sum(centred, label, 1, weights)
    variance = (squares[0] / counts[0] - (drift[0] / counts[0]).square()).clamp(min=0)
    return torch.ldexp(mean, exponent), torch.ldexp(variance, 2 * exponent)
