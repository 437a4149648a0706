"""What a reconstruction is asked for besides the quantizer's own loss: pixels and a perceptual distance (``nets/pixel_losses.py``), and
a discriminator's approval (``nets/patchgan.py``, ``nets/style_discriminator.py``), which has its own Adam at the same rate.

    "l2=4"    "l1=1,perceptual=0.5"    "l2=1,logit_laplace=0.1,perceptual=0.1"

Pixels are in [0, 1] here and in [-1, 1] in most papers: their l2 of 1 is 4 here, their l1 of 1 is 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from codeword.errors import CodewordError
from codeword.io import jobs
from codeword.nets.pixel_losses import TERMS, ImageLoss, from_logit_laplace

if TYPE_CHECKING:
    from codeword.tokenizers.checkpoint import Held
    from codeword.tokenizers.train import Settings


DISCRIMINATORS = ("patch", "style")


def weights(spec: str) -> dict[str, float]:
    """Weights of the terms of ``ImageLoss`` from "l2=4,perceptual=0.1"; CodewordError where it is no such text."""
    found: dict[str, float] = {}
    for pair in spec.split(","):
        name, sign, value = pair.strip().partition("=")
        try:
            found[name] = float(value) if sign else 1.0
        except ValueError:
            raise CodewordError(f"loss {spec!r} has {pair.strip()!r}; term=weight is needed, e.g. l2=4,perceptual=0.1") from None
    if set(found) - set(TERMS) or not all(0 <= value < 1e6 for value in found.values()) or not any(found.values()):
        raise CodewordError(f"loss is {spec!r}; weights of {', '.join(TERMS)} of at least 0, one of them above 0, are allowed")
    return found


class Objective:
    """The losses of a run, with the discriminator and its optimizer where there is one."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.image = ImageLoss(weights=weights(settings.loss))
        self.discriminator: nn.Module | None = None
        self.newest: dict[str, Tensor] = {}
        if settings.gan:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(jobs.unit_seed(settings.seed, "discriminator") & 0xFFFFFFFF)
                self.discriminator = _discriminator(settings)
            self.optimizer: Any = torch.optim.Adam(self.discriminator.parameters(), lr=settings.learning_rate, betas=(0.5, 0.9))

    def to(self, device: torch.device) -> Objective:
        self.image.to(device)
        if self.discriminator is not None:
            self.discriminator.to(device)
        return self

    def setup(self, fabric: Any) -> None:
        """Wrap the discriminator for the devices of a run."""
        self._wrapped = self.discriminator
        if self.discriminator is not None:
            self._wrapped, self.optimizer = fabric.setup(self.discriminator, self.optimizer)
            self._wrapped.mark_forward_method("discriminator_loss")

    def __call__(self, output: Tensor, x: Tensor, gan: float) -> tuple[Tensor, dict[str, Tensor]]:
        """(the loss, its detached parts) of what a decoder says about pixels ``x``; ``gan``: weight of the generator's part now."""
        found = self.image(output, x)
        loss, parts = found.total, dict(found.terms)
        if gan and self.discriminator is not None and len(x):
            self.discriminator.requires_grad_(False)
            approval = self.discriminator.generator_loss(self.picture(output))  # type: ignore[operator]
            self.discriminator.requires_grad_(True)
            loss, parts["generator"] = loss + gan * approval, approval.detach()
        return loss, {**parts, **self.newest}

    def picture(self, output: Tensor) -> Tensor:
        """The image that a discriminator sees, not clipped."""
        return from_logit_laplace(output.float()) if self.image.likelihood else output.float()

    def train_step(self, output: Tensor, x: Tensor, gan: float, step: int, factor: float, fabric: Any) -> None:
        """The discriminator's own step, where it takes part."""
        if not gan or self._wrapped is None:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        loss, parts = self._wrapped.discriminator_loss(x, self.picture(output.detach()), step)  # type: ignore[operator]
        self.optimizer.zero_grad()
        fabric.backward(loss)
        self.optimizer.step()
        self.newest = {"discriminator": loss.detach(), **parts}

    def restore(self, held: Held) -> None:
        """Take discriminator and optimizer from a checkpoint."""
        from codeword.tokenizers import checkpoint
        if self.discriminator is not None:
            self.discriminator.load_state_dict(held.discriminator)
            checkpoint.load_optimizer(self.optimizer, held.discriminator_optimizer)


def _discriminator(settings: Settings) -> nn.Module:
    if settings.discriminator == "style":
        from codeword.nets.style_discriminator import StyleDiscriminator
        return StyleDiscriminator(settings.channels, image_size=settings.size)
    from codeword.nets.patchgan import PatchDiscriminator
    return PatchDiscriminator(settings.channels, depth=1 if settings.size < 24 else 2 if settings.size < 128 else 3)
