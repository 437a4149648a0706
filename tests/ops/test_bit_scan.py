"""bit_scan: layout, kernel equal to its definition on every instruction set, refusals."""

from __future__ import annotations

import pytest
import torch

from codeword import ops
from codeword.errors import ShapeError
from codeword.ops import bit_blocks, dispatch
from codeword.ops.bit_blocks import Query
from codeword.quantizer import Codes
from codeword.quantizers.rabitq import RaBitQ

BUILT = dispatch.native() is not None and hasattr(dispatch.native(), "bit_scan")
native = pytest.mark.skipif(not BUILT, reason="the native module is not built")


@pytest.mark.parametrize("bits", range(2, 10))
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 100])
def test_rest_layout_is_a_bijection(bits: int, dim: int) -> None:
    values = torch.randint(0, 1 << (bits - 1), (5, dim), generator=torch.Generator().manual_seed(bits))
    packed = bit_blocks.pack_rest(values, bits)
    assert packed.shape == (5, bit_blocks.rest_bytes(dim, bits))
    assert torch.equal(bit_blocks.unpack_rest(packed, bits)[:, :dim], values.to(torch.int32))


def test_rest_layout_is_the_documented_one() -> None:
    values = torch.zeros(1, 32, dtype=torch.int64)
    values[0, 5], values[0, 21], values[0, 9] = 3, 12, 0b1110000 >> 0
    packed = bit_blocks.pack_rest(values & 127, 8)[0].tolist()  # fields 4, 2, 1
    assert packed[5] == 3 | 12 << 4  # byte j: dimensions j and j + 16
    assert packed[16 + 1] == 3 << 2  # byte j: dimensions j, j + 8, j + 16, j + 24
    assert packed[24 + 1] == 1 << 1  # a bit string


def test_top_layout_is_the_documented_one() -> None:
    bits = torch.zeros(64, 12, dtype=torch.int64)
    bits[35, 9] = 1
    planes = bit_blocks.pack_top(bits)
    assert planes.shape == (2, 2, 32) and planes[1, 1, 3] == 2 and int(planes.sum()) == 2
    assert torch.equal(bit_blocks.unpack_top(planes)[:, :12].to(torch.int64), bits)


def problem(dim: int, bits: int, metric: str, rows: int = 140):
    """Three lists of different lengths, five queries."""
    g = torch.Generator().manual_seed(dim * 10 + bits)
    x, q = torch.randn(rows, dim, generator=g) + 0.3, torch.randn(5, dim, generator=g)
    centroid = x[:3].repeat_interleave(64, 0)[:rows]
    quantizer = RaBitQ(dim=dim, code_bits=bits, fast=True).fit(x - centroid)
    packed = quantizer.pack(quantizer.encode(x, given=centroid), centroid)
    spans = torch.tensor([[0, 64], [64, 128], [128, rows]]).expand(5, 3, 2).clone()
    spans[2, 1] = torch.tensor([9, 4])  # empty
    coarse = (q[:, None] - x[None, :3]).square().sum(2) if metric == "l2" else -(q @ x[:3].mT)
    return quantizer, packed, quantizer._blocks(packed), quantizer.prepare(q, metric), spans, coarse


@native
@pytest.mark.parametrize(("dim", "bits"), [*((dim, bits) for dim in (1, 31, 100) for bits in range(1, 10)), (8, 2), (2100, 1), (2100, 9)])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_kernel_equals_definition(dim: int, bits: int, metric: str) -> None:
    module = dispatch.native()
    assert module is not None
    _, packed, blocks, query, spans, coarse = problem(dim, bits, metric)
    some = torch.rand(packed.rows, generator=torch.Generator().manual_seed(0)) < 0.3
    for allowed in (None, some):
        for k in (1, 10, 120) if dim < 1000 else (10,):
            distance, rows = bit_blocks.reference(blocks, query, spans, coarse, k, allowed)
            for isa in module.runnable_isas():
                module.set_isa(isa)
                for num_threads in (1, 2):
                    found = bit_blocks._native(blocks, query, spans, coarse, k, allowed, num_threads)
                    assert torch.equal(found[0], distance) and torch.equal(found[1], rows), (isa, num_threads, k)
    module.set_isa("")


@native
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_inner_products_reach_their_limits(metric: str) -> None:
    """All codes and query values at their largest: sums must not wrap in any lane."""
    module = dispatch.native()
    assert module is not None
    for bits in (1, 8, 9):
        quantizer = RaBitQ(dim=4100, code_bits=bits)
        codes = torch.full((32, 4100), (1 << bits) - 1)
        codes[1] = 0
        packed = quantizer.pack(Codes(codes, torch.ones(32, 2)))
        query = quantizer.prepare(torch.randn(1, 4100, generator=torch.Generator().manual_seed(0)), metric)
        query = query._replace(z1=torch.full_like(query.z1, 31), z=torch.full_like(query.z, int(query.z.abs().max()) if bits > 1 else 0))
        spans, coarse = torch.tensor([[[0, 32]]]), torch.zeros(1, 1)
        expected = bit_blocks.reference(quantizer._blocks(packed), query, spans, coarse, 32, None)
        for isa in module.runnable_isas():
            module.set_isa(isa)
            found = bit_blocks._native(quantizer._blocks(packed), query, spans, coarse, 32, None, 1)
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1]), isa
    module.set_isa("")


def test_refuses_spans_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for forced in ("", "reference"):
        monkeypatch.setenv("CODEWORD_OPS", forced)
        _, packed, blocks, query, spans, coarse = problem(16, 2, "l2")
        for bad in ([0, packed.rows + 1], [-32, 5], [16, 40]):
            wrong = spans.clone()
            wrong[0, 0] = torch.tensor(bad)
            with pytest.raises(ValueError, match="span"):
                ops.bit_scan(blocks, query, wrong, coarse, 3, None, 1)
        with pytest.raises(ShapeError, match="allowed"):
            ops.bit_scan(blocks, query, spans, coarse, 3, torch.ones(7, dtype=torch.bool), 1)
        with pytest.raises(ShapeError, match="k=0"):
            ops.bit_scan(blocks, query, spans, coarse, 0, None, 1)


@native
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_many_threads_on_few_queries_and_few_codes_for_many_queries(bits: int) -> None:
    """Work cut inside a query, and codes read once for several queries: the answer of one thread and one query."""
    module = dispatch.native()
    assert module is not None
    g = torch.Generator().manual_seed(bits)
    x, q = torch.randn(20_011, 24, generator=g), torch.randn(9, 24, generator=g)
    quantizer = RaBitQ(dim=24, code_bits=bits, fast=True)
    packed, query = quantizer.pack(quantizer.encode(x)), quantizer.prepare(q, "l2")
    blocks = quantizer._blocks(packed)
    spans = torch.tensor([[[0, 12_000], [12_000, 20_011]]]).expand(9, 2, 2).clone()
    coarse = q.square().sum(1, keepdim=True).expand(9, 2).contiguous()
    some = torch.rand(packed.rows, generator=g) < 0.5
    for isa in module.runnable_isas():
        module.set_isa(isa)
        for k, allowed in ((1, None), (10, some), (700, None)):
            alone = [bit_blocks._native(blocks, query.select(i), spans[i:i + 1], coarse[i:i + 1], k, allowed, 1) for i in range(9)]
            for count in (1, 2, 9):
                for num_threads in (1, 2, 3, 11):
                    some_queries = Query(query.z1[:count], query.z[:count], query.scalars[:count], query.norms[:count], query.l2)
                    distances, rows = bit_blocks._native(blocks, some_queries, spans[:count], coarse[:count], k, allowed, num_threads)
                    assert torch.equal(distances, torch.cat([d for d, _ in alone[:count]])), (isa, k, count, num_threads)
                    assert torch.equal(rows, torch.cat([r for _, r in alone[:count]])), (isa, k, count, num_threads)
    module.set_isa("")


@native
@pytest.mark.parametrize("n", [1, 7, 31, 63, 100, 257, 384])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-41, 0.0, 1e18])
def test_queries_equal_their_definition(n: int, scale: float) -> None:
    module = dispatch.native()
    assert module is not None
    g = torch.Generator().manual_seed(n)
    queries, center = torch.randn(37, n, generator=g) * scale, torch.randn(n, generator=g) * scale
    queries[3] = 0
    signs = torch.where(torch.rand(4, n, generator=g) < 0.5, -1.0, 1.0)
    for bits in (1, 2, 9):
        for l2 in (True, False):
            want = bit_blocks.prepare_reference(queries, center, signs, bits, 1.9, l2)
            for isa in module.runnable_isas():
                module.set_isa(isa)
                got = bit_blocks.prepare(queries, center, signs, bits, 1.9, l2)
                one = bit_blocks.prepare(queries[5:6], center, signs, bits, 1.9, l2)
                for a, b, c in zip(got[:4], want[:4], one[:4], strict=True):
                    assert a.dtype == b.dtype and torch.equal(a, b) and torch.equal(a[5:6], c), (isa, bits, l2)
    module.set_isa("")
