"""segment_scan: layout, kernel equal to its definition on every instruction set, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from codeword.errors import ShapeError
from codeword.ops import dispatch, segment_blocks
from codeword.ops.bit_blocks import BLOCK
from codeword.ops.segment_blocks import SCALARS, Plan, SegmentBlocks, SegmentQuery

BUILT = dispatch.native() is not None and hasattr(dispatch.native(), "segment_scan")
native = pytest.mark.skipif(not BUILT, reason="the native module is not built")

PLANS: list[Plan] = [
    ((1, 1),), ((7, 3),), ((100, 1),), ((63, 13),), ((64, 7), (36, 2)), ((31, 9), (33, 8), (36, 1)), ((8, 12), (1, 11), (91, 10), (257, 2)),
    ((40, 6), (40, 5), (40, 4), (9, 1), (9, 1)), ((2200, 13), (300, 1)), tuple((3, 2) for _ in range(64))]


def problem(plan: Plan, l2: bool, rows: int = 460, queries: int = 4, stages: bool = True):
    """Rows of plausible factors: estimates agree between looks up to their noise, so that every bound passes some and stops some."""
    g = torch.Generator().manual_seed(len(plan) * 100 + plan[0][0])
    blocks = -(-rows // BLOCK)
    values = [torch.randint(0, 1 << bits, (blocks * BLOCK, length), generator=g) for length, bits in plan]
    planes, rest = segment_blocks.layout(values, plan)
    first, full = [torch.rand(blocks * BLOCK, generator=g) + 4], []
    for length, bits in plan:
        kappa = (0.5 + torch.rand(blocks * BLOCK, generator=g)) / math.sqrt(length)
        first += [torch.randn(blocks * BLOCK, generator=g) * 0.1, -2 * kappa * 2**(bits - 1) / 2]
        full += [torch.randn(blocks * BLOCK, generator=g) * 0.1, -2 * kappa] if bits > 1 else []
    factors = torch.stack(first).reshape(-1, blocks, BLOCK).transpose(0, 1).contiguous()
    packed = SegmentBlocks(planes, factors, torch.rand(blocks, generator=g), rest,
                           torch.stack(full, 1) if full else torch.zeros(blocks * BLOCK, 0), plan)
    z1 = torch.cat([torch.nn.functional.pad(torch.randint(-31, 32, (queries, n), generator=g), (0, -n % 8)) for n, _ in plan], 1)
    z = [torch.nn.functional.pad(torch.randint(-999, 1000, (queries, n), generator=g), (0, -n % 32)) for n, bits in plan if bits > 1]
    scalars = [torch.rand(queries, generator=g)]
    for s, (_, bits) in enumerate(plan):
        unseen = torch.full((queries,), 0.2 * (len(plan) - s)) if stages else torch.full((queries,), torch.inf)
        scalars += [torch.full((queries,), value) for value in (0.02, 0.02 / 31 * 0.06 / 2**bits, 0.01)] + [unseen]
    query = SegmentQuery(z1.to(torch.int8), torch.cat(z, 1).to(torch.int16) if z else torch.zeros(queries, 0, dtype=torch.int16),
                         torch.stack(scalars, 1), torch.ones(queries), l2)
    spans = torch.tensor([[0, 64], [64, 224], [224, rows]]).expand(queries, 3, 2).clone()
    spans[-2, 1] = torch.tensor([9, 4])  # empty
    coarse = torch.rand(queries, 3, generator=g)
    return packed, query, spans, coarse


@native
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: str(plan[:4]))
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_kernel_equals_definition(plan: Plan, metric: str) -> None:
    module = dispatch.native()
    assert module is not None
    for stages in (True, False):
        blocks, query, spans, coarse = problem(plan, metric == "l2", stages=stages)
        some = torch.rand(len(blocks.planes) * BLOCK, generator=torch.Generator().manual_seed(0)) < 0.3
        for allowed, k in ((None, 1), (None, 10), (some, 10), (None, 300)):
            distance, rows = segment_blocks.reference(blocks, query, spans, coarse, k, allowed)
            for isa in module.runnable_isas():
                module.set_isa(isa)
                for num_threads in (1, 2):
                    found = segment_blocks._native(blocks, query, spans, coarse, k, allowed, num_threads)
                    assert torch.equal(found[0], distance) and torch.equal(found[1], rows), (isa, num_threads, k)
    module.set_isa("")


@native
@pytest.mark.parametrize("plan", [PLANS[4], PLANS[5]], ids=str)
def test_many_threads_on_one_query(plan: Plan) -> None:
    module = dispatch.native()
    assert module is not None
    blocks, query, _, _ = problem(plan, True, rows=20_000, queries=2)
    spans, coarse = torch.tensor([[[0, 9_000], [9_024, 20_000]]] * 2), torch.rand(2, 2)
    for isa in module.runnable_isas():
        module.set_isa(isa)
        for k in (1, 20):
            alone = segment_blocks._native(blocks, query, spans, coarse, k, None, 1)
            for num_threads in (3, 8):
                found = segment_blocks._native(blocks, query, spans, coarse, k, None, num_threads)
                assert torch.equal(found[0], alone[0]) and torch.equal(found[1], alone[1]), (isa, k, num_threads)
    module.set_isa("")


def test_every_bound_stops_some_rows() -> None:
    """The problem above exercises what it should: with a bound taken away other rows are returned or more are read."""
    plan = PLANS[5]
    blocks, query, _, coarse = problem(plan, True)
    distance, bound = segment_blocks.looks(blocks, query, coarse[:, 0])
    worst = distance.sort(1).values[:, 9:10]
    assert 0 < int((bound > worst).sum()) < bound.numel()
    scalars = query.scalars.clone()
    scalars[:, 1 + SCALARS - 1::SCALARS] = torch.inf
    _, late = segment_blocks.looks(blocks, query._replace(scalars=scalars), coarse[:, 0])
    assert bool((late <= bound).all()) and bool((late < bound).any())


def test_layout_and_back() -> None:
    for plan in PLANS[:6]:
        values = [torch.randint(0, 1 << bits, (64, length), dtype=torch.int32) for length, bits in plan]
        planes, rest = segment_blocks.layout(values, plan)
        rows = planes.transpose(1, 2).flatten(0, 1)
        for want, got in zip(values, segment_blocks.codes_of(rows, rest, plan), strict=True):
            assert torch.equal(want, got)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, query, spans, coarse = problem(PLANS[4], True)
    for forced in ("", "reference"):
        monkeypatch.setenv("CODEWORD_OPS", forced)
        for bad in ([0, 4096], [-32, 5], [16, 40]):
            wrong = spans.clone()
            wrong[0, 0] = torch.tensor(bad)
            with pytest.raises(ValueError, match="span"):
                segment_blocks.segment_scan(blocks, query, wrong, coarse, 3, None, 1)
        with pytest.raises(ShapeError, match="segments"):
            segment_blocks.segment_scan(blocks._replace(plan=((64, 14), (36, 2))), query, spans, coarse, 3, None, 1)
        with pytest.raises(ShapeError, match="k=0"):
            segment_blocks.segment_scan(blocks, query, spans, coarse, 0, None, 1)
    if BUILT:
        monkeypatch.setenv("CODEWORD_OPS", "native")
        with pytest.raises(ValueError, match="planes"):
            segment_blocks.segment_scan(blocks._replace(planes=blocks.planes[:, :3].contiguous()), query, spans, coarse, 3, None, 1)
        with pytest.raises(ValueError, match="scalars"):
            segment_blocks.segment_scan(blocks, query._replace(scalars=query.scalars[:, :5].contiguous()), spans, coarse, 3, None, 1)


@native
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: str(plan[:4]))
@pytest.mark.parametrize("scale", [1.0, 1e-30, 0.0, 1e17])
def test_queries_equal_their_definition(plan: Plan, scale: float) -> None:
    module = dispatch.native()
    assert module is not None
    g = torch.Generator().manual_seed(0)
    n = sum(length for length, _ in plan)
    centred = torch.randn(21, n + 5, generator=g) * scale
    z, towards, constants = centred[:, :n].contiguous(), torch.randn(21, generator=g), torch.rand(3, len(plan), generator=g).double()
    for l2 in (True, False):
        for seen in (constants, torch.where(torch.tensor([[False], [False], [True]]), torch.inf, constants)):
            want = segment_blocks.prepare_reference(z, centred, towards, torch.ones(21), plan, seen, l2)
            for isa in module.runnable_isas():
                module.set_isa(isa)
                for a, b in zip(segment_blocks.prepare(z, centred, towards, torch.ones(21), plan, seen, l2)[:4], want[:4], strict=True):
                    assert a.dtype == b.dtype and torch.equal(a, b), (isa, l2)
    module.set_isa("")
