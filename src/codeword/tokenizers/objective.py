"""What a reconstruction is asked for besides the quantizer's own loss: pixels and a perceptual distance (``nets/pixel_losses.py``), and
a discriminator's approval (``nets/patchgan.py``, ``nets/style_discriminator.py``), which has its own Adam at the same rate.

    "l2=4"    "l1=1,perceptual=0.5"    "l2=1,logit_laplace=0.1,perceptual=0.1"

Pixels are in [0, 1] here and in [-1, 1] in most papers: their l2 of 1 is 4 here, their l1 of 1 is 2.

``representation`` (FQGAN) is the loss of ``RepresentationHead`` in nets/factorized.py: what the first codebook of a factorized_vq chose
has to tell an image from the others of its batch by their features in ``features-cifar10``, the small network of this library, which
stands in for CLIP and DINO. The head is trained with the tokenizer, by the same Adam, and thrown away after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from codeword.errors import CodewordError, Unsupported
from codeword.io import jobs
from codeword.nets.factorized import RepresentationHead
from codeword.nets.features import WIDTHS, FeatureNet
from codeword.nets.pixel_losses import TERMS, ImageLoss, from_logit_laplace

if TYPE_CHECKING:
    from codeword.tokenizers.checkpoint import Held
    from codeword.tokenizers.frame import TrainedTokenizer
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
    """The losses of a run, with the discriminator and its optimizer, and the representation head, where there are such."""

    def __init__(self, settings: Settings, tokenizer: TrainedTokenizer) -> None:
        self.settings = settings
        self.image = ImageLoss(weights=weights(settings.loss))
        self.discriminator: nn.Module | None = None
        self.newest: dict[str, Tensor] = {}
        self.head = self._head = _representation_head(settings, tokenizer) if settings.representation else None
        self.features = FeatureNet.load() if self.head is not None else None
        if settings.gan:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(jobs.unit_seed(settings.seed, "discriminator") & 0xFFFFFFFF)
                self.discriminator = _discriminator(settings)
            self.optimizer: Any = torch.optim.Adam(self.discriminator.parameters(), lr=settings.learning_rate, betas=(0.5, 0.9))

    def to(self, device: torch.device) -> Objective:
        self.image.to(device)
        if self.discriminator is not None:
            self.discriminator.to(device)
        if self.head is not None and self.features is not None:
            self.head.to(device)
            self.features.to(device)
        return self

    def parameters(self) -> list[nn.Parameter]:
        """What the tokenizer's optimizer trains besides the tokenizer."""
        return [] if self.head is None else list(self.head.parameters())

    def setup(self, fabric: Any) -> None:
        """Wrap discriminator and head for the devices of a run."""
        if self.head is not None:
            self._head = fabric.setup_module(self.head)
        self._wrapped = self.discriminator
        if self.discriminator is not None:
            self._wrapped, self.optimizer = fabric.setup(self.discriminator, self.optimizer)
            self._wrapped.mark_forward_method("discriminator_loss")

    def __call__(self, out: Any, x: Tensor, gan: float) -> tuple[Tensor, dict[str, Tensor]]:
        """(the loss, its detached parts) of what a tokenizer says about pixels ``x``; ``gan``: weight of the generator's part now."""
        output = out.values
        found = self.image(output, x)
        loss, parts = found.total, dict(found.terms)
        if gan and self.discriminator is not None and len(x):
            self.discriminator.requires_grad_(False)
            approval = self.discriminator.generator_loss(self.picture(output))  # type: ignore[operator]
            self.discriminator.requires_grad_(True)
            loss, parts["generator"] = loss + gan * approval, approval.detach()
        if self._head is not None and self.features is not None:
            with torch.no_grad():
                targets = self.features.pooled(x)
            asked = self._head(out.quantized.values, targets)
            loss, parts["representation"] = loss + asked, asked.detach()
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
        """Take discriminator, its optimizer, and head from a checkpoint."""
        from codeword.tokenizers import checkpoint
        if self.head is not None:
            self.head.load_state_dict(held.head)
        if self.discriminator is not None:
            self.discriminator.load_state_dict(held.discriminator)
            checkpoint.load_optimizer(self.optimizer, held.discriminator_optimizer)


def _discriminator(settings: Settings) -> nn.Module:
    if settings.discriminator == "style":
        from codeword.nets.style_discriminator import StyleDiscriminator
        return StyleDiscriminator(settings.channels, image_size=settings.size)
    from codeword.nets.patchgan import PatchDiscriminator
    return PatchDiscriminator(settings.channels, depth=1 if settings.size < 24 else 2 if settings.size < 128 else 3)


def _representation_head(settings: Settings, tokenizer: TrainedTokenizer) -> RepresentationHead:
    quantizer, grid = tokenizer.quantizer, settings.size // tokenizer.factor
    if quantizer.name != "factorized_vq" or tokenizer.kind != "image_tokenizer":
        raise Unsupported(f"a representation loss teaches the first codebook of a factorized_vq on a grid; this is {quantizer.name} with "
                          f"network {tokenizer.network.partition(':')[0]}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(jobs.unit_seed(settings.seed, "representation head") & 0xFFFFFFFF)
        return RepresentationHead(dim=quantizer.dim, target_dim=WIDTHS[-1], grid=grid, num_codebooks=len(quantizer.levels),
                                  weight=settings.representation)
