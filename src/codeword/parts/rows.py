"""Sums along rows that decide codes: float64, in one order whatever the batch, the threads or the device; differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 8


def dot(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> over the last axis in float64: lane l adds the products at l, l+8, l+16, ...; the lanes are then added in pairs.
    (..., d), (..., d) -> (...)."""
    wide = x.double()
    products = wide * (wide if y is x else y.double())
    if products.shape[-1] % LANES:
        products = torch.nn.functional.pad(products, (0, -products.shape[-1] % LANES))
    products = products.unflatten(-1, (-1, LANES))
    lanes = products[..., 0, :]
    for i in range(1, products.shape[-2]):
        lanes = lanes + products[..., i, :]
    fours = lanes[..., :4] + lanes[..., 4:]
    return (fours[..., 0] + fours[..., 2]) + (fours[..., 1] + fours[..., 3])


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Directions x / |x| float64 (..., d) and whether there is one (...): rows of zeros, NaN or infinity give e_1 and False."""
    square = dot(x, x)
    usable = torch.isfinite(square) & (square > 0)
    norm = torch.where(usable, square, 1.0).sqrt().unsqueeze(-1)
    first = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
    first[0] = 1.0
    return torch.where(usable.unsqueeze(-1), torch.where(usable.unsqueeze(-1), x.double(), 0.0) / norm, first), usable


def power(exponent: Tensor) -> Tensor:
    """2^exponent in float64 (-1022..1023), from its bits: exact."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)
