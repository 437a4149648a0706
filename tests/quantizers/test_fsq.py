"""FSQ: the grid and its order, the edges against the formulas, gradients of the tanh."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import codeword
from codeword.errors import CodewordError, Unsupported
from codeword.quantizer import Codes

GRIDS = [[2], [3], [4], [16], [2, 2, 2], [8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [3, 2, 4], [256], [255, 2]]


def formula(z: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
    """b(z) and its rounded digit, in float64, straight from the paper (2 levels: the symmetric form)."""
    z = z.double()
    if level == 2:
        return torch.tanh(z), torch.floor((torch.tanh(z) + 1) / 2 + 0.5)
    h, o = (level - 1) * (1 - 1e-3) / 2, 0.5 if level % 2 == 0 else 0.0
    b = h * torch.tanh(z + math.atanh(o / h)) - o
    return b, torch.round(b) + level // 2


def middles(quantizer: codeword.FSQ, i: int) -> torch.Tensor:
    """A z inside each cell of dimension i: half way between its edges, or one beyond the outermost."""
    edges = quantizer.edges[i, :quantizer.grid[i] - 1]
    return torch.cat((edges[:1] - 1, (edges[1:] + edges[:-1]) / 2, edges[-1:] + 1))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_code_decodes_to_its_own_point(grid: list[int]) -> None:
    quantizer = codeword.FSQ(dim=len(grid), grid=grid)
    size = math.prod(grid)
    assert quantizer.levels == (size,)
    points = quantizer.decode(Codes(torch.arange(size).unsqueeze(1)))
    assert len(torch.unique(points, dim=0)) == size and float(points.abs().max()) == 1.0
    # mixed radix, the first dimension is fastest
    axes = [[-1.0, 1.0] if level == 2 else [(j - level // 2) / (level // 2) for j in range(level)] for level in grid]
    expected = [list(reversed(point)) for point in itertools.product(*reversed(axes))]
    assert torch.equal(points, torch.tensor(expected))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_code_is_reached_and_found_again(grid: list[int]) -> None:
    quantizer = codeword.FSQ(dim=len(grid), grid=grid)
    size = math.prod(grid)
    indices = torch.arange(size).unsqueeze(1)
    digits = torch.stack([indices[:, 0] // math.prod(grid[:i]) % level for i, level in enumerate(grid)], dim=1)
    z = torch.stack([middles(quantizer, i)[digits[:, i]] for i in range(len(grid))], dim=1)
    assert torch.equal(quantizer.encode(z).indices.to(torch.int64), indices)


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8, 15, 16, 64, 255, 256])
def test_edges_are_where_the_formula_rounds_up(level: int) -> None:
    quantizer = codeword.FSQ(dim=1, grid=[level])
    z = torch.linspace(-6, 6, 20001).unsqueeze(1)
    digits = quantizer.encode(z).indices.to(torch.float64)
    expected = formula(z, level)[1]
    edges = quantizer.edges[0, :level - 1]
    away = ((z - edges).abs() > 1e-5).all(1)  # at an edge itself a rounding decides
    assert bool(away.sum() > 15000) and torch.equal(digits[away], expected[away])
    assert bool((edges[1:] > edges[:-1]).all())
    # the float32 edge and its neighbour below fall on different sides
    below = torch.nextafter(edges, torch.tensor(-math.inf))
    assert torch.equal(quantizer.encode(edges.unsqueeze(1)).indices.flatten().long(), torch.arange(1, level))
    assert torch.equal(quantizer.encode(below.unsqueeze(1)).indices.flatten().long(), torch.arange(level - 1))


def test_symmetries_of_the_grid() -> None:
    odd, even, two = (codeword.FSQ(dim=1, grid=[level]) for level in (5, 4, 2))
    zero = torch.zeros(1, 1)
    assert float(odd(zero).values) == 0.0 and float(even(zero).values) == 0.0 and float(two(zero).values) == 1.0
    z = torch.tensor([[10.0], [-10.0]])
    assert odd(z).values.flatten().tolist() == [1.0, -1.0]
    assert even(z).values.flatten().tolist() == [0.5, -1.0]
    assert two(z).values.flatten().tolist() == [1.0, -1.0]


@pytest.mark.parametrize("grid", [[2], [3], [4], [8, 5], [2, 3, 16]], ids=str)
def test_gradient_is_that_of_the_smooth_curve(grid: list[int]) -> None:
    torch.manual_seed(0)
    quantizer = codeword.FSQ(dim=len(grid), grid=grid)
    z = torch.randn(50, len(grid), requires_grad=True)
    out = quantizer(z)
    out.values.sum().backward()
    twin = z.detach().double().requires_grad_()
    smooth = torch.stack([formula(twin[:, i], level)[0] / (level // 2) for i, level in enumerate(grid)], dim=1)
    smooth.sum().backward()
    torch.testing.assert_close(z.grad.double(), twin.grad, rtol=1e-4, atol=1e-6)
    assert float((out.values - smooth).detach().abs().max()) <= 1.0 + 1e-6 and float(out.loss) == 0.0


def test_values_lie_half_a_step_from_the_curve() -> None:
    z = torch.linspace(-4, 4, 999).unsqueeze(1)
    for level in (3, 4, 5, 8, 16, 255):
        out = codeword.FSQ(dim=1, grid=[level])(z)
        gap = out.values.double() * (level // 2) - formula(z, level)[0]
        assert float(gap.abs().max()) <= 0.5 + 1e-4


def test_codes_do_not_depend_on_the_place_in_the_batch() -> None:
    quantizer = codeword.FSQ(dim=3, grid=[255, 256, 7])
    z = torch.randn(1, 3, generator=torch.Generator().manual_seed(1)) * 0.5
    alone = quantizer(z)
    for n in (2, 7, 8, 9, 31, 64, 65):  # every lane of a vector register
        many = quantizer(z.expand(n, 3).contiguous())
        assert torch.equal(many.codes.indices, alone.codes.indices.expand(n, 1))
        assert torch.equal(many.values, alone.values.expand(n, 3))


def test_half_precision_uses_every_code() -> None:
    """bfloat16 holds integers to 256 only; a grid that computes in it loses half of its codes."""
    grid = [8, 5, 5, 5]
    quantizer = codeword.FSQ(dim=4, grid=grid).to(torch.bfloat16)
    tokens = torch.arange(1000)
    z = torch.stack([middles(quantizer, i)[tokens // math.prod(grid[:i]) % level] for i, level in enumerate(grid)], dim=1)
    z = z.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(z)
    assert torch.equal(out.codes.indices.flatten().long(), tokens) and out.values.dtype == torch.bfloat16


@pytest.mark.parametrize(("bits", "grid"), [(1, [2]), (2, [4]), (3, [8]), (4, [16]), (8, [256]), (2.5, [6, 5]), (1.5, [4, 2])])
def test_dial(bits: float, grid: list[int]) -> None:
    quantizer = codeword.FSQ.for_bits(24, bits)
    assert quantizer.grid == grid and quantizer.nominal_bits == bits


def test_fractional_dials_waste_little() -> None:
    for group in range(2, 9):
        for total in range(group + 1, min(32, 8 * group)):
            quantizer = codeword.FSQ.for_bits(840, total / group)
            assert quantizer.nominal_bits == pytest.approx(total / group)
            assert math.log2(quantizer.levels[0]) > len(quantizer.grid) * total / group - 1


@pytest.mark.parametrize("options", [{"grid": [1]}, {"grid": []}, {"grid": [257]}, {"grid": [256] * 5}, {"grid": [4, 4], "dim": 3},
                                     {"grid": 4}, {"grid": "44"}, {"grid": [2] * 33, "dim": 33}, {"grid": [4], "dim": 1 << 17}])
def test_bad_grids(options: dict) -> None:
    with pytest.raises(CodewordError):
        codeword.FSQ(**{"dim": len(options["grid"]) if isinstance(options["grid"], list) else 4, **options})


def test_dial_refuses_what_it_cannot_hit() -> None:
    for dim, bits in ((8, 0.5), (8, 9), (7, 2.5), (8, 2.3)):
        with pytest.raises(Unsupported):
            codeword.FSQ.for_bits(dim, bits)


def test_nothing_is_stored() -> None:
    quantizer = codeword.FSQ(dim=8, grid=[8, 5])
    assert quantizer.fitted and quantizer.state_dict() == {} and quantizer.shared_bytes == 0 and not quantizer.input_space


def test_usage_counts_all_positions() -> None:
    stats = codeword.FSQ(dim=2, grid=[4])(torch.tensor([[-9.0, 0.0], [9.0, 0.0]])).stats
    assert float(stats["usage"]) == 0.75 and float(stats["perplexity"]) == pytest.approx(2**1.5)


@pytest.mark.parametrize("grid", [[2], [3], [4], [8, 5], [256]], ids=str)
def test_noise_is_half_a_step_and_its_gradient_the_curves(grid: list[int]) -> None:
    z = torch.linspace(-3, 3, 400 * len(grid)).reshape(-1, len(grid))
    plain, noisy = codeword.FSQ(dim=len(grid), grid=grid), codeword.FSQ(dim=len(grid), grid=grid, noise=1.0)
    assert torch.equal(noisy.eval()(z).values, plain(z).values)
    torch.manual_seed(0)
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    out, reference = noisy.train()(x), plain(y)
    out.values.sum().backward()
    reference.values.sum().backward()
    assert torch.equal(out.codes.indices, reference.codes.indices) and torch.equal(x.grad, y.grad)
    smooth = torch.stack([formula(z[:, i], level)[0] / (level // 2) for i, level in enumerate(grid)], dim=1)
    step = torch.tensor([2.0 if level == 2 else 1 / (level // 2) for level in grid])
    moved = (out.values.detach() - smooth) / step
    assert float(moved.abs().max()) <= 0.5 + 1e-4 and float(moved.std()) == pytest.approx(12**-0.5, rel=0.1)


def test_noise_replaces_its_share_of_the_roundings() -> None:
    z = torch.randn(20000, 1, generator=torch.Generator().manual_seed(0))
    quantizer = codeword.FSQ(dim=1, grid=[5], noise=0.25)
    torch.manual_seed(1)
    rounded = torch.isclose(quantizer.train()(z).values, quantizer.eval()(z).values, atol=1e-7)
    assert float(rounded.float().mean()) == pytest.approx(0.75, abs=0.02)
    for noise in (-0.1, 1.5):
        with pytest.raises(CodewordError, match="noise"):
            codeword.FSQ(dim=1, grid=[5], noise=noise)


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8, 16, 255, 256])
def test_other_curves(level: int) -> None:
    """Their definitions in float64: "outer" as the paper's with eps turned round, "symmetric" after Parker et al."""
    z = torch.linspace(-6, 6, 4001)
    symmetric = codeword.FSQ(dim=1, grid=[level], curve="symmetric")
    raised = (level - 1) * (torch.tanh(z.double()) + 1) / 2 + 0.5
    away = (raised - raised.round()).abs() > 1e-6
    out = symmetric(z.unsqueeze(1).requires_grad_())
    values = 2 / (level - 1) * torch.floor(raised) - 1
    assert torch.equal(out.codes.indices.flatten().long()[away], torch.floor(raised).long()[away])
    torch.testing.assert_close(out.values.flatten().detach().double()[away], values[away], rtol=0, atol=1e-6)
    assert float(out.stats["error"]) == pytest.approx(float((values - torch.tanh(z.double())).square().mean()), rel=1e-3)
    twin = z.clone().requires_grad_()
    symmetric(twin.unsqueeze(1)).values.sum().backward()
    torch.testing.assert_close(twin.grad, 1 - torch.tanh(z).square(), rtol=1e-4, atol=1e-6)
    if level > 2:
        h, o = (level - 1) * (1 + 1e-3) / 2, 0.5 if level % 2 == 0 else 0.0
        b = h * torch.tanh(z.double() + math.atanh(o / h)) - o
        away = ((b - b.floor()) - 0.5).abs() > 1e-5
        outer = codeword.FSQ(dim=1, grid=[level], curve="outer")
        assert torch.equal(outer.encode(z.unsqueeze(1)).indices.flatten().long()[away], (torch.round(b) + level // 2).long()[away])
        assert torch.equal(outer.decode(outer.encode(z.unsqueeze(1))).flatten()[away], (torch.round(b) / (level // 2)).float()[away])
    with pytest.raises(CodewordError, match="curve"):
        codeword.FSQ(dim=1, grid=[level], curve="round")
