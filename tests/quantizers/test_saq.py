"""CAQ and SAQ: unbiased estimates, nearly the exact search's error, less error than one grid for all where variances differ."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from codeword import CAQ, SAQ, RaBitQ
from codeword.data.bundle import bundled
from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.quantizer import Codes


def skewed(n: int, dim: int, seed: int = 0) -> Tensor:
    """Rows whose variance falls a thousandfold along hidden axes, with a mean."""
    g = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)))[0]
    return (torch.randn(n, dim, generator=g) * torch.logspace(0, -1.5, dim)) @ turn + 0.3


def distances(quantizer: SAQ, codes: Codes, queries: Tensor) -> Tensor:
    """Estimated squared distances (queries, rows), float64."""
    found = quantizer.scan(quantizer.pack(codes), quantizer.prepare(queries, "l2"), 0, len(codes.indices))[0]
    return found.double() + queries.double().square().sum(1, keepdim=True)


def relative(estimate: Tensor, truth: Tensor) -> float:
    return float(((estimate - truth).abs() / truth).mean())


def slope(estimate: Tensor, truth: Tensor) -> float:
    x, y = (truth - truth.mean()).flatten(), (estimate - estimate.mean()).flatten()
    return float((x * y).sum() / x.square().sum())


@pytest.mark.parametrize("bits", [1.5, 3, 6.25, 10])
def test_saq_is_right_on_average_and_better_than_one_grid(bits: float) -> None:
    train, rows, queries = skewed(2000, 128), skewed(500, 128, 1), skewed(60, 128, 2)
    truth = torch.cdist(queries.double(), rows.double()).square()
    saq = SAQ(dim=128, rate=bits).fit(train)
    codes = saq.encode(rows)
    assert saq.bits(codes) <= bits and saq.nominal_bits > bits - 0.3
    estimate = distances(saq, codes, queries)
    assert slope(estimate, truth) == pytest.approx(1, abs=0.03)
    assert all(a[1] >= b[1] for a, b in pairwise(saq.plan))
    if bits < 9.5:
        rabitq = RaBitQ(dim=128, code_bits=max(1, math.floor(bits - 0.5))).fit(train)
        flat = rabitq.scan(rabitq.pack(rabitq.encode(rows)), rabitq.prepare(queries, "l2"), 0, len(rows))[0]
        assert relative(estimate, truth) < 0.6 * relative(flat.double() + queries.double().square().sum(1, keepdim=True), truth)


def test_saq_norms_and_scales_are_those_of_the_rows() -> None:
    rows = skewed(800, 96)
    for bits in (1.2, 4, 9):
        saq = SAQ(dim=96, rate=bits).fit(rows)
        codes = saq.encode(rows)
        norms = (rows - saq.mean).double().square().sum(1)
        assert torch.allclose(saq.square_norms(codes), norms, rtol=2e-3 if bits < 2 else 1e-4)
        y = (rows - saq.mean).double() @ saq.axes.double().T
        for s in saq.segments(codes):
            part = y[:, s.start:s.stop]
            assert float((s.norm / part.norm(dim=1)).log().abs().mean()) < 0.1
            points = (s.indices - (2**s.bits - 1) / 2) * s.scale.unsqueeze(1)
            usual = (0.37, 0.12)[s.bits - 1] if s.bits < 3 else 3.0 * 0.25**s.bits
            assert float((points - part).square().sum() / part.square().sum()) < 1.3 * usual


def test_saq_error_falls_with_bits_and_fractions_count() -> None:
    train, queries = skewed(1500, 64), skewed(50, 64, 2)
    truth = torch.cdist(queries.double(), train[:300].double()).square()
    errors = []
    for bits in (1.5, 2, 2.5, 3, 4, 5, 7, 9):
        saq = SAQ(dim=64, rate=bits, granularity=16).fit(train)
        errors.append(relative(distances(saq, saq.encode(train[:300]), queries), truth))
    assert all(after < before for before, after in pairwise(errors)), errors


def test_saq_rows_far_from_the_fitted_ones() -> None:
    train = skewed(600, 32)
    saq = SAQ(dim=32, rate=6, granularity=8).fit(train)
    for factor in (1e-30, 1e-3, 30.0, 1e4, 1e37):
        rows = (train[:50] - saq.mean) * factor + saq.mean
        values = torch.as_tensor(saq.decode(saq.encode(rows)))
        assert bool(torch.isfinite(values).all())
        if factor in (30.0, 1e4):
            assert float((values - rows).norm() / (rows - saq.mean).norm()) < 0.1


def test_saq_constant_columns_and_few_rows() -> None:
    rows = torch.zeros(40, 48)
    rows[:, :3] = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    saq = SAQ(dim=48, rate=4).fit(rows)
    error = torch.as_tensor(saq.decode(saq.encode(rows))) - rows
    assert float(error.square().sum() / rows.square().sum()) < 0.01
    one = SAQ(dim=48, rate=2).fit(rows[:1])
    assert torch.allclose(torch.as_tensor(one.decode(one.encode(rows[:1]))), rows[:1])


def test_saq_weights_and_repetition_agree() -> None:
    rows = skewed(200, 32)
    weights = (torch.arange(200) % 3).float()
    a = SAQ(dim=32, rate=5, granularity=8).fit(rows, weights=weights)
    b = SAQ(dim=32, rate=5, granularity=8).fit(rows.repeat_interleave(weights.long(), 0))
    assert a.plan == b.plan and torch.allclose(a.variances, b.variances, rtol=1e-4) and torch.allclose(a.gains, b.gains, rtol=1e-3)


def test_saq_dial() -> None:
    assert SAQ.for_bits(384, 2).granularity == 32 and SAQ.for_bits(64, 0.8).granularity == 8
    assert SAQ.for_bits(384, 0.5).rate == 0.5
    with pytest.raises(Unsupported, match="33 bits"):
        SAQ.for_bits(8, 4)
    for wrong in ({"rate": 0.1}, {"rate": 40.0}, {"granularity": 0}, {"rounds": -1}):
        with pytest.raises(CodewordError, match="saq got"):
            SAQ(**{"dim": 64, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", [None, [], [[64, 3]], [[32, 2], [32, 3]], [[64, 0]], [[32, 14], [32, 0]], [[64, True]], [[-1, 2], [65, 1]],
                                  [[64, 13]], [[32, 1], [16, 0], [16, 0]], [[64.0, 1]]])
def test_saq_refuses_a_strangers_plan(plan: object) -> None:
    with pytest.raises(FormatError):
        SAQ(dim=64, rate=3).restore({"fitted": True, "plan": plan})


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_caq_is_as_good_as_the_exact_search(bits: int) -> None:
    rows = torch.from_numpy(np.asarray(bundled().base[:1500], dtype=np.float32))
    queries, rows = rows[:60], rows[60:]
    truth = torch.cdist(queries.double(), rows.double()).square()
    errors = []
    for cls in (RaBitQ, CAQ):
        quantizer = cls(dim=rows.shape[1], code_bits=bits).fit(rows)
        codes = quantizer.encode(rows)
        estimate, bound = quantizer.scan(quantizer.pack(codes), quantizer.prepare(queries, "l2"), 0, len(rows))
        offset = queries.double().square().sum(1, keepdim=True)
        errors.append(relative(estimate.double() + offset, truth))
        assert slope(estimate.double() + offset, truth) == pytest.approx(1, abs=0.02)
        assert 0.01 < float((bound.double() + offset > truth).double().mean()) < 0.05
    assert errors[1] < 1.03 * errors[0]
    if bits == 1:
        assert errors[1] == pytest.approx(errors[0], rel=1e-6)


def test_caq_of_one_bit_is_the_sign_code_and_rounds_help() -> None:
    rows = skewed(300, 96)
    one, exact = (cls(dim=96, code_bits=1).fit(rows).encode(rows) for cls in (CAQ, RaBitQ))
    assert torch.equal(torch.as_tensor(one.indices), torch.as_tensor(exact.indices))
    error = [float((torch.as_tensor(q.decode(q.encode(rows))) - rows).square().sum())
             for q in (CAQ(dim=96, code_bits=4, rounds=r).fit(rows) for r in (0, 2, 6))]
    assert error[2] < error[1] < error[0]


def test_caq_codes_shorten_without_the_vectors() -> None:
    rows = skewed(400, 96)
    caq = CAQ(dim=96, code_bits=7).fit(rows)
    codes = caq.encode(rows)
    for bits in (1, 2, 4, 6, 7):
        other, short = caq.coarser(codes, bits)
        assert np.array_equal(np.asarray(short.indices), np.asarray(codes.indices) >> (7 - bits))
        own = CAQ(dim=96, code_bits=bits).fit(rows)
        error, best = (float((torch.as_tensor(q.decode(c)) - rows).square().sum()) for q, c in ((other, short), (own, own.encode(rows))))
        assert error < best * (2.2 if bits > 1 else 1.01)
        assert other.bits(short) == own.bits(own.encode(rows))
    assert torch.equal(torch.as_tensor(caq.coarser(codes, 7)[1].indices), torch.as_tensor(codes.indices))
    with pytest.raises(CodewordError, match=r"1\.\.7"):
        caq.coarser(codes, 8)
