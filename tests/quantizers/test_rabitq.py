"""RaBitQ: the paper's numbers on Gaussian data and on sentence embeddings, exact identities, hostile rows."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import codeword
from codeword import ops
from codeword.errors import CodewordError, NotFitted, ShapeError, Unsupported
from codeword.parts.scan import smallest
from codeword.quantizers.rabitq import RaBitQ

SHARED = Path(os.environ.get("CODEWORD_SHARED", Path(__file__).parents[2].parent / "shared"))
COSINE = {1: 0.7987, 2: 0.939, 4: 0.9945}


def minilm(rows: int) -> torch.Tensor:
    path = SHARED / "data" / "vectors" / "minilm_sentences.f16.npy"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return torch.from_numpy(np.load(path, mmap_mode="r")[:rows].astype(np.float32))


def gaussian(rows: int, dim: int = 384, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)) + 0.05


@pytest.fixture(params=["gaussian", "minilm"])
def vectors(request: pytest.FixtureRequest) -> torch.Tensor:
    return gaussian(700) if request.param == "gaussian" else minilm(700)


def cosines(x: torch.Tensor, **options: object) -> torch.Tensor:
    q = RaBitQ(dim=x.shape[1], **options).fit(x)  # type: ignore[arg-type]
    codes = q.encode(x)
    return torch.cosine_similarity(q.decode(codes).double() - q.center, x.double() - q.center)


def estimates(x: torch.Tensor, queries: torch.Tensor, bits: int, metric: str, **options: object) -> tuple[torch.Tensor, ...]:
    """(true, estimate, lower bound) of flat search, float64."""
    q = RaBitQ(dim=x.shape[1], code_bits=bits, **options).fit(x)  # type: ignore[arg-type]
    estimate, bound = q.scan(q.pack(q.encode(x)), q.prepare(queries, metric), 0, len(x))
    if metric == "ip":
        return -(queries.double() @ x.double().mT), estimate.double(), bound.double()
    coarse = queries.square().sum(1, keepdim=True)
    return torch.cdist(queries.double(), x.double()).square(), (coarse + estimate).double(), (coarse + bound).double()


# ---------------------------------------------------------------------- the paper's numbers


@pytest.mark.parametrize("bits", COSINE)
def test_cosine_of_codes(vectors: torch.Tensor, bits: int) -> None:
    assert abs(float(cosines(vectors[:300], code_bits=bits).mean()) - COSINE[bits]) < 0.003


def test_one_bit_cosine_follows_the_formula() -> None:
    """E cos = sqrt(d/pi) 2 Gamma(d/2) / ((d-1) Gamma((d-1)/2))."""
    dim = 128
    expected = math.sqrt(dim / math.pi) * 2 * math.exp(math.lgamma(dim / 2) - math.lgamma((dim - 1) / 2)) / (dim - 1)
    assert abs(float(cosines(gaussian(2000, dim), code_bits=1).mean()) - expected) < 0.001


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("bits", [1, 4])
def test_estimate_is_unbiased(vectors: torch.Tensor, bits: int, metric: str) -> None:
    true, estimate, _ = estimates(vectors[100:], vectors[:100], bits, metric)
    x, y = true.flatten() - true.mean(), estimate.flatten() - estimate.mean()
    assert abs(float((x * y).sum() / x.square().sum()) - 1) < 0.01
    assert abs(float((estimate - true).mean())) < 0.02 * float(true.std())


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize(("slack", "rate", "within"), [(1.9, 0.0287, 0.012), (3.0, 0.00135, 0.0015)])
def test_bound_is_violated_as_often_as_a_gaussian_says(vectors: torch.Tensor, slack: float, rate: float, within: float,
                                                       metric: str) -> None:
    for bits in (1, 3):
        true, _, bound = estimates(vectors[100:], vectors[:100], bits, metric, slack=slack)
        assert abs(float((true < bound).double().mean()) - rate) < within, bits


def test_error_halves_with_each_bit() -> None:
    x = gaussian(300, 256)
    errors = []
    for bits in range(1, 10):
        true, estimate, _ = estimates(x[50:], x[:50], bits, "l2")
        errors.append(float((estimate - true).abs().mean()))
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert all(1.7 < ratio < 2.4 for ratio in ratios), ratios


def test_without_the_rescaling_the_slope_is_the_cosine_squared() -> None:
    """What decode gives is least squares, hence shrunk: its inner products are biased by cos^2, the scan's are not."""
    x = gaussian(400)
    q = RaBitQ(dim=384, code_bits=1).fit(x)
    r = (x - q.center).double()
    decoded = (q.decode(q.encode(x)) - q.center).double()
    slope = float((decoded * r).sum() / r.square().sum())
    assert abs(slope - COSINE[1] ** 2) < 0.01


def test_constant_step_is_a_little_worse(vectors: torch.Tensor) -> None:
    for bits in (2, 4):
        exact, fast = (float(cosines(vectors[:200], code_bits=bits, fast=flag).mean()) for flag in (False, True))
        assert exact - 0.005 < fast < exact


def test_rotation_is_orthonormal_and_as_good_as_a_random_matrix() -> None:
    """On sparse, axis-aligned rows, where no rotation would collapse, the error equals that of a QR rotation within 5 %."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 200, generator=g) * (torch.rand(400, 200, generator=g) < 0.05)
    q = RaBitQ(dim=200, code_bits=2)
    matrix = ops.rotate(torch.eye(200), q.signs).double()
    assert float((matrix @ matrix.mT - torch.eye(200)).abs().max()) < 1e-5
    orthogonal = torch.linalg.qr(torch.randn(200, 200, generator=g).double()).Q.float()
    ours = (q.decode(q.encode(x)) - x).norm()
    y = x @ orthogonal
    theirs = (q.decode(q.encode(y)) - y).norm()
    assert abs(float(ours / theirs) - 1) < 0.05


# ---------------------------------------------------------------------- search


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("bits", [1, 2, 5])
@pytest.mark.parametrize("implementation", ["reference", ""])
def test_search_spans_equals_scan(bits: int, metric: str, implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound too wide to pass anything over, the fused search is the top k of the plain scan, bit for bit."""
    monkeypatch.setenv("CODEWORD_OPS", implementation)
    x, queries = gaussian(170, 40), gaussian(6, 40, seed=1)
    centroid = x[[0, 64, 128]]
    points = centroid.repeat_interleave(64, 0)[:170]
    q = RaBitQ(dim=40, code_bits=bits, slack=1e6).fit(x - points)
    packed = q.pack(q.encode(x, given=points), points)
    prepared = q.prepare(queries, metric)
    coarse = torch.cdist(queries, centroid).square() if metric == "l2" else -(queries @ centroid.mT)
    spans = torch.tensor([[0, 64], [64, 128], [128, 170]]).expand(6, 3, 2).contiguous()
    distances, rows = q.search_spans(packed, prepared, spans, coarse, 12, None, 1)
    for i in range(6):
        one = prepared.select(i)
        # The definition adds coarse and offset first; scan leaves coarse to its caller.
        found = [coarse[i, p] + q.scan(packed, one, a, b)[0][0] for p, (a, b) in enumerate(spans[i].tolist())]
        value, row = smallest(torch.cat(found), torch.arange(170), 12)
        assert torch.equal(rows[i], row) or torch.allclose(distances[i], value, rtol=1e-5, atol=1e-5)
        assert torch.allclose(distances[i], value, rtol=1e-5, atol=1e-5)


def test_search_finds_neighbours_and_honours_filters() -> None:
    x = minilm(3000)
    queries, base = x[:100], x[100:]
    for bits, least in ((1, 0.6), (4, 0.92), (8, 0.98)):
        q = RaBitQ(dim=384, code_bits=bits, fast=bits == 8).fit(base)
        packed, prepared = q.pack(q.encode(base)), q.prepare(queries, "l2")
        coarse = queries.square().sum(1, keepdim=True)
        spans = torch.tensor([[[0, len(base)]]]).expand(100, 1, 2).contiguous()
        true = torch.cdist(queries, base).topk(10, largest=False).indices
        distances, rows = q.search_spans(packed, prepared, spans, coarse, 10, None, 2)
        recall = float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), true.tolist(), strict=True)]))
        assert recall > least
        assert bool((distances.diff(dim=1) >= 0).all())
        again = q.search_spans(packed, prepared, spans, coarse, 10, None, 1)
        assert torch.equal(again[0], distances) and torch.equal(again[1], rows)
        allowed = torch.zeros(packed.rows, dtype=torch.bool)
        allowed[torch.tensor([3, 77, 2500])] = True
        distances, rows = q.search_spans(packed, prepared, spans, coarse, 10, allowed, 1)
        assert bool((rows[:, :3].sort(1).values == torch.tensor([3, 77, 2500])).all())
        assert bool((rows[:, 3:] == -1).all()) and bool(distances[:, 3:].isinf().all())


def test_wider_slack_finds_no_less() -> None:
    """Passing over by a bound of 1.9 sigma loses next to nothing of what the codes can find."""
    x = gaussian(2100, 96)
    queries, base = x[:100], x[100:]
    found = []
    for slack in (1.9, 1e6):
        q = RaBitQ(dim=96, code_bits=4, slack=slack).fit(base)
        spans = torch.tensor([[[0, 2000]]]).expand(100, 1, 2).contiguous()
        packed, prepared, coarse = q.pack(q.encode(base)), q.prepare(queries, "l2"), queries.square().sum(1, keepdim=True)
        found.append(q.search_spans(packed, prepared, spans, coarse, 10, None, 1)[1])
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*(f.tolist() for f in found), strict=True)])
    assert 0.97 < share <= 1


def test_a_query_is_prepared_alike_alone_and_in_a_batch() -> None:
    queries = gaussian(9, 70, seed=5) * torch.logspace(-30, 12, 9).unsqueeze(1)
    q = RaBitQ(dim=70, code_bits=6).fit(gaussian(20, 70))
    for metric in ("l2", "ip"):
        whole = q.prepare(queries, metric)
        for i in range(9):
            one, part = q.prepare(queries[i:i + 1], metric), whole.select(i)
            assert all(torch.equal(a, b) for a, b in zip(one[:4], part[:4], strict=True))
    nothing = q.prepare(torch.zeros(1, 70), "ip")
    assert bool((nothing.z1 == 0).all()) and bool(torch.isfinite(nothing.scalars).all())


def test_bound_of_scan_uses_the_coarse_distance() -> None:
    x, queries = gaussian(64, 64), gaussian(3, 64, seed=2)
    q = RaBitQ(dim=64, code_bits=2)
    packed, prepared = q.pack(q.encode(x)), q.prepare(queries, "l2")
    flat, default = q.scan(packed, prepared, 0, 64, queries.square().sum(1)), q.scan(packed, prepared, 0, 64)
    assert torch.allclose(flat[1], default[1], atol=1e-4)
    nearer = q.scan(packed, prepared, 0, 64, torch.full((3,), 1.0))
    assert torch.equal(nearer[0], default[0]) and bool((nearer[1] > default[1]).all())


# ---------------------------------------------------------------------- identities


def test_codes_do_not_depend_on_batch_order_threads_or_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(40, 70)
    for bits in (1, 3, 5):
        q = RaBitQ(dim=70, code_bits=bits).fit(x)
        whole = q.encode(x)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        shuffled = q.encode(x[order])
        assert torch.equal(shuffled.indices, whole.indices[order]) and torch.equal(shuffled.side, whole.side[order])
        alone = [q.encode(row) for row in x]
        assert torch.equal(torch.stack([c.indices for c in alone]), whole.indices)
        assert torch.equal(torch.stack([c.side for c in alone]), whole.side)
        monkeypatch.setenv("CODEWORD_OPS", "reference")
        plain = q.encode(x)
        monkeypatch.delenv("CODEWORD_OPS")
        assert torch.equal(plain.indices, whole.indices) and torch.equal(plain.side, whole.side)


@pytest.mark.parametrize("dim", [1, 2, 3, 17, 63, 100])
def test_any_width(dim: int) -> None:
    x = gaussian(20, dim)
    for bits in (1, 4, 9):
        q = RaBitQ(dim=dim, code_bits=bits, fast=bits == 9).fit(x)
        codes = q.encode(x)
        assert codes.indices.shape == (20, dim) and codes.indices.dtype == (torch.uint16 if bits == 9 else torch.uint8)
        limit = {1: 1.0, 4: 0.25, 9: 0.02}[bits]
        assert float((q.decode(codes) - x).norm() / (x - q.center).norm()) <= limit
        assert q.nominal_bits == pytest.approx(bits + 64 / dim)


def test_decode_is_the_least_squares_multiple() -> None:
    x = gaussian(30, 48)
    for bits in (1, 3):
        q = RaBitQ(dim=48, code_bits=bits).fit(x)
        codes = q.encode(x)
        residual, decoded = (x - q.center).double(), (q.decode(codes) - q.center).double()
        factor = (residual * decoded).sum(1) / decoded.square().sum(1)
        assert torch.allclose(factor, torch.ones_like(factor), atol=1e-5)
        assert torch.allclose(codes.side[:, 1].double(), residual.norm(dim=1), rtol=1e-5)


def test_scaling_by_powers_of_two_scales_the_floats_only() -> None:
    x = gaussian(10, 33) - 0.05
    q = RaBitQ(dim=33, code_bits=3)
    one = q.encode(x)
    for exponent in (-120, -30, 30, 100):
        scaled = q.encode(x * 2.0**exponent)
        assert torch.equal(scaled.indices, one.indices)
        assert torch.equal(scaled.side, one.side * 2.0**exponent)


def test_zero_equal_and_extreme_rows() -> None:
    q = RaBitQ(dim=40, code_bits=4)
    zero = q.encode(torch.zeros(2, 40))
    assert bool((zero.side == 0).all()) and bool((q.decode(zero) == 0).all())
    same = torch.full((3, 40), 2.5)
    fitted = RaBitQ(dim=40, code_bits=4).fit(same)
    assert torch.equal(fitted.decode(fitted.encode(same)), same)
    packed = fitted.pack(fitted.encode(same))
    estimate, bound = fitted.scan(packed, fitted.prepare(torch.zeros(1, 40), "l2"), 0, 3)
    assert torch.allclose(estimate, same.square().sum(1)) and torch.allclose(bound, estimate)
    for value in (1e-45, 1e-38, 1e30, 1e38, 3e38):
        codes = q.encode(torch.full((1, 40), value) * torch.tensor([1.0, -1.0] * 20))
        assert bool(torch.isfinite(codes.side).all())
        assert bool(torch.isfinite(q.decode(codes)).all())


@pytest.mark.parametrize("fast", [False, True])
def test_rows_whose_difference_from_the_center_leaves_float32_saturate(fast: bool) -> None:
    q = RaBitQ(dim=8, code_bits=4, fast=fast).fit(torch.full((3, 8), 1e38))
    x = torch.full((1, 8), 3.3e38) * torch.tensor([1.0, -1.0] * 4)
    codes = q.encode(x)
    assert bool(torch.isfinite(codes.side).all())
    assert torch.equal(torch.sign(q.decode(codes)), torch.sign(x))
    assert bool(torch.isnan(q(torch.full((1, 8), torch.nan)).values).all())


def test_fit_sets_the_mean_and_forgets() -> None:
    x, y = gaussian(50, 12), gaussian(60, 12, seed=3) + 4
    q = RaBitQ(dim=12)
    assert bool((q.center == 0).all()) and q.fitted
    once = RaBitQ(dim=12).fit(y)
    assert torch.equal(q.fit(x).fit(y).center, once.center)
    assert torch.allclose(once.center, y.mean(0), atol=1e-6)
    weighted = RaBitQ(dim=12).fit(torch.cat((x, y)), weights=torch.cat((torch.zeros(50), torch.ones(60))))
    assert torch.equal(weighted.center, once.center)


def test_forward_is_straight_through_and_lets_nan_pass() -> None:
    x = gaussian(6, 20).requires_grad_()
    for fast in (False, True):
        q = RaBitQ(dim=20, code_bits=3, fast=fast).eval()
        out = q(x)
        assert torch.equal(out.values, q.decode(q.encode(x.detach())))
        (grad,) = torch.autograd.grad(out.values.sum(), x)
        assert bool((grad == 1).all())
        with torch.no_grad():
            broken = q(torch.cat((torch.full((1, 20), torch.nan), x)))
        assert bool(broken.values[0].isnan().all()) and torch.equal(broken.values[1:], out.values)


# ---------------------------------------------------------------------- the dial and refusals


@pytest.mark.parametrize(("dim", "bits", "code_bits"), [(384, 4, 4), (384, 1, 1), (384, 8, 8), (256, 9, 9), (64, 4, 3), (32, 4, 2)])
def test_dial_is_stored_bits(dim: int, bits: int, code_bits: int) -> None:
    q = RaBitQ.for_bits(dim, bits)
    assert q.code_bits == code_bits and bits - 1 < q.nominal_bits <= bits + 0.25
    made = codeword.make(f"rabitq:bits={bits},seed=3", dim)
    assert isinstance(made, RaBitQ) and made.code_bits == code_bits and made.seed == 3


def test_refusals() -> None:
    for bad in (0, 10, 2.5, True, "4"):
        with pytest.raises(CodewordError, match="code_bits"):
            RaBitQ(dim=8, code_bits=bad)  # type: ignore[arg-type]
    with pytest.raises(CodewordError, match="dim=0"):
        RaBitQ(dim=0)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(CodewordError, match="slack"):
            RaBitQ(dim=8, slack=bad)
    for dim, bits in ((384, 12), (384, 0.3), (16, 4)):
        with pytest.raises(Unsupported, match="stores"):
            RaBitQ.for_bits(dim, bits)
    q = RaBitQ(dim=8)
    with pytest.raises(Unsupported, match="cosine"):
        q.prepare(torch.zeros(1, 8), "cosine")
    with pytest.raises(ShapeError):
        q.encode(torch.zeros(2, 7))
    with pytest.raises(ShapeError):
        q.encode(torch.full((2, 8), torch.nan))
    assert not issubclass(NotFitted, Unsupported)
    assert q.encode(torch.zeros(0, 8)).indices.shape == (0, 8)
    assert q.pack(q.encode(torch.zeros(0, 8))).rows == 0
