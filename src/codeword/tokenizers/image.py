"""Images to a grid of tokens and back: an encoder, any quantizer of the catalog, a decoder (VQ-VAE, van den Oord et al. 2017; VQGAN,
Esser et al. 2021).

    z = encoder(x) (b, dim, h, w),   i = quantizer(z at each place) (b, h w, positions),   x^ = decoder(values of i)

Images are uint8 or floats in [0, 1], channels first; networks see the floats. An image whose sides do not divide by the
network's factor is continued at its right and lower edge by its last pixels, and cut back by ``decode``: the layout of the tokens keeps
its shape. ``train.py`` trains it; ``Autoencoder`` in nets/conv.py is its bare frame.

Identity and file: ``frame.py``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from codeword.errors import CodewordError, ShapeError
from codeword.nets import pixel_losses
from codeword.nets.conv import Reconstruction
from codeword.quantizer import Codes, Quantizer, Report
from codeword.tokenizers import networks
from codeword.tokenizers.frame import MAX_SIDE, TrainedTokenizer, from_bytes, to_bytes, token_quantizer
from codeword.tokenizers.tokens import Layout, Tokens

__all__ = ["ImageTokenizer", "from_bytes", "to_bytes"]

DIM = 32
"""Width of the latents where nobody says another."""


class ImageTokenizer(TrainedTokenizer):
    """quantizer: any of the catalog without side information, or a spec string such as "simvq:codebook_size=16384" (then ``dim`` wide);
    network: name and options of ``networks``; channels: 1 or 3; size: side of the images it is trained on; likelihood: the decoder says
    mean and spread of every pixel (trained by the logit-Laplace loss)."""

    kind = "image_tokenizer"
    fields: ClassVar = {"channels": int, "likelihood": bool, "network": str, "size": int}

    def __init__(self, *, quantizer: Quantizer | str, network: str = "conv", channels: int = 3, size: int = 32, dim: int = DIM,
                 likelihood: bool = False) -> None:
        super().__init__()
        if channels not in (1, 3) or not 1 <= size <= MAX_SIDE:
            raise CodewordError(f"a tokenizer got channels={channels} and size={size}; 1 or 3 and 1..{MAX_SIDE} pixels are allowed")
        made = token_quantizer(quantizer, dim)
        self.network, self.channels, self.size, self.likelihood = networks.canonical_spec(network), channels, size, likelihood
        networks.check_quantizer(self.network, made)
        built = networks.build(self.network, channels=channels, outputs=2 * channels if likelihood else channels, dim=made.dim, size=size)
        if size % built.factor:
            raise CodewordError(f"{self.network} halves images to 1/{built.factor}; a size of {size} does not divide by that")
        self.factor, self._only_size = built.factor, built.size
        self.encoder, self.quantizer, self.decoder = built.encoder, made, built.decoder
        self.about: dict[str, Any] = {}

    # ------------------------------------------------------------------ training

    def forward(self, x: Tensor) -> Reconstruction:
        """Pixels in [0, 1] (b, channels, height, width), b >= 0, sides multiples of ``factor``, to what the decoder says of them:
        pixels, not clipped, or with ``likelihood`` their distribution. Changes no state."""
        out = self.quantizer(self.latents(x))
        return Reconstruction(self.decoder(out.values.permute(0, 3, 1, 2)), out)

    def latents(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) of pixels in [0, 1]."""
        return self.encoder(x).permute(0, 2, 3, 1)

    def rows(self, x: Tensor) -> Tensor:
        """Latents (b h w, dim) of pixels in [0, 1]."""
        return self.latents(x).reshape(-1, self.quantizer.dim)

    def update(self, out: Reconstruction) -> Report:
        """The quantizer's own."""
        return self.quantizer.update(out.quantized)

    # ------------------------------------------------------------------ use

    @torch.no_grad()
    def encode(self, images: Tensor | np.ndarray) -> Tokens:
        """Tokens (b, h w, positions) of uint8 or [0, 1] images (b, channels, height, width). Raises ShapeError for others."""
        x = self.pixels(images)
        shape = (self.channels, *x.shape[2:])
        codes = self.quantizer.encode(self._inference(self.latents, self._pad(x)))
        indices = torch.as_tensor(codes.indices)
        return Tokens(indices.flatten(1, 2), None, None, self._layout(tuple(indices.shape[1:3]), shape), self.fingerprint)

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Images (b, channels, height, width), float32 in [0, 1]. Raises FormatError("fingerprint") for tokens of another tokenizer."""
        self._check_maker(tokens)
        if tokens.mask is not None or tokens.positions is not None or len(tokens.layout.grid) != 2:
            raise ShapeError("an image tokenizer decodes full grids of two axes")
        values = torch.as_tensor(self.quantizer.decode(Codes(tokens.grid_indices)))
        x = self._inference(lambda v: self.decoder(v.permute(0, 3, 1, 2)), values)
        height, width = tokens.layout.shape[1:] if tokens.layout.shape else x.shape[2:]
        if height > x.shape[2] or width > x.shape[3]:
            raise ShapeError(f"tokens of a {height} × {width} image decode to {x.shape[2]} × {x.shape[3]} pixels only")
        shown = pixel_losses.from_logit_laplace(x) if self.likelihood else x
        return shown[:, :, :height, :width].float().clamp(0, 1)

    @property
    def tokens_per_image(self) -> float:
        """Of an image of ``size``."""
        return (self.size // self.factor) ** 2

    @property
    def bits_per_pixel(self) -> float:
        """Stored bits a pixel of an image whose sides divide by ``factor``: all channels together."""
        return self._layout((1, 1), ()).bits / self.factor**2

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments beside the quantizer (and ``dim``, which is its width)."""
        return {"channels": self.channels, "likelihood": self.likelihood, "network": self.network, "size": self.size}

    # ------------------------------------------------------------------ inside

    def _layout(self, grid: tuple[int, ...], shape: tuple[int, ...]) -> Layout:
        return Layout("image", tuple(self.quantizer.levels), grid, shape)

    def _pad(self, x: Tensor) -> Tensor:
        if self._only_size is not None and tuple(x.shape[2:]) != (self._only_size, self._only_size):
            raise ShapeError(f"images are {x.shape[2]} × {x.shape[3]}; {self.network} takes {self._only_size} × {self._only_size} only")
        down, right = -x.shape[2] % self.factor, -x.shape[3] % self.factor
        return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x
