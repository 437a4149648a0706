"""Mean and variance of rows, the same for any number of threads: sums in row order in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError


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


def standardised(rows: Tensor, weights: Tensor | None, name: str) -> tuple[Tensor, Tensor, float]:
    """Rows in units where they have mean 0 and mean squared length 1, their mean float64 (dim,), and that unit of length (0 where all
    rows are equal; they are then left zero). What is learned there and folded back is the same for data of any offset and scale."""
    mean, variance = moments(rows, weights)
    length = math.sqrt(math.fsum(variance.tolist()))
    scaled = (rows - mean.float()) / (length if length > 0 else 1.0)
    if not bool(torch.isfinite(scaled).all()):
        raise CodewordError(f"{name}.fit got rows whose spread, about {length:.3g}, leaves the range of float32")
    return scaled, mean, length


@torch.no_grad()
def fold(weight: Tensor, bias: Tensor, mean: Tensor, length: float) -> None:
    """Takes the units of ``standardised`` into an affine map (its ``weight``, and ``bias`` (dim,)) that was learned in them, in place."""
    weight.mul_(length)
    bias.copy_((bias.double() * length + mean).float())
