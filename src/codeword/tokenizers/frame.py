"""What image tokenizers of every kind share: an identity, one file, checked pixels, and the little that the training loop asks of them.

A kind says ``kind`` (its name in files), ``fields`` (the types of its ``config``, constructor arguments beside the quantizer) and

    forward(x)       a NamedTuple with ``values``, ``quantized``, ``loss`` (all that is asked for beside the reconstruction), ``stats``
    rows(x)          latents (n, dim) that the quantizer would see of pixels ``x``: what it is fitted on
    update(out)      move what moves outside the optimizer, on every rank after its step
    encode, decode   images to Tokens and back;  tokens_per_image, bits_per_pixel: expected at its own size

One file holds a tokenizer, by the rules of ``io/objects``: its ``config``, the quantizer's own record, tensors of the networks by their
names and quantizer.*; the fingerprint stands for all of that. ``about`` (how it was trained) travels along and counts for nothing.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import torch
from torch import Tensor, nn

from codeword import catalog
from codeword.errors import CodewordError, FormatError, ShapeError, Unsupported
from codeword.io import canonical, objects
from codeword.io.canonical import LIMITS, Limits
from codeword.io.tensors import read_tensors, write_tensors
from codeword.quantizer import Quantizer, Report
from codeword.tokenizers.tokens import Tokens

MAX_SIDE = 1 << 14


class TrainedTokenizer(nn.Module):
    """Abstract. ``network``: the spec of its networks; ``factor``: pixels a side of its largest cell; ``channels``, ``size``: of the images
    it is trained on."""

    kind: ClassVar[str]
    fields: ClassVar[dict[str, Any]]
    quantizer: Quantizer
    network: str
    channels: int
    size: int
    factor: int
    about: dict[str, Any]

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments beside the quantizer (and ``dim``, which is its width)."""

    @abstractmethod
    def rows(self, x: Tensor) -> Tensor:
        """Latents (n, dim) that the quantizer sees of pixels in [0, 1]."""

    @abstractmethod
    def update(self, out: Any) -> Report:
        """After the optimizer's step, on every rank: what moves by other rules."""

    @abstractmethod
    def encode(self, images: Tensor | np.ndarray) -> Tokens:
        """Tokens of uint8 or [0, 1] images (b, channels, height, width)."""

    @abstractmethod
    def decode(self, tokens: Tokens) -> Tensor:
        """Images (b, channels, height, width), float32 in [0, 1]."""

    @property
    @abstractmethod
    def tokens_per_image(self) -> float:
        """Of an image of ``size``, expected."""

    @property
    @abstractmethod
    def bits_per_pixel(self) -> float:
        """Stored bits a pixel of an image of ``size``, expected: all channels together."""

    @property
    def following(self) -> tuple[str, ...]:
        """Names of buffers that follow the weights, and are averaged where weights are. None, unless a kind says otherwise."""
        return ()

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

    # ------------------------------------------------------------------ identity and files

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
        """Write one safetensors file, durably and atomically. Same tokenizer, same bytes. NotFitted where something never was."""
        self._check_complete()
        state, header = self._parts()
        write_tensors(path, state, {"about": self.about, "config": self.config, "fingerprint": self.fingerprint, "kind": self.kind,
                                    "quantizer": header})

    @classmethod
    def load(cls, path: str | Path, *, limits: Limits = LIMITS) -> Self:
        """Read a file written by ``save``, on the CPU, ready to use. Raises FormatError; never runs code from the file."""
        tensors, header = read_tensors(path, limits=limits)
        return cls.from_parts(tensors, header, str(path))

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: dict[str, Any], what: str) -> Self:
        """A tokenizer from tensors and header, believing nothing."""
        objects.check_kind(header, cls.kind, what)
        canonical.fields(header, f"header of {what}", {"about": dict, "config": dict, "fingerprint": str, "kind": str, "quantizer": dict})
        config = canonical.fields(header["config"], f"configuration of {what}", cls.fields)
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
        objects.check_declared(declared, rest, what)
        for name, tensor in rest.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise FormatError("value", f"tensor {name!r} of {what} has non-finite values")
        made.load_state_dict(rest, strict=False, assign=True)
        made._rebuild()
        made.about = header["about"]
        if not canonical.same_digest(made.fingerprint, header["fingerprint"]):
            raise FormatError("fingerprint", f"{what} does not have the fingerprint {header['fingerprint'][:16]!r} that it states")
        return made.eval()

    # ------------------------------------------------------------------ inside

    def _rebuild(self) -> None:
        """Make what files do not keep, on the CPU. Nothing, unless a kind says otherwise."""

    def _check_complete(self) -> None:
        """NotFitted where something besides the quantizer was not fitted. Nothing, unless a kind says otherwise."""

    def _check_maker(self, tokens: Tokens) -> None:
        if tokens.fingerprint != self.fingerprint:
            raise FormatError("fingerprint", f"these tokens were made by tokenizer {tokens.fingerprint}, not by {self.fingerprint}")

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        own, header = objects.to_parts(self.quantizer)
        state = {name: t.detach().contiguous() for name, t in self.state_dict().items() if not name.startswith("quantizer.")}
        return {**state, **{f"quantizer.{name}": t for name, t in own.items()}}, header

    def _inference(self, function: Any, *inputs: Tensor) -> Any:
        """``function(*inputs)`` in inference mode of all layers, which is then left as it was."""
        training = self.training
        if training:
            self.eval()
        try:
            return function(*inputs)
        finally:
            if training:
                self.train()


def load_tokenizer(path: str | Path, *, limits: Limits = LIMITS) -> TrainedTokenizer:
    """A tokenizer of whatever kind from its file, on the CPU. Raises FormatError."""
    tensors, header = read_tensors(path, limits=limits)
    kinds = tokenizer_kinds()
    kind = header.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        _refuse(kind, str(path))
    return kinds[kind].from_parts(tensors, header, str(path))


def tokenizer_kinds() -> dict[str, type[TrainedTokenizer]]:
    """The kinds of image tokenizers by their names in files."""
    from codeword.tokenizers.dynamic import DynamicTokenizer
    from codeword.tokenizers.image import ImageTokenizer
    return {made.kind: made for made in (ImageTokenizer, DynamicTokenizer)}


def token_quantizer(quantizer: Quantizer | str, dim: int) -> Quantizer:
    """The quantizer, or what a spec string says, ``dim`` wide. Raises Unsupported where its codes are more than indices."""
    made = catalog.make(quantizer, dim) if isinstance(quantizer, str) else quantizer
    if made.side_count:
        raise Unsupported(f"{made.name} keeps {made.side_count} floats beside its indices; tokens are indices alone, so take another")
    return made


def from_bytes(x: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return x.to(torch.float32).div_(255)


def to_bytes(x: Tensor) -> Tensor:
    """[0, 1] to the nearest uint8."""
    return x.mul(255).round().to(torch.uint8)


def _refuse(kind: Any, what: str) -> NoReturn:
    raise FormatError("kind", f"{what} holds {str(kind)[:40]!r}, not a tokenizer of images ({', '.join(tokenizer_kinds())})")


def _fingerprint(config: dict[str, Any], quantizer: dict[str, Any], state: Mapping[str, Tensor]) -> str:
    digests = {name: [str(t.dtype), list(t.shape), objects.digest_of(t)] for name, t in state.items()}
    return hashlib.sha256(canonical.encode({"config": config, "quantizer": quantizer, "tensors": digests})).hexdigest()[:16]
