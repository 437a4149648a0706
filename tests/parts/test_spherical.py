"""Directions and spherical k-means: lengths of one, the definition of a step, an objective that falls, rows that have no direction."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from codeword.errors import CodewordError
from codeword.parts.spherical import directions, spherical_kmeans


def rows(n: int = 300, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=g) * torch.exp(torch.randn(n, 1, generator=g))


def test_directions_are_the_same_alone_and_in_a_batch() -> None:
    x = torch.randn(50, 37, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-25, 25).unsqueeze(1).float()
    u = directions(x)
    torch.testing.assert_close(u.double().norm(dim=1), torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-6)
    assert all(torch.equal(directions(x[i:i + 1])[0], u[i]) for i in range(50))


def test_directions_of_nothing_and_of_nan() -> None:
    x = torch.tensor([[0.0, 0], [float("nan"), 1], [float("inf"), 1], [3, 4]], requires_grad=True)
    u = directions(x)
    assert u[0].tolist() == [1, 0] and bool(torch.isnan(u[1:3]).all()) and u[3].tolist() == pytest.approx([0.6, 0.8])
    u[[0, 3]].sum().backward()
    assert x.grad is not None and x.grad[0].tolist() == [0, 0]
    torch.testing.assert_close(x.grad[3], (torch.ones(2) - torch.tensor([0.6, 0.8]) * 1.4) / 5)


def test_a_step_is_the_direction_of_the_sum() -> None:
    x = rows()
    u = directions(x).double()
    first, second = spherical_kmeans(x, 7, iterations=3, tolerance=0.0), spherical_kmeans(x, 7, iterations=4, tolerance=0.0)
    label = (u @ first.centroids.double().mT).argmax(1)
    sums = torch.stack([u[label == j].sum(0) for j in range(7)])
    torch.testing.assert_close(second.centroids.double(), sums / sums.norm(dim=1, keepdim=True), rtol=0, atol=1e-6)
    assert second.objective[3] == pytest.approx(float((2 - 2 * (u @ first.centroids.double().mT).amax(1)).mean()), rel=1e-5)


def test_the_objective_falls_and_known_directions_are_found() -> None:
    found = spherical_kmeans(rows(), 9, tolerance=0.0)
    assert found.repaired == 0 and all(b <= a + 1e-9 for a, b in pairwise(found.objective))
    axes = torch.eye(5).repeat_interleave(40, 0) * torch.rand(200, 1, generator=torch.Generator().manual_seed(1)).add(0.1)
    assert sorted(map(tuple, spherical_kmeans(axes, 5, seed=3).centroids.round().tolist())) == sorted(map(tuple, torch.eye(5).tolist()))


def test_lengths_zeros_and_weights() -> None:
    x = rows()
    plain = spherical_kmeans(x, 6).centroids
    assert torch.equal(spherical_kmeans(x * 2.0 ** torch.arange(300).sub(150).div(2).floor().unsqueeze(1), 6).centroids, plain)
    assert torch.equal(spherical_kmeans(torch.cat((torch.zeros(9, 5), x)), 6).centroids, plain)
    assert torch.equal(spherical_kmeans(x, 6, weights=torch.full((300,), 2.0)).centroids, plain)
    assert torch.equal(spherical_kmeans(torch.zeros(3, 5), 2).centroids, torch.eye(5)[:1].expand(2, 5))


def test_large_inputs_are_sampled_from_the_seed() -> None:
    x = rows(2000)
    a, b = spherical_kmeans(x, 3, seed=1), spherical_kmeans(x, 3, seed=1)
    assert torch.equal(a.centroids, b.centroids) and a.objective == b.objective


def test_bad_arguments() -> None:
    for options in ({"k": 0}, {"k": 2, "iterations": -1}):
        with pytest.raises(CodewordError):
            spherical_kmeans(rows(), **options)
    with pytest.raises(CodewordError):
        spherical_kmeans(rows()[:0], 2)
