"""adjust_code: never worse than its start, close to the exact optimum, and its kernel equal to its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from codeword import ops
from codeword.errors import ShapeError
from codeword.ops import adjust
from tests.ops.conftest import NATIVE, equal


def rows(n: int, dim: int, kind: str = "gaussian") -> Tensor:
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(n + dim))
    if kind == "integers":  # ties
        return (2 * x).round()
    if kind == "heavy":
        return x**5
    if kind == "largest":
        return (x * 1e38).clamp(-3.4e38, 3.4e38)
    if kind == "subnormal":
        return x * 1e-41
    if kind == "zero rows":
        return x * (torch.arange(n) % 2).unsqueeze(1)
    if kind == "spikes":
        return torch.nn.functional.one_hot(torch.arange(n) % dim, dim).float()
    if kind == "not finite":
        x[::3, 0], x[1::4, -1] = math.nan, -math.inf
    return x


def cosine(sums: Tensor) -> Tensor:
    return sums[..., 0] / (sums[..., 1] * sums[..., 2]).sqrt()


@pytest.mark.parametrize("kind", ["gaussian", "integers", "heavy", "largest", "subnormal", "zero rows", "spikes", "not finite"])
@pytest.mark.parametrize("dim", [1, 7, 63, 100, 257])
def test_kernel_equals_definition(isa: str, kind: str, dim: int) -> None:
    assert NATIVE is not None
    for n in (1, 33):
        x = rows(n, dim, kind)
        cuts = [dim] if dim < 4 else [dim // 3, dim // 4, dim - dim // 3 - dim // 4]
        for bits in ([1, 2, 3], [9, 5, 4], [13, 8, 1]):
            bits = bits[:len(cuts)]
            got, want = ops.adjust_code(x, cuts, bits, 5), adjust.reference(x, cuts, bits, 5)
            assert got[0].dtype == want[0].dtype and torch.equal(got[0].int(), want[0].int()), isa
            assert equal(got[1], want[1])
    steps = torch.rand(n, len(cuts), generator=torch.Generator().manual_seed(1)).double()
    steps[0] = 0
    got, want = ops.adjust_code(x, cuts, bits, 0, steps), adjust.reference(x, cuts, bits, 0, steps)
    assert torch.equal(got[0].int(), want[0].int()) and equal(got[1], want[1])


def test_same_codes_alone_and_on_any_number_of_threads(isa: str, threads: int) -> None:
    x = rows(150, 40)
    codes, sums = ops.adjust_code(x, [24, 16], [5, 2], 6)
    for i in (0, 31, 63, 64, 149):
        one, own = ops.adjust_code(x[i:i + 1], [24, 16], [5, 2], 6)
        assert torch.equal(one[0], codes[i]) and torch.equal(own[0], sums[i])


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 11])
def test_sums_are_those_of_the_code_and_the_cosine_never_falls(bits: int) -> None:
    x, before = rows(50, 96, "heavy" if bits == 7 else "gaussian"), None
    for rounds in range(7):
        codes, sums = ops.adjust_code(x, [96], [bits], rounds)
        odd = 2 * codes.double() - (2**bits - 1)
        assert torch.allclose((odd * x).sum(1), sums[:, 0, 0]) and torch.allclose(odd.square().sum(1), sums[:, 0, 1])
        now = cosine(sums[:, 0])
        assert before is None or bool((now >= before * (1 - 1e-13)).all())
        before = now
    if bits == 1:
        assert torch.equal(codes.int(), (x > 0).int())


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_close_to_the_exact_search(bits: int) -> None:
    x = rows(100, 256)
    magnitudes = (x.abs() / x.abs().amax(1, keepdim=True) * 2**30).round().to(torch.int32)
    odd = 2 * ops.grid_code(magnitudes, 1 << (bits - 1)).double() + 1
    best = (odd * x.abs()).sum(1) / (odd.norm(dim=1) * x.double().norm(dim=1))
    ours = cosine(ops.adjust_code(x, [256], [bits], 6)[1][:, 0])
    assert bool((ours <= best * (1 + 1e-9)).all())  # the exact search is one
    assert float((1 - ours.square()).mean() / (1 - best.square()).mean()) < 1.06


def test_refuses_other_inputs() -> None:
    x = torch.zeros(2, 5)
    for lengths, bits, rounds in (([5], [14], 1), ([4], [2], 1), ([5, 0], [1, 1], 1), ([5], [1, 1], 1), ([5], [2], -1)):
        with pytest.raises(ShapeError, match="adjust_code got"):
            ops.adjust_code(x, lengths, bits, rounds)
    with pytest.raises(ShapeError, match="steps"):
        ops.adjust_code(x, [5], [2], 1, torch.ones(2, 2, dtype=torch.float64))
    assert ops.adjust_code(x[:0], [5], [2], 1)[0].shape == (0, 5)
    assert ops.adjust_code(torch.zeros(3, 0), [], [], 1)[1].shape == (3, 0, 3)
