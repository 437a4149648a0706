"""Probabilistic product codes: draws follow the posterior, gradients are those of the dense formula, dead codewords are replaced."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import codeword
from codeword.errors import CodewordError
from codeword.quantizer import Quantized


def rows(n: int = 200, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def fitted(**options: object) -> codeword.GumbelPQ:
    return codeword.GumbelPQ(**{"dim": 6, "num_codebooks": 2, "codebook_size": 8, "iterations": 4, **options}).fit(rows())


def posterior(quantizer: codeword.GumbelPQ, x: Tensor, m: int, theta: Tensor | None = None) -> Tensor:
    """softmax(-D T / sqrt(K)) straight from the paper."""
    book, part = quantizer.codebooks[m], x[:, 3 * m:3 * m + 3]
    theta = quantizer.upkeep.log_temperature[m] if theta is None else theta
    return torch.softmax(-torch.cdist(part, book).square() * torch.exp(theta) / math.sqrt(quantizer.codebook_size), dim=1)


def test_eval_is_pq() -> None:
    x = rows()
    ours, theirs = fitted().eval(), codeword.PQ(dim=6, num_codebooks=2, codebook_size=8, iterations=4).fit(x)
    out = ours(x)
    assert torch.equal(ours.codebooks, theirs.codebooks) and torch.equal(out.codes.indices, theirs.encode(x).indices)
    assert torch.equal(out.values, theirs.decode(theirs.encode(x)))


def test_temperatures_start_at_the_mixtures_posterior() -> None:
    quantizer, x = fitted(), rows()
    error = (torch.as_tensor(quantizer.decode(quantizer.encode(x))) - x).double().square().reshape(-1, 2, 3).mean((0, 2))
    torch.testing.assert_close(quantizer.temperatures.double(), math.sqrt(8) / (2 * error), rtol=1e-5, atol=0)
    same = codeword.GumbelPQ(dim=2, num_codebooks=1, codebook_size=2, iterations=1).fit(torch.ones(5, 2))
    assert same.temperatures.tolist() == [1.0]


def test_draws_follow_the_posterior() -> None:
    quantizer, x = fitted().train(), rows(4)
    torch.manual_seed(0)
    out = quantizer(x.repeat_interleave(4000, 0))
    indices = torch.as_tensor(out.codes.indices).long().reshape(4, 4000, 2)
    assert torch.equal(out.values.detach(), torch.as_tensor(quantizer.decode(out.codes)))
    for m in range(2):
        p = posterior(quantizer, x, m).detach()
        drawn = torch.stack([torch.bincount(row, minlength=8) for row in indices[:, :, m]]) / 4000
        assert float((drawn - p).abs().max()) < 4 * math.sqrt(0.25 / 4000)
    first = torch.as_tensor(quantizer(x).codes.indices)
    assert any(not torch.equal(torch.as_tensor(quantizer(x).codes.indices), first) for _ in range(20))


def test_gradients_are_those_of_the_dense_formula() -> None:
    """Without noise (eval): (onehot + p - sg p) C, to rows, codebooks and temperatures."""
    quantizer, x, g = fitted().eval(), rows(30, seed=1).requires_grad_(), rows(30, seed=2)
    wanted = (x, quantizer.codebooks, quantizer.upkeep.log_temperature)
    (out, index) = (quantizer(x), torch.as_tensor(quantizer.encode(x.detach()).indices).long())
    ours = torch.autograd.grad((out.values * g).sum(), wanted)
    dense = []
    for m in range(2):
        p = posterior(quantizer, x, m)
        hard = torch.nn.functional.one_hot(index[:, m], 8).float()
        dense.append((hard + p - p.detach()) @ quantizer.codebooks[m])
    theirs = torch.autograd.grad((torch.cat(dense, dim=1) * g).sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        assert bool((a != 0).any())
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_training_changes_no_state_and_repeats_with_the_generator() -> None:
    quantizer, x = fitted().train(), rows(50)
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    torch.manual_seed(3)
    first = quantizer(x)
    torch.manual_seed(3)
    second = quantizer(x)
    assert torch.equal(first.values, second.values) and torch.equal(first.codes.indices, second.codes.indices)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    state = torch.get_rng_state()
    quantizer.eval()(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_frequencies_are_moving_averages_of_nearest_codewords() -> None:
    quantizer, x = fitted(decay=0.75).train(), rows(80, seed=1)
    nearest = torch.as_tensor(quantizer.encode(x).indices).long()
    for mask in (None, torch.arange(80) < 40):
        before = quantizer.upkeep.frequencies.clone()
        quantizer.update(quantizer(x, mask=mask))
        kept = nearest if mask is None else nearest[mask]
        share = torch.stack([torch.bincount(kept[:, m], minlength=8) for m in range(2)]) / len(kept)
        torch.testing.assert_close(quantizer.upkeep.frequencies, 0.75 * before + 0.25 * share.double())
    before = quantizer.upkeep.frequencies.clone()
    quantizer.update(quantizer(x[:0]))
    assert torch.equal(quantizer.upkeep.frequencies, before) and int(quantizer.upkeep.updates) == 2


def test_dead_codewords_become_copies_of_frequent_ones() -> None:
    quantizer, x = fitted(revival=0.05, revive_every=50, iterations=25).train(), rows(100, seed=1)
    with torch.no_grad():
        quantizer.codebooks[1, [2, 5]] = 50.0
    reports = [quantizer.update(quantizer(x)) for _ in range(50)]
    assert all(report == {} for report in reports[:-1]) and reports[-1] == {"revived": {"codebooks.1": [2, 5]}}
    alive = quantizer.codebooks[1, [0, 1, 3, 4, 6, 7]].detach()
    distance = torch.cdist(quantizer.codebooks[1, [2, 5]].detach(), alive).amin(1)
    assert bool((distance < 0.1).all()) and bool((distance > 0).all())
    frequencies = quantizer.upkeep.frequencies[1]
    assert float(frequencies.sum()) == pytest.approx(1) and float(frequencies[[2, 5]].min()) > 0.01
    assert all("codebooks.0" not in report.get("revived", {}) for report in reports)


def test_at_most_half_of_a_codebook_is_replaced_at_once() -> None:
    quantizer = fitted(revival=0.05, revive_every=1).train()
    quantizer.upkeep.frequencies.zero_()
    quantizer.upkeep.frequencies[:, 7] = 1.0
    report = quantizer.update(Quantized(*quantizer(rows(3, seed=5))[:3], {"counts": torch.eye(8)[7].repeat(2, 1).double()}))
    assert report == {"revived": {"codebooks.0": [0, 1, 2, 3], "codebooks.1": [0, 1, 2, 3]}}
    torch.testing.assert_close(quantizer.upkeep.frequencies, torch.tensor([0.2] * 4 + [0.0] * 3 + [0.2]).double().repeat(2, 1))


def test_sampling_keeps_codewords_alive_that_gradients_alone_leave_behind() -> None:
    """Codewords start in a corner far from the data: with draws all move to it, with the nearest one only few are ever used."""
    x = rows(256, 2)
    used = {}
    for name in ("gumbel", "nearest"):
        quantizer = codeword.GumbelPQ(dim=2, num_codebooks=1, codebook_size=16, iterations=2, revival=0.0).fit(x).train()
        with torch.no_grad():
            quantizer.codebooks.copy_(3 + 0.01 * rows(16, 2, seed=4).unsqueeze(0))
            quantizer.upkeep.log_temperature.zero_()
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            if name == "gumbel":
                values = quantizer(x).values
            else:
                index = torch.as_tensor(quantizer.encode(x).indices)[:, 0].long()
                values = quantizer.codebooks[0, index]
            (values - x).square().mean().backward()
            optimizer.step()
        used[name] = len(set(torch.as_tensor(quantizer.encode(x).indices).flatten().tolist()))
    assert used["gumbel"] > used["nearest"] + 3, used


def test_commitment_is_optional_and_arguments_are_checked() -> None:
    assert float(fitted().train()(rows()).loss.detach()) == 0.0
    assert float(fitted(commitment=0.5).eval()(rows()).loss.detach()) > 0.0
    for options in ({"num_codebooks": 4}, {"codebook_size": 1}, {"decay": 1.0}, {"revival": -0.1}, {"commitment": -1.0},
                    {"revive_every": 0}, {"iterations": 0}):
        with pytest.raises(CodewordError):
            codeword.GumbelPQ(**{"dim": 6, "num_codebooks": 2, **options})
