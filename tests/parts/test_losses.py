"""Loss terms: both gradients of one error, masks and stages, and the entropies of soft assignments in blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from codeword.parts import entropy, losses


def normal(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("masked", [False, True])
def test_both_terms_are_the_two_terms(masked: bool) -> None:
    keep = torch.arange(9) % 3 != 1 if masked else None
    found = []
    for together in (True, False):
        x, c = normal(9, 4).requires_grad_(), normal(9, 4, 1).requires_grad_()
        commit, pull = losses.both_terms(x, c, keep) if together else (losses.commitment_term(x, c, keep), losses.codebook_term(x, c, keep))
        (0.3 * commit + 2 * pull).backward()
        found.append((commit.detach(), pull.detach(), x.grad, c.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_rows_that_do_not_use_a_stage_count_in_the_mean_only() -> None:
    x, c = normal(8, 3).requires_grad_(), normal(8, 3, 1).requires_grad_()
    keep, active = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0]).bool(), torch.tensor([1, 1, 1, 0, 0, 0, 1, 0]).bool()
    commit, pull = losses.both_terms(x, c, keep, active)
    expected = (x - c).detach()[:3].square().mean(1).sum() / 6
    torch.testing.assert_close(commit.detach(), expected)
    torch.testing.assert_close(losses.both_terms(x, c, None, active)[0].detach(), (x - c).detach()[active].square().mean(1).sum() / 8)
    (commit + pull).backward()
    assert x.grad is not None and c.grad is not None and not x.grad[3:].any() and torch.equal(x.grad, -c.grad)


def test_nothing_kept_is_zero_with_gradients_of_zero() -> None:
    """One rank of many with an empty batch must give its parameters a gradient, not none."""
    for n, keep in ((0, None), (0, torch.zeros(0, dtype=torch.bool)), (3, torch.zeros(3, dtype=torch.bool))):
        x, c = normal(n, 2).requires_grad_(), normal(n, 2, 1).requires_grad_()
        commit, pull = losses.both_terms(x, c, keep)
        assert float((commit + pull).detach()) == 0
        (commit + pull).backward()
        assert x.grad is not None and c.grad is not None and not x.grad.any() and not c.grad.any()
        sure, spread = entropy.codebook_entropies(x, normal(4, 2, 2), 1.0, keep)
        assert float(sure.detach()) == 0 == float(spread.detach())


def test_entropies_between_their_limits() -> None:
    codebook = normal(16, 3)
    sure, spread = entropy.codebook_entropies(codebook, codebook, 1e-4)  # every row on its codeword
    assert float(sure) == pytest.approx(0, abs=1e-4) and float(spread) == pytest.approx(math.log(16), abs=1e-4)
    sure, spread = entropy.codebook_entropies(codebook, codebook, 1e6)
    assert float(sure) == pytest.approx(math.log(16), abs=1e-4) and float(spread) == pytest.approx(math.log(16), abs=1e-4)


def test_masked_penalties_equal_the_unpadded_ones() -> None:
    weights = dict.fromkeys(losses.PENALTIES, 0.5)
    x, codebook, keep = normal(12, 3), normal(7, 3, 1), torch.arange(12) % 3 != 0
    indices = torch.cdist(x, codebook).argmin(1)
    whole, terms = losses.penalties(weights, torch.where(keep[:, None], x, 0.0), codebook, torch.where(keep, indices, 6), keep, 0.5)
    alone, expected = losses.penalties(weights, x[keep], codebook, indices[keep], None, 0.5)
    torch.testing.assert_close(whole, alone)
    assert terms.keys() == expected.keys() == weights.keys()
    for term, value in expected.items():
        torch.testing.assert_close(terms[term], value, msg=term)
