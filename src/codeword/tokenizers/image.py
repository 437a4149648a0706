"""Images to a grid of tokens and back: an encoder, any quantizer of the catalog, a decoder (VQ-VAE, van den Oord et al. 2017; VQGAN,
Esser et al. 2021).

    z = encoder(x) (b, dim, h, w),   i = quantizer(z at each place) (b, h w, positions),   x^ = decoder(values of i)

Images are uint8 or floats in [0, 1], channels first; networks see the floats. An image whose sides do not divide by the
network's factor is continued at its right and lower edge by its last pixels, and cut back by ``decode``: the layout of the tokens keeps
its shape. ``train.py`` trains it; ``Autoencoder`` in nets/conv.py is its bare frame.

One file holds it all, by the rules of ``io/objects``: {"channels", "likelihood", "network", "size"} and the quantizer's own record, then
tensors encoder.*, decoder.*, quantizer.*; the fingerprint stands for all of that. ``about`` (how it was trained) travels along and counts
for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codeword import catalog
from codeword.errors import CodewordError, FormatError, ShapeError, Unsupported
from codeword.io import canonical, objects
from codeword.io.canonical import LIMITS, Limits
from codeword.io.tensors import read_tensors, write_tensors
from codeword.nets import pixel_losses
from codeword.nets.conv import Reconstruction
from codeword.quantizer import Codes, Quantizer
from codeword.tokenizers import networks
from codeword.tokenizers.tokens import Layout, Tokens

KIND = "image_tokenizer"
MAX_SIDE = 1 << 14
DIM = 32
"""Width of the latents where nobody says another."""
_CONFIG = {"channels": int, "likelihood": bool, "network": str, "size": int}


class ImageTokenizer(nn.Module):
    """quantizer: any of the catalog without side information, or a spec string such as "simvq:codebook_size=16384" (then ``dim`` wide);
    network: name and options of ``networks``; channels: 1 or 3; size: side of the images it is trained on; likelihood: the decoder says
    mean and spread of every pixel (trained by the logit-Laplace loss)."""

    def __init__(self, *, quantizer: Quantizer | str, network: str = "conv", channels: int = 3, size: int = 32, dim: int = DIM,
                 likelihood: bool = False) -> None:
        super().__init__()
        if channels not in (1, 3) or not 1 <= size <= MAX_SIDE:
            raise CodewordError(f"a tokenizer got channels={channels} and size={size}; 1 or 3 and 1..{MAX_SIDE} pixels are allowed")
        made = catalog.make(quantizer, dim) if isinstance(quantizer, str) else quantizer
        if made.side_count:
            raise Unsupported(f"{made.name} keeps {made.side_count} floats beside its indices; tokens are indices alone, so take another")
        self.network, self.channels, self.size, self.likelihood = networks.canonical_spec(network), channels, size, likelihood
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

    # ------------------------------------------------------------------ use

    @torch.no_grad()
    def encode(self, images: Tensor | np.ndarray) -> Tokens:
        """Tokens (b, h w, positions) of uint8 or [0, 1] images (b, channels, height, width). Raises ShapeError for others."""
        x = self.pixels(images)
        shape = (self.channels, *x.shape[2:])
        codes = self.quantizer.encode(self._eval(self.latents, self._pad(x)))
        indices = torch.as_tensor(codes.indices)
        return Tokens(indices.flatten(1, 2), None, None, self._layout(tuple(indices.shape[1:3]), shape), self.fingerprint)

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Images (b, channels, height, width), float32 in [0, 1]. Raises FormatError("fingerprint") for tokens of another tokenizer."""
        if tokens.fingerprint != self.fingerprint:
            raise FormatError("fingerprint", f"these tokens were made by tokenizer {tokens.fingerprint}, not by {self.fingerprint}")
        if tokens.mask is not None or tokens.positions is not None or len(tokens.layout.grid) != 2:
            raise ShapeError("an image tokenizer decodes full grids of two axes")
        values = torch.as_tensor(self.quantizer.decode(Codes(tokens.grid_indices)))
        x = self._eval(lambda v: self.decoder(v.permute(0, 3, 1, 2)), values)
        height, width = tokens.layout.shape[1:] if tokens.layout.shape else x.shape[2:]
        if height > x.shape[2] or width > x.shape[3]:
            raise ShapeError(f"tokens of a {height} × {width} image decode to {x.shape[2]} × {x.shape[3]} pixels only")
        shown = pixel_losses.from_logit_laplace(x) if self.likelihood else x
        return shown[:, :, :height, :width].float().clamp(0, 1)

    def reconstruct(self, images: Tensor | np.ndarray) -> Tensor:
        """``decode(encode(images))``."""
        return self.decode(self.encode(images))

    def pixels(self, images: Tensor | np.ndarray) -> Tensor:
        """(b, channels, height, width) images, checked, as float32 in [0, 1] on the tokenizer's device."""
        x = torch.as_tensor(images)
        if x.ndim != 4 or x.shape[1] != self.channels or min(x.shape[2:]) < 1 or max(x.shape[2:]) > MAX_SIDE:
            raise ShapeError(f"images have shape {tuple(x.shape)}; (b, {self.channels}, height, width) with sides of 1..{MAX_SIDE} is "
                             "needed")
        if x.dtype == torch.uint8:
            return from_bytes(x.to(self.quantizer.device))
        if not x.is_floating_point():
            raise ShapeError(f"images are {x.dtype}; uint8, or floats in [0, 1], are needed")
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise ShapeError("floating-point images have values outside [0, 1]")
        return x.to(self.quantizer.device, torch.float32)

    @property
    def bits_per_pixel(self) -> float:
        """Stored bits a pixel of an image whose sides divide by ``factor``: all channels together."""
        return self._layout((1, 1), ()).bits / self.factor**2

    # ------------------------------------------------------------------ identity and files

    @property
    def config(self) -> dict[str, Any]:
        return {"channels": self.channels, "likelihood": self.likelihood, "network": self.network, "size": self.size}

    @property
    def fingerprint(self) -> str:
        """16 hex digits over configuration, quantizer and all weights: tokens carry it."""
        key = tuple((name, t.data_ptr(), t._version, t.shape) for name, t in self.state_dict().items())
        known = self.__dict__.get("_fingerprint")
        if known is None or known[0] != key:
            state, header = self._parts()
            known = self.__dict__["_fingerprint"] = (key, _fingerprint(self.config, header, state))
        return known[1]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, durably and atomically. Same tokenizer, same bytes."""
        state, header = self._parts()
        write_tensors(path, state, {"about": self.about, "config": self.config, "fingerprint": self.fingerprint, "kind": KIND,
                                    "quantizer": header})

    @classmethod
    def load(cls, path: str | Path, *, limits: Limits = LIMITS) -> Self:
        """Read a file written by ``save``, on the CPU, ready to use. Raises FormatError; never runs code from the file."""
        tensors, header = read_tensors(path, limits=limits)
        return cls.from_parts(tensors, header, str(path))

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: dict[str, Any], what: str) -> Self:
        """A tokenizer from tensors and header, believing nothing."""
        objects.check_kind(header, KIND, what)
        canonical.fields(header, f"header of {what}", {"about": dict, "config": dict, "fingerprint": str, "kind": str, "quantizer": dict})
        config = canonical.fields(header["config"], f"configuration of {what}", _CONFIG)
        own = {name.removeprefix("quantizer."): t for name, t in tensors.items() if name.startswith("quantizer.")}
        quantizer = objects.from_parts(own, header["quantizer"], f"quantizer in {what}")
        try:
            with torch.device("meta"):
                made = cls(quantizer=quantizer, **config)
        except CodewordError as error:
            raise FormatError("config", f"{what}: {error}") from None
        except Exception as error:  # a stranger's options: whatever a network says to them is the file's fault
            raise FormatError("config", f"{what}: its network refuses its options: {str(error)[:200]}") from error
        if made.config != config:
            raise FormatError("config", f"{what} does not spell out the options of its network")
        rest = {name: t for name, t in tensors.items() if not name.startswith("quantizer.")}
        declared = {name: (t.dtype, tuple(t.shape)) for name, t in made.state_dict().items() if not name.startswith("quantizer.")}
        objects._check_declared(declared, rest, what)
        for name, tensor in rest.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise FormatError("value", f"tensor {name!r} of {what} has non-finite values")
        made.load_state_dict(rest, strict=False, assign=True)
        made.about = header["about"]
        if not canonical.same_digest(made.fingerprint, header["fingerprint"]):
            raise FormatError("fingerprint", f"{what} does not have the fingerprint {header['fingerprint'][:16]!r} that it states")
        return made.eval()

    # ------------------------------------------------------------------ inside

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        own, header = objects.to_parts(self.quantizer)
        state = {name: t.detach().contiguous() for name, t in self.state_dict().items() if not name.startswith("quantizer.")}
        return {**state, **{f"quantizer.{name}": t for name, t in own.items()}}, header

    def _layout(self, grid: tuple[int, ...], shape: tuple[int, ...]) -> Layout:
        return Layout("image", tuple(self.quantizer.levels), grid, shape)

    def _pad(self, x: Tensor) -> Tensor:
        if self._only_size is not None and tuple(x.shape[2:]) != (self._only_size, self._only_size):
            raise ShapeError(f"images are {x.shape[2]} × {x.shape[3]}; {self.network} takes {self._only_size} × {self._only_size} only")
        down, right = -x.shape[2] % self.factor, -x.shape[3] % self.factor
        return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x

    def _eval(self, function: Any, x: Tensor) -> Tensor:
        """``function(x)`` in inference mode of all layers, which is then left as it was."""
        training = self.training
        if training:
            self.eval()
        try:
            return function(x)
        finally:
            if training:
                self.train()


def from_bytes(x: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return x.to(torch.float32).div_(255)


def to_bytes(x: Tensor) -> Tensor:
    """[0, 1] to the nearest uint8."""
    return x.mul(255).round().to(torch.uint8)


def _fingerprint(config: dict[str, Any], quantizer: dict[str, Any], state: Mapping[str, Tensor]) -> str:
    digests = {name: [str(t.dtype), list(t.shape), objects._digest(t)] for name, t in state.items()}
    return hashlib.sha256(canonical.encode({"config": config, "quantizer": quantizer, "tensors": digests})).hexdigest()[:16]

