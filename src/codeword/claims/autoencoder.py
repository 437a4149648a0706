"""The one experiment of the claims about image tokenizers: train an autoencoder around a quantizer on small images, measure it on others.

The training loop is the one that ``codeword tokenizer train`` runs. Arms of a comparison share seed, first weights, order of images,
steps and schedule, and differ in the quantizer (and in what else the claim is about). An arm is trained once for all its checks.
"""

from __future__ import annotations

import tempfile
from typing import Any, NamedTuple

from torch import Tensor

from codeword.claims.record import Pictures, Setting
from codeword.data.images import Images
from codeword.tokenizers import evaluate
from codeword.tokenizers.frame import TrainedTokenizer
from codeword.tokenizers.train import Limits, Settings, train

STEPS = {"smoke": 6, "small": 1000, "paper": 20_000}
"""Training steps of an arm."""
IMAGES = {"smoke": 128, "small": 1 << 30, "paper": 1 << 30}
"""Images of each kind that are used."""


class Arm(NamedTuple):
    """What became of one quantizer on unseen images: ``error``, mean squared error of pixels in [0, 1]; ``usage``, share of codewords
    chosen at least once; ``perplexity`` of the choices; ``seconds`` a training step; and the tokenizer."""

    error: float
    usage: float
    perplexity: float
    seconds: float
    tokenizer: TrainedTokenizer


def arm(setting: Setting, quantizer: str, **options: Any) -> Arm:
    """``quantizer`` (a spec string) trained on the setting's images under its seed and budget. ``options``: fields of
    ``tokenizers.train.Settings``."""
    assert setting.pictures is not None, "a check that trains on images is declared with on='images'"
    key = (id(setting.pictures), setting.budget, setting.seed, quantizer, tuple(sorted(options.items())))
    if key not in _TRAINED:
        if len(_TRAINED) >= _KEPT:
            _TRAINED.pop(next(iter(_TRAINED)))
        _TRAINED[key] = (setting.pictures, _train(setting, setting.pictures, quantizer, options))
    return _TRAINED[key][1]


def images_of(pixels: Tensor, name: str) -> Images:
    """uint8 (n, channels, height, width) as a sequence of images."""
    rows = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return Images(lambda i: rows[i], [f"{name} {i}" for i in range(len(rows))], source=name, channels=rows.shape[3])


def _train(setting: Setting, pictures: Pictures, quantizer: str, options: dict[str, Any]) -> Arm:
    few = IMAGES[setting.budget]
    learn, held = images_of(pictures.train[:few], "training image"), images_of(pictures.test[:few], "held-out image")
    side, channels = pictures.train.shape[2], pictures.train.shape[1]
    options = {"network": "conv:width=32", "dim": 64, **options}
    settings = Settings(quantizer=quantizer, size=side, channels=channels, seed=setting.seed, **options)
    with tempfile.TemporaryDirectory() as folder:
        steps = STEPS[setting.budget]
        done = train(learn, held, settings, Limits(steps=steps, log_every=1 << 30, eval_every=1 << 30, save_seconds=1e9), folder)
    found = evaluate.evaluate(done.tokenizer, held, size=side, thorough=False).numbers
    return Arm(found["error"], found["usage"], found["perplexity"], done.seconds / max(1, done.steps), done.tokenizer)


_KEPT = 16
_TRAINED: dict[tuple[Any, ...], tuple[Pictures, Arm]] = {}
"""The pictures are kept beside their arm, so that their id stays theirs."""
