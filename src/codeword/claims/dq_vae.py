"""DQ-VAE: fine codes where an image needs them, coarse ones elsewhere, under a budget (Huang et al., CVPR 2023); stage 1."""

from __future__ import annotations

import tempfile
from typing import NamedTuple

import torch
from torch import Tensor, nn

from codeword.claims.autoencoder import images_of
from codeword.claims.record import Check, Claim, Pictures, Rule, Setting
from codeword.parts import random
from codeword.tokenizers import evaluate
from codeword.tokenizers.dynamic import DynamicTokenizer
from codeword.tokenizers.dynamic_codes import pack, taken, unpack
from codeword.tokenizers.starting import new_tokenizer
from codeword.tokenizers.train import Limits, Settings, train

FRACTION = 0.4
"""Share of fine cells: 35.2 tokens for an image of 4 x 4 cells."""
STEPS = {"smoke": 8, "small": 500, "paper": 20_000}
BATCH, DIM = 32, 16
SIZE = {"smoke": 16, "small": 256, "paper": 1024}
"""Codewords."""


def packed(setting: Setting) -> float:
    """Share of gates and indices that are others after ``unpack(pack(...))``, over random gates."""
    gates = torch.from_numpy(random.uniform(setting.seed, 50 * 25, stream="gates")).reshape(50, 5, 5) < FRACTION
    drawn = torch.from_numpy(random.bits(setting.seed, 50 * 125, stream="indices") % 1000).long().reshape(50, 125, 1)
    indices = drawn * taken(gates).unsqueeze(2)
    again, dense = unpack(*pack(gates, indices), cells=5)
    return float(again.ne(gates).float().mean() + dense.ne(indices).float().mean())


def counted_once(setting: Setting) -> float:
    """Relative difference of the quantizer's loss and of its averages' counts from those of exactly the tokens that are sent."""
    model, x = _started(setting)
    with torch.no_grad():
        out = model(x)
        rows, routed, _ = model._latents(x)
        sent = model.quantizer(rows[taken(routed.gates)])
    counts = (out.stats["counts"] - sent.stats["counts"]).abs().sum() / sent.stats["counts"].sum()
    return float(counts + (out.quantized.loss - sent.loss).abs() / sent.loss)


def decoded(setting: Setting) -> float:
    """Largest difference of a decoded pixel from forward's, in inference."""
    model, x = _started(setting)
    model.eval()
    with torch.no_grad():
        return float((model.decode(model.encode(x)) - model(x).values.clamp(0, 1)).abs().max())


def budget_kept(setting: Setting) -> float:
    """|share of fine cells - its target| over the last fifth of the training steps."""
    return abs(_trained("learned", setting).late_share - FRACTION)


def learned_over_random(setting: Setting) -> float:
    return _over_random("learned", setting)


def entropy_over_random(setting: Setting) -> float:
    return _over_random("entropy", setting)


def _over_random(router: str, setting: Setting) -> float:
    """Error of a router over that of dice which spend the same mean number of tokens on the held-out images."""
    found = _trained(router, setting)
    return found.error / _trained("random", setting, round(min(max(found.share, 0.02), 0.98), 3)).error


def _started(setting: Setting) -> tuple[DynamicTokenizer, Tensor]:
    """An untrained tokenizer that was started on noise, and that noise."""
    model = new_tokenizer(_settings("random", setting, FRACTION, channels=1, side=32))
    assert isinstance(model, DynamicTokenizer)
    x = torch.from_numpy(random.uniform(setting.seed, 16 * 1024, stream="images")).float().reshape(16, 1, 32, 32)
    with torch.no_grad():
        model.quantizer.fit(model.rows(x))
    return model, x


# ---------------------------------------------------------------------- the experiment


class Arm(NamedTuple):
    """Of one router, on held-out images in inference: squared error of pixels in [0, 1], share of fine cells. ``late_share``: of fine cells
    over the last fifth of the training steps."""

    error: float
    share: float
    late_share: float


def _trained(router: str, setting: Setting, fraction: float = FRACTION) -> Arm:
    """One run of the loop behind ``codeword tokenizer train``; the same seed gives every arm the same first weights and images."""
    key = router, fraction, setting.budget, setting.seed, id(setting.pictures)
    if key not in _ARMS:
        pictures, few = _pictures(setting), setting.budget == "smoke"
        learn, held = _square(pictures.train[:64] if few else pictures.train), _square(pictures.test[:32 if few else 1000])
        settings, steps = _settings(router, setting, fraction, channels=learn.shape[1], side=learn.shape[2]), STEPS[setting.budget]
        images, unseen = images_of(learn, "training image"), images_of(held, "held-out image")
        with tempfile.TemporaryDirectory() as folder:
            limits = Limits(steps=steps, log_every=max(1, steps // 5), eval_every=1 << 30, save_seconds=1e9)
            done = train(images, unseen, settings, limits, folder)
        found = evaluate.evaluate(done.tokenizer, unseen, size=settings.size, thorough=False).numbers
        _ARMS[key] = setting.pictures, Arm(found["error"], found["fine"], done.rows[-1]["fine"])
    return _ARMS[key][1]


def _settings(router: str, setting: Setting, fraction: float, *, channels: int, side: int) -> Settings:
    return Settings(quantizer=f"vq:codebook_size={SIZE[setting.budget]},learning=ema,iterations=5,seed={setting.seed}", dim=DIM,
                    network=f"dynamic:router={router},fraction={fraction},width=16,multipliers=1x1x2x2", size=side, channels=channels,
                    batch_size=BATCH, flip=False, seed=setting.seed)


def _pictures(setting: Setting) -> Pictures:
    assert setting.pictures is not None, "a check that trains on images is declared with on='images'"
    return setting.pictures


def _square(pixels: Tensor) -> Tensor:
    """uint8 (n, channels, height, width), black around, sides a multiple of 8."""
    height, width = pixels.shape[2:]
    side = -(-max(height, width) // 8) * 8
    down, right = side - height, side - width
    return nn.functional.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))


_ARMS: dict[tuple[object, ...], tuple[Pictures | None, Arm]] = {}
"""An arm serves several checks. The pictures are kept beside it, so that their id stays theirs."""

CLAIM = Claim(
    name="dq_vae",
    sentence="Giving regions coarse or fine codes by a learned router under a budget reconstructs better than a fixed grid and far better "
             "than random granularity at equal tokens (ImageNet 256 x 256, 640 tokens: rFID 4.08 against 7.32 at random and 4.82 fixed).",
    checks=(
        Check("packing", "identity", "share of gates and indices changed by packing into sequences and unpacking", Rule(0.0, 0.0), packed,
              needs_data=False),
        Check("coarse_counted_once", "identity", "relative difference of the quantizer's loss and counts from those of the tokens sent",
              Rule(high=1e-5), counted_once, needs_data=False),
        Check("decoded", "identity", "largest difference between decode(encode(x)) and forward(x)", Rule(high=1e-5), decoded,
              needs_data=False),
        Check("budget", "relation", "distance of the share of fine cells from its target 0.4 over the last fifth of training",
              Rule(high=0.05), budget_kept, on="images"),
        Check("learned_over_random", "relation", "held-out error with the learned router over that with dice at equal mean tokens",
              Rule(high=0.9), learned_over_random, on="images"),
        Check("entropy_over_random", "relation", "held-out error with the entropy router over that with dice at equal mean tokens",
              Rule(high=0.9), entropy_over_random, on="images"),
    ),
    notes="Stage 1 only, on 32 x 32 images with 4 x 4 cells, squared error, no adversary. The fixed grid of equal tokens (6 x 6) is not "
          "among the arms: no encoder of powers of two has it. The learned router keeps its budget by an offset of each batch's "
          "scores, not by the published loss, with which it learned to choose nothing in 500 steps.",
)
