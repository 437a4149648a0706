"""ProjectedVQ: frozen features that never change, a map that moves all codewords by the formula and starts where the data are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import codeword
from codeword.errors import CodewordError, FormatError, NotFitted, ShapeError
from codeword.quantizers.projected_vq import cluster_features


def rows(n: int = 300) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        [[3.0, 1, 0, 0], [0, 2, 1, 0], [0, 0, 1, 0.5], [0, 0, 0, 0.3]]) + 7


def features(count: int = 24, width: int = 9) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(count, width, generator=g) * torch.linspace(0.1, 5, width) + 40


def made(**options) -> codeword.ProjectedVQ:
    return codeword.ProjectedVQ(**{"dim": 4, "codebook_size": 24, "steps": 10, "batch_size": 64, **options})


def covariance(x: torch.Tensor) -> torch.Tensor:
    return torch.cov(x.double().mT, correction=0)


def test_the_features_never_change_and_the_map_does() -> None:
    quantizer = made().use_features(features())
    before = quantizer.features.clone()
    quantizer.fit(rows())
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)
    weight = quantizer.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        quantizer(rows()).loss.backward()
        optimizer.step()
    assert torch.equal(quantizer.features, before) and not quantizer.features.requires_grad
    assert not torch.equal(quantizer.weight, weight)
    assert {name for name, _ in quantizer.named_parameters()} == {"weight", "bias"}


def test_one_step_moves_every_codeword_by_the_formula() -> None:
    quantizer = made(pull=0.5, commitment=2.0).use_features(features()).fit(rows())
    token, rate, before = rows(1), 0.125, quantizer.effective().detach().double()
    out = quantizer(token)
    out.loss.backward()
    torch.optim.SGD(quantizer.parameters(), lr=rate).step()
    moved = quantizer.effective().detach().double() - before
    j, basis = int(out.codes.indices), quantizer.features.double()
    expected = (-2 * rate * 0.5 / 4 * (basis @ basis[j] + 1)).unsqueeze(1) * (before[j] - token.double())
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    assert bool((moved.norm(dim=1) > 0).all())


def test_the_loss_is_weighed_as_the_paper_does() -> None:
    quantizer, x = made().fit(rows()), rows(20).requires_grad_()
    out = quantizer(x)
    error = float((out.values - x).detach().square().mean())
    assert float(out.loss.detach()) == pytest.approx((0.33 + 1.0) * error, rel=1e-5)
    out.loss.backward()
    torch.testing.assert_close(x.grad, 2 * (x - out.values).detach() / 80)


def test_installed_features_start_with_the_mean_and_covariance_of_the_data() -> None:
    x = rows()
    for width in (4, 9):
        start = made(steps=0).use_features(features(width=width)).fit(x).effective().detach()
        torch.testing.assert_close(start.double().mean(0), x.double().mean(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(covariance(start), covariance(x), rtol=1e-3, atol=1e-4)


def test_features_without_variance_in_some_direction_are_no_failure() -> None:
    flat = features() * torch.tensor([1.0, 1] + [0] * 7)
    quantizer = made().use_features(flat).fit(rows())
    assert bool(torch.isfinite(quantizer.effective()).all()) and torch.linalg.matrix_rank(covariance(quantizer.effective().detach()),
                                                                                          rtol=1e-6) == 2


def test_own_features_start_as_k_means() -> None:
    x = rows()
    start = made(steps=0).fit(x)
    centres = codeword.VQ(dim=4, codebook_size=24).fit(x)
    ours, theirs = (float((q.decode(q.encode(x)) - x).square().mean()) for q in (start, centres))
    assert ours == pytest.approx(theirs, rel=1e-2) and start.structure == {"feature_dim": 4, "fitted": True, "given": False}


def test_features_are_kept_in_units_of_their_own() -> None:
    a, b = made().use_features(features()), made().use_features(features().double().numpy() * 1024)
    torch.testing.assert_close(a.features, b.features)
    assert float(a.features.square().sum(1).mean()) == pytest.approx(1, rel=1e-5) and float(a.features.mean(0).abs().max()) < 1e-5


def test_fit_keeps_installed_features_and_needs_to_come_after_them(tmp_path: Path) -> None:
    quantizer = made().fit(rows())
    with pytest.raises(NotFitted):
        quantizer.use_features(features()).encode(rows())
    quantizer.fit(rows()).fit(rows() * 2)
    assert quantizer.features.shape == (24, 9) and quantizer.weight.shape == (4, 9)
    quantizer.save(tmp_path / "q.cw")
    loaded = codeword.ProjectedVQ.load(tmp_path / "q.cw")
    assert torch.equal(loaded.encode(rows()).indices, quantizer.encode(rows()).indices)
    loaded.fit(rows())
    assert torch.equal(loaded.features, quantizer.features) and loaded.given


def test_bake_is_bit_equal() -> None:
    quantizer, x = made().use_features(features()).fit(rows()), rows()
    baked = quantizer.bake()
    assert isinstance(baked, codeword.VQ)
    codes = quantizer.encode(x)
    assert torch.equal(baked.encode(x).indices, codes.indices) and torch.equal(baked.decode(codes), quantizer.decode(codes))
    assert torch.equal(baked(x).values, quantizer(x).values)
    with pytest.raises(NotFitted):
        made().bake()


def test_both_ways_to_the_winners_have_the_same_values_and_gradients() -> None:
    quantizer, x = made().fit(rows()), rows(5)
    results = []
    for batch in (x, x.repeat(8, 1)):
        quantizer.zero_grad()
        out = quantizer(batch)
        out.loss.backward()
        results.append((out.values[:5].detach(), quantizer.weight.grad.clone(), quantizer.bias.grad.clone()))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1:], results[1][1:])


def test_fit_does_not_care_about_offset_and_scale() -> None:
    x = rows()
    codes = [made().use_features(features()).fit(x * scale).encode(x * scale).indices for scale in (1, 1024, 2**-20)]
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])


def test_cluster_features_by_class() -> None:
    x = torch.cat([torch.randn(30, 5, generator=torch.Generator().manual_seed(c)) + 100 * c for c in range(3)])
    labels = torch.arange(3).repeat_interleave(30)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(9))
    found = cluster_features(x[order].numpy(), 8, labels[order].numpy())
    assert (found.mean(1) / 100).round().tolist() == [0] * 3 + [1] * 3 + [2] * 2
    torch.testing.assert_close(cluster_features(x[:30], 3, labels[:30]), cluster_features(x[:30], 3))
    assert cluster_features(x, 7).shape == (7, 5)
    assert len(torch.unique(cluster_features(x[:2], 4), dim=0)) == 2   # too few: they repeat


def test_bad_features_and_labels() -> None:
    quantizer = made()
    bad = [features(23), features()[0], features() * float("nan"), torch.ones(24, 5), features() > 0, np.array([["a"] * 3] * 24), None]
    for value in bad:
        with pytest.raises(ShapeError):
            quantizer.use_features(value)
    x = features()
    for size, labels in ((0, None), (2, torch.arange(24)), (4, torch.arange(23)), (4, torch.rand(24))):
        with pytest.raises(CodewordError):
            cluster_features(x, size, labels)


@pytest.mark.parametrize("structure", [{"fitted": True}, {"feature_dim": 0, "fitted": True, "given": True},
                                       {"feature_dim": 9, "fitted": True, "given": False}, {"feature_dim": 9, "fitted": True, "given": 1},
                                       {"feature_dim": 1 << 40, "fitted": True, "given": True}, {"feature_dim": 9, "given": True}])
def test_hostile_structures(structure: dict) -> None:
    with pytest.raises(FormatError):
        made().restore(structure)


@pytest.mark.parametrize("options", [{"codebook_size": 0}, {"dim": 0}, {"pull": 0.0}, {"commitment": -1.0}, {"steps": -1},
                                     {"batch_size": 0}, {"learning_rate": 0.0}, {"estimator": "gumbel"}])
def test_bad_options(options: dict) -> None:
    with pytest.raises(CodewordError):
        made(**options)
