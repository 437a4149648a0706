"""Measures of images against their definitions, identities and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from codeword import Codes, CodewordError, ShapeError
from codeword.report.images import (
    WEIGHTS,
    Moments,
    frechet_distance,
    linear_probe,
    most_scales,
    ms_ssim,
    mse,
    psnr,
    ssim,
)
from codeword.report.usage import UsageMeter


@pytest.fixture
def g() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def ssim_by_definition(x: np.ndarray, y: np.ndarray, peak: float = 1.0) -> tuple[float, float]:
    """One channel, one place after another; the mean of the whole and of its second fraction."""
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / (2 * 1.5 ** 2))
    window /= window.sum()
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    whole, second = [], []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i:i + 11, j:j + 11], y[i:i + 11, j:j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            second.append((2 * cov + c2) / (va + vb + c2))
            whole.append((2 * ma * mb + c1) / (ma ** 2 + mb ** 2 + c1) * second[-1])
    return float(np.mean(whole)), float(np.mean(second))


def halved(x: np.ndarray) -> np.ndarray:
    h, w = x.shape[0] // 2, x.shape[1] // 2
    return x[:2 * h, :2 * w].reshape(h, 2, w, 2).mean((1, 3))


def noisy(g: torch.Generator, b: int, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Smooth images and the same with noise."""
    x = torch.nn.functional.interpolate(torch.rand(b, channels, 5, 5, generator=g), (height, width), mode="bilinear")
    return x, (x + 0.1 * torch.randn(x.shape, generator=g)).clamp(0, 1)


def test_ssim_is_its_definition(g: torch.Generator):
    x, y = noisy(g, 2, 3, 15, 13)
    expected = [np.mean([ssim_by_definition(a.double().numpy(), b.double().numpy())[0] for a, b in zip(*pair)]) for pair in zip(x, y)]
    assert np.allclose(ssim(x, y).numpy(), expected, rtol=1e-10)
    assert torch.allclose(ssim(255 * x, 255 * y, peak=255), ssim(x, y), rtol=1e-5)


def test_ms_ssim_is_its_definition(g: torch.Generator):
    x, y = noisy(g, 1, 2, 45, 47)
    channels = []
    for a, b in zip(x[0].double().numpy(), y[0].double().numpy()):
        value = 1.0
        for at, weight in enumerate(WEIGHTS[:3]):
            whole, second = ssim_by_definition(a, b)
            value *= max(0.0, whole if at == 2 else second) ** (weight / sum(WEIGHTS[:3]))
            a, b = halved(a), halved(b)
        channels.append(value)
    assert np.allclose(ms_ssim(x, y, scales=3).numpy(), np.mean(channels), rtol=1e-10)


def test_identities(g: torch.Generator):
    x, y = noisy(g, 2, 1, 176, 180)
    for measure in (ssim, ms_ssim):
        assert torch.allclose(measure(x, x), torch.ones(2, dtype=torch.float64), atol=1e-12)
        assert torch.equal(measure(x, y), measure(y, x)) and bool((measure(x, y) < 0.99).all())
    assert torch.allclose(ms_ssim(x, y, scales=1), ssim(x, y))
    assert bool(torch.isinf(psnr(x, x)).all())
    assert torch.allclose(ms_ssim(1 - x, x), torch.zeros(2, dtype=torch.float64))       # negatives are anticorrelated


def test_known_values():
    zero, half = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 0.5)
    assert float(mse(zero, half)) == 0.25 and float(psnr(zero, half)) == pytest.approx(10 * math.log10(4))
    assert float(psnr(zero, 255 * half, peak=255)) == pytest.approx(10 * math.log10(4))
    assert float(ssim(zero, half)) == pytest.approx(1e-4 / (0.25 + 1e-4), rel=1e-6)     # two constants: only C1 is left
    assert [most_scales(side, 500) for side in (10, 11, 22, 43, 44, 175, 176, 999)] == [0, 1, 2, 2, 3, 4, 5, 5]


def test_refusals(g: torch.Generator):
    with pytest.raises(ShapeError, match="at least 176"):
        ms_ssim(torch.rand(1, 1, 100, 200), torch.rand(1, 1, 100, 200))
    with pytest.raises(ShapeError, match="equal shapes"):
        psnr(torch.rand(1, 1, 4, 4), torch.rand(1, 3, 4, 4))
    with pytest.raises(CodewordError, match="scales=0"):
        ms_ssim(torch.rand(1, 1, 20, 20), torch.rand(1, 1, 20, 20), scales=0)
    with pytest.raises(ShapeError, match="two rows"):
        frechet_distance(Moments(2), Moments(2).add(torch.rand(3, 2)))
    with pytest.raises(ShapeError, match="equal widths"):
        frechet_distance(Moments(3).add(torch.rand(3, 3)), Moments(2).add(torch.rand(3, 2)))


# ---------------------------------------------------------------------- sets


def gaussian(mean: Tensor, covariance: Tensor) -> Moments:
    moments = Moments(len(mean))
    moments.count, moments.mean, moments.scatter = 11, mean.double(), covariance.double() * 10
    return moments


def test_frechet_of_known_gaussians(g: torch.Generator):
    """Commuting covariances: |m - m'|^2 + sum (s - s')^2. In general: against the eigenvalues of S S' themselves."""
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64))
    a, b = torch.tensor([1.0, 2.0, 0.0, 0.5]).double(), torch.tensor([3.0, 0.0, 1.0, 0.5]).double()
    shift = torch.tensor([1.0, 0.0, 2.0, 0.0])
    first = gaussian(torch.zeros(4), (rotation * a.square()) @ rotation.mT)
    second = gaussian(shift, (rotation * b.square()) @ rotation.mT)
    assert frechet_distance(first, second) == pytest.approx(5 + float((a - b).square().sum()), abs=1e-6)
    x, y = (torch.randn(20, 4, generator=g).double() for _ in range(2))
    s, t = x.mT @ x, y.mT @ y
    shared = torch.linalg.eigvals(s @ t).real.clamp(min=0).sqrt().sum()
    expected = float(s.trace() + t.trace() - 2 * shared)
    assert frechet_distance(gaussian(torch.zeros(4), s), gaussian(torch.zeros(4), t)) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(gaussian(shift, s), gaussian(shift, s)) == pytest.approx(0, abs=1e-9)


def test_moments_stream(g: torch.Generator):
    """In batches of any size, merged in any grouping, far from the origin: the moments of all rows at once."""
    rows = torch.randn(101, 5, generator=g, dtype=torch.float64) @ torch.randn(5, 5, generator=g, dtype=torch.float64) + 1e6
    streamed, other = Moments(5), Moments(5)
    for batch in rows[:60].split(7):
        streamed.add(batch)
    streamed.add(rows[:0])
    for batch in rows[60:].split(20):
        other.add(batch)
    streamed.merge(other).merge(Moments(5))
    assert streamed.count == 101 and torch.allclose(streamed.mean, rows.mean(0), rtol=1e-14)
    assert torch.allclose(streamed.covariance, torch.cov(rows.mT), rtol=1e-8, atol=1e-8)
    same = Moments(5).add(rows[torch.randperm(101, generator=g)])
    assert abs(frechet_distance(streamed, same)) < 1e-6
    assert frechet_distance(streamed, Moments(5).add(rows + 0.5)) == pytest.approx(5 * 0.25, rel=1e-5)


def test_linear_probe(g: torch.Generator):
    """Perfect where classes are linear in the features, chance where there is nothing to see."""
    y = torch.randint(3, (300,), generator=g)
    x = torch.nn.functional.one_hot(y, 3).float() @ torch.randn(3, 6, generator=g) * 1e3 + 7 + torch.randn(300, 6, generator=g)
    assert linear_probe(x[:200], y[:200], x[200:], y[200:]) == 1.0
    blind = torch.randn(300, 6, generator=g)
    assert linear_probe(blind[:200], y[:200], blind[200:], y[200:]) < 0.5


# ---------------------------------------------------------------------- usage


def test_usage_known_values():
    meter = UsageMeter([4, 3]).add(torch.tensor([[[0, 1], [0, 1]], [[1, 1], [1, 1]]], dtype=torch.uint8))
    assert meter.usage == [0.5, 1 / 3] and meter.entropy == [1.0, 0.0] and meter.perplexity == [2.0, 1.0] and meter.tokens == [4, 4]
    assert meter.histogram(0).tolist() == [2, 2, 0, 0]
    assert meter.summary() == {"usage": pytest.approx(5 / 12), "perplexity": 1.5, "entropy": 0.5, "tokens": 8}
    empty = UsageMeter([7])
    assert (empty.usage, empty.entropy, empty.tokens) == ([0.0], [0.0], [0])


def test_usage_merges(g: torch.Generator):
    """Parts in any order equal the whole; masks and lengths leave out what is no code; huge alphabets cost nothing."""
    indices = torch.randint(1 << 40, (50, 2), generator=g) % torch.tensor([9, 1 << 40])
    whole = UsageMeter([9, 1 << 40]).add(indices)
    parts = UsageMeter(whole.levels).add(indices[:20])
    parts.merge(UsageMeter(whole.levels).add(indices[20:].numpy()))
    assert parts.usage == whole.usage and parts.entropy == whole.entropy and (parts.histogram() == whole.histogram()).all()
    mask = torch.rand(50, generator=g) < 0.5
    masked = UsageMeter(whole.levels).add(indices, mask=mask)
    codes = UsageMeter(whole.levels).add_codes(Codes(indices, lengths=mask.int() * 2))
    kept = UsageMeter(whole.levels).add(indices[mask])
    assert masked.entropy == codes.entropy == kept.entropy and masked.tokens == codes.tokens == kept.tokens == [int(mask.sum())] * 2
    assert UsageMeter(whole.levels).add_codes(Codes(indices, lengths=mask.int())).tokens == [int(mask.sum()), 0]


def test_usage_refusals():
    meter = UsageMeter([4])
    for wrong in (torch.tensor([[4]]), torch.tensor([[-1]])):
        with pytest.raises(ShapeError, match=r"0\.\.3"):
            meter.add(wrong)
    with pytest.raises(ShapeError, match="integers"):
        meter.add(torch.rand(3, 1))
    with pytest.raises(ShapeError, match="mask"):
        meter.add(torch.zeros(3, 1, dtype=torch.int64), mask=torch.ones(2))
    with pytest.raises(ShapeError, match="merged"):
        meter.merge(UsageMeter([5]))
    with pytest.raises(ShapeError, match="positive"):
        UsageMeter([])
