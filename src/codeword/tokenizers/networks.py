"""Encoders and decoders by name: one table, so that a tokenizer's file can say what it is without holding code.

    conv:width=32                                   two halvings, a few convolutions (nets/conv.py): the fastest
    vqgan:width=32,multipliers=1x2x2,blocks=1,attention=false   residual blocks (nets/vqgan.py); 2^(levels - 1) pixels a token
    vit:patch=4,width=128,depth=4,heads=4           transformers over patches (nets/vit.py); one image size only

``factor`` is how many pixels a side one token stands for; ``size`` is the only image size a network takes, or None where any will do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from codeword import catalog
from codeword.errors import CodewordError
from codeword.nets import conv, vit, vqgan

MAX_WIDTH, MAX_DEPTH, MAX_BLOCKS = 4096, 64, 16
"""Widest layer, most layers, and most blocks a level that a file may ask for."""


class Network(NamedTuple):
    """A pair that fits together: images (b, channels, h, w) -> (b, dim, h / factor, w / factor) -> (b, outputs, h, w)."""

    encoder: nn.Module
    decoder: nn.Module
    factor: int
    size: int | None = None


class Kind(NamedTuple):
    """One entry: what builds it from (channels, outputs, dim, image size) and options, and the options with their defaults."""

    build: Callable[..., Network]
    defaults: dict[str, Any]
    title: str


def _conv(channels: int, outputs: int, dim: int, size: int, *, width: int) -> Network:
    return Network(conv.encoder(channels, dim, width=width), conv.decoder(outputs, dim, width=width), 4)


def _vqgan(channels: int, outputs: int, dim: int, size: int, *, width: int, multipliers: list[int], blocks: int,
           attention: bool) -> Network:
    options: dict[str, Any] = {"width": width, "multipliers": multipliers, "blocks": blocks, "attention": attention}
    encoder = vqgan.ConvEncoder(channels, dim, **options)
    return Network(encoder, vqgan.ConvDecoder(outputs, dim, **options), encoder.factor)


def _vit(channels: int, outputs: int, dim: int, size: int, *, patch: int, width: int, depth: int, heads: int) -> Network:
    options = {"image_size": size, "patch": patch, "width": width, "depth": depth, "heads": heads}
    return Network(vit.ViTEncoder(channels, dim, **options), vit.ViTDecoder(outputs, dim, **options), patch, size)


NETWORKS: dict[str, Kind] = {
    "conv": Kind(_conv, {"width": 32}, "two halvings and a few convolutions"),
    "vqgan": Kind(_vqgan, {"width": 32, "multipliers": [1, 2, 2], "blocks": 1, "attention": False}, "residual convolutions"),
    "vit": Kind(_vit, {"patch": 4, "width": 128, "depth": 4, "heads": 4}, "transformers over patches"),
}


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """(name, all options) of ``name[:key=value,...]``. Raises CodewordError that says what is known."""
    name, _, rest = spec.partition(":")
    if name not in NETWORKS:
        raise CodewordError(f"unknown network {name[:40]!r}; {', '.join(NETWORKS)} are known")
    defaults = NETWORKS[name].defaults
    given = dict(catalog._option(pair, spec) for pair in rest.split(",")) if rest else {}
    for key, value in given.items():
        if key not in defaults:
            raise CodewordError(f"network {name} has no option {key[:40]!r}; it takes {', '.join(defaults)}")
        _check_option(name, key, value, defaults[key])
    return name, {**defaults, **given}


def canonical_spec(spec: str) -> str:
    """The spec with every option spelled out, as files keep it: defaults may change."""
    name, options = parse(spec)
    return f"{name}:{','.join(f'{key}={_spell(value)}' for key, value in options.items())}" if options else name


def build(spec: str, *, channels: int, outputs: int, dim: int, size: int) -> Network:
    """The network of ``spec`` for images of ``channels``, decoders of ``outputs`` channels, latents of ``dim``, trained at ``size``."""
    name, options = parse(spec)
    return NETWORKS[name].build(channels, outputs, dim, size, **options)


def _check_option(name: str, key: str, value: Any, default: Any) -> None:
    items = value if isinstance(value, list) else [value]
    most = {"width": MAX_WIDTH, "blocks": MAX_BLOCKS}.get(key, MAX_DEPTH)
    if isinstance(default, bool):
        good = isinstance(value, bool)
    else:
        good = isinstance(value, list) <= isinstance(default, list) and len(items) <= 8 \
            and all(type(item) is int and 1 <= item <= most for item in items)
    if not good:
        allowed = "true or false" if isinstance(default, bool) else f"1..{most}"
        raise CodewordError(f"network {name} got {key}={value!r}; {allowed} is allowed")


def _spell(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)
