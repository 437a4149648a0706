"""The losses of FQGAN against their definitions, and that their gradients arrive where they should."""

from __future__ import annotations

import math

import pytest
import torch

from codeword.errors import CodewordError, ShapeError
from codeword.parts.alignment import disentangle, info_nce


def outputs(count: int = 3) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.nn.functional.normalize(torch.randn(10, 4, generator=g), dim=1) for _ in range(count)]


def test_disentangle_is_the_mean_squared_cosine_over_pairs() -> None:
    a, b, c = outputs()
    pairs = [(x * y).sum(1).square().mean() for x, y in ((a, b), (a, c), (b, c))]
    assert float(disentangle([a, b, c])) == pytest.approx(float(sum(pairs)) / 3, rel=1e-6)
    assert float(disentangle([a, a])) == pytest.approx(1.0) and float(disentangle([a])) == 0.0
    square = torch.eye(4)
    assert float(disentangle([square, square.roll(1, 0)])) == 0.0


def test_disentangle_counts_kept_rows_and_moves_both_sides() -> None:
    a, b = (x.requires_grad_() for x in outputs(2))
    keep = torch.arange(10) < 6
    loss = disentangle([a, b], keep)
    assert float(loss.detach()) == pytest.approx(float(disentangle([a[:6].detach(), b[:6].detach()])), rel=1e-6)
    loss.backward()
    assert all(bool((x.grad[:6] != 0).any()) and bool((x.grad[6:] == 0).all()) for x in (a, b))
    assert float(disentangle([a[:0].detach(), b[:0].detach()])) == 0.0


def test_info_nce_is_its_definition() -> None:
    f, g = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1))
    cosines = (f @ g.mT) / (f.norm(dim=1, keepdim=True) * g.norm(dim=1))
    for temperature in (1.0, 0.1):
        expected = -torch.log_softmax(cosines / temperature, dim=1).diagonal().mean()
        torch.testing.assert_close(info_nce(f, g, temperature=temperature), expected)


def test_info_nce_has_the_least_value_it_says_and_leaves_targets_alone() -> None:
    f = torch.tensor([[1.0, 0], [-1, 0]], requires_grad=True)
    target = f.detach().clone().requires_grad_()
    loss = info_nce(f, target)
    assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-6)
    info_nce(f + 0.3, target).backward()
    assert target.grad is None and f.grad is not None and bool((f.grad != 0).any())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert info_nce(f, target).dtype == torch.float32 and torch.equal(info_nce(f, target), loss)


def test_bad_arguments() -> None:
    a, b = torch.zeros(3, 4), torch.zeros(3, 5)
    for call in (lambda: disentangle([a, b]), lambda: disentangle([]), lambda: info_nce(a, b), lambda: info_nce(a[:0], a[:0])):
        with pytest.raises(ShapeError):
            call()
    with pytest.raises(CodewordError):
        info_nce(a, a, temperature=0.0)
