"""The best scalar quantizer of a sample (Lloyd 1957/1982; Max 1960): levels that are the means of the values nearest to them.

    g_j = mean of values v with |v - g_j| least,  repeated from equal-mass quantiles until the levels rest

On the sorted sample each pass is two look-ups in prefix sums, so the cost is one sort plus O(levels log n) a pass. Nothing is random.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-6
"""Levels that move less than this, relative to the largest, are at rest."""


def lloyd_levels(values: Tensor, count: int, weights: Tensor | None = None, *, iterations: int = 200) -> Tensor:
    """``count`` ascending float64 levels for the sample ``values`` (n,), n >= 1, finite, optionally weighted (n,), weights > 0.
    Where the sample has fewer distinct values some levels repeat or stay unused."""
    ordered, order = torch.sort(values.double(), stable=True)
    mass = torch.ones_like(ordered) if weights is None else weights.double()[order]
    mass = torch.cumsum(mass, 0)
    total = torch.cumsum(ordered * torch.diff(mass, prepend=mass.new_zeros(1)), 0)
    mass, total = (torch.nn.functional.pad(t, (1, 0)) for t in (mass, total))
    quantiles = (torch.arange(count, dtype=torch.float64, device=values.device) + 0.5) / count
    levels = ordered[torch.searchsorted(mass[1:], quantiles * mass[-1]).clamp(max=len(ordered) - 1)]
    for _ in range(iterations):
        cuts = torch.searchsorted(ordered, midpoints(levels), right=True)
        edges = torch.nn.functional.pad(cuts, (1, 1))
        edges[-1] = len(ordered)
        inside = torch.diff(mass[edges])
        means = torch.where(inside > 0, torch.diff(total[edges]) / inside.clamp(min=torch.finfo(torch.float64).tiny), levels)
        means = torch.sort(means.clamp(ordered[0], ordered[-1])).values  # rounding in the sums must not leave the sample's range
        moved, levels = (means - levels).abs().max(), means
        if bool(moved <= TOLERANCE * levels.abs().max()):
            break
    return levels


def midpoints(levels: Tensor) -> Tensor:
    """Decision thresholds (..., count - 1) between ascending levels (..., count); a value on a threshold belongs to the lower level."""
    return levels[..., :-1] + (levels[..., 1:] - levels[..., :-1]) / 2
