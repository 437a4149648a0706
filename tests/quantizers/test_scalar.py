"""ScalarQuantizer and LVQ: known errors on N(0, 1), optimality, faiss's formula to the last bit, near-constant rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codeword import LVQ, ScalarQuantizer, catalog
from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.parts import random, scan
from codeword.parts.lloyd import lloyd_levels, uniform_levels


def normal(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return random.normal(seed, n * dim, stream="scalar tests").reshape(n, dim)


def error(quantizer, x) -> float:
    return float(np.square(x - quantizer.decode(quantizer.encode(x))).mean())


@pytest.mark.parametrize(("placement", "bits", "want"), [
    ("lloyd", 1, 0.3634), ("lloyd", 2, 0.1175), ("lloyd", 3, 0.03454), ("lloyd", 4, 0.009497),
    ("mse", 1, 0.3634), ("mse", 2, 0.1188), ("mse", 3, 0.03744), ("mse", 4, 0.01154), ("mse", 5, 0.003495), ("mse", 8, 8.769e-5)])
def test_gaussian_error_is_the_known_one(placement: str, bits: int, want: float) -> None:
    quantizer = ScalarQuantizer(dim=8, code_bits=bits, placement=placement, per="all").fit(normal(40000, 8))
    # With 8 bits a tenth of the error is a few values in 100,000, clipped.
    assert error(quantizer, normal(40000, 8, seed=1)) == pytest.approx(want, rel=0.03 if bits < 8 else 0.08)


def test_best_uniform_grid_is_no_worse_than_a_fine_search() -> None:
    for seed, shape in enumerate((lambda v: v, lambda v: v**3, np.exp, np.abs)):
        x = torch.from_numpy(shape(normal(3000, 1, seed))).double().flatten()
        for count in (2, 4, 16):
            start, width = uniform_levels(x, count)

            def cost(a, w, x=x, count=count):
                return float((x - (a + w * (((x - a) / w).floor().clamp(0, count - 1) + 0.5))).square().mean())

            best = min(cost(a, w) for w in torch.linspace(0.02, 1, 60).double() * (x.max() - x.min()) / count
                       for a in torch.linspace(float(x.min()), float(x.median()), 60).double())
            assert cost(start, width) <= 1.002 * best
            lloyd = lloyd_levels(x, count)
            assert float((x.unsqueeze(1) - lloyd).square().amin(1).mean()) <= 1.02 * cost(start, width)


@pytest.mark.parametrize("per", ["dim", "all", "vector"])
@pytest.mark.parametrize("placement", ["minmax", "mse", "lloyd"])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_codes_are_the_nearest_levels(per: str, placement: str, bits: int) -> None:
    x = normal(50, 12) * np.linspace(0.1, 4, 12, dtype=np.float32) + 1
    quantizer = ScalarQuantizer(dim=12, code_bits=bits, placement=placement, per=per).fit(x)
    codes = quantizer.encode(x)
    found = np.abs(x - quantizer.decode(codes))
    for level in range(1 << bits):
        other = quantizer.decode(codes._replace(indices=np.full_like(codes.indices, level)))
        assert (found <= np.abs(x - other) + 3e-6).all()


def test_mse_and_lloyd_beat_minmax() -> None:
    x = normal(2000, 16) ** 3
    for per in ("dim", "all", "vector"):
        minmax, mse, lloyd = (error(ScalarQuantizer(dim=16, code_bits=3, placement=p, per=per).fit(x), x)
                              for p in ("minmax", "mse", "lloyd"))
        assert mse < minmax
        if per != "vector":  # one table for vectors of sixteen heavy-tailed entries fits few of them
            assert lloyd < mse


def test_fit_honours_weights() -> None:
    x = normal(300, 4)
    weights = np.arange(300) % 3
    repeated = np.repeat(x, weights, axis=0)
    for placement in ("minmax", "mse", "lloyd"):
        for per in ("dim", "all"):
            a = ScalarQuantizer(dim=4, code_bits=2, placement=placement, per=per).fit(x, weights=weights)
            b = ScalarQuantizer(dim=4, code_bits=2, placement=placement, per=per).fit(repeated)
            assert error(a, x) == pytest.approx(error(b, x), rel=1e-3)


@pytest.mark.parametrize("dim", [1, 7, 8, 37, 48])
@pytest.mark.parametrize(("kind", "bits", "per"), [("QT_8bit", 8, "dim"), ("QT_6bit", 6, "dim"), ("QT_4bit", 4, "dim"),
                                                   ("QT_8bit_uniform", 8, "all"), ("QT_4bit_uniform", 4, "all")])
def test_faiss_ranges_decode_to_the_same_bits(dim: int, kind: str, bits: int, per: str) -> None:
    faiss = pytest.importorskip("faiss")
    x = (normal(500, dim) * np.linspace(0.1, 7, dim) + 3).astype(np.float32)
    theirs = faiss.ScalarQuantizer(dim, getattr(faiss.ScalarQuantizer, kind))
    theirs.train(x)
    trained = torch.from_numpy(faiss.vector_to_array(theirs.trained).copy())
    ours = ScalarQuantizer(dim=dim, code_bits=bits, per=per).fit(x)
    ours.low.copy_(trained[:len(trained) // 2])
    ours.span.copy_(trained[len(trained) // 2:])
    packed = theirs.compute_codes(x)
    fields = np.unpackbits(packed, axis=1, bitorder="little")[:, :bits * dim].reshape(len(x), dim, bits)
    indices = (fields * (1 << np.arange(bits))).sum(2).astype(np.uint8)
    values = ours.decode(ours.encode(x)._replace(indices=indices))
    assert values.tobytes() == theirs.decode(packed).tobytes()
    assert (ours.encode(x).indices == indices).mean() > 0.995


def test_scalar_refuses_what_it_cannot_do() -> None:
    for bad in ({"code_bits": 0}, {"code_bits": 9}, {"placement": "best"}, {"per": "row"}, {"dim": 0}):
        with pytest.raises(CodewordError):
            ScalarQuantizer(**{"dim": 4, **bad})
    with pytest.raises(Unsupported):
        ScalarQuantizer.for_bits(8, 2, per="vector")
    assert ScalarQuantizer.for_bits(64, 4, per="vector").nominal_bits == 4.0
    quantizer = ScalarQuantizer(dim=2).fit(normal(9, 2))
    quantizer.span[0] = -1
    with pytest.raises(FormatError):
        quantizer.check_state()


# ---------------------------------------------------------------------- LVQ


def test_lvq_follows_its_formulas() -> None:
    x = normal(64, 24, seed=3) + 5
    lvq = LVQ(dim=24, code_bits=4).fit(x)
    codes = lvq.encode(x)
    y = (x - lvq.center.numpy()).astype(np.float64) / float(lvq.unit)
    bias = y.min(1).astype(np.float16)
    scale = ((y.max(1) - y.min(1)) / 15).astype(np.float16)
    assert codes.side.dtype == np.float16 and (codes.side == np.stack((bias, scale), 1)).all()
    step = scale.astype(np.float64)[:, None]
    want = np.clip(np.round((y - bias.astype(np.float64)[:, None]) / step), 0, 15)
    assert (codes.indices == want).all()
    assert np.abs(lvq.decode(codes) - x).max() <= 0.51 * step.max() * float(lvq.unit) * 1.02


def test_lvq_second_level_divides_the_first() -> None:
    x = normal(200, 32, seed=4)
    one, two = LVQ(dim=32, code_bits=4).fit(x), LVQ(dim=32, code_bits=4, residual_bits=4).fit(x)
    codes = two.encode(x)
    assert (codes.indices[:, :32] == one.encode(x).indices).all()
    assert error(two, x) < error(one, x) / 150  # 225 but for the halved range of the residual's ends
    cut = two.truncate(codes, 6)
    assert (two.decode(cut) == one.decode(one.encode(x))).all() and (cut.lengths == 32).all()
    assert two.truncate(codes, 9).lengths is None
    with pytest.raises(Unsupported):
        two.truncate(codes, 4.5)
    with pytest.raises(Unsupported):
        two.decode(codes._replace(lengths=np.full(200, 5)))


def test_lvq_rows_that_are_constant_or_far_out() -> None:
    x = normal(200, 16)
    lvq = LVQ(dim=16, code_bits=8).fit(x)
    flat = lvq.center.numpy() + np.float32(0.37)
    codes = lvq.encode(flat[None])
    assert not codes.indices.any() and np.abs(lvq.decode(codes) - flat).max() < 2e-4
    far = lvq.decode(lvq.encode(x[:1] * np.float32(1e6)))
    assert np.isfinite(far).all() and np.abs(far).max() > 100


@pytest.mark.parametrize("power", [-60, -20, 10, 60])
def test_lvq_codes_do_not_depend_on_the_scale_of_the_data(power: int) -> None:
    x = normal(100, 16)
    scaled = x * np.float32(2.0**power)
    a, b = LVQ(dim=16).fit(x), LVQ(dim=16).fit(scaled)
    assert (a.encode(x).indices == b.encode(scaled).indices).all() and (a.encode(x).side == b.encode(scaled).side).all()


@pytest.mark.parametrize(("bits", "rest"), [(1, 0), (4, 0), (3, 2), (8, 0), (8, 8)])
@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("dim", [1, 7, 24])
def test_lvq_scan_is_the_distance_to_what_is_decoded(bits: int, rest: int, metric: str, dim: int) -> None:
    x, q = normal(100, dim) + 1, torch.from_numpy(normal(9, dim, seed=2))
    lvq = LVQ(dim=dim, code_bits=bits, residual_bits=rest).fit(x)
    codes, given = lvq.encode(torch.from_numpy(x)), torch.from_numpy(normal(100, dim, seed=3))
    packed = lvq.pack(codes, given)
    lvq.check(packed)
    query = lvq.prepare(q, metric)
    values = torch.as_tensor(lvq.decode(codes, given=given)).double()
    found = lvq.scan(packed, query, 0, 100)[0].double()
    if metric == "l2":
        found = found + (q.double().unsqueeze(1) - given.double()).square().sum(2)
        want = (q.double().unsqueeze(1) - values).square().sum(2)
    else:
        found, want = found - q.double() @ given.double().mT, -(q.double() @ values.mT)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    again = lvq.unpack(packed, torch.arange(100))
    assert torch.equal(again.indices, codes.indices) and torch.equal(again.side, codes.side)
    spans, coarse = torch.tensor([[[0, 64], [64, 100]]]).expand(9, 2, 2).contiguous(), torch.randn(9, 2)
    some = torch.rand(packed.rows) < 0.7
    a = lvq.search_spans(packed, query, spans, coarse, 12, some, 1)
    b = scan.top_k_spans(lvq, packed, query, spans, coarse, 12, some)
    assert torch.equal(a[1], b[1]) and torch.equal(a[0], b[0])
    alone = lvq.search_spans(packed, query.select(4), spans[4:5], coarse[4:5], 12, some, 1)
    assert torch.equal(alone[0][0], a[0][4]) and torch.equal(alone[1][0], a[1][4])


def test_lvq_scan_keeps_the_lower_row_of_equal_ones() -> None:
    x = np.repeat(normal(3, 8), 40, axis=0)
    lvq = LVQ(dim=8).fit(x)
    packed = lvq.pack(lvq.encode(torch.from_numpy(x)))
    found = lvq.search_spans(packed, lvq.prepare(torch.from_numpy(x[:1]), "l2"), torch.tensor([[[0, 120]]]), torch.zeros(1, 1), 5, None, 1)
    assert found[1].tolist() == [[0, 1, 2, 3, 4]]


def test_lvq_dial() -> None:
    assert LVQ.for_bits(384, 4).code_bits == 4 and LVQ.for_bits(384, 4).nominal_bits == pytest.approx(4 + 32 / 384)
    assert (LVQ.for_bits(384, 12).code_bits, LVQ.for_bits(384, 12).residual_bits) == (8, 4)
    assert LVQ.for_bits(384, 8, residual_bits=4).code_bits == 4
    for bits in (0.5, 18):
        with pytest.raises(Unsupported):
            LVQ.for_bits(384, bits)
    assert catalog.make("lvq:bits=2,residual_bits=1", 384).code_bits == 1
