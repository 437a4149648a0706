"""Affine: its maps are what they are said to be, fitted and trained, and PCA is found again where the quantizer loses nothing."""

from __future__ import annotations

import pytest
import torch

import codeword
from codeword.errors import CodewordError


def rows(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=g) @ torch.randn(dim, dim, generator=g) + 3


def test_values_are_the_formula() -> None:
    x = rows(60, 5)
    quantizer = codeword.Affine(quantizer=codeword.FSQ(dim=3, grid=[5]), dim=5).fit(x)
    inner = quantizer.quantizer
    y = x @ quantizer.weight_in.T + quantizer.bias_in
    v = torch.as_tensor(inner.decode(inner.encode(y)))
    torch.testing.assert_close(quantizer.decode(quantizer.encode(x)), v @ quantizer.weight_out.T + quantizer.bias_out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [2, 5, 8])
def test_without_loss_inside_it_is_the_projection_on_the_axes(width: int) -> None:
    """Around 16-bit floats all that is lost is the variance beyond the leading axes; wider than the input, nothing."""
    x = rows(300, 5)
    out = codeword.make(f"affine(half:format=float16):width={width}", 5).fit(x)(x).values.detach()
    values = torch.linalg.eigvalsh(torch.cov(x.T.double(), correction=0)).flip(0)
    assert float((out - x).square().sum(1).mean()) == pytest.approx(float(values[width:].sum()), rel=1e-2, abs=1e-3)


def test_the_way_back_is_least_squares() -> None:
    x = rows(400, 4)
    quantizer = codeword.make("affine(fsq:grid=4x3):width=2", 4).fit(x)
    error = x - torch.as_tensor(quantizer.decode(quantizer.encode(x)))
    y, inner = (x @ quantizer.weight_in.T + quantizer.bias_in).detach(), quantizer.quantizer
    v = torch.as_tensor(inner.decode(inner.encode(y)))
    assert float(error.mean(0).abs().max()) < 1e-3 and float((error.T @ v).abs().max()) / 400 < 1e-3


def test_it_trains() -> None:
    torch.manual_seed(0)
    x = rows(256, 6)
    quantizer = codeword.make("affine(fsq:grid=8x6x5):width=3", 6).fit(x).train()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        out = quantizer(x)
        loss = (out.values - x).square().mean() + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in quantizer.parameters())
    assert losses[-1] < 0.95 * losses[0]


def test_bad_arguments() -> None:
    for dim in (0, 1 << 17):
        with pytest.raises(CodewordError):
            codeword.Affine(quantizer=codeword.FSQ(dim=2, grid=[4]), dim=dim)
    with pytest.raises(CodewordError):
        codeword.make("affine(fsq:grid=4;fsq:grid=4)", 2)
