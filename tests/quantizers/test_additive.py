"""RVQ and AQ: the greedy one is Residual of VQs, more search is never worse, the fit's objective falls, codes stand alone, odd data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import codeword
from codeword import data
from codeword.errors import CodewordError, Unsupported
from codeword.parts import additive, random
from codeword.quantizer import Progressive, Scannable

KINDS = ("RVQ", "AQ")


def small(kind: str, dim: int = 6, **options) -> codeword.Quantizer:
    options = {"num_codebooks": 3, "codebook_size": 8, "beam": 4, **options}
    if kind == "AQ":
        options = {"rounds": 5, **options}
    return getattr(codeword, kind)(dim=dim, **options)


def rows(n: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def error(quantizer: codeword.Quantizer, x: np.ndarray) -> float:
    return float(((x - np.asarray(quantizer.decode(quantizer.encode(x)))).astype(np.float64) ** 2).sum(1).mean())


# ---------------------------------------------------------------------- RVQ


@pytest.mark.parametrize("weighted", [False, True])
def test_greedy_rvq_is_residual_of_vqs(weighted: bool) -> None:
    x = rows(300)
    weights = np.random.default_rng(1).uniform(0.5, 2, 300).astype(np.float32) if weighted else None
    rvq = codeword.RVQ(dim=6, num_codebooks=3, codebook_size=16, beam=1, seed=5).fit(x, weights=weights)
    parts = [codeword.VQ(dim=6, codebook_size=16, seed=random.part_seed(5, m)) for m in range(3)]
    stages = codeword.Residual(quantizers=parts).fit(x, weights=weights)
    for book, part in zip(rvq.codebooks, stages.quantizers, strict=True):
        assert torch.equal(book, part.codebook)
    ours, theirs = rvq.encode(x), stages.encode(x)
    assert np.array_equal(ours.indices, theirs.indices)
    assert np.array_equal(rvq.decode(ours), stages.decode(theirs))
    a, b = torch.from_numpy(x).requires_grad_(), torch.from_numpy(x).requires_grad_()
    one, other = rvq(a), stages(b)
    torch.testing.assert_close(one.loss, other.loss)
    (one.loss + one.values.square().sum()).backward()
    (other.loss + other.values.square().sum()).backward()
    torch.testing.assert_close(a.grad, b.grad)
    assert rvq.codebooks.grad is not None
    for grad, part in zip(rvq.codebooks.grad, stages.quantizers, strict=True):
        torch.testing.assert_close(grad, part.codebook.grad)


def test_beam_decides_like_brute_force() -> None:
    x = rows(200)
    rvq = codeword.RVQ(dim=6, num_codebooks=2, codebook_size=8, beam=64).fit(x)
    sums = (rvq.codebooks[0].unsqueeze(1) + rvq.codebooks[1]).detach().double().flatten(0, 1)
    best = (torch.from_numpy(x).double().unsqueeze(1) - sums).square().sum(2).amin(1)
    found = (x - np.asarray(rvq.decode(rvq.encode(x)))).astype(np.float64)
    np.testing.assert_allclose((found**2).sum(1), best.numpy(), rtol=1e-5, atol=1e-6)


def test_truncated_codes_are_those_of_fewer_stages() -> None:
    x = rows(150)
    rvq = small("RVQ", beam=1).fit(x)
    assert isinstance(rvq, Progressive)
    codes = rvq.encode(x)
    cut = rvq.truncate(codes, 2 * 3 / 6)  # two stages of three bits
    part = np.asarray(rvq.codebooks.detach())[:2]
    indices = np.asarray(codes.indices)
    assert np.array_equal(np.asarray(cut.lengths), np.full(150, 2)) and not np.asarray(cut.indices)[:, 2].any()
    assert np.array_equal(rvq.decode(cut), part[0][indices[:, 0]] + part[1][indices[:, 1]])
    with pytest.raises(Unsupported, match=r"first stage takes 0\.5"):
        rvq.truncate(codes, 0.4)


def test_rvq_trains() -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 6) @ torch.randn(6, 6)
    rvq = small("RVQ").fit(torch.randn(64, 6))
    optimizer = torch.optim.Adam(rvq.parameters(), lr=0.03)
    errors = []
    for _ in range(60):
        out = rvq(x)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        errors.append(float(out.stats["error"]))
    assert errors[-1] < 0.6 * errors[0]
    rvq.eval()
    assert torch.equal(rvq(x).values, rvq.decode(rvq.encode(x)))  # the tables followed the codebooks


# ---------------------------------------------------------------------- AQ


def test_both_half_steps_lower_the_objective() -> None:
    for x in (rows(400), data.bundled().vectors[:800].astype(np.float32)):
        report = small("AQ", x.shape[1], codebook_size=16, rounds=30).fit(x).report
        objective = report["objective"]
        assert len(objective) == 2 * 6 + 1
        assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(objective))
        assert objective[-1] < objective[0]


def test_least_squares_is_the_minimum() -> None:
    x = torch.from_numpy(rows(60))
    codes = torch.randint(0, 4, (60, 3), generator=torch.Generator().manual_seed(0))
    for weights in (None, torch.rand(60, generator=torch.Generator().manual_seed(1)) + 0.1):
        problem = additive.LeastSquares(x, 4, weights, 0.5)
        normal = problem.normal(codes)
        books = problem.solve(normal)
        b = torch.nn.functional.one_hot(codes, 4).flatten(1).double()
        w = torch.ones(60).double() if weights is None else weights.double()
        ridge = 0.5 * float(w.mean())
        gradient = b.mT @ (w.unsqueeze(1) * (x.double() - b @ books.double().flatten(0, 1))) - ridge * books.double().flatten(0, 1)
        assert float(gradient.abs().max()) < 1e-4
        for c in (books, books + 1):
            left = (w * (x.double() - b @ c.double().flatten(0, 1)).square().sum(1)).sum() + ridge * c.double().square().sum()
            assert problem.objective(c, normal) == pytest.approx(float(left / w.sum()), rel=1e-9)


# ---------------------------------------------------------------------- both


def test_more_search_and_joint_codebooks_help_on_real_vectors() -> None:
    x = data.bundled().vectors.astype(np.float32)
    train, test = x[:6000], x[6000:]
    greedy, beam, joint = (getattr(codeword, kind)(dim=x.shape[1], num_codebooks=4, codebook_size=32, **options).fit(train)
                           for kind, options in (("RVQ", {"beam": 1}), ("RVQ", {"beam": 8}), ("AQ", {})))
    assert error(joint, test) < error(beam, test) < error(greedy, test)
    assert error(joint, train) < min(error(beam, train), error(greedy, train))  # a beam trains on all its states, which costs here


@pytest.mark.parametrize("kind", KINDS)
def test_codes_depend_on_neither_batch_nor_threads(kind: str) -> None:
    x = rows(500)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = small(kind).fit(x)
        torch.set_num_threads(3)
        three = small(kind).fit(x)
        assert torch.equal(one.codebooks, three.codebooks)
        whole = np.asarray(three.encode(x).indices)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(whole, one.encode(x).indices)
    assert np.array_equal(whole[::-1], one.encode(x[::-1].copy()).indices)
    assert np.array_equal(whole[77:78], one.encode(x[77:78]).indices)


@pytest.mark.parametrize("kind", KINDS)
def test_offset_and_scale_cost_nothing(kind: str) -> None:
    x = rows(400)
    plain = error(small(kind).fit(x), x)
    for scale in (2.0**-90, 2.0**50):
        assert error(small(kind).fit(x * np.float32(scale)), x * np.float32(scale)) == pytest.approx(plain * scale**2, rel=0.02)
    far = (x + np.float32(4096)).astype(np.float32)
    assert error(small(kind).fit(far), far) == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_data(kind: str) -> None:
    constant = np.full((50, 6), 3.25, np.float32)
    assert error(small(kind).fit(constant), constant) < 1e-9
    for count in (5, 20, 100):  # few rows are learned at least as well as by greedy stages
        few = rows(count)
        assert error(small(kind).fit(few), few) <= 1.02 * error(small("RVQ").fit(few), few) + 1e-3 * float((few**2).sum(1).mean())
    few = rows(5)
    one = small(kind).fit(few[:1])
    np.testing.assert_allclose(one.decode(one.encode(few[:1])), few[:1], rtol=1e-4, atol=1e-4)
    outlier = rows(100)
    outlier[3] = 1e30
    assert np.isfinite(np.asarray(small(kind).fit(rows(100)).decode(small(kind).fit(rows(100)).encode(outlier)))).all()
    assert np.isfinite(np.asarray(small(kind).fit(outlier).codebooks.detach())).all()


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("kind", KINDS)
def test_scan_gives_the_distances_of_decoded_rows(kind: str, metric: str) -> None:
    x, queries = rows(100), torch.from_numpy(rows(7, seed=3))
    quantizer = small(kind).fit(x)
    assert isinstance(quantizer, Scannable)
    codes = quantizer.encode(torch.from_numpy(x[:96]))
    given = torch.from_numpy(rows(3, seed=4)).repeat_interleave(32, dim=0)
    values, q = torch.as_tensor(quantizer.decode(codes)).double() + given.double(), queries.double()
    packed = quantizer.pack(codes, given)
    assert torch.equal(torch.as_tensor(quantizer.unpack(packed, torch.arange(96)).indices), torch.as_tensor(codes.indices))
    found = quantizer.scan(packed, quantizer.prepare(queries, metric), 0, 96)[0].double()
    if metric == "l2":
        coarse, exact = torch.cdist(q, given.double()) ** 2, torch.cdist(q, values) ** 2
    else:
        coarse, exact = -q @ given.double().mT, -q @ values.mT
    torch.testing.assert_close(found + coarse, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_dial_and_refusals(kind: str) -> None:
    make = getattr(codeword, kind)
    assert make.for_bits(384, 64 / 384).levels == (256,) * 8
    assert make.for_bits(6, 3.5).levels == (1 << 7,) * 3
    assert make.for_bits(384, 64 / 384).nominal_bits == 64 / 384
    with pytest.raises(Unsupported, match=r"bits=0\.3"):
        make.for_bits(7, 0.3)
    for wrong in ({"beam": 0}, {"num_codebooks": 0}, {"num_codebooks": 65}, {"codebook_size": 1},
                  {"num_codebooks": 4, "codebook_size": 1 << 16}):
        with pytest.raises(CodewordError):
            small(kind, **wrong)
