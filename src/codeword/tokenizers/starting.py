"""What a training run begins with: an untrained tokenizer of the kind its settings name, its router and its first codebook."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from codeword.errors import CodewordError, Unsupported
from codeword.io import jobs
from codeword.quantizer import Array, Quantizer
from codeword.tokenizers import networks, objective
from codeword.tokenizers.dynamic import DynamicTokenizer
from codeword.tokenizers.frame import TrainedTokenizer, from_bytes, token_quantizer
from codeword.tokenizers.image import ImageTokenizer

if TYPE_CHECKING:
    from codeword.tokenizers.train import Settings

FIT_ROWS = 1 << 16
"""Latents that the quantizer is fitted on before the first step, at least; and at least four a codeword, up to four times this."""
PREPARE_IMAGES = 512
"""Images that a router is fitted on, at least, where images alone teach it."""


def new_tokenizer(settings: Settings) -> TrainedTokenizer:
    """The untrained tokenizer of a run: the same weights for the same seed."""
    name, options = networks.parse(settings.network)
    likelihood = objective.weights(settings.loss).get("logit_laplace", 0) > 0
    if name == "dynamic" and likelihood:
        raise Unsupported("the decoder of network 'dynamic' says pixels, no likelihood; take logit_laplace out of the loss")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(jobs.unit_seed(settings.seed, "weights") & 0xFFFFFFFF)
        made = token_quantizer(settings.quantizer, settings.dim)
        common: dict[str, Any] = {"quantizer": made, "channels": settings.channels, "size": settings.size}
        if name == "dynamic":
            return DynamicTokenizer(**common, **options, seed=settings.seed)
        return ImageTokenizer(**common, network=settings.network, likelihood=likelihood)


def install(quantizer: Quantizer, features: Array | None) -> None:
    """Give a projected_vq its frozen features; CodewordError where there are some for another quantizer."""
    if features is None:
        return
    if quantizer.name != "projected_vq":
        raise CodewordError(f"frozen features are for projected_vq; the quantizer is {quantizer.name}")
    quantizer.use_features(features)  # type: ignore[operator]


@torch.no_grad()
def start_quantizer(tokenizer: TrainedTokenizer, batches: Iterator[Tensor], settings: Settings) -> None:
    """Fit a router that learns from images alone, and give an untrained quantizer its first codebook: fitted on latents, or random.
    A lattice has nothing to learn."""
    quantizer = tokenizer.quantizer
    fitting = quantizer.learns and settings.start == "data"
    need = min(4 * FIT_ROWS, max(FIT_ROWS, 4 * max(quantizer.levels, default=1))) if fitting else 0
    routed = isinstance(tokenizer, DynamicTokenizer)
    pictures = _first(batches, max(PREPARE_IMAGES if routed else 0, math.ceil(need / tokenizer.tokens_per_image)))
    if routed:
        tokenizer.prepare(from_bytes(torch.cat(pictures)[:PREPARE_IMAGES].to(quantizer.device)))
    if quantizer.learns and not fitting:
        start_random(quantizer)
    elif fitting:
        with torch.random.fork_rng(devices=[]):  # a learned router throws dice
            torch.manual_seed(jobs.unit_seed(settings.seed, "start") & 0xFFFFFFFF)
            rows = torch.cat([tokenizer.rows(from_bytes(batch.to(quantizer.device))) for batch in pictures])
        quantizer.fit(rows[:need].float())


def _first(batches: Iterator[Tensor], count: int) -> list[Tensor]:
    """Batches of at least ``count`` images together, none of them empty."""
    found: list[Tensor] = []
    while sum(map(len, found)) < count:
        batch = next(batches)
        found += [batch] if len(batch) else []
    return found


def start_random(quantizer: Quantizer) -> None:
    """The start of the plain-VQ baselines, c ~ U(+-1/K), or the quantizer's own random one. Raises Unsupported where there is none."""
    own = getattr(quantizer, "_start", None)
    if quantizer.name == "vq":
        codebook: nn.Parameter = quantizer.codebook  # type: ignore[assignment]
        from codeword.parts import random
        draws = torch.from_numpy(random.uniform(getattr(quantizer, "seed", 0), codebook.numel(), stream="random start"))
        with torch.no_grad():
            codebook.copy_(((2 * draws - 1) / len(codebook)).reshape(codebook.shape))
        quantizer.upkeep.start(codebook)  # type: ignore[operator, union-attr]
    elif own is not None and quantizer.name in ("simvq", "bridge_vq"):
        own()
    else:
        raise Unsupported(f"{quantizer.name} has no random start; train it with --start data")
    quantizer.fitted = True
