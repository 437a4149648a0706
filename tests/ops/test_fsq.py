"""fsq_round and fsq_curve: every instruction set and number of threads gives the bits of the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from codeword.ops import dispatch, fsq
from tests.ops.conftest import equal

GRIDS = [[2], [3, 2, 4], [8, 5, 5, 5], [7, 5, 5, 5, 5], [256], [255, 33, 32], [2] * 32, [256] * 4]


def tables(grid: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Ascending edges and shifts; beyond a dimension's own edges stands what must not be read as one."""
    g = torch.Generator().manual_seed(seed)
    edges = torch.full((len(grid), max(grid) - 1), -9.0)
    for i, level in enumerate(grid):
        edges[i, :level - 1] = torch.randn(level - 1, generator=g).sort().values
    return edges, torch.randn(len(grid), generator=g)


def numbers(n: int, edges: Tensor, grid: list[int], seed: int = 1) -> Tensor:
    """Rows with edges themselves, their neighbours, NaN, infinities and zeros of both signs."""
    z = 1.5 * torch.randn(n, len(grid), generator=torch.Generator().manual_seed(seed))
    flat = z.view(-1)
    flat[::5] = edges[0, 0]
    flat[1::7] = torch.nextafter(edges[0, 0], torch.tensor(-math.inf))
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-41, 3e38])
    flat[2::11] = special.repeat(len(flat[2::11]) // 7 + 1)[:len(flat[2::11])]
    return z


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid[:5])))
def test_native_is_the_definition(isa: str, threads: int, grid: list[int]) -> None:
    edges, shift = tables(grid, 2)
    rise, steps = torch.arange(len(grid)) % 2 + 1.0, torch.tensor([float(level // 2) for level in grid])
    for n in (0, 1, 7, 15, 16, 17, 63, 100, 257, (1 << 16) // len(grid) + 5):
        z = numbers(n, edges, grid)
        got, want = fsq.fsq_round(z, edges, shift, rise, steps, grid), fsq.reference_round(z, edges, shift, rise, steps, grid)
        assert all(map(equal, got, want)), n
        assert not n or int(got[0].max()) < math.prod(grid)
        curve = torch.tanh(got[2])
        assert all(map(equal, fsq.fsq_curve(curve, got[1], shift, edges[:, 0]), fsq.reference_curve(curve, got[1], shift, edges[:, 0]))), n


def test_known_answers() -> None:
    edges, shift = torch.tensor([[-1.0, 1.0], [0.0, -9.0]]), torch.tensor([0.5, 0.0])
    z = torch.tensor([[-2.0, -0.1], [-1.0, 0.0], [3.0, math.nan]])
    token, values, shifted = fsq.fsq_round(z, edges, shift, torch.tensor([1.0, 2.0]), torch.ones(2), [3, 2])
    assert token.tolist() == [0, 1 + 3, 2]
    assert values[:2].tolist() == [[-1.0, -1.0], [0.0, 1.0]] and float(values[2, 0]) == 1.0 and math.isnan(values[2, 1])
    assert shifted[:2, 0].tolist() == [-1.5, -0.5]
    slope, gap = fsq.fsq_curve(torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([2.0, 1.0]), torch.tensor([0.5, 0.0]))
    assert slope.tolist() == [[1.5, 1.0]] and gap.tolist() == [1.25]


def test_the_module_refuses_what_it_cannot_number() -> None:
    module = dispatch.native()
    if module is None or not hasattr(module, "fsq_round"):
        pytest.skip("the compiled module is absent")
    z, edges, shift = np.zeros((3, 2), np.float32), np.zeros((2, 255), np.float32), np.zeros(2, np.float32)
    out = np.zeros(3, np.int64), np.zeros_like(z), np.zeros_like(z)
    for levels in ([1, 2], [257, 2], [2], [-5, 2]):
        with pytest.raises(ValueError):
            module.fsq_round(z, edges, shift, shift, shift, np.asarray(levels, np.int64), *out, 1)
    with pytest.raises(ValueError):  # an edge too few
        module.fsq_round(z, edges[:, :3].copy(), shift, shift, shift, np.asarray([5, 2]), *out, 1)
    wide, five = np.zeros((1, 5), np.float32), np.zeros(5, np.float32)
    with pytest.raises(ValueError, match=r"2\^32"):
        module.fsq_round(wide, np.zeros((5, 255), np.float32), five, five, five, np.full(5, 256), np.zeros(1, np.int64), wide.copy(),
                         wide.copy(), 1)
    with pytest.raises(ValueError):
        module.fsq_curve(z, z, shift, shift[:1], np.zeros_like(z), np.zeros(3, np.float32), 1)
    with pytest.raises(ValueError):
        module.fsq_curve(np.zeros((1, 33), np.float32), *[np.zeros((1, 33), np.float32)] * 4, np.zeros(1, np.float32), 1)
