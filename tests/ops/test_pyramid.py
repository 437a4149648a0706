"""The pyramid's kernels equal their definitions bit for bit; what cannot be is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codeword import ops
from codeword.errors import ShapeError
from codeword.ops import dispatch
from codeword.ops import pyramid as op
from codeword.parts import pyramid

NATIVE = pytest.mark.skipif(dispatch.native() is None or not hasattr(dispatch.native(), "pyramid_project"),
                            reason="the native module is not built")
SHAPES = [(1, 3), (2, 5), (7, 6), (8, 12), (16, 16), (63, 5), (100, 4)]  # group, pulses


def groups(n: int, dim: int) -> torch.Tensor:
    """Normal groups, and among them what is odd: zeros, ties, one entry, NaN, infinity, subnormal and enormous ones."""
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(n + dim))
    odd = [torch.zeros(dim), torch.ones(dim), -torch.ones(dim), torch.eye(dim)[-1] * -3, torch.full((dim,), torch.nan),
           torch.full((dim,), torch.inf), torch.full((dim,), 1e-42), torch.full((dim,), 3e38), x[:1].round().flatten(),
           x[:1].flatten() ** 9]
    for i, row in enumerate(odd if n else ()):
        if 2 * i + 1 < n:
            x[2 * i + 1] = row
    return x


@pytest.fixture
def each_isa():
    module = dispatch.native()
    yield lambda: (module.set_isa(isa) or isa for isa in module.runnable_isas())
    module.set_isa("")


@NATIVE
@pytest.mark.parametrize("n", [0, 1, 7, 63, 100, 257])
@pytest.mark.parametrize(("dim", "pulses"), SHAPES)
def test_native_equals_reference(n: int, dim: int, pulses: int, each_isa) -> None:
    module, x = dispatch.native(), groups(n, dim)
    points, gains = op.reference_project(x, pulses)
    counts, sums = pyramid.tables(dim, pulses)
    index = op.reference_number(points, counts, sums)
    assert torch.equal(op.reference_point(index, counts, sums), points)
    for isa in each_isa():
        for threads in (1, 2):
            y, g, i, z = torch.empty_like(points), torch.empty_like(gains), torch.empty_like(index), torch.empty_like(points)
            module.pyramid_project(x.numpy(), pulses, y.numpy(), g.numpy(), threads)
            assert torch.equal(y, points) and torch.equal(g.view(torch.int64), gains.view(torch.int64)), isa
            module.pyramid_number(points.numpy(), counts.numpy(), sums.numpy(), i.numpy(), threads)
            module.pyramid_point(index.numpy(), counts.numpy(), sums.numpy(), z.numpy(), threads)
            assert torch.equal(i, index) and torch.equal(z, points), isa


@NATIVE
@pytest.mark.parametrize(("dim", "pulses"), [(3, 4), (2, 9), (5, 3)])
def test_every_point_has_its_number(dim: int, pulses: int, each_isa) -> None:
    counts, sums = pyramid.tables(dim, pulses)
    every = torch.arange(pyramid.sizes(dim, 1 << 40)[pulses - 1])
    for _ in each_isa():
        points = op.point(every, counts, sums)
        assert bool((points.abs().sum(1) == pulses).all()) and len(torch.unique(points, dim=0)) == len(every)
        assert torch.equal(op.number(points, counts, sums), every)


def test_bad_arguments() -> None:
    for x, pulses in ((torch.zeros(3), 2), (torch.zeros(3, 4).double(), 2), (torch.zeros(3, 0), 2), (torch.zeros(3, 4), 0)):
        with pytest.raises(ShapeError):
            op.project(x, pulses)
    module = dispatch.native()
    if module is None or not hasattr(module, "pyramid_project"):
        return
    counts, sums = (t.numpy() for t in pyramid.tables(4, 3))
    points, index = np.zeros((1, 4), np.int64), np.zeros(1, np.int64)
    for bad in ([1, 1, 0, 0], [4, -1, 0, 0], [1 << 62, 1 << 62, 0, 0], [-(1 << 63), 0, 0, 0]):
        with pytest.raises(ValueError, match="norm"):
            module.pyramid_number(np.array([bad], np.int64), counts, sums, index, 1)
    with pytest.raises(ValueError):
        module.pyramid_point(index, counts[:, :0], sums[:, :0], points, 1)
    for hostile in (-(1 << 63), (1 << 63) - 1, 1 << 40):  # not an index: some numbers come back, nothing is read out of bounds
        module.pyramid_point(np.array([hostile]), counts, sums, points, 1)
    if ops.choice("pyramid_point") == "native":
        assert ops.self_check()["pyramid_point"]
