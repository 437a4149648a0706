"""Encoders and decoders by name: one table, so that a tokenizer's file can say what it is without holding code.

    conv:width=32                                   two halvings, a few convolutions (nets/conv.py): the fastest
    vqgan:width=32,multipliers=1x2x2,blocks=1,attention=false   residual blocks (nets/vqgan.py); 2^(levels - 1) pixels a token
    vit:patch=4,width=128,depth=4,heads=4           transformers over patches (nets/vit.py); one image size only
    factorized:num_codebooks=2,adapter=conv,...     vqgan with an adapter for each codebook of factorized_vq (nets/factorized.py; FQGAN);
                                                    transformer adapters take one image size only
    dynamic:router=entropy,fraction=0.5,...         two grids and a router between them, not a pair: ``dynamic.py`` builds it (DQ-VAE)

``factor`` is how many pixels a side one token stands for; ``size`` is the only image size a network takes, or None where any will do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from codeword import catalog
from codeword.errors import CodewordError
from codeword.nets import conv, factorized, vit, vqgan

MAX_WIDTH, MAX_DEPTH, MAX_BLOCKS = 4096, 64, 16
"""Widest layer, most layers, and most blocks a level that a file may ask for."""
CHOICES = {"adapter": factorized.ADAPTERS, "router": ("entropy", "learned", "random")}


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
    quantizer: str | None = None
    """the only quantizer it goes with, which then has as many codebooks"""


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


def _factorized(channels: int, outputs: int, dim: int, size: int, *, num_codebooks: int, adapter: str, adapter_depth: int,
                adapter_heads: int, **levels: Any) -> Network:
    encoder = factorized.FactorizedEncoder(channels, dim, num_codebooks=num_codebooks, adapter=adapter, adapter_depth=adapter_depth,
                                           adapter_heads=adapter_heads, image_size=size, **levels)
    return Network(encoder, vqgan.ConvDecoder(outputs, dim, **levels), encoder.factor, size if adapter == "transformer" else None)


def _dynamic(channels: int, outputs: int, dim: int, size: int, **options: Any) -> Network:
    raise CodewordError("the network 'dynamic' has two grids and a router; a DynamicTokenizer is made of it, not an ImageTokenizer")


_LEVELS: dict[str, Any] = {"width": 32, "multipliers": [1, 2, 2], "blocks": 1, "attention": False}
NETWORKS: dict[str, Kind] = {
    "conv": Kind(_conv, {"width": 32}, "two halvings and a few convolutions"),
    "vqgan": Kind(_vqgan, _LEVELS, "residual convolutions"),
    "vit": Kind(_vit, {"patch": 4, "width": 128, "depth": 4, "heads": 4}, "transformers over patches"),
    "factorized": Kind(_factorized, {"num_codebooks": 2, "adapter": "conv", "adapter_depth": 1, "adapter_heads": 4, **_LEVELS},
                       "residual convolutions, an adapter a codebook", "factorized_vq"),
    "dynamic": Kind(_dynamic, {"router": "entropy", "fraction": 0.5, **_LEVELS, "multipliers": [1, 2, 2, 2]},
                    "coarse and fine cells, and a router between them"),
}


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """(name, all options) of ``name[:key=value,...]``. Raises CodewordError that says what is known."""
    name, _, rest = spec.partition(":")
    if name not in NETWORKS:
        raise CodewordError(f"unknown network {name[:40]!r}; {', '.join(NETWORKS)} are known")
    defaults = NETWORKS[name].defaults
    given = dict(catalog.option(pair, spec) for pair in rest.split(",")) if rest else {}
    for key, value in given.items():
        if key not in defaults:
            raise CodewordError(f"network {name} has no option {key[:40]!r}; it takes {', '.join(defaults)}")
        _check_option(name, key, value, defaults[key])
    return name, {**defaults, **given}


def canonical_spec(spec: str) -> str:
    """The spec with every option spelled out, as files keep it: defaults may change."""
    return spell(*parse(spec))


def spell(name: str, options: dict[str, Any]) -> str:
    """Inverse of ``parse``."""
    return f"{name}:{','.join(f'{key}={_spell(value)}' for key, value in options.items())}" if options else name


def build(spec: str, *, channels: int, outputs: int, dim: int, size: int) -> Network:
    """The network of ``spec`` for images of ``channels``, decoders of ``outputs`` channels, latents of ``dim``, trained at ``size``."""
    name, options = parse(spec)
    return NETWORKS[name].build(channels, outputs, dim, size, **options)


def check_quantizer(spec: str, quantizer: Any) -> None:
    """CodewordError where the network of ``spec`` goes with another quantizer, or another number of codebooks."""
    name, options = parse(spec)
    wanted = NETWORKS[name].quantizer
    if wanted and (quantizer.name != wanted or quantizer.num_codebooks != options["num_codebooks"]):
        found = f" with num_codebooks={quantizer.num_codebooks}" if quantizer.name == wanted else ""
        raise CodewordError(f"network {name} has {options['num_codebooks']} adapters for the codebooks of {wanted}; it got "
                            f"{quantizer.name}{found}, so say the same num_codebooks in both")


def _check_option(name: str, key: str, value: Any, default: Any) -> None:
    items = value if isinstance(value, list) else [value]
    most, least = {"width": MAX_WIDTH, "blocks": MAX_BLOCKS}.get(key, MAX_DEPTH), int(key != "adapter_depth")
    if isinstance(default, bool):
        good, allowed = isinstance(value, bool), "true or false"
    elif isinstance(default, str):
        good, allowed = value in CHOICES[key], " or ".join(CHOICES[key])
    elif isinstance(default, float):
        good, allowed = type(value) is float and 0 < value < 1, "above 0, below 1"
    else:
        good = isinstance(value, list) <= isinstance(default, list) and len(items) <= 8 \
            and all(type(item) is int and least <= item <= most for item in items)
        allowed = f"{least}..{most}"
    if not good:
        raise CodewordError(f"network {name} got {key}={value!r}; {allowed} is allowed")


def _spell(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)
