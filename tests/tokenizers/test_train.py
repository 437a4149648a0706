"""One loop: what it learns, that it stops and goes on without a trace, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning_fabric")

from codeword.data.images import Images, open_images
from codeword.errors import CodewordError
from codeword.tokenizers import train as module
from codeword.tokenizers.image import ImageTokenizer
from codeword.tokenizers.train import Limits, Settings, train

TINY = Settings(quantizer="vq:codebook_size=8,iterations=2,learning=ema", network="conv:width=4", size=16, dim=4, batch_size=8, warmup=2)


@pytest.fixture
def images(array_file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Images, Images]:
    monkeypatch.setattr(module, "FIT_ROWS", 256)
    return open_images(array_file).split(8)


def weights(tokenizer: ImageTokenizer) -> list[torch.Tensor]:
    return [tensor for _, tensor in sorted(tokenizer.state_dict().items())]


@pytest.mark.parametrize("quantizer", ["vq:codebook_size=8,iterations=2,learning=ema", "simvq:codebook_size=16,steps=3", "fsq:grid=4x4"])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_stopped(images: Any, tmp_path: Path, quantizer: str) -> None:
    settings = Settings(**{**TINY.__dict__, "quantizer": quantizer})
    whole = train(*images, settings, Limits(steps=6), tmp_path / "whole")

    def stop(progress: Any) -> None:
        if progress.step == 3:
            import signal
            signal.raise_signal(signal.SIGINT)

    half = train(*images, settings, Limits(steps=6), tmp_path / "half", watch=stop)
    assert half.interrupted and half.steps in (3, 4) and not (tmp_path / "half" / "tokenizer.cw").exists()
    done = train(*images, settings, Limits(steps=6), tmp_path / "half", resume=True)
    assert done.steps == 6 and not done.interrupted
    assert all(torch.equal(a, b) for a, b in zip(weights(whole.tokenizer), weights(done.tokenizer), strict=True))
    assert whole.tokenizer.fingerprint == done.tokenizer.fingerprint
