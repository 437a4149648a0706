"""Entropy losses: equal to their dense definitions in value and gradient, blockwise, masked, and without cancellation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from codeword.errors import CodewordError, ShapeError
from codeword.parts import entropy


def dense(rows: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    p = torch.softmax(-torch.cdist(rows, codebook).square() / temperature, dim=1)
    return torch.special.entr(p).sum(1).mean(), torch.special.entr(p.mean(0)).sum()


def corners(bits: int, scale: float) -> Tensor:
    """All sign codes (2^bits, bits), the first bit slowest."""
    return torch.tensor(list(itertools.product((-scale, scale), repeat=bits)), dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("entries", [1, 7, 40, 1 << 22], ids=str)
def test_codebook_entropies_are_the_dense_formula(entries: int, monkeypatch) -> None:
    monkeypatch.setattr(entropy, "BLOCK_ENTRIES", entries)
    rows, book = normal(23, 3).requires_grad_(), normal(7, 3, seed=1).requires_grad_()
    ours, theirs = entropy.codebook_entropies(rows, book, 0.7), dense(rows, book, 0.7)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    weights = (0.3, -0.8)
    mine, other = (torch.autograd.grad(weights[0] * sample + weights[1] * batch, (rows, book)) for sample, batch in (ours, theirs))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)


def test_codebook_entropies_pass_gradcheck() -> None:
    rows, book = normal(5, 2).requires_grad_(), normal(4, 2, seed=1).requires_grad_()
    keep = torch.tensor([True, False, True, True, False])
    assert torch.autograd.gradcheck(lambda x, c: entropy.codebook_entropies(x, c, 0.5, keep), (rows, book))
    assert torch.autograd.gradcheck(lambda x, c: entropy.difference(*entropy.codebook_entropies(x, c, 0.5), 0.7), (rows, book))


def test_masked_rows_are_absent() -> None:
    rows, book, keep = normal(9, 3), normal(5, 3, seed=1), torch.arange(9) % 3 > 0
    for function in (lambda x, k: entropy.codebook_entropies(x, book, 0.3, k), lambda x, k: entropy.sign_entropies(x, k, group=2)):
        twin = rows.clone().requires_grad_()
        with_mask, alone = function(twin, keep), function(rows[keep], None)
        for a, b in zip(with_mask, alone, strict=True):
            torch.testing.assert_close(a, b)
        (grad,) = torch.autograd.grad(with_mask[0] + with_mask[1], twin)
        assert bool((grad[~keep] == 0).all()) and bool((grad[keep] != 0).any())
        nothing = function(twin, torch.zeros(9, dtype=torch.bool))
        assert [float(v.detach()) for v in nothing] == [0.0, 0.0]
        assert bool((torch.autograd.grad(nothing[0] + nothing[1], twin)[0] == 0).all())
        assert [float(v) for v in function(rows[:0], None)] == [0.0, 0.0]


def test_far_from_the_origin_nothing_cancels() -> None:
    rows, book = normal(50, 4).float(), normal(6, 4, seed=1).float()
    near = entropy.codebook_entropies(rows, book, 0.5)
    far = entropy.codebook_entropies(rows + 1024, book + 1024, 0.5)  # 1024 costs the rows 10 bits of their own
    for a, b in zip(near, far, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_no_table_outlives_its_block() -> None:
    rows, book = normal(64, 2).float().requires_grad_(), normal(1 << 14, 2, seed=1).float()
    saved: list[int] = []

    def remember(t: Tensor) -> Tensor:
        saved.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda t: t):
        sample, _ = entropy.codebook_entropies(rows, book, 1.0)
    assert max(saved) <= book.numel() and float(sample.detach()) > 0


@pytest.mark.parametrize(("bits", "scale", "temperature"), [(1, 1.0, 0.5), (3, 0.5, 0.2), (8, 1.0, 1.3), (10, 10**-0.5, 0.4)])
def test_sign_entropies_are_the_dense_formula_over_all_codes(bits: int, scale: float, temperature: float) -> None:
    z = (normal(40, bits) * 0.3).requires_grad_()
    theirs = dense(z, corners(bits, scale), temperature)
    ours = entropy.sign_entropies(4 * scale * z / temperature, group=bits)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    mine, other = (torch.autograd.grad(entropy.difference(*values, 0.7), z)[0] for values in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_smaller_groups_bound_the_joint_entropy_from_above() -> None:
    z = normal(30, 1) + 0.4 * normal(30, 12, seed=2)  # bits that agree more often than not
    batches = [float(entropy.sign_entropies(z * 3, group=group)[1]) for group in (12, 6, 3, 1)]
    assert batches == sorted(batches) and batches[0] < batches[-1] - 0.1 and batches[-1] <= 12 * math.log(2) + 1e-12
    assert float(entropy.sign_entropies(z * 3, group=5)[1]) >= batches[0]  # 5, 5 and 2 bits
    alone = [float(entropy.sign_entropies(z[:, part] * 3, group=5)[1]) for part in (slice(0, 5), slice(5, 10), slice(10, 12))]
    assert float(entropy.sign_entropies(z * 3, group=5)[1]) == pytest.approx(sum(alone))


def test_certain_bits_have_finite_gradients() -> None:
    logits = torch.tensor([[400.0, -3e38, 0.0], [400.0, -1e4, 1e-30]], requires_grad=True)
    for group in (1, 2, 3):
        sample, batch = entropy.sign_entropies(logits, group=group)
        (grad,) = torch.autograd.grad(entropy.difference(sample, batch), logits)
        assert bool(torch.isfinite(grad).all())
        assert [float(v.detach()) for v in (sample, batch)] == pytest.approx([math.log(2)] * 2)


def test_bit_entropy_in_float32_is_that_of_float64() -> None:
    logits = torch.linspace(-80, 80, 321, requires_grad=True)
    twin = logits.detach().double()
    middle = twin.abs() < 20  # farther out the plain formula is the one that cancels
    plain = torch.special.entr(torch.sigmoid(twin)) + torch.special.entr(torch.sigmoid(-twin))
    found = entropy.bit_entropy(logits).detach().double()
    torch.testing.assert_close(found[middle], plain[middle], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[~middle], (1 + twin.abs()[~middle]) * torch.exp(-twin.abs()[~middle]), rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(entropy.bit_entropy(logits).sum(), logits)
    torch.testing.assert_close(grad.double(), -twin * torch.sigmoid(twin) * torch.sigmoid(-twin), rtol=1e-4, atol=0)


def test_they_compile() -> None:
    rows, book = normal(6, 3).float().requires_grad_(), normal(4, 3, seed=1).float().requires_grad_()

    def loss(x: Tensor, c: Tensor) -> Tensor:
        return entropy.difference(*entropy.codebook_entropies(x, c, 0.5)) + entropy.difference(*entropy.sign_entropies(x, group=2))

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(rows, book)
    torch.testing.assert_close(compiled, loss(rows, book))
    for a, b in zip(torch.autograd.grad(compiled, (rows, book)), torch.autograd.grad(loss(rows, book), (rows, book)), strict=True):
        torch.testing.assert_close(a, b)


def test_bad_arguments() -> None:
    x = torch.zeros(2, 3)
    for call in (lambda: entropy.codebook_entropies(x, torch.zeros(2, 2), 1.0), lambda: entropy.codebook_entropies(x, x[:0], 1.0),
                 lambda: entropy.sign_entropies(x[0]), lambda: entropy.sign_entropies(x[:, :0])):
        with pytest.raises(ShapeError):
            call()
    for call in (lambda: entropy.codebook_entropies(x, x, 0.0), lambda: entropy.codebook_entropies(x, x, math.nan),
                 lambda: entropy.sign_entropies(x, group=0), lambda: entropy.sign_entropies(x, group=19)):
        with pytest.raises(CodewordError):
            call()
