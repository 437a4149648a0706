"""One loop: what it learns, that it stops and goes on without a trace, what it refuses."""

from __future__ import annotations

import dataclasses
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning_fabric")

from codeword.data.images import Images, open_images
from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.io.tensors import read_tensors, write_tensors
from codeword.tokenizers import checkpoint, objective, schedule, starting
from codeword.tokenizers import train as module
from codeword.tokenizers.dynamic import DynamicTokenizer
from codeword.tokenizers.evaluate import evaluate
from codeword.tokenizers.frame import load_tokenizer
from codeword.tokenizers.image import ImageTokenizer
from codeword.tokenizers.recorder import COLUMNS, read_log
from codeword.tokenizers.train import Limits, Progress, Settings, train

TINY = Settings(quantizer="vq:codebook_size=8,iterations=2,learning=ema", network="conv:width=4", size=16, dim=4, batch_size=8, warmup=2)


@pytest.fixture
def images(array_file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Images, Images]:
    monkeypatch.setattr(starting, "FIT_ROWS", 256)
    return open_images(array_file).split(8)


def weights(tokenizer: ImageTokenizer) -> list[torch.Tensor]:
    return [tensor for _, tensor in sorted(tokenizer.state_dict().items())]


def settings(**other: Any) -> Settings:
    return dataclasses.replace(TINY, **other)


@pytest.mark.parametrize("other", [{}, {"quantizer": "simvq:codebook_size=16,steps=3"}, {"quantizer": "fsq:grid=4x4"},
                                   {"gan": 0.1, "gan_start": 0.4, "loss": "l1=2,l2=1"}, {"loss": "l2=1,logit_laplace=0.1", "ema": 0.0}],
                         ids=["vq", "simvq", "fsq", "gan", "laplace"])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_stopped(images: Any, tmp_path: Path, other: dict[str, Any]) -> None:
    whole = train(*images, settings(**other), Limits(steps=6), tmp_path / "whole")

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            signal.raise_signal(signal.SIGINT)

    half = train(*images, settings(**other), Limits(steps=6), tmp_path / "half", watch=stop)
    assert half.interrupted and half.steps == 4 and not (tmp_path / "half" / "tokenizer.cw").exists()
    done = train(*images, settings(**other), Limits(steps=6), tmp_path / "half", resume=True)
    assert done.steps == 6 and not done.interrupted
    assert all(torch.equal(a, b) for a, b in zip(weights(whole.tokenizer), weights(done.tokenizer), strict=True))
    assert (tmp_path / "half" / "tokenizer.cw").stat().st_size == (tmp_path / "whole" / "tokenizer.cw").stat().st_size
    assert whole.tokenizer.fingerprint == done.tokenizer.fingerprint
    steps = [row["step"] for row in read_log(tmp_path / "half" / "log.csv")]
    assert steps == sorted(set(steps)) and steps[-1] == 6


def test_killed_without_a_word_it_goes_on_from_its_checkpoint(images: Any, tmp_path: Path) -> None:
    """An error after step 4 stands for a kill: the checkpoint of step 2 is what is left, and the log is cut back to it."""
    def die(progress: Progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    limits = Limits(steps=6, log_every=1, save_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(*images, TINY, limits._replace(save_seconds=1e9), tmp_path / "none", watch=die)
    assert not (tmp_path / "none" / "checkpoint.cw").exists()
    with pytest.raises(KeyboardInterrupt):
        train(*images, TINY, limits, tmp_path / "job", watch=die)
    done = train(*images, TINY, limits, tmp_path / "job", resume=True)
    whole = train(*images, TINY, limits, tmp_path / "whole")
    assert done.tokenizer.fingerprint == whole.tokenizer.fingerprint
    assert [row["step"] for row in done.rows] == [1, 2, 3, 4, 5, 6]


def test_it_learns(images: Any, tmp_path: Path) -> None:
    done = train(*images, settings(batch_size=16, learning_rate=0.01, ema=0.0), Limits(steps=40), tmp_path / "job")
    assert done.rows[0]["l2"] > 3 * done.rows[-1]["l2"] and done.rows[-1]["valid_psnr"] > 11
    assert set(done.rows[-1]) <= set(COLUMNS)


def test_the_averages_are_those_of_the_formula(images: Any, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Spy(module.Run):
        def train_step(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            if not seen:
                seen.append(self.tokenizer.decoder[-1].bias.detach().clone())  # type: ignore[index, union-attr]
            found = super().train_step(x)
            seen.append(self.tokenizer.decoder[-1].bias.detach().clone())  # type: ignore[index, union-attr]
            return found

    run = Spy(*images, TINY, Limits(steps=5), tmp_path, module.start_fabric(TINY), False, False)
    for t in range(5):
        run.train_step(run.batches.batch(t).float() / 255)
        run.step += 1
    expected = seen[0]
    for t, value in enumerate(seen[1:]):
        decay = min(0.999, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * value
    assert torch.allclose(run.averaged().decoder[-1].bias, expected, atol=1e-7)  # type: ignore[index, union-attr, arg-type]


def test_a_run_of_minutes_plans_its_steps_and_ends_annealed(images: Any, tmp_path: Path) -> None:
    done = train(*images, settings(warmup=0), Limits(minutes=0.03, log_every=1), tmp_path / "job")
    assert done.steps > module.PLAN_AFTER and done.seconds < 10
    rates = [row["rate"] for row in done.rows]
    assert max(rates) == pytest.approx(2e-3) and rates[-1] < 0.3 * max(rates)


def test_plain_vq_starts_as_the_papers_do(images: Any) -> None:
    spec = "vq:codebook_size=32"
    tokenizer = starting.new_tokenizer(settings(quantizer=spec))
    starting.start_quantizer(tokenizer, iter(()), settings(quantizer=spec, start="random"))
    codebook = tokenizer.quantizer.state_dict()["codebook"]
    assert float(codebook.abs().max()) <= 1 / 32 and float(codebook.std()) == pytest.approx(1 / 32 / 3**0.5, rel=0.2)
    assert tokenizer.quantizer.fitted
    with pytest.raises(Unsupported, match="no random start"):
        starting.start_random(starting.new_tokenizer(settings(quantizer="pq:num_codebooks=2,codebook_size=4")).quantizer)
    simvq = starting.new_tokenizer(settings(quantizer="simvq:codebook_size=32")).quantizer
    starting.start_random(simvq)
    assert float(simvq.basis.std()) == pytest.approx(0.5, rel=0.2)  # type: ignore[operator, union-attr]


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = module.Run.train_step

    def broken(self: module.Run, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return step(self, x * torch.nan if self.step == 3 else x)

    monkeypatch.setattr(module.Run, "train_step", broken)
    with pytest.raises(CodewordError, match="no longer finite at step 4"):
        train(*images, settings(quantizer="fsq:grid=4x4"), Limits(steps=6, log_every=10, save_seconds=0.0), tmp_path / "job")
    assert checkpoint.read(tmp_path / "job" / "checkpoint.cw", settings(quantizer="fsq:grid=4x4")).step == 3


def test_a_checkpoint_of_other_settings_or_damaged_is_refused(images: Any, tmp_path: Path) -> None:
    train(*images, TINY, Limits(steps=2), tmp_path / "job")
    path = tmp_path / "job" / "checkpoint.cw"
    with pytest.raises(FormatError, match="fingerprint"):
        checkpoint.read(path, settings(ema=0.5))
    tensors, header = read_tensors(path)
    write_tensors(path, {**tensors, "optimizer.99.exp_avg": torch.zeros(3)}, header)
    with pytest.raises(FormatError, match="no parameter"):
        train(*images, TINY, Limits(steps=4), tmp_path / "job", resume=True)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError):
        train(*images, TINY, Limits(steps=4), tmp_path / "job", resume=True)


def test_a_finished_run_can_be_made_longer(images: Any, tmp_path: Path) -> None:
    train(*images, TINY, Limits(steps=2), tmp_path / "job")
    longer = train(*images, TINY, Limits(steps=4), tmp_path / "job", resume=True)
    assert longer.steps == 4 and ImageTokenizer.load(tmp_path / "job" / "tokenizer.cw").about["steps"] == 4


def test_bfloat16_trains_and_keeps_tables_as_they_are(images: Any, tmp_path: Path) -> None:
    done = train(*images, settings(precision="bf16"), Limits(steps=3), tmp_path / "job")
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights(done.tokenizer)) and np.isfinite(done.rows[-1]["loss"])


@pytest.mark.parametrize("shape", schedule.SHAPES)
def test_rates(shape: str) -> None:
    rates = [schedule.rate(t, 1000, shape=shape, warmup=100) for t in range(1000)]
    assert rates[0] == 0.005 and rates[99] < 1 == rates[100] == rates[369] and all(a <= b for a, b in pairwise(rates[:101]))
    assert schedule.rate(1, 20, shape=shape, warmup=100) == 0.5025 and schedule.rate(2, 20, shape=shape, warmup=100) == 1
    falling = rates[370:]
    assert all(a >= b for a, b in pairwise(falling)) and rates[-1] == pytest.approx(1 if shape == "constant" else 0.01, abs=2e-3)


def test_settings_that_cannot_be() -> None:
    for wrong in ({"batch_size": 0}, {"learning_rate": 0}, {"ema": 1.0}, {"hold": 1.0}, {"loss": "l2=x"}, {"loss": "l9=1"},
                  {"loss": "l2=0"}, {"gan": -1.0}, {"discriminator": "judge"}, {"clip": 0.0}):
        with pytest.raises(CodewordError):
            settings(**wrong).check()
    assert settings(loss="l1,perceptual=0.5").check()


# ---------------------------------------------------------------------- other kinds


DYNAMIC = "dynamic:router={},fraction=0.4,width=4,multipliers=1x1x1"
FACTORIZED = {"network": "factorized:width=4,multipliers=1x1x2", "quantizer": "factorized_vq:codebook_size=8,iterations=2", "dim": 8,
              "representation": 0.5}


@pytest.mark.parametrize("other", [{"network": DYNAMIC.format("entropy")}, {"network": DYNAMIC.format("learned"), "gan": 0.1},
                                   {"network": DYNAMIC.format("random"), "quantizer": "fsq:grid=4x4"}, FACTORIZED],
                         ids=["entropy", "learned", "random", "factorized"])
def test_other_kinds_stop_and_go_on_without_a_trace(images: Any, tmp_path: Path, other: dict[str, Any]) -> None:
    torch.manual_seed(5)  # the caller's random numbers take no part
    whole = train(*images, settings(**other), Limits(steps=5, log_every=1), tmp_path / "whole")

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    train(*images, settings(**other), Limits(steps=5, log_every=1), tmp_path / "half", watch=stop)
    done = train(*images, settings(**other), Limits(steps=5, log_every=1), tmp_path / "half", resume=True)
    assert whole.tokenizer.fingerprint == done.tokenizer.fingerprint
    again = load_tokenizer(tmp_path / "half" / "tokenizer.cw")
    assert again.fingerprint == done.tokenizer.fingerprint and type(again) is type(done.tokenizer)
    assert again.network.startswith(settings(**other).network.partition(":")[0])
    row = whole.rows[-1]
    assert ("fine" in row) == isinstance(again, DynamicTokenizer) and ("representation" in row) == ("representation" in other)
    if "representation" in row:
        assert 0 < row["representation"] < 0.5 * (np.log(8) + 2)
        assert len(again.state_dict()) == len(starting.new_tokenizer(settings(**other)).state_dict())


def test_a_learned_router_learns_within_its_budget(images: Any, tmp_path: Path) -> None:
    other = settings(network=DYNAMIC.format("learned"), batch_size=16, learning_rate=0.01, ema=0.9)
    done = train(*images, other, Limits(steps=60, log_every=15), tmp_path / "job")
    assert np.mean([row["fine"] for row in done.rows[1:]]) == pytest.approx(0.4, abs=0.04)
    assert done.rows[-1]["l2"] < 0.5 * done.rows[0]["l2"]
    router = done.tokenizer.router
    assert float(router.choice[2].weight.detach().abs().max()) > 0 and int(router.updates) == 60  # type: ignore[union-attr, arg-type, operator, index]
    assert evaluate(done.tokenizer, images[1], size=16).numbers["fine"] == pytest.approx(0.4, abs=0.2)


def test_the_representation_loss_reaches_the_encoder_through_one_codebook(images: Any, tmp_path: Path) -> None:
    """Without an image loss: the first adapter and the trunk move, the second adapter has no gradient from it."""
    run = module.Run(*images, settings(**FACTORIZED), Limits(steps=2), tmp_path, module.start_fabric(TINY), False, False)
    x = run.batches.batch(0).float() / 255
    out = run.tokenizer(x)
    _, parts = run.losses(out, x, 0.0)
    targets = run.losses.features.pooled(x)  # type: ignore[union-attr]
    run.losses.head(out.quantized.values, targets).backward()  # type: ignore[misc]
    encoder: Any = run.tokenizer.encoder
    first, second = (sum(float(p.grad.abs().sum()) for p in adapter.parameters() if p.grad is not None) for adapter in encoder.adapters)
    assert first > 0 and second == 0 and float(encoder.trunk.head.weight.grad.abs().sum()) > 0
    assert {"representation", "l2"} <= set(parts)
    assert sum(p.numel() for p in run.learned) > sum(p.numel() for p in run.tokenizer.parameters())


def test_bfloat16_trains_all_of_them(images: Any, tmp_path: Path) -> None:
    for name, other in (("a", {"network": DYNAMIC.format("learned")}), ("b", FACTORIZED)):
        done = train(*images, settings(precision="bf16", **other), Limits(steps=2, log_every=1), tmp_path / name)
        assert np.isfinite(done.rows[-1]["loss"])


def test_frozen_features_are_installed_once_and_are_part_of_the_job(images: Any, tmp_path: Path) -> None:
    other = settings(quantizer="projected_vq:codebook_size=8,steps=2")
    features = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
    done = train(*images, other, Limits(steps=2), tmp_path / "job", features=features)
    held = done.tokenizer.quantizer.state_dict()["features"]
    centred = torch.as_tensor(features - features.mean(0))
    assert torch.allclose(held, centred / centred.square().sum(1).mean().sqrt(), atol=1e-5)
    more = train(*images, other, Limits(steps=3), tmp_path / "job", features=features, resume=True)
    assert more.steps == 3 and torch.equal(more.tokenizer.quantizer.state_dict()["features"], held)
    with pytest.raises(CodewordError, match="input features has changed"):
        train(*images, other, Limits(steps=4), tmp_path / "job", features=features + 1, resume=True)
    with pytest.raises(CodewordError, match="is another job"):
        train(*images, other, Limits(steps=4), tmp_path / "job", resume=True)
    with pytest.raises(CodewordError, match="are for projected_vq"):
        train(*images, TINY, Limits(steps=1), tmp_path / "no", features=features)
    with pytest.raises(CodewordError, match=r"\(8, 1\.\.65536\) is needed"):
        train(*images, other, Limits(steps=1), tmp_path / "no", features=features[:5])


def test_wrong_networks_are_refused() -> None:
    for other, match in (({"network": "dynamic:fraction=1.5"}, "above 0, below 1"), ({"network": "dynamic:router=best"}, "or learned or"),
                         ({"network": "dynamic:multipliers=1x1x1", "loss": "logit_laplace=1"}, "no likelihood"),
                         ({"network": "factorized"}, "codebooks of factorized_vq; it got vq"),
                         ({**FACTORIZED, "network": "factorized:num_codebooks=4"}, "with num_codebooks=2"),
                         ({"network": "dynamic:multipliers=1x1x1x1x1x1"}, "halvings divide")):
        with pytest.raises(CodewordError, match=match):
            starting.new_tokenizer(settings(**other))
    with pytest.raises(CodewordError, match="a DynamicTokenizer is made of it"):
        ImageTokenizer(quantizer="fsq:grid=4x4", network="dynamic")
    for other in (settings(representation=1.0), settings(representation=1.0, network=DYNAMIC.format("entropy"))):
        with pytest.raises(Unsupported, match="teaches the first codebook"):
            objective.Objective(other, starting.new_tokenizer(other))
