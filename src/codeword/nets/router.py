"""Which cells of an image get fine codes: the routers of dynamic-granularity tokenizers (DQ-VAE: Huang et al. 2023).

An image falls into cells of ``cell`` x ``cell`` pixels. A router says for each whether one coarse code is enough (0) or four fine ones
are wanted (1); ``fraction`` is the share of fine cells it aims at. All take (images, coarse, fine) and return ``Routed``: gates (b, h, w),
exactly 0.0 or 1.0, and the scores they come from; ``fit(images)`` first, where there is something to learn from images.

    LearnedRouter   learned with the network: r = GAIN W2 silu(W1 [norm(coarse), mean2x2(norm(fine)), deviation2x2(norm(fine))]),
                    how much rather fine than coarse; it reads the latents and does not push them (the gradient of dice is noisy, and the
                    encoder has better teachers)
                        training    d = r - t,  t such that mean sigmoid(d) = fraction over the batch;  gate = [d + L > 0],
                                    L = ln u - ln(1 - u), with the gradient of sigmoid(d), the gate's expectation
                        else        gate = [r > threshold], a moving average of the batches' quantile 1 - fraction of r
                    The budget is kept by t, whose derivative counts (dt/dr_i = s_i / sum s, s = p (1 - p)): the router is taught nothing
                    but which cells gain more than others.
    The published one has a loss, 10 (mean gate - fraction)^2 or 20, in place of t, and the gradient of the one draw. Then nearly all that
    its weights feel is that loss: its gradient is the same for all cells and twenty to a hundred times what the reconstruction says
    about one (which has 1 / pixels before it); Adam divides by the larger, and after 500 steps the router had chosen nothing
    (log/2026-11-27-learned-router.md). GAIN lets scores outgrow the dice, whose spread is 1.8, in fewer steps.
    W2 starts at zero, so that all cells start alike. The published one does not see the deviation; how much the four fine latents of a
    cell differ is what one coarse code cannot say. A threshold of 0 is published for inference, but a router that says 0.7 everywhere
    would then make every cell fine. Cells that look alike fall on one side of any threshold together, as blank ones do: measure the
    share in inference.

    EntropyRouter   nothing learned but a threshold: fine where the entropy of the cell's grey values is above the quantile 1 - fraction
                    of the images it was fitted on; so harder images get more codes, at the right mean
    RandomRouter    the control: a seeded coin for each cell, the same for the same image

The entropy is that of a soft histogram: ``BINS`` grey levels in [0, 1], each pixel spread over them by a Gaussian of deviation one bin
spacing, so that no value falls between bins (the released tables used a quarter of that on images of another range).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeword.errors import CodewordError, NotFitted, ShapeError
from codeword.nets.vqgan import group_norm
from codeword.parts import random
from codeword.parts.upkeep import all_sum

BINS = 32
FIT_PIXELS = 1 << 20
"""Pixels whose histograms are made at once while fitting."""
_LUMA = (0.299, 0.587, 0.114)


GAIN = 10.0
HALVINGS = 40
PACE = 0.05
"""How far ``follow`` goes towards a batch's threshold, once there were 1 / PACE of them."""


class Routed(NamedTuple):
    """``gates`` (b, h, w) of 0.0 and 1.0, with gradient where the router learns; ``scores`` (b, h, w), larger where fine codes are wanted
    more."""

    gates: Tensor
    scores: Tensor


def make_router(kind: str, *, dim: int, cell: int, cells: int, fraction: float, seed: int = 0) -> nn.Module:
    """The router "learned", "entropy" or "random" for latents of ``dim`` and ``cells`` x ``cells`` cells an image."""
    if not 0 < fraction < 1:
        raise CodewordError(f"a router got fraction={fraction}; above 0 and below 1 is allowed")
    if kind == "learned":
        return LearnedRouter(dim, fraction=fraction)
    if kind == "entropy":
        return EntropyRouter(cell, fraction=fraction)
    if kind == "random":
        return RandomRouter(cells, fraction=fraction, seed=seed)
    raise CodewordError(f"unknown router {kind!r}; 'learned', 'entropy' and 'random' are known")


class LearnedRouter(nn.Module):
    """dim: of both branches' latents."""

    learned = True

    def __init__(self, dim: int, *, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction
        self.norm_coarse, self.norm_fine = group_norm(dim), group_norm(dim)
        self.choice = nn.Sequential(nn.Conv2d(3 * dim, dim, 1), nn.SiLU(), nn.Conv2d(dim, 1, 1, bias=False))
        nn.init.zeros_(self.choice[2].weight)  # type: ignore[arg-type]
        self.threshold: Tensor
        self.updates: Tensor
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def fit(self, images: Tensor) -> None:
        """Nothing: it learns with the network."""

    def statistics(self, scores: Tensor) -> Tensor:
        """What ``follow`` needs to know of a batch's scores: (sum, count) of the quantile 1 - fraction; zeros for an empty batch. Pure."""
        if not scores.numel():
            return torch.zeros(2, dtype=torch.float64, device=scores.device)
        ordered = scores.detach().double().flatten().sort().values
        at = min(len(ordered) - 1, max(0, round((1 - self.fraction) * len(ordered)) - 1))
        return torch.stack((ordered[at], torch.ones_like(ordered[at])))

    @torch.no_grad()
    def follow(self, statistics: Tensor) -> None:
        """Move the threshold by one batch (of all ranks). Collective."""
        total, count = all_sum(statistics)
        if float(count) and bool(torch.isfinite(total)):
            self.updates += 1
            self.threshold += (total / count - self.threshold) * max(PACE, 1 / int(self.updates))

    def forward(self, images: Tensor, coarse: Tensor, fine: Tensor) -> Routed:
        # Contiguous: torch 2.13 crashes in the backward of GroupNorm where a channels_last input needs no gradient and its weights do.
        coarse, fine = coarse.detach().contiguous(), fine.detach().contiguous()
        fine = self.norm_fine(fine)
        mean = F.avg_pool2d(fine, 2)
        deviation = (F.avg_pool2d(fine.square(), 2) - mean.square()).clamp(min=1e-6).sqrt()
        seen = torch.cat((self.norm_coarse(coarse), mean, deviation), 1)
        rather_fine = GAIN * self.choice(seen).squeeze(1).float()                       # (b, h, w)
        if not self.training:
            return Routed((rather_fine > self.threshold).to(rather_fine.dtype), rather_fine)
        log_odds = at_budget(rather_fine, self.fraction)
        noise = torch.rand_like(log_odds).clamp(1e-6, 1 - 1e-6)
        chance = torch.sigmoid(log_odds)
        gates = (log_odds + torch.logit(noise) > 0).to(chance.dtype) + (chance - chance.detach())  # the bracket is exactly zero
        return Routed(gates, rather_fine)


class EntropyRouter(nn.Module):
    """cell: pixels a side. ``threshold`` (bits) is fitted; NaN until then."""

    learned = False

    def __init__(self, cell: int, *, fraction: float) -> None:
        super().__init__()
        self.cell, self.fraction = cell, fraction
        self.threshold: Tensor
        self.register_buffer("threshold", torch.full((), torch.nan, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """The quantile 1 - fraction over all cells of ``images``, halfway to the next larger entropy, so that rounding decides nothing."""
        if not len(images):
            raise ShapeError("an entropy router got no images to fit its threshold on")
        each = max(1, FIT_PIXELS // max(1, images[0].numel()))
        found = torch.cat([cell_entropy(part, self.cell).double().flatten() for part in images.split(each)]).sort().values
        at = min(len(found) - 1, max(0, round((1 - self.fraction) * len(found)) - 1))
        above = found[found > found[at]]
        self.threshold.copy_((found[at] + above[0]) / 2 if len(above) else found[at])

    def forward(self, images: Tensor, coarse: Tensor, fine: Tensor) -> Routed:
        if not torch.compiler.is_compiling() and bool(self.threshold.isnan()):
            raise NotFitted("an entropy router needs a threshold; call fit(images) first")
        found = cell_entropy(images, self.cell)
        return Routed((found > self.threshold).to(torch.float32), found)


class RandomRouter(nn.Module):
    """cells: a side of the grid; seed."""

    learned = False

    def __init__(self, cells: int, *, fraction: float, seed: int = 0) -> None:
        super().__init__()
        self.cells, self.fraction, self.seed = cells, fraction, seed
        self.draws: Tensor
        self.register_buffer("draws", torch.zeros(2, cells, cells), persistent=False)
        self.rebuild()

    def rebuild(self) -> None:
        """The cells' own numbers, from the seed."""
        if self.draws.device.type != "meta":
            drawn = random.uniform(self.seed, 2 * self.cells ** 2, stream="router").astype(np.float32)
            self.draws.copy_(torch.from_numpy(drawn).view(2, self.cells, self.cells))

    def fit(self, images: Tensor) -> None:
        """Nothing: dice have no memory."""

    def forward(self, images: Tensor, coarse: Tensor, fine: Tensor) -> Routed:
        # The image's own mean brightness turns every cell's wheel by another amount.
        turn = 1000 * images.detach().float().mean((1, 2, 3)).view(-1, 1, 1)
        wheel = (self.draws[0] + turn * (0.5 + self.draws[1])) % 1
        return Routed((wheel < self.fraction).to(torch.float32), -wheel)


def at_budget(scores: Tensor, fraction: float) -> Tensor:
    """scores - t, t such that the mean of sigmoid(scores - t) is ``fraction``: log odds of cells that are fine so often on average. With g
    fine cells of n an image has n + 3 g codes, so that holds their mean too. Differentiable, t included; empty stays empty."""
    if not scores.numel():
        return scores
    fixed = scores.detach().double()
    least, most = (end - math.log(fraction / (1 - fraction)) for end in (fixed.min(), fixed.max()))     # where all are at most, at least it
    for _ in range(HALVINGS):
        middle = (least + most) / 2
        over = torch.sigmoid(fixed - middle).mean() > fraction
        least, most = torch.where(over, middle, least), torch.where(over, most, middle)
    offset = ((least + most) / 2).to(scores.dtype)
    chance = torch.sigmoid(scores.detach() - offset)
    slope = chance * (1 - chance)
    moved = (scores * slope).sum() / slope.sum().clamp(min=1e-12)
    return scores - offset - (moved - moved.detach())


def cell_entropy(images: Tensor, cell: int) -> Tensor:
    """(b, 1 or 3, H, W) in [0, 1] -> (b, H/cell, W/cell): entropy in bits of the soft histogram of each cell's grey values."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2] % cell or images.shape[3] % cell:
        raise ShapeError(f"cell_entropy got images {tuple(images.shape)}; (b, 1 or 3, H, W) with sides that {cell} divides is needed")
    images = images.detach().float()
    luma = images.new_tensor(_LUMA).view(1, 3, 1, 1)
    grey = images[:, 0] if images.shape[1] == 1 else (images * luma).sum(1)
    b, height, width = grey.shape
    pixels = grey.reshape(b, height // cell, cell, width // cell, cell).transpose(2, 3).flatten(3)      # (b, h, w, cell^2)
    levels = torch.linspace(0, 1, BINS, device=images.device)
    histogram = torch.exp(-0.5 * ((pixels.unsqueeze(-1) - levels) * (BINS - 1)).square()).sum(3)        # (b, h, w, BINS)
    p = histogram / histogram.sum(-1, keepdim=True)
    return torch.special.entr(p).sum(-1) / np.log(2)
