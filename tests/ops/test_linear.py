"""project, hadamard, rotate, segment_sum: the bits of the reference, and what their mathematics promises."""

from __future__ import annotations

import math

import pytest
import torch

from codeword import ops
from codeword.errors import ShapeError
from codeword.ops import reference

from .conftest import equal, pairs

ROWS = (0, 1, 3, 4, 7, 63, 65, 100)
SCALES = (1.0, 1e30, 1e-30, 1e-41)


def signs_for(width: int, seed: int = 0) -> torch.Tensor:
    return torch.where(torch.rand(4, width, generator=torch.Generator().manual_seed(seed)) < 0.5, -1.0, 1.0)


@pytest.mark.parametrize("d", [0, 1, 2, 3, 8, 9, 31, 384])
def test_project_native(isa: str, d: int) -> None:
    for i, n in enumerate(ROWS):
        for m in (0, 1, 7, 8, 65):
            x, matrix = pairs("gaussian", n, m, d, seed=n)
            scale = SCALES[(i + m) % 4]
            assert equal(ops.project(x * scale, matrix * min(scale, 1e10)), reference.project(x * scale, matrix * min(scale, 1e10))), (n, m)


def test_project_is_the_ascending_sum() -> None:
    """Against Python floats, which are float64 with one rounding an operation."""
    x, matrix = pairs("gaussian", 5, 3, 21)
    for i in range(5):
        for j in range(3):
            total = 0.0
            for a, b in zip(x[i].tolist(), matrix[j].tolist()):
                total += a * b
            assert float(ops.project(x, matrix)[i, j]) == float(torch.tensor(total, dtype=torch.float64).float())


def test_project_rows_alone_and_threads(isa: str, threads: int) -> None:
    x, matrix = pairs("gaussian", 700, 33, 40)
    whole = reference.project(x, matrix)
    assert equal(ops.project(x, matrix), whole)
    assert equal(ops.project(x[123:124], matrix)[0], whole[123])
    assert equal(ops.project(x[100:103], matrix), whole[100:103])
    assert equal(ops.project(x.flip(0), matrix), whole.flip(0))


@pytest.mark.parametrize("power", range(14))
def test_hadamard_native(isa: str, power: int) -> None:
    for n, scale in zip((0, 1, 5, 9), SCALES):
        x = pairs("gaussian", n, 1, 1 << power)[0] * scale
        assert equal(ops.hadamard(x), reference.hadamard(x))


@pytest.mark.parametrize("width", [1, 2, 4, 64, 256])
def test_hadamard_is_the_matrix(width: int) -> None:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < width:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    x = pairs("gaussian", 6, 1, width)[0]
    torch.testing.assert_close(ops.hadamard(x).double(), x.double() @ matrix / math.sqrt(width), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ops.hadamard(ops.hadamard(x)), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 8, 9, 31, 48, 63, 64, 65, 100, 257, 384])
def test_rotate_native(isa: str, width: int) -> None:
    signs = signs_for(width)
    for n, scale in zip((0, 1, 7, 20), SCALES):
        x = pairs("gaussian", n, 1, width)[0] * scale
        for inverse in (False, True):
            assert equal(ops.rotate(x, signs, inverse), reference.rotate(x, signs, inverse)), (n, inverse)


@pytest.mark.parametrize("width", [1, 3, 64, 100, 257])
def test_rotate_is_orthonormal(width: int) -> None:
    """Lengths and inner products stay, the inverse undoes it, and a single entry spreads over all."""
    x, signs = pairs("gaussian", 20, 1, width)[0], signs_for(width)
    y = ops.rotate(x, signs)
    torch.testing.assert_close(y @ y.mT, x @ x.mT, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ops.rotate(y, signs, inverse=True), x, rtol=1e-4, atol=1e-4)
    spike = ops.rotate(torch.eye(width)[:1], signs)
    assert width < 64 or float(spike.abs().max()) < 0.75


def test_rotate_threads_and_leading_axes(isa: str, threads: int) -> None:
    x, signs = pairs("gaussian", 600, 1, 100)[0], signs_for(100)
    want = reference.rotate(x, signs)
    assert equal(ops.rotate(x, signs), want)
    assert equal(ops.rotate(x.reshape(20, 30, 100), signs), want.reshape(20, 30, 100))
    assert equal(ops.hadamard(x[:, :64].reshape(30, 20, 64)), reference.hadamard(x[:, :64]).reshape(30, 20, 64))


@pytest.mark.parametrize("d", [1, 5, 8, 31, 130])
def test_segment_sum_native(isa: str, threads: int, d: int) -> None:
    g = torch.Generator().manual_seed(d)
    for n in (0, 1, 65, 257):
        for segments in (1, 3, 70):
            x, labels = torch.randn(n, d, generator=g) * 1e10, torch.randint(0, segments, (n,), generator=g)
            for weights in (None, torch.rand(n, generator=g), torch.zeros(n)):
                got, want = ops.segment_sum(x, labels, segments, weights), reference.segment_sum(x, labels, segments, weights)
                assert equal(got[0], want[0]) and equal(got[1], want[1]), (n, segments)


def test_segment_sum_adds_in_row_order() -> None:
    x = torch.tensor([[1e30], [1.0], [-1e30], [1.0]])
    sums, counts = ops.segment_sum(x, torch.tensor([1, 1, 1, 0]), 3)
    assert sums.flatten().tolist() == [1.0, 0.0, 0.0] and counts.tolist() == [1.0, 3.0, 0.0]


def test_refusals() -> None:
    with pytest.raises(ShapeError, match="project got"):
        ops.project(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ShapeError, match="power of two"):
        ops.hadamard(torch.zeros(3, 12))
    with pytest.raises(ShapeError, match="rotate got"):
        ops.rotate(torch.zeros(3, 12), torch.ones(4, 11))
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(ShapeError, match=r"0\.\.2 are allowed"):
            ops.segment_sum(torch.zeros(2, 2), torch.tensor(labels), 3)
    with pytest.raises(ShapeError, match="weights"):
        ops.segment_sum(torch.zeros(2, 2), torch.tensor([0, 1]), 3, torch.ones(3))
