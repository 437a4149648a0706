"""A compact discriminator in the manner of StyleGAN (Karras et al. 2020), for ViT-VQGAN, with its loss and its penalty.

    discriminator   mean softplus(-D(x)) + mean softplus(D(x^)) [+ every ``penalty_every`` steps: penalty_every (gamma / 2) mean |dD/dx|^2]
    generator       mean softplus(-D(x^))

The first is the non-saturating loss (Goodfellow et al. 2014), the bracket R1 (Mescheder et al. 2018), done now and then and weighed up
for it ("lazily"). D looks at the whole image: residual levels that halve it down to 4 x 4 or less, the spread of each group of images
as one more channel (without it all generated images may share one flaw unseen), two linear layers, one logit an image. ViT-VQGAN reports
reconstruction FID 1.55 with such a discriminator against 3.88 with patches.

Departures: binomial blur before halving is a mean over 2 x 2; weights are scaled at the start (He) instead of at run time.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeword.errors import CodewordError, ShapeError

GROUP = 4
"""Images whose spread is taken together."""


class StyleDiscriminator(nn.Module):
    """channels and image_size (square) of the images; width of the first level, doubled a level up to 8 times; penalty: gamma of R1,
    penalty_every: steps between penalties."""

    def __init__(self, channels: int, *, image_size: int, width: int = 32, penalty: float = 10.0, penalty_every: int = 16) -> None:
        super().__init__()
        if min(channels, width, penalty_every) < 1 or image_size < 8 or not penalty >= 0:
            raise CodewordError(f"StyleDiscriminator got channels={channels}, image_size={image_size}, width={width}, penalty={penalty}, "
                                f"penalty_every={penalty_every}; positive integers, image_size >= 8 and penalty >= 0 are needed")
        self.channels, self.image_size, self.penalty, self.penalty_every = channels, image_size, penalty, penalty_every
        levels = max(1, int(math.log2(image_size / 4)))
        widths = [width * min(2 ** i, 8) for i in range(levels + 1)]
        side = image_size // 2 ** levels
        self.head = nn.Conv2d(channels, widths[0], 1)
        self.levels = nn.ModuleList(_Level(a, b) for a, b in pairwise(widths))
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.out = nn.Sequential(nn.Linear(widths[-1] * side * side, widths[-1]), nn.LeakyReLU(0.2), nn.Linear(widths[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images in [0, 1] -> logits (b,); high where they look real."""
        if x.ndim != 4 or x.shape[1:] != (self.channels, self.image_size, self.image_size):
            raise ShapeError(f"StyleDiscriminator got {tuple(x.shape)}; "
                             f"(b, {self.channels}, {self.image_size}, {self.image_size}) is needed")
        x = F.leaky_relu(self.head(2 * x - 1), 0.2)
        for part in self.levels:
            x = part(x)
        x = F.leaky_relu(self.last(torch.cat((x, _spread(x)), 1)), 0.2)
        return self.out(x.flatten(1)).squeeze(1)

    def discriminator_loss(self, real: Tensor, fake: Tensor, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, with R1 where ``step`` is a multiple of ``penalty_every``, and its parts; no gradient reaches the images."""
        due = self.penalty > 0 and step % self.penalty_every == 0
        real = real.detach().requires_grad_(due)
        real_logits, fake_logits = self(real), self(fake.detach())
        loss = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
        stats = {"real_logit": real_logits.detach().mean(), "fake_logit": fake_logits.detach().mean()}
        if due:
            squared = gradient_penalty(real_logits, real)
            stats["r1"] = squared.detach()
            loss = loss + 0.5 * self.penalty * self.penalty_every * squared
        return loss, stats

    def generator_loss(self, fake: Tensor) -> Tensor:
        """mean softplus(-D(x^)). The discriminator's own gradients from it are to be cleared before its step."""
        return F.softplus(-self(fake)).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """mean over images of |d logit / d image|^2, itself differentiable."""
    gradient, = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


class _Level(nn.Module):
    """(x halved and widened + two convolutions of x, halved) / sqrt 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, inputs, 3, padding=1), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)
        for conv in (self.first, self.second):
            nn.init.kaiming_normal_(conv.weight, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.second(F.leaky_relu(self.first(x), 0.2)), 0.2)
        return (F.avg_pool2d(y, 2) + self.skip(F.avg_pool2d(x, 2))) * 0.5 ** 0.5


def _spread(x: Tensor) -> Tensor:
    """(b, 1, h, w): the standard deviation within an image's group, averaged over channels and places."""
    b, _, h, w = x.shape
    size = math.gcd(b, GROUP) if b else 1
    grouped = x.flatten(1).unflatten(0, (b // size, size))
    spread = ((grouped - grouped.mean(1, keepdim=True)).square().mean(1) + 1e-8).sqrt().mean(1)     # (groups,)
    return spread.repeat_interleave(size).view(b, 1, 1, 1).expand(b, 1, h, w)
