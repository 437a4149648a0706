"""The best scalar quantizer of a sample (Lloyd 1957/1982; Max 1960): levels that are the means of the values nearest to them.

    g_j = mean of values v with |v - g_j| least,  repeated from equal-mass quantiles until the levels rest

    uniform: g_j = a + w (j + 1/2),  (a, w) the least-squares line through the cell means,  repeated in the same way

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
    ordered, mass, total = _sums(values, weights)
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


TAILS = (0.0, 1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.06, 0.12, 0.2)
"""Mass outside the grid on either side where the search for the best uniform grid begins."""


def uniform_levels(values: Tensor, count: int, weights: Tensor | None = None) -> tuple[float, float]:
    """(a, w) of the grid a + w (j + 1/2), j < count >= 2, that leaves the sample ``values`` (n,) the least squared error, values beyond
    its ends going to the outer levels (Max 1960, table II). A search: Lloyd steps from several starts, which settle place and width
    where levels are few, then ever finer moves of the best one's ends, which with many levels those steps hardly touch."""
    ordered, mass, total = _sums(values, weights)
    places = torch.tensor([(tail, 1 - tail) for tail in TAILS], dtype=torch.float64, device=values.device) * mass[-1]
    low, high = ordered[torch.searchsorted(mass[1:], places).clamp(max=len(ordered) - 1)].unbind(1)
    grids = torch.stack((low, (high - low) / count), dim=1)
    best, found = _best_grid(ordered, mass, total, grids, count, torch.inf, (float(ordered[0]), 0.0))
    for _ in range(10):
        grids = _fitted_grids(ordered, mass, total, grids, count)
        best, found = _best_grid(ordered, mass, total, grids, count, best, found)
    moves = torch.cartesian_prod(*2 * [torch.linspace(-1, 1, 9, dtype=torch.float64, device=values.device)])
    for reach in (0.12, 0.04, 0.012):
        start, width = found[0], found[1]
        ends = torch.tensor((start, start + width * count), dtype=torch.float64, device=values.device) + reach * width * count * moves
        grids = torch.stack((ends[:, 0], (ends[:, 1] - ends[:, 0]) / count), dim=1)
        best, found = _best_grid(ordered, mass, total, grids, count, best, found)
    return found


def _cells(ordered: Tensor, mass: Tensor, total: Tensor, grids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mass and sum of the values in each cell of each grid, (g, count)."""
    inner = grids[:, :1] + grids[:, 1:] * torch.arange(1, count, dtype=torch.float64, device=grids.device)
    edges = torch.nn.functional.pad(torch.searchsorted(ordered, inner), (1, 1))
    edges[:, -1] = len(ordered)
    return torch.diff(mass[edges]), torch.diff(total[edges])


def _best_grid(ordered: Tensor, mass: Tensor, total: Tensor, grids: Tensor, count: int, best: float,
               found: tuple[float, float]) -> tuple[float, tuple[float, float]]:
    """The least squared error, less the sum of squares, and its grid among ``found`` and ``grids`` (g, 2)."""
    inside, sums = _cells(ordered, mass, total, grids, count)
    levels = grids[:, :1] + grids[:, 1:] * (torch.arange(count, dtype=torch.float64, device=grids.device) + 0.5)
    cost = (inside * levels.square() - 2 * levels * sums).sum(1)
    i = int(cost.argmin())
    return (float(cost[i]), (float(grids[i, 0]), float(grids[i, 1]))) if float(cost[i]) < best else (best, found)


def _fitted_grids(ordered: Tensor, mass: Tensor, total: Tensor, grids: Tensor, count: int) -> Tensor:
    """Least-squares lines through the cell means of each grid (g, 2)."""
    inside, sums = _cells(ordered, mass, total, grids, count)
    index = torch.arange(count, dtype=torch.float64, device=grids.device) + 0.5
    centre = (inside * index).sum(1, keepdim=True) / mass[-1]
    spread = (inside * (index - centre).square()).sum(1)
    width = torch.where(spread > 0, (sums * (index - centre)).sum(1) / spread.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return torch.stack((sums.sum(1) / mass[-1] - width * centre.squeeze(1), width), dim=1)


def _sums(values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The sorted sample, and prefix sums (n + 1,) of its mass and of mass times value."""
    ordered, order = torch.sort(values.double(), stable=True)
    mass = torch.ones_like(ordered) if weights is None else weights.double()[order]
    mass = torch.cumsum(mass, 0)
    total = torch.cumsum(ordered * torch.diff(mass, prepend=mass.new_zeros(1)), 0)
    return ordered, torch.nn.functional.pad(mass, (1, 0)), torch.nn.functional.pad(total, (1, 0))


def midpoints(levels: Tensor) -> Tensor:
    """Decision thresholds (..., count - 1) between ascending levels (..., count); a value on a threshold belongs to the lower level."""
    return levels[..., :-1] + (levels[..., 1:] - levels[..., :-1]) / 2
