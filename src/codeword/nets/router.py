"""Which cells of an image get fine codes: the routers of dynamic-granularity tokenizers (DQ-VAE: Huang et al. 2023).

An image falls into cells of ``cell`` x ``cell`` pixels. A router says for each whether one coarse code is enough (0) or four fine ones
are wanted (1); ``fraction`` is the share of fine cells it aims at. All take (images, coarse, fine) and return ``Routed``: gates (b, h, w),
exactly 0.0 or 1.0, and the scores they come from; ``fit(images)`` first, where there is something to learn from images.

    FeatureRouter   learned with the network: d = W2 silu(W1 [norm(coarse), mean2x2(norm(fine))]) is how much rather fine than coarse;
                    it reads the latents and does not push them (the gradient of dice is noisy, and the encoder has better teachers)
                        training    s = sigmoid(d + L), L = ln u - ln(1 - u);  gate = [s > 1/2], with the gradient of s
                                    (the hard Gumbel-softmax of two choices, temperature 1: L is the difference of two Gumbel variables)
                        else        gate = [d > t]
                    ``budget_loss`` = (mean sigmoid(d) - fraction)^2 holds it to the fraction over a batch; single images may differ.
                    (The published one takes the mean of the gates; its expectation has the same mean without the noise of dice, which
                    else drowns the reconstruction's much smaller gradient.)
                    t = 0 is the published choice, but dice and argmax differ: a router that says 0.7 everywhere is held to 0.7 in
                    training and then makes every cell fine. So t is a moving average of the batches' quantile 1 - fraction of d,
                    moved in ``follow``, never in a forward pass. Cells that look alike still fall on one side of it together, as blank
                    ones do, so measure the share in inference (without dice a router cannot split them)
    EntropyRouter   nothing learned but a threshold: fine where the entropy of the cell's grey values is above the quantile 1 - fraction
                    of the images it was fitted on; so harder images get more codes, at the right mean
    RandomRouter    the control: a seeded coin for each cell, the same for the same image

The entropy is that of a soft histogram: ``BINS`` grey levels in [0, 1], each pixel spread over them by a Gaussian of deviation one bin
spacing, so that no value falls between bins (the released tables used a quarter of that on images of another range).
"""

from __future__ import annotations

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
_LUMA = (0.299, 0.587, 0.114)


PACE = 0.05
"""How far ``follow`` goes towards a batch's threshold, once there were 1 / PACE of them."""


class Routed(NamedTuple):
    """``gates`` (b, h, w) of 0.0 and 1.0; ``scores`` (b, h, w), larger where fine codes are wanted more: of a learned router the log odds
    d, with gradient."""

    gates: Tensor
    scores: Tensor


def make_router(kind: str, *, dim: int, cell: int, cells: int, fraction: float, seed: int = 0) -> nn.Module:
    """The router "features", "entropy" or "random" for latents of ``dim`` and ``cells`` x ``cells`` cells an image."""
    if not 0 < fraction < 1:
        raise CodewordError(f"a router got fraction={fraction}; above 0 and below 1 is allowed")
    if kind == "features":
        return FeatureRouter(dim, fraction=fraction)
    if kind == "entropy":
        return EntropyRouter(cell, fraction=fraction)
    if kind == "random":
        return RandomRouter(cells, fraction=fraction, seed=seed)
    raise CodewordError(f"unknown router {kind!r}; 'features', 'entropy' and 'random' are known")


class FeatureRouter(nn.Module):
    """dim: of both branches' latents."""

    learned = True

    def __init__(self, dim: int, *, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction
        self.norm_coarse, self.norm_fine = group_norm(dim), group_norm(dim)
        self.choice = nn.Sequential(nn.Conv2d(2 * dim, dim, 1), nn.SiLU(), nn.Conv2d(dim, 1, 1))
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
        both = torch.cat((self.norm_coarse(coarse.detach()), F.avg_pool2d(self.norm_fine(fine.detach()), 2)), 1)
        rather_fine = self.choice(both).squeeze(1).float()                              # (b, h, w)
        if not self.training:
            return Routed((rather_fine > self.threshold).to(rather_fine.dtype), rather_fine)
        noise = torch.rand_like(rather_fine).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid(rather_fine + torch.logit(noise))
        gates = (soft > 0.5).to(soft.dtype) + (soft - soft.detach())                    # the bracket is exactly zero
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
        found = cell_entropy(images, self.cell).double().flatten().sort().values
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


def budget_loss(log_odds: Tensor, fraction: float) -> Tensor:
    """(expected share of fine cells in the batch - fraction)^2 for cells that are fine with these log odds. With g fine cells of n an image
    has n + 3 g codes, so holding one holds the other. An empty batch has loss zero."""
    return (torch.sigmoid(log_odds).sum() / max(1, log_odds.numel()) - fraction).square() * (log_odds.numel() > 0)


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
