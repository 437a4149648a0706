"""nearest: against every distance by its definition, and against itself in another order, batch, thread count, instruction set."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from codeword import ops
from codeword.errors import ShapeError
from codeword.ops import reference

from .conftest import DISTRIBUTIONS, equal, pairs

# n, k, d: one and both sides of every register tile, panel, group and tail; the slices of product quantization.
SHAPES = [(1, 7, 3), (7, 1, 1), (63, 64, 2), (64, 65, 4), (65, 100, 5), (100, 257, 8), (257, 63, 9), (9, 256, 31), (5, 33, 384),
          (6, 3000, 7), (200, 3, 6), (0, 5, 4), (33, 100, 1), (5, 16, 0),
          # rows in lanes, the screen in bytes, and more groups of codewords than one
          (100, 33, 12), (67, 1100, 5), (129, 64, 13), (193, 300, 63), (150, 257, 100), (131, 8300, 14)]


def by_definition(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    if len(x) == 0:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    distance = reference.exact_distances(x[:, None], codebook[None])
    least = distance.min(1).values
    finite = x.isfinite().all(1)
    first = (distance == least[:, None]).to(torch.int8).argmax(1)
    return torch.where(finite, first, 0), torch.where(finite, least, math.nan).float()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_reference_is_the_definition(distribution: str) -> None:
    for n, k, d in SHAPES:
        x, codebook = pairs(distribution, n, k, d)
        got, want = reference.nearest(x, codebook), by_definition(x, codebook)
        assert equal(got[0], want[0]) and equal(got[1], want[1]), (n, k, d)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_native_is_the_definition(isa: str, distribution: str) -> None:
    for n, k, d in SHAPES:
        x, codebook = pairs(distribution, n, k, d)
        got, want = ops.nearest(x, codebook), by_definition(x, codebook)
        assert equal(got[0], want[0]) and equal(got[1], want[1]), (n, k, d)


def test_native_over_many_chunks(isa: str, threads: int) -> None:
    for n, k, d in [(3001, 40, 3), (1111, 300, 17)]:
        x, codebook = pairs("integers", n, k, d)
        got, want = ops.nearest(x, codebook), reference.nearest(x, codebook)
        assert equal(got[0], want[0]) and equal(got[1], want[1])


def test_a_row_does_not_see_its_batch(isa: str) -> None:
    x, codebook = pairs("gaussian", 500, 90, 12)
    whole = ops.nearest(x, codebook)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    shuffled = ops.nearest(x[order], codebook)
    assert equal(shuffled.indices, whole.indices[order]) and equal(shuffled.distances, whole.distances[order])
    for i in (0, 1, 250, 499):
        alone = ops.nearest(x[i:i + 1], codebook)
        assert equal(alone.indices[0], whole.indices[i]) and equal(alone.distances[0], whole.distances[i])


def test_distances_in_a_hand_made_case() -> None:
    found = ops.nearest(torch.tensor([[0.0, 0.0], [3.0, 4.0], [2.0, 2.0]]), torch.tensor([[0.0, 0.0], [4.0, 4.0], [4.0, 4.0]]))
    assert found.indices.tolist() == [0, 1, 0] and found.distances.tolist() == [0.0, 1.0, 8.0]


def test_ties_go_to_the_lowest_index(isa: str) -> None:
    codebook = torch.zeros(300, 5)
    found = ops.nearest(torch.ones(40, 5), codebook)
    assert found.indices.eq(0).all() and found.distances.eq(5).all()
    codebook[:257] = 9.0
    assert ops.nearest(torch.ones(40, 5), codebook).indices.eq(257).all()


@pytest.mark.parametrize("n", [2, 50])
def test_nan_in_the_codebook(n: int) -> None:
    codebook = torch.ones(40, 3)
    codebook[11, 1] = math.nan
    for found in (ops.nearest(torch.ones(n, 3), codebook), ops.Nearest(*reference.nearest(torch.ones(n, 3), codebook))):
        assert found.indices.eq(0).all() and found.distances.isnan().all()


def test_near_the_limit_of_the_screen(isa: str) -> None:
    """Codewords that differ in the last bits of float32: the screen cannot tell them apart, the definition can."""
    g = torch.Generator().manual_seed(3)
    base = torch.randn(1, 48, generator=g)
    codebook = base + torch.randint(-2, 3, (700, 48), generator=g) * 2.0**-22
    for n, d in ((60, 48), (200, 48), (200, 7)):
        x = (base + torch.randn(n, 48, generator=g) * 1e-3)[:, :d]
        got, want = ops.nearest(x, codebook[:, :d]), by_definition(x, codebook[:, :d])
        assert equal(got[0], want[0]) and equal(got[1], want[1]), (n, d)


def test_some_rows_near_ties_and_others_not(isa: str) -> None:
    """Tiles of rows that the screen in bytes must leave to float32 beside tiles that it decides."""
    g = torch.Generator().manual_seed(4)
    codebook = torch.cat((torch.randn(400, 30, generator=g), 9 + torch.randint(-2, 3, (400, 30), generator=g) * 2.0**-18))
    x = torch.randn(900, 30, generator=g)
    x[100:300] = 9 + 1e-3 * torch.randn(200, 30, generator=g)
    x[700] = torch.inf
    got, want = ops.nearest(x, codebook), by_definition(x, codebook)
    assert equal(got[0], want[0]) and equal(got[1], want[1])


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reference_under_rounded_products(precision: str) -> None:
    """A program may allow torch to round the factors of float32 products; autocast does so too. Neither may change an index."""
    x, codebook = pairs("gaussian", 64, 200, 40)
    want = by_definition(x, codebook)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = reference.nearest(x, codebook)
    finally:
        torch.set_float32_matmul_precision(before)
    assert equal(got[0], want[0]) and equal(got[1], want[1])


def test_flushing_subnormals_changes_nothing(isa: str) -> None:
    x, codebook = pairs("subnormal", 20, 30, 6)
    want = by_definition(x, codebook)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        got = ops.nearest(x, codebook)
    finally:
        torch.set_flush_denormal(False)
    assert equal(got[0], want[0]) and equal(got[1], want[1])


@pytest.mark.parametrize("shapes", [((3, 4), (5, 3)), ((3, 4), (0, 4)), ((4,), (2, 4)), ((3, 4), (4,))])
def test_wrong_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ShapeError, match="nearest got"):
        ops.nearest(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_strided_and_half_inputs() -> None:
    x, codebook = pairs("gaussian", 30, 20, 8)
    want = ops.nearest(x.half().float(), codebook)
    assert equal(ops.nearest(x.half(), codebook).indices, want.indices)
    wide = torch.zeros(60, 16)
    wide[::2, ::2] = x
    assert equal(ops.nearest(wide[::2, ::2], codebook).indices, ops.nearest(x, codebook).indices)
