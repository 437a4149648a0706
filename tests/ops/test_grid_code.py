"""grid_code: the exact optimum, and its kernel equal to its definition."""

from __future__ import annotations

import itertools

import pytest
import torch

from codeword import ops
from codeword.errors import ShapeError
from codeword.ops import dispatch, grid


def integers(x: torch.Tensor) -> torch.Tensor:
    """int32 magnitudes with the largest of each row at 2^30."""
    return (x.double() / x.amax(1, keepdim=True).double().clamp(min=1e-300) * grid.TOP).round().to(torch.int32)


def score(a: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    odd = 2 * cells.double() + 1
    return (odd * a.double()).sum(-1).square() / odd.square().sum(-1)


@pytest.mark.parametrize(("dim", "cells"), [(1, 8), (2, 16), (3, 8), (4, 4), (6, 2)])
def test_no_other_grid_point_is_closer_in_direction(dim: int, cells: int) -> None:
    a = integers(torch.randn(40, dim, generator=torch.Generator().manual_seed(dim)).abs())
    every = torch.tensor(list(itertools.product(range(cells), repeat=dim)))
    best = score(a.unsqueeze(1), every).amax(1)
    assert torch.allclose(score(a, grid.reference(a, cells)), best, rtol=1e-13)


@pytest.mark.parametrize("cells", [2, 8, 64])
def test_no_scale_on_a_fine_grid_does_better(cells: int) -> None:
    a = integers(torch.randn(8, 24, generator=torch.Generator().manual_seed(1)).abs())
    t = torch.linspace(0, 3 * cells / grid.TOP, 4000, dtype=torch.float64)
    tried = (t[:, None, None] * a.double()).floor().clamp(max=cells - 1)
    assert bool((score(a, grid.reference(a, cells)) >= score(a, tried).amax(0) * (1 - 1e-12)).all())


def cases(dim: int, rows: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(dim)
    spike = torch.zeros(1, dim, dtype=torch.int32)
    spike[0, 0] = grid.TOP
    return [integers(torch.randn(rows, dim, generator=g).abs()), integers(torch.randint(0, 9, (rows, dim), generator=g).float()),
            integers(torch.randn(rows, dim, generator=g).abs() ** 6), integers(torch.ones(2, dim)), spike, spike.clamp(min=1), 0 * spike]


@pytest.mark.skipif(dispatch.native() is None or not hasattr(dispatch.native(), "grid_code"), reason="the native module is not built")
@pytest.mark.parametrize("dim", [1, 2, 7, 33, 100])
@pytest.mark.parametrize("cells", [2, 4, 16, 128, 256])
def test_kernel_equals_definition(dim: int, cells: int) -> None:
    module = dispatch.native()
    assert module is not None
    for a in cases(dim, 2 if dim * cells > 8000 else 6):
        expected = grid.reference(a, cells)
        for isa in module.runnable_isas():
            module.set_isa(isa)
            out = torch.empty_like(expected)
            module.grid_code(a.numpy(), cells, out.numpy(), 2)
            assert torch.equal(out, expected), isa
    module.set_isa("")


def test_refuses_other_inputs() -> None:
    with pytest.raises(ShapeError, match="int32"):
        ops.grid_code(torch.zeros(2, 3), 4)
    with pytest.raises(ShapeError, match=r"0\.\.1073741824"):
        ops.grid_code(torch.full((2, 3), -1, dtype=torch.int32), 4)
    assert ops.grid_code(torch.zeros(0, 3, dtype=torch.int32), 4).shape == (0, 3)
