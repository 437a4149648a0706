"""What a decoder's output is compared with pixels by, and the one object that weighs all such terms.

Images x are floats in [0, 1]. All terms are means over every value, so weights mean the same at any size.

    l1, l2          |x - x^|, (x - x^)^2
    logit-Laplace   (Ramesh et al. 2021; ViT-VQGAN). With phi(x) = (1 - 2 eps) x + eps, eps = 0.1, and a decoder that says mu and ln b:

        f(p | mu, b) = exp(-|logit p - mu| / b) / (2 b p (1 - p))   on 0 < p < 1, whose integral is 1
        loss = -ln f(phi(x)) = ln(2 phi (1 - phi)) + ln b + |logit phi - mu| / b
        shown image = clip((sigmoid(mu) - eps) / (1 - 2 eps), 0, 1)

    eps is needed: logits of 0 and 1 are infinite. ln b is held within ``LN_B`` so that a flat region, whose likelihood has no bound,
    cannot take over; the gradient at the bound is zero. Unlike the others this term can be negative.
    perceptual      ``nets/perceptual.py``

Where logit-Laplace has a weight, a decoder has twice as many channels, first all mu, then all ln b; the other terms then see the image
before clipping. ViT-VQGAN's weights: l2 1, logit_laplace 0.1, perceptual 0.1, adversary 0.1. VQGAN's: l1 1, perceptual 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from codeword.errors import CodewordError, ShapeError

EPS = 0.1
LN_B = (-6.0, 3.0)
TERMS = ("l1", "l2", "logit_laplace", "perceptual")


class ImageTerms(NamedTuple):
    """``total``: the weighted sum, differentiable; ``terms``: each term, unweighted and detached."""

    total: Tensor
    terms: dict[str, Tensor]


class ImageLoss(nn.Module):
    """weights: of the terms by name (l1, l2, logit_laplace, perceptual), those left out are not computed; features: the network of the
    perceptual term: "features-cifar10", or "lpips-vgg", "lpips-alex" where the package lpips is installed."""

    def __init__(self, *, weights: Mapping[str, float] | None = None, features: str = "features-cifar10") -> None:
        super().__init__()
        weights = {"l1": 1.0} if weights is None else dict(weights)
        if not weights or set(weights) - set(TERMS) or not all(0 <= w < math.inf for w in weights.values()) or not any(weights.values()):
            raise CodewordError(f"ImageLoss got weights={weights}; non-negative numbers for some of {', '.join(TERMS)}, one of them "
                                "positive, are needed")
        self.weights, self.features = {name: float(w) for name, w in weights.items()}, features
        self.likelihood = weights.get("logit_laplace", 0) > 0
        self._perceptual = None
        if weights.get("perceptual", 0) > 0:
            from codeword.nets.perceptual import perceptual
            self._perceptual = perceptual(features)

    @property
    def config(self) -> dict[str, object]:
        return {"weights": dict(self.weights), "features": self.features}

    def decoder_channels(self, channels: int) -> int:
        """How many channels a decoder of images with ``channels`` has to have."""
        return 2 * channels if self.likelihood else channels

    def shown(self, output: Tensor) -> Tensor:
        """The image (b, channels, H, W) in [0, 1] that a decoder's output stands for."""
        return (from_logit_laplace(output) if self.likelihood else output).clamp(0, 1)

    def forward(self, output: Tensor, images: Tensor) -> ImageTerms:
        """Decoder output (b, decoder_channels, H, W) against ``images`` (b, channels, H, W). An empty batch has loss zero."""
        expected = (images.shape[0], self.decoder_channels(images.shape[1]), *images.shape[2:]) if images.ndim == 4 else None
        if output.shape != expected:
            raise ShapeError(f"ImageLoss got output {tuple(output.shape)} for images {tuple(images.shape)}; {expected or '(b, c, H, W)'} "
                             "is needed")
        with torch.autocast(output.device.type, enabled=False):
            output, images = output.float(), images.float()
            found = self._found(output, images)
            total = sum((self.weights[name] * value for name, value in found.items()), start=0.0 * output.sum())
        return ImageTerms(total, {name: value.detach() for name, value in found.items()})

    def _found(self, output: Tensor, images: Tensor) -> dict[str, Tensor]:
        image = from_logit_laplace(output) if self.likelihood else output
        found: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            if weight == 0:
                continue
            if name == "l1":
                found[name] = _mean((image - images).abs())
            elif name == "l2":
                found[name] = _mean((image - images).square())
            elif name == "logit_laplace":
                mu, ln_b = output.chunk(2, dim=1)
                found[name] = _mean(logit_laplace(images, mu, ln_b))
            else:
                assert self._perceptual is not None
                found[name] = _mean(self._perceptual(image, images))
        return found


def logit_laplace(images: Tensor, mu: Tensor, ln_b: Tensor) -> Tensor:
    """-ln f(phi(x) | mu, b) at every value of ``images`` in [0, 1]."""
    phi = (1 - 2 * EPS) * images + EPS
    ln_b = ln_b.clamp(*LN_B)
    return (2 * phi * (1 - phi)).log() + ln_b + (torch.logit(phi) - mu).abs() * (-ln_b).exp()


def from_logit_laplace(output: Tensor) -> Tensor:
    """(b, 2 c, H, W) -> the image (b, c, H, W) at the median mu, not clipped: within -eps/(1 - 2 eps) .. 1 + eps/(1 - 2 eps)."""
    mu, _ = output.chunk(2, dim=1)
    return (torch.sigmoid(mu) - EPS) / (1 - 2 * EPS)


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(1, values.numel())


