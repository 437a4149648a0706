"""The patch discriminator of VQGAN (Isola et al. 2017; Esser et al. 2021), its hinge losses, and how strongly a generator listens to it.

    D: (b, channels, H, W) -> logits (b, 1, h', w'), one for each overlapping patch
    discriminator   (mean relu(1 - D(x)) + mean relu(1 + D(x^))) / 2
    generator       - mean D(x^)
    adaptive weight lambda = |d L_rec / d w| / (|d L_gen / d w| + 1e-4), clipped to [0, limit], w the decoder's last layer

A discriminator here is a module with two methods, ``discriminator_loss(real, fake, step)`` and ``generator_loss(fake)``, so a training
loop needs no word about which kind it has (the other kind: ``style_discriminator.py``). The published one has three stride-2 layers at
width 64 and batch normalization; here ``depth`` halvings (two suit 32 x 32 images), and groups instead of batches in the norms, so that
real and generated images can be judged in any batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeword.errors import CodewordError, ShapeError
from codeword.nets.vqgan import check_images, group_norm


class PatchDiscriminator(nn.Module):
    """channels of the images; width of the first layer, doubled at each halving up to 8 times; depth: halvings."""

    def __init__(self, channels: int, *, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        if min(channels, width) < 1 or not 1 <= depth <= 6:
            raise CodewordError(f"PatchDiscriminator got channels={channels}, width={width}, depth={depth}; positive integers and depth "
                                "1..6 are needed")
        self.channels, self.depth = channels, depth
        widths = [width * min(2 ** i, 8) for i in range(depth + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, depth + 1):
            layers += [nn.Conv2d(widths[i - 1], widths[i], 4, stride=2 if i < depth else 1, padding=1, bias=False),
                       group_norm(widths[i]), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Images in [0, 1] -> one logit a patch; high where they look real. Sides of at least 3 * 2^depth."""
        check_images(x, self.channels, 1, "PatchDiscriminator")
        if min(x.shape[2:]) < 3 * 2 ** self.depth:
            raise ShapeError(f"PatchDiscriminator of depth {self.depth} got {x.shape[2]} x {x.shape[3]} images; sides of at least "
                                f"{3 * 2 ** self.depth} are needed")
        return self.layers(2 * x - 1)

    def discriminator_loss(self, real: Tensor, fake: Tensor, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The hinge loss and its parts; no gradient reaches the images. ``step`` is not needed here."""
        real_logits, fake_logits = self(real.detach()), self(fake.detach())
        return hinge_loss(real_logits, fake_logits), {"real_logit": real_logits.detach().mean(), "fake_logit": fake_logits.detach().mean()}

    def generator_loss(self, fake: Tensor) -> Tensor:
        """- mean D(x^). The discriminator's own gradients from it are to be cleared before its step."""
        return -self(fake).mean()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Of logits: zero once real ones are above 1 and generated ones below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, generator: Tensor, last: nn.Parameter, *, limit: float = 1e4) -> Tensor:
    """lambda, detached: both losses then pull equally hard at ``last``. Both graphs are kept for the backward that follows."""
    of_reconstruction, = torch.autograd.grad(reconstruction, last, retain_graph=True)
    of_generator, = torch.autograd.grad(generator, last, retain_graph=True)
    return (of_reconstruction.norm() / (of_generator.norm() + 1e-4)).clamp(0, limit).detach()
