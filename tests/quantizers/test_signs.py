"""LFQ and BSQ: bit order, losses equal to those over all 2^d codes, the error bound on the sphere, and no tables."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import codeword
from codeword.errors import CodewordError, Unsupported
from codeword.quantizer import Codes, Quantizer

BOTH = (codeword.LFQ, codeword.BSQ)


def dense(rows: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sample entropy, batch entropy and the batch entropy of each bit alone, over an explicit codebook of signs, in float64."""
    p = torch.softmax(-torch.cdist(rows.double(), codebook).square() / temperature, dim=1)
    mean = p.mean(0)
    plus = torch.stack([mean[codebook[:, i] > 0].sum() for i in range(codebook.shape[1])])
    alone = (torch.special.entr(plus) + torch.special.entr(1 - plus)).sum()
    return torch.special.entr(p).sum(1).mean(), torch.special.entr(mean).sum(), alone


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cls", BOTH)
def test_every_code_is_found_again_and_the_first_dimension_is_the_lowest_bit(cls: type[Quantizer]) -> None:
    quantizer = cls(dim=5)
    points = torch.as_tensor(quantizer.decode(Codes(torch.arange(32).unsqueeze(1))))
    expected = torch.tensor([list(reversed(bits)) for bits in itertools.product((-1.0, 1.0), repeat=5)])
    assert torch.equal(points.sign(), expected) and quantizer.levels == (32,)
    assert torch.equal(torch.as_tensor(quantizer.encode(points).indices).flatten().long(), torch.arange(32))


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(("dim", "tokens", "sizes"), [(36, None, (18, 18)), (18, None, (18,)), (37, None, (13, 12, 12)), (36, 9, (4,) * 9),
                                                      (64, 2, (32, 32)), (7, 7, (1,) * 7), (33, 2, (17, 16)), (24, 1, (24,)),
                                                      (25, 1, (25,))])
def test_bits_form_even_tokens(cls: type[Quantizer], dim: int, tokens: int | None, sizes: tuple[int, ...]) -> None:
    quantizer, x = cls(dim=dim, num_codebooks=tokens), normal(50, dim)
    x[0] = 1.0  # the highest token
    assert quantizer.levels == tuple(2**size for size in sizes) and quantizer.nominal_bits == 1.0
    codes = quantizer.encode(x)
    assert torch.equal(torch.as_tensor(quantizer.decode(codes)).sign(), x.sign())
    whole = [sum(int(bit) << i for i, bit in enumerate(row)) for row in (x > 0)]  # tokens side by side are the vector's bits
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    assert [sum(int(t) << start for t, start in zip(row, starts, strict=True)) for row in torch.as_tensor(codes.indices).long()] == whole


def test_zero_is_minus_for_lfq_and_plus_for_bsq() -> None:
    zero = torch.zeros(1, 3)
    assert torch.equal(codeword.LFQ(dim=3)(zero).values, -torch.ones(1, 3))
    x = zero.clone().requires_grad_()
    out = codeword.BSQ(dim=3)(x)
    (out.values.sum() + out.loss).backward()
    torch.testing.assert_close(out.values.detach(), torch.full((1, 3), 3**-0.5))
    assert torch.equal(x.grad, zero)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_lfq_loss_is_the_formula_over_all_codes(bits: int) -> None:
    scale, tau, gamma = 0.8, 0.9, 0.7
    quantizer = codeword.LFQ(dim=bits, scale=scale, temperature=tau, gamma=gamma, entropy_weight=0.3, commitment=0.2)
    z = (normal(60, bits) * 0.5).requires_grad_()
    codebook = torch.as_tensor(quantizer.decode(Codes(torch.arange(2**bits).unsqueeze(1)))).double()
    sample, batch, _ = dense(z, codebook, tau)
    out = quantizer(z)
    commit = (z - out.values.detach()).square().mean()
    expected = 0.3 * (sample - gamma * batch) + 0.2 * commit
    torch.testing.assert_close(out.loss.double(), expected.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.stats["sample_entropy"].double(), sample.detach(), rtol=1e-5, atol=1e-6)
    for a, b in zip(torch.autograd.grad(out.loss, z), torch.autograd.grad(expected, z), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bits", [2, 8])
def test_bsq_loss_is_the_formula_with_each_bit_alone(bits: int) -> None:
    quantizer = codeword.BSQ(dim=bits, temperature=0.4, gamma0=0.6, gamma=0.9, entropy_weight=0.5)
    z = (normal(60, bits) * 3).requires_grad_()
    codebook = torch.as_tensor(quantizer.decode(Codes(torch.arange(2**bits).unsqueeze(1)))).double()
    u = torch.nn.functional.normalize(z, dim=1)
    sample, joint, alone = dense(u, codebook, 0.4)
    out, expected = quantizer(z), 0.5 * (0.6 * sample - 0.9 * alone)
    torch.testing.assert_close(out.loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert float(out.stats["batch_entropy"]) >= float(joint.detach()) - 1e-6
    for a, b in zip(torch.autograd.grad(out.loss, z), torch.autograd.grad(expected, z), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dim", [2, 9, 18, 36])
def test_bsq_error_is_bounded(dim: int) -> None:
    quantizer = codeword.BSQ(dim=dim)
    u = torch.nn.functional.normalize(normal(20000, dim), dim=1)
    error = (u - torch.as_tensor(quantizer.decode(quantizer.encode(u)))).double().square().sum(1)
    torch.testing.assert_close(error, 2 - 2 * u.double().abs().sum(1) / math.sqrt(dim), rtol=1e-5, atol=1e-5)
    bound = 2 - 2 / math.sqrt(dim)
    assert float(error.max()) <= bound + 1e-6
    axes = torch.cat((torch.eye(dim), -torch.eye(dim)))
    worst = (axes - torch.as_tensor(quantizer.decode(quantizer.encode(axes)))).square().sum(1)
    torch.testing.assert_close(worst, torch.full((2 * dim,), bound), rtol=1e-5, atol=1e-5)


def test_bsq_codes_and_values_do_not_see_the_length() -> None:
    quantizer, x = codeword.BSQ(dim=6), normal(40, 6)
    for factor in (1e-30, 1e-3, 1e18, 1e37):
        out = quantizer(x * factor)
        assert torch.equal(out.values, quantizer(x).values)
        torch.testing.assert_close(out.loss, quantizer(x).loss)


def test_bsq_gradient_is_that_of_the_direction() -> None:
    quantizer, x, g = codeword.BSQ(dim=4, entropy_weight=0.0), normal(10, 4).requires_grad_(), normal(10, 4, seed=1)
    y = x.detach().clone().requires_grad_()
    (quantizer(x).values * g).sum().backward()
    (torch.nn.functional.normalize(y, dim=1) * g).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert float((x.grad * x.detach()).sum(1).abs().max()) < 1e-5


def test_lfq_gradient_passes_straight_through() -> None:
    x = normal(10, 4).requires_grad_()
    codeword.LFQ(dim=4, commitment=0.0, entropy_weight=0.0)(x).values.sum().backward()
    assert torch.equal(x.grad, torch.ones(10, 4))


@pytest.mark.parametrize("cls", BOTH)
def test_wide_codes_train_without_a_table(cls: type[Quantizer]) -> None:
    """2^200 codes: anything as large as the codebook would not exist."""
    quantizer, x = cls(dim=200).train(), normal(64, 200).requires_grad_()
    out = quantizer(x)
    (out.values.square().sum() + out.loss).backward()
    assert bool(torch.isfinite(x.grad).all()) and quantizer.state_dict() == {} and quantizer.shared_bytes == 0
    assert sum(buffer.numel() for buffer in quantizer.buffers()) == 0


@pytest.mark.parametrize("cls", BOTH)
def test_the_entropy_loss_spreads_the_codes(cls: type[Quantizer]) -> None:
    """Minimised alone on latents that all share one code, it makes them use most codes."""
    quantizer = cls(dim=4, temperature=1.0, entropy_weight=1.0)
    z = (0.3 + 0.1 * normal(256, 4)).requires_grad_()
    first = quantizer(z).stats["usage"]
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        quantizer(z).loss.backward()
        optimizer.step()
    assert float(first) <= 2 / 16 and float(quantizer(z).stats["usage"]) >= 12 / 16


def test_no_vectors_and_bad_arguments() -> None:
    for cls in BOTH:
        assert cls.for_bits(20, 1).nominal_bits == 1
        with pytest.raises(Unsupported, match="projected"):
            cls.for_bits(20, 2)
        for options in ({"dim": 0}, {"dim": 1 << 17}, {"dim": 70, "num_codebooks": 2}, {"dim": 4, "num_codebooks": 5},
                        {"dim": 4, "temperature": 0.0}, {"dim": 4, "gamma": -1.0}, {"dim": 4, "entropy_weight": -1.0}):
            with pytest.raises(CodewordError):
                cls(**options)
    for options in ({"scale": 0.0}, {"commitment": -1.0}, {"entropy_bits": 0}, {"entropy_bits": 19}):
        with pytest.raises(CodewordError):
            codeword.LFQ(dim=4, **options)


def test_the_order_of_bits_turns_each_token_round() -> None:
    x = torch.randn(20, 7, generator=torch.Generator().manual_seed(3))
    for count in (1, 3, 7):
        low, high = (codeword.LFQ(dim=7, num_codebooks=count, bit_order=order) for order in ("low", "high"))
        a, b = low.encode(x), high.encode(x)
        for t, size in enumerate(low._sizes):
            assert [int(f"{int(i):0{size}b}"[::-1], 2) for i in a.indices[:, t]] == b.indices[:, t].tolist()
        assert torch.equal(low.decode(a), high.decode(b)) and torch.equal(high.decode(b), high.train()(x).values.detach())
    with pytest.raises(CodewordError, match="bit_order"):
        codeword.LFQ(dim=4, bit_order="big")
