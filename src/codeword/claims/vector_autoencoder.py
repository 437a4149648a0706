"""A small autoencoder of vectors with a quantizer in the middle: for relations that need an encoder that learns along, but no images.

    z = encoder(x),   z^ = quantizer(z),   x^ = decoder(z^)         two layers each, ReLU, hidden width 128
    loss = mean |x - x^|^2 + the quantizer's own loss               Adam on minibatches of 256, constant rate

Vectors are centred and scaled to a mean square of 1 an entry, so an error of 1 is that of the mean. Usage is counted over all training
vectors, the error over held-out ones. Everything is drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from codeword.claims.record import Setting
from codeword.parts import random
from codeword.parts.training import minibatches
from codeword.quantizer import Quantized, Quantizer

SIZE = {"smoke": 64, "small": 512, "paper": 4096}
"""Codewords."""
STEPS = {"smoke": 30, "small": 500, "paper": 5000}
HIDDEN, BATCH, RATE = 128, 256, 1e-3

Start = Callable[[Any, Tensor], None]
"""Gives a quantizer its first codebook, knowing what the untrained encoder makes of the training vectors."""


class Outcome(NamedTuple):
    """``usage``: least share of a codebook that the training vectors use; ``error`` of held-out vectors; ``last``: forward of all
    training vectors; the quantizer."""

    usage: float
    error: float
    last: Quantized
    quantizer: Quantizer


def scaled(setting: Setting) -> tuple[Tensor, Tensor]:
    """Training and held-out vectors, centred and scaled by the training vectors' own."""
    mean = setting.train.mean(0)
    size = (setting.train - mean).square().mean().sqrt()
    return (setting.train - mean) / size, (setting.test - mean) / size


def trained(quantizer: Quantizer, setting: Setting, start: Start) -> Outcome:
    """Train an autoencoder of latent width ``quantizer.dim`` around the quantizer."""
    train, test = scaled(setting)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        encoder, decoder = _two_layers(train.shape[1], quantizer.dim), _two_layers(quantizer.dim, train.shape[1])
    with torch.no_grad():
        start(quantizer, encoder(train))
    optimizer = torch.optim.Adam([*quantizer.parameters(), *encoder.parameters(), *decoder.parameters()], lr=RATE)
    quantizer.train()
    for batch in minibatches(len(train), BATCH, STEPS[setting.budget], setting.seed):
        out = quantizer(encoder(train[batch]))
        optimizer.zero_grad()
        ((decoder(out.values) - train[batch]).square().mean() + out.loss).backward()
        optimizer.step()
        quantizer.update(out)
    quantizer.eval()
    with torch.no_grad():
        last = quantizer(encoder(train))
        error = float((decoder(quantizer(encoder(test)).values) - test).square().mean())
    indices = torch.as_tensor(last.codes.indices).to(torch.int64)
    usage = min(len(column.unique()) / level for column, level in zip(indices.mT, quantizer.levels, strict=True))
    return Outcome(usage, error, last, quantizer)


def fitted(quantizer: Any, latents: Tensor) -> None:
    """Start: ``fit``."""
    quantizer.fit(latents)


def uniform(quantizer: Any, latents: Tensor) -> None:
    """Start: a plain codebook U(+-1/K), as in the first VQGANs."""
    _overwrite(quantizer, latents, lambda n, seed: (random.uniform(seed, n, stream="uniform start") * 2 - 1) / quantizer.codebook_size)


def normal(quantizer: Any, latents: Tensor) -> None:
    """Start: a plain codebook N(0, 1)."""
    _overwrite(quantizer, latents, lambda n, seed: random.normal(seed, n, stream="normal start"))


def _overwrite(quantizer: Any, latents: Tensor, draw: Callable[[int, int], np.ndarray]) -> None:
    quantizer.fit(latents[:quantizer.codebook_size])
    drawn = torch.from_numpy(draw(quantizer.codebook.numel(), quantizer.seed)).float()
    quantizer.codebook.copy_(drawn.reshape(quantizer.codebook.shape))


def _two_layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))
