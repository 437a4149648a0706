"""Principal axes: orthonormal, ordered, signed, weighted, at any scale, and the same on any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codeword.errors import CodewordError
from codeword.parts import arrays
from codeword.parts.pca import pca


def rows_of(n: int = 500, dim: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, dim, generator=generator) @ torch.randn(dim, dim, generator=generator) + 5


def test_it_diagonalises_the_covariance() -> None:
    x = rows_of()
    found = pca(x)
    centred = x.double().numpy() - x.double().numpy().mean(0)
    covariance = centred.T @ centred / len(x)
    axes = found.axes.double().numpy()
    np.testing.assert_allclose(axes @ axes.T, np.eye(9), atol=1e-6)
    np.testing.assert_allclose(axes @ covariance @ axes.T, np.diag(found.variances.numpy()), atol=1e-5 * covariance.max())
    assert bool((found.variances.diff() <= 0).all())
    assert bool((found.axes.gather(1, found.axes.abs().argmax(1, keepdim=True)) > 0).all())


def test_count_keeps_the_first_axes() -> None:
    x = rows_of()
    assert torch.equal(pca(x, 3).axes, pca(x).axes[:3])
    assert torch.equal(pca(x, 3).variances, pca(x).variances[:3])


def test_weights_count_rows() -> None:
    x = rows_of(60)
    weights = torch.arange(60).remainder(3).float()
    repeated = pca(x.repeat_interleave(weights.to(torch.int64), 0))
    weighted = pca(x, weights=weights)
    torch.testing.assert_close(weighted.axes, repeated.axes, atol=1e-5, rtol=0)
    torch.testing.assert_close(weighted.variances, repeated.variances, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e15])
def test_scale_does_not_matter(scale: float) -> None:
    x = rows_of()
    torch.testing.assert_close(pca(x * scale).axes, pca(x).axes, atol=1e-4, rtol=0)
    torch.testing.assert_close(pca(x * scale).variances / scale**2, pca(x).variances, rtol=1e-4, atol=0)


def test_constant_and_single_rows() -> None:
    for x in (torch.full((7, 4), 2.5), torch.randn(1, 4)):
        found = pca(x)
        torch.testing.assert_close(found.axes @ found.axes.mT, torch.eye(4))
        assert not bool(found.variances.any())


def test_blocks_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows_of(1000)
    whole = pca(x)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert all(torch.equal(a, b) for a, b in zip(whole, pca(x), strict=True))
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(arrays, "BLOCK_VALUES", 9 * 64)
    torch.testing.assert_close(pca(x).axes, whole.axes, atol=1e-6, rtol=0)


def test_too_wide_a_spread_is_an_error() -> None:
    with pytest.raises(CodewordError, match="spread"):
        pca(torch.tensor([[3.3e38], [3.3e38], [-3.3e38]]))
