"""Searching SAQ codes: estimates without decoding, bounds that hold, three looks that agree with one."""

from __future__ import annotations

import pytest
import torch

from codeword.errors import CodewordError, Unsupported
from codeword.ops import segment_blocks
from codeword.quantizer import Scannable
from codeword.quantizers.saq import SAQ
from codeword.search.index import Index
from codeword.search.truth import exact_search


def data(rows: int = 2000, dim: int = 96, queries: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """Clusters with a falling spectrum, and queries like the rows."""
    g = torch.Generator().manual_seed(3)
    spectrum = torch.arange(1, dim + 1).float() ** -0.7
    centers = torch.randn(40, dim, generator=g) * spectrum
    x = centers[torch.randint(0, 40, (rows + queries,), generator=g)] + 0.4 * torch.randn(rows + queries, dim, generator=g) * spectrum + 0.2
    return x[queries:], x[:queries]


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("bits", [1.5, 4, 9])
def test_estimates_are_those_of_the_codes(metric: str, bits: float) -> None:
    """The packed estimate equals the formula over unpacked codes, up to the rounding of query and factors."""
    x, q = data(300)
    given = x[:1].expand(len(x), -1)
    quantizer = SAQ(dim=96, rate=bits).fit(x - given)
    assert isinstance(quantizer, Scannable)
    codes = quantizer.encode(x, given=given)
    packed = quantizer.pack(codes, given)
    assert packed.rows == 320
    shifted = q - x[:1] if metric == "l2" else q
    axes = quantizer.axes[:len(quantizer.levels)].double()
    z = quantizer.coordinates(shifted).double() if metric == "l2" else shifted.double() @ axes.T
    product = torch.zeros(len(q), len(x), dtype=torch.float64)
    for part in quantizer.segments(codes):
        points = part.indices.double() - (2**part.bits - 1) / 2
        product += part.rescale * (z[:, part.start:part.stop] @ points.T)
    if metric == "l2":
        want = quantizer.square_norms(codes) + (shifted.double() - quantizer.mean.double()).square().sum(1, keepdim=True) - 2 * product
        coarse = shifted.square().sum(1)
    else:
        want = -product - (q.double() @ (x[0] + quantizer.mean).double()).unsqueeze(1)
        coarse = -(q @ x[0])
    query = quantizer.prepare(q, metric)
    got = quantizer.scan(packed, query, 0, 300, coarse)[0] + coarse.unsqueeze(1)
    assert float((got - want).abs().max()) < 2e-4 * float(want.abs().max())


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_bounds_hold_for_almost_all_rows(metric: str) -> None:
    """1.9 standard deviations leave 3 % of Gaussian errors beyond them, in each of the looks."""
    x, q = data()
    quantizer = SAQ(dim=96, rate=5, deviations=100.0).fit(x)
    packed, query = quantizer.pack(quantizer.encode(x)), quantizer.prepare(q, metric)
    distance, bound = quantizer.scan(packed, query, 0, len(x))
    beyond = float((bound > distance).float().mean())
    assert len(quantizer.coded) > 1 and 0 < beyond < 0.06
    assert float((distance - bound).mean()) < float(distance.std())  # and they say something


def test_codes_come_back() -> None:
    x, _ = data(500)
    for bits in (1.0, 3.0, 8.0):
        quantizer = SAQ(dim=96, rate=bits).fit(x)
        codes = quantizer.encode(x)
        back = quantizer.unpack(quantizer.pack(codes), torch.arange(500))
        assert torch.equal(torch.as_tensor(back.indices), torch.as_tensor(codes.indices))
        got, want = torch.as_tensor(back.side), torch.as_tensor(codes.side)
        assert torch.equal(got[:, 1:], want[:, 1:])
        unit, square = float(quantizer.units[0]), quantizer.square_norms(codes)
        error = (got[:, 0].double() * unit).square() - (want[:, 0].double() * unit).square()
        assert float((error.abs() / square).max()) < 1e-4


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("bits", [1.5, 4])
def test_all_looks_together_find_what_the_estimates_say(metric: str, bits: float) -> None:
    """Recall of the plain order of estimates is nearly kept, and lost where too little is allowed for what is not read."""
    x, q = data()
    quantizer = SAQ(dim=96, rate=bits).fit(x)
    packed = quantizer.pack(quantizer.encode(x))
    spans = torch.tensor([[[0, len(x)]]]).expand(len(q), 1, 2)
    coarse = q.square().sum(1, keepdim=True) if metric == "l2" else torch.zeros(len(q), 1)
    truth = torch.as_tensor(exact_search(x, q, 10, metric).ids)

    def recall(deviations: float | None) -> float:
        quantizer.deviations = deviations
        rows = quantizer.search_spans(packed, quantizer.prepare(q, metric), spans, coarse, 10, None, 1)[1]
        return float((rows.unsqueeze(2) == truth.unsqueeze(1)).any(2).float().mean())

    plain = quantizer.scan(packed, quantizer.prepare(q, metric), 0, len(x))[0].topk(10, largest=False).indices
    best = float((plain.unsqueeze(2) == truth.unsqueeze(1)).any(2).float().mean())
    assert recall(None) >= best - 0.02
    assert recall(40.0) == recall(None) > recall(1.0) + 0.05


def test_search_is_the_same_native_and_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    x, q = data(900)
    for metric in ("l2", "ip", "cosine"):
        index = Index(dim=96, metric=metric, quantizer="saq:rate=3.5", nlist=8).fit(x)
        index.add(x)
        found = index.search(q, k=7, nprobe=4)
        monkeypatch.setattr(segment_blocks.dispatch, "choice", lambda op, device="cpu": "reference")
        plain = index.search(q, k=7, nprobe=4)
        monkeypatch.undo()
        assert torch.equal(torch.as_tensor(found.ids), torch.as_tensor(plain.ids))
        assert torch.equal(torch.as_tensor(found.distances), torch.as_tensor(plain.distances))


def test_refusals() -> None:
    x, q = data(100)
    quantizer = SAQ(dim=96).fit(x)
    with pytest.raises(Unsupported, match="cosine"):
        quantizer.prepare(q, "cosine")
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(CodewordError, match="deviations"):
            SAQ(dim=96, deviations=bad)
