"""A small convolutional autoencoder with a quantizer at its bottleneck: the frame of VQ-VAE (van den Oord et al. 2017) for any Quantizer.

    z = encoder(x) (b, dim, h, w),   z^ = quantizer(z at each of the h w places),   x^ = decoder(z^)
    loss = mean |x - x^|^2 + the quantizer's own loss

One training step is three lines, and the order matters: forward (pure), backward and optimizer step, then ``quantizer.update`` on every
rank, since averages and revived codewords are collective. A quantizer that learns is fitted on the encoder's first outputs
(``start``): a codebook far from the data never catches up. Quantizers without a gradient of their own (PQ, PVQ, RaBitQ) stay as they
were fitted; their commitment loss holds the encoder to them. (Fitting them again on the way breaks the decoder each time.)
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from codeword.errors import CodewordError, ShapeError
from codeword.quantizer import Codes, Quantized, Quantizer, Report


class Reconstruction(NamedTuple):
    """``values`` (b, channels, height, width) and what the quantizer returned, over (b, h, w, dim)."""

    values: Tensor
    quantized: Quantized

    @property
    def loss(self) -> Tensor:
        """What is asked for beside the reconstruction: the quantizer's loss."""
        return self.quantized.loss

    @property
    def stats(self) -> dict[str, Tensor]:
        """The quantizer's."""
        return self.quantized.stats


class Step(NamedTuple):
    """Losses of one training step, detached, and what ``update`` changed."""

    error: Tensor
    quantizer_loss: Tensor
    report: Report


def encoder(channels: int, dim: int, *, width: int = 32) -> nn.Sequential:
    """(b, channels, 4h, 4w) -> (b, dim, h, w): two halvings and one look around."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(2 * width, dim, 1),
    )


def decoder(channels: int, dim: int, *, width: int = 32) -> nn.Sequential:
    """Mirror of ``encoder``."""
    return nn.Sequential(
        nn.Conv2d(dim, 2 * width, 3, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(width, channels, 3, padding=1),
    )


class Autoencoder(nn.Module):
    """encoder: images -> (b, quantizer.dim, h, w); quantizer; decoder: back to images. ``small`` builds the usual pair."""

    def __init__(self, *, encoder: nn.Module, quantizer: Quantizer, decoder: nn.Module) -> None:
        super().__init__()
        if not isinstance(quantizer, Quantizer):
            raise CodewordError(f"Autoencoder got {type(quantizer).__name__} as its quantizer; a Quantizer is needed")
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    @classmethod
    def small(cls, quantizer: Quantizer, *, channels: int = 1, width: int = 32) -> Self:
        """For images whose sides divide by 4; 28 x 28 become 7 x 7 tokens."""
        return cls(encoder=encoder(channels, quantizer.dim, width=width), quantizer=quantizer,
                   decoder=decoder(channels, quantizer.dim, width=width))

    @torch.no_grad()
    def start(self, x: Tensor) -> Report:
        """Fit the quantizer on what the encoder says about images ``x``; returns its report. A lattice has nothing to learn."""
        self.quantizer.fit(self._latents(x))
        return self.quantizer.report

    def forward(self, x: Tensor) -> Reconstruction:
        """Images (b, channels, height, width), b >= 0, to their reconstruction. Changes no state of the quantizer."""
        out = self.quantizer(self._latents(x))
        return Reconstruction(self._images(out.values), out)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Codes:
        """Codes over (b, h, w)."""
        return self.quantizer.encode(self._latents(x))

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        """Images of codes over (b, h, w)."""
        return self._images(torch.as_tensor(self.quantizer.decode(codes)))

    def _latents(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        if z.ndim != 4 or z.shape[1] != self.quantizer.dim:
            raise ShapeError(f"the encoder made {tuple(z.shape)}; (b, {self.quantizer.dim}, h, w) is needed for {self.quantizer.name}")
        return z.permute(0, 2, 3, 1)

    def _images(self, values: Tensor) -> Tensor:
        return self.decoder(values.permute(0, 3, 1, 2).contiguous())


def train_step(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> Step:
    """One step of ``model`` (an Autoencoder, plain, compiled or wrapped for distribution) on images ``x``. Collective where there
    are several ranks: an empty batch still takes part."""
    out = model(x)
    error = (out.values - x).square().sum() / max(1, x.numel())
    optimizer.zero_grad()
    (error + out.quantized.loss).backward()
    optimizer.step()
    host: nn.Module = getattr(model, "module", model)
    quantizer = host.quantizer
    assert isinstance(quantizer, Quantizer)
    return Step(error.detach(), out.quantized.loss.detach(), quantizer.update(out.quantized))
