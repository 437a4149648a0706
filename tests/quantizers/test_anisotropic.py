"""Anisotropic codes and codes under a quadratic form: plain where they must be, never dearer, better where they should be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from codeword.errors import CodewordError
from codeword.parts import anisotropic, orthogonal, quadratic, random, slices
from codeword.quantizer import Quantizer
from codeword.quantizers.opq import OPQ
from codeword.quantizers.pq import PQ


def rows_of(n: int = 400, dim: int = 12, seed: int = 0) -> np.ndarray:
    return random.normal(seed, n * dim, stream="anisotropic test").reshape(n, dim)


@pytest.fixture(scope="module", params=[PQ, OPQ])
def pair(request: pytest.FixtureRequest) -> tuple[Quantizer, Quantizer]:
    """The same codebooks without and with anisotropic codes; T is about a third of the rows' length."""
    plain, heavy = (request.param(dim=12, num_codebooks=4, codebook_size=8, iterations=4, anisotropy=t).fit(rows_of()) for t in (0.0, 2.0))
    assert torch.equal(plain.codebooks, heavy.codebooks)
    return plain, heavy


def test_threshold_zero_is_the_nearest_codeword(pair: tuple[Quantizer, Quantizer]) -> None:
    x = torch.from_numpy(rows_of(seed=1))
    books = pair[0].codebooks
    assert isinstance(books, torch.Tensor)
    assert torch.equal(anisotropic.assign(x, books, 0.0), slices.assign(x, books))


@pytest.mark.parametrize("threshold", [0.5, 1.5, 3.0, 100.0])
def test_the_cost_never_rises(pair: tuple[Quantizer, Quantizer], threshold: float) -> None:
    x = torch.from_numpy(rows_of(seed=1))
    books = pair[0].codebooks
    assert isinstance(books, torch.Tensor)
    before, after = (anisotropic.cost(x, slices.values(books, codes), threshold)
                     for codes in (slices.assign(x, books), anisotropic.assign(x, books, threshold)))
    assert bool((after <= before * (1 + 1e-5)).all())
    if threshold >= 3:
        assert float(after.sum()) < float(before.sum())


@pytest.mark.parametrize("offset", [1e2, 1e4, -1e6])
def test_far_from_the_origin_the_cost_falls_as_near_it(offset: float) -> None:
    x = torch.from_numpy(rows_of(seed=1)).double() + offset
    x = torch.cat((x, x + 0.25)).float()
    books = PQ(dim=12, num_codebooks=4, codebook_size=8, iterations=4).fit(x[::2]).codebooks
    threshold = 0.7 * float(x.norm(dim=1).mean())
    before, after = (anisotropic.cost(x, slices.values(books, codes), threshold)
                     for codes in (slices.assign(x, books), anisotropic.assign(x, books, threshold)))
    assert bool((after <= before * (1 + 1e-5)).all()) and float(after.sum()) < 0.9 * float(before.sum())


def test_it_trades_the_error_across_for_the_error_along(pair: tuple[Quantizer, Quantizer]) -> None:
    x = rows_of(seed=1)
    left = [x - np.asarray(quantizer.decode(quantizer.encode(x))) for quantizer in pair]
    along = [np.square((error * x).sum(1)).mean() for error in left]
    assert along[1] < 0.9 * along[0]
    assert np.square(left[1]).sum() > np.square(left[0]).sum()


def test_a_slice_cannot_be_improved_alone() -> None:
    x = torch.from_numpy(rows_of(60))
    books = PQ(dim=12, num_codebooks=4, codebook_size=8, iterations=4).fit(rows_of()).codebooks
    codes = anisotropic.assign(x, books, 2.0)
    best = anisotropic.cost(x, slices.values(books, codes), 2.0)
    for m, k in itertools.product(range(4), range(8)):
        other = codes.clone()
        other[:, m] = k
        assert bool((anisotropic.cost(x, slices.values(books, other), 2.0) >= best * (1 - 1e-5)).all())


def test_codes_depend_on_the_row_alone(pair: tuple[Quantizer, Quantizer], monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows_of(100, seed=2)
    whole = pair[1].encode(x).indices
    assert np.array_equal(np.concatenate([np.asarray(pair[1].encode(x[i:i + 7]).indices) for i in range(0, 100, 7)]), whole)
    monkeypatch.setattr(anisotropic, "TABLE_VALUES", 100)
    assert np.array_equal(pair[1].encode(x).indices, whole)


def test_given_keeps_the_direction_of_the_vector(pair: tuple[Quantizer, Quantizer]) -> None:
    x, quantizer = rows_of(seed=3), pair[1]
    assert np.array_equal(quantizer.encode(x, given=np.zeros(12, np.float32)).indices, quantizer.encode(x).indices)
    point = 0.5 * rows_of(1, seed=4)[0]
    left = torch.from_numpy(x - point)
    costs = [anisotropic.cost(left, torch.as_tensor(coder.decode(coder.encode(x, given=point))), 2.0, torch.from_numpy(x)).sum()
             for coder in pair]
    assert costs[1] < costs[0]


def test_rows_of_zeros_and_the_weight() -> None:
    eta = anisotropic.weight(torch.tensor([[0.0] * 384, [1.0] + [0.0] * 383]), 0.1)
    assert eta[0] == 1
    assert float(eta[1]) == pytest.approx(383 * 0.01 / 0.99)
    with pytest.raises(CodewordError, match="anisotropy=-1"):
        PQ(dim=4, num_codebooks=2, anisotropy=-1.0)


def test_a_form_is_honoured(pair: tuple[Quantizer, Quantizer]) -> None:
    x, quantizer = rows_of(seed=5), pair[0]
    root = rows_of(12, seed=6)
    form = root.T @ root + 0.1 * np.eye(12, dtype=np.float32)

    def price(codes: object) -> np.ndarray:
        left = (x - np.asarray(quantizer.decode(codes))).astype(np.float64)  # type: ignore[arg-type]
        return np.einsum("ni,ij,nj->n", left, form.astype(np.float64), left)

    plain, honoured = price(quantizer.encode(x)), price(quantizer.encode(x, metric=form))
    assert honoured.sum() < 0.8 * plain.sum()


def test_a_form_never_rises_from_its_start() -> None:
    x = torch.from_numpy(rows_of(seed=5))
    books = PQ(dim=12, num_codebooks=4, codebook_size=8, iterations=4).fit(rows_of()).codebooks
    root = torch.from_numpy(rows_of(12, seed=6)).double()
    form = root.mT @ root + 0.1 * torch.eye(12, dtype=torch.float64)
    blocks = torch.block_diag(*[form[i:i + 3, i:i + 3] for i in range(0, 12, 3)])
    prices = []
    for metric in (blocks, form):
        left = (x - slices.values(books, quadratic.assign(x, books, metric))).double()
        prices.append(((left @ form) * left).sum(1))
    assert bool((prices[1] <= prices[0] * (1 + 1e-6)).all())


def test_a_turned_form_measures_the_same() -> None:
    rotation, form = orthogonal.random_rotation(6, 0), torch.diag(torch.arange(1.0, 7.0)).double()
    x = torch.from_numpy(rows_of(5, 6)).double()
    y = x @ rotation.double().mT
    torch.testing.assert_close(((y @ orthogonal.turned_form(form, rotation)) * y).sum(1), ((x @ form) * x).sum(1), rtol=1e-5, atol=0)
