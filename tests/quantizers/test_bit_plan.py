"""bit_plan: the optimum over all plans, monotone, within its budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeword.errors import CodewordError
from codeword.parts.bit_plan import NOISE, Plan, bit_plan, block_edges, flat_plan, plan_bits


def error(plan: Plan, variances: np.ndarray) -> float:
    total, start = 0.0, 0
    for length, bits in plan:
        v = variances[start:start + length]
        total += v.sum() ** 2 / length * NOISE[bits] if bits else np.square(v).sum()
        start += length
    return total


def every_plan(dim: int, granularity: int, max_bits: int) -> list[Plan]:
    """All monotone plans in which only the last segment may have no bits."""
    edges = block_edges(dim, granularity)
    plans = []
    for cuts in itertools.product((False, True), repeat=len(edges) - 2):
        inner = [0, *(edge for edge, cut in zip(edges[1:-1], cuts, strict=True) if cut), dim]
        lengths = [b - a for a, b in itertools.pairwise(inner)]
        for bits in itertools.combinations_with_replacement(range(max_bits, -1, -1), len(lengths)):
            if bits[0] and bits.count(0) <= 1:
                plans.append(tuple(zip(lengths, bits, strict=True)))
    return plans


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=3, max_size=14), st.integers(1, 4), st.integers(0, 60), st.sampled_from([5, 16]))
def test_no_other_plan_is_better(values: list[float], granularity: int, extra: int, overhead: int) -> None:
    variances = np.sort(np.array(values))[::-1]
    dim = len(variances)
    granularity = max(granularity, -(-dim // 5))
    budget = block_edges(dim, granularity)[1] + overhead + extra
    plan = bit_plan(variances, budget, granularity=granularity, overhead=overhead, max_bits=4)
    best = min(error(p, variances) for p in every_plan(dim, granularity, 4) if plan_bits(p, overhead) <= budget)
    assert error(plan, variances) == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert sum(length for length, _ in plan) == dim and plan_bits(plan, overhead) <= budget
    assert all(a >= b for (_, a), (_, b) in itertools.pairwise(plan)) and plan[0][1] > 0


@pytest.mark.parametrize("bits", [0.5, 1, 2.3, 4, 8])
def test_falling_variance_gets_falling_bits(bits: float) -> None:
    variances = 0.97 ** np.arange(384)
    plan = bit_plan(variances, int(384 * bits), granularity=32, overhead=16)
    assert all(a >= b for (_, a), (_, b) in itertools.pairwise(plan))
    assert 384 * bits - 32 < plan_bits(plan, 16) <= 384 * bits or plan[-1][1] == 13
    flat = flat_plan(384, int(384 * bits), granularity=32, overhead=16)
    assert plan_bits(flat, 16) <= 384 * bits and error(plan, variances) < error(flat, variances)


def test_equal_variances_are_not_cut() -> None:
    assert bit_plan(np.ones(128), 128 * 4 + 16, granularity=32, overhead=16) == ((128, 4),)
    assert flat_plan(128, 128 * 4 + 16, granularity=32, overhead=16) == ((128, 4),)


def test_edges() -> None:
    assert bit_plan(np.zeros(10), 300, granularity=4, overhead=16)[0][1] > 0
    assert bit_plan([3.0], 17, granularity=32, overhead=16) == ((1, 1),)
    assert len(block_edges(10_000, 32)) <= 65
    with pytest.raises(CodewordError, match="budget of 10 bits"):
        bit_plan(np.ones(64), 10, granularity=32, overhead=16)
