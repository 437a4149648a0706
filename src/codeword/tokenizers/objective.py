"""What a reconstruction is asked for besides the quantizer's own loss: pixels, a perceptual distance, a discriminator's approval.

    pixel        mean |d|, mean d^2, with d = 2 (x^ - x) the error of pixels in [-1, 1]
    generator    -mean D(x^);   the discriminator: hinge, (mean relu(1 - D(x)) + mean relu(1 + D(x^))) / 2, its own Adam at the same rate
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from codeword.tokenizers.checkpoint import Held
    from codeword.tokenizers.image import ImageTokenizer
    from codeword.tokenizers.train import Settings


def _mean(error: Tensor) -> Tensor:
    """Of an empty batch: zero, still part of the graph."""
    return error.sum() / max(1, error.numel())


PIXEL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda values, x: 2 * _mean((values - x).abs()),
    "l2": lambda values, x: 4 * _mean((values - x).square()),
}


class Objective:
    """The losses of a run, with the discriminator and its optimizer where there is one."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.discriminator: nn.Module | None = None
        self.perceptual: nn.Module | None = None
        if settings.gan:
            from codeword.nets.patchgan import PatchDiscriminator
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed + 1)
                self.discriminator = PatchDiscriminator(settings.channels, depth=2 if settings.size < 128 else 3)
            self.optimizer: Any = torch.optim.Adam(self.discriminator.parameters(), lr=settings.learning_rate, betas=(0.5, 0.9))
        if settings.perceptual:
            from codeword.nets.perceptual import perceptual
            self.perceptual = perceptual(settings.channels).requires_grad_(False).eval()

    def to(self, device: torch.device) -> Objective:
        for part in (self.discriminator, self.perceptual):
            if part is not None:
                part.to(device)
        return self

    def setup(self, fabric: Any) -> None:
        """Wrap the discriminator for the devices of a run."""
        self._wrapped = self.discriminator
        if self.discriminator is not None:
            self._wrapped, self.optimizer = fabric.setup(self.discriminator, self.optimizer)
            self._wrapped.mark_forward_method("discriminator_loss")

    def __call__(self, values: Tensor, x: Tensor, gan: float, tokenizer: ImageTokenizer) -> tuple[Tensor, dict[str, Tensor]]:
        """(the loss, its detached parts) of reconstructions ``values`` of ``x``; ``gan``: weight of the generator's part now."""
        values = values.float()
        pixel = PIXEL[self.settings.pixel](values, x)
        loss, parts = pixel, {"pixel": pixel.detach()}
        if self.perceptual is not None:
            distance = self.perceptual(values, x).mean() if len(x) else values.sum()
            loss, parts["perceptual"] = loss + self.settings.perceptual * distance, distance.detach()
        if gan and self.discriminator is not None and len(x):
            self.discriminator.requires_grad_(False)
            approval = self.discriminator.generator_loss(values)  # type: ignore[operator]
            self.discriminator.requires_grad_(True)
            loss, parts["generator"] = loss + gan * approval, approval.detach()
        return loss, parts

    def train_step(self, values: Tensor, x: Tensor, gan: float, step: int, factor: float, fabric: Any) -> None:
        """The discriminator's own step, where it takes part."""
        if not gan or self._wrapped is None:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        loss, parts = self._wrapped.discriminator_loss(x, values.float(), step)  # type: ignore[operator]
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
