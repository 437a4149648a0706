"""Losses on pixels and features: exact densities, known values, what gradients reach."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from codeword import CodewordError, FormatError, ShapeError, Unsupported
from codeword.data.bundle import IMAGES
from codeword.data.images import open_images
from codeword.nets import perceptual
from codeword.nets.features import FOLDER, FeatureNet
from codeword.nets.perceptual import FeatureDistance
from codeword.nets.pixel_losses import EPS, ImageLoss, from_logit_laplace, logit_laplace


@pytest.mark.parametrize("mu, ln_b", [(0.0, 0.0), (1.7, -1.2), (-3.0, 0.6), (0.4, 2.0)])
def test_logit_laplace_is_a_density(mu: float, ln_b: float):
    """Integrated over 0 < p < 1 (in u = logit p, dp = p (1 - p) du) exp(-loss) gives 1; written out once more by hand at one point."""
    u = torch.linspace(-200, 200, 400_001, dtype=torch.float64)
    p, rest = torch.sigmoid(u), torch.sigmoid(-u)
    b = math.exp(ln_b)
    density = torch.exp(-(u - mu).abs() / b) / (2 * b * p * rest)
    assert float(torch.trapezoid(density * p * rest, u)) == pytest.approx(1.0, abs=1e-6)
    inside = (p > EPS) & (p < 1 - EPS)
    x = (p[inside] - EPS) / (1 - 2 * EPS)
    loss = logit_laplace(x, torch.tensor(mu, dtype=torch.float64), torch.tensor(ln_b, dtype=torch.float64))
    assert torch.allclose(torch.exp(-loss), density[inside], rtol=1e-9)


def test_logit_laplace_minimiser_is_the_median(g: torch.Generator):
    """For fixed b the best mu is the median of logit phi(x), and there the shown image is the median pixel."""
    x = torch.rand(101, generator=g, dtype=torch.float64)
    phi = (1 - 2 * EPS) * x + EPS
    median = torch.logit(phi).median()
    losses = [logit_laplace(x, median + shift, torch.zeros((), dtype=torch.float64)).mean() for shift in (-0.05, -0.01, 0.0, 0.01, 0.05)]
    assert losses.index(min(losses)) == 2
    shown = from_logit_laplace(torch.stack((median, median)).view(1, 2, 1, 1))
    assert float(shown) == pytest.approx(float(x.median()), abs=1e-12)


def test_logit_laplace_gradients(g: torch.Generator):
    x, mu, ln_b = (torch.rand(6, generator=g, dtype=torch.float64) for _ in range(3))
    assert torch.autograd.gradcheck(lambda m, s: logit_laplace(x, m, s), (mu.requires_grad_(), ln_b.requires_grad_()))
    assert bool(torch.isfinite(logit_laplace(torch.tensor([0.0, 1.0]), torch.zeros(2), torch.zeros(2))).all())


def test_shown_image_inverts_the_map():
    x = torch.linspace(0, 1, 11).view(1, 1, 1, -1)
    output = torch.cat((torch.logit((1 - 2 * EPS) * x + EPS), torch.zeros_like(x)), 1)
    loss = ImageLoss(weights={"logit_laplace": 1.0})
    assert torch.allclose(loss.shown(output), x, atol=1e-6)
    assert float(loss.shown(output + 9).max()) == 1.0 and loss.decoder_channels(3) == 6


def test_image_loss_is_the_weighted_sum(g: torch.Generator):
    x, y = torch.rand(3, 3, 8, 8, generator=g), torch.rand(3, 3, 8, 8, generator=g).requires_grad_()
    found = ImageLoss(weights={"l1": 0.5, "l2": 2.0})(y, x)
    l1, l2 = (x - y).abs().mean(), (x - y).square().mean()
    assert torch.allclose(found.total, 0.5 * l1 + 2 * l2)
    assert set(found.terms) == {"l1", "l2"} and not found.terms["l1"].requires_grad
    assert torch.allclose(found.terms["l1"], l1.detach())
    found.total.backward()
    empty = ImageLoss()(y[:0], x[:0]).total
    empty.backward()
    assert float(empty.detach()) == 0
    output = torch.randn(3, 6, 8, 8, generator=g)
    both = ImageLoss(weights={"l2": 1.0, "logit_laplace": 0.1})
    expected = (from_logit_laplace(output) - x).square().mean() + 0.1 * logit_laplace(x, output[:, :3], output[:, 3:]).mean()
    assert torch.allclose(both(output, x).total, expected)
    assert ImageLoss(**json.loads(json.dumps(both.config)))(output, x).total == both(output, x).total


def test_image_loss_refusals(g: torch.Generator):
    for weights in ({}, {"l3": 1.0}, {"l1": -1.0}, {"l1": 0.0}, {"l1": float("nan")}):
        with pytest.raises(CodewordError, match="ImageLoss got weights"):
            ImageLoss(weights=weights)
    with pytest.raises(ShapeError, match=r"\(2, 6, 4, 4\)"):
        ImageLoss(weights={"logit_laplace": 1.0})(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4))
    with pytest.raises(CodewordError, match="features-cifar10"):
        perceptual.perceptual("vgg")


def test_training_by_logit_laplace_reaches_the_image(g: torch.Generator):
    """mu and ln b as free parameters: the image comes out, and ln b falls to its bound where the fit is exact."""
    x = torch.rand(1, 1, 4, 4, generator=g)
    output = nn.Parameter(torch.zeros(1, 2, 4, 4))
    loss, optimizer = ImageLoss(weights={"logit_laplace": 1.0}), torch.optim.Adam([output], lr=0.05)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        optimizer.zero_grad()
        loss(output, x).total.backward()
        optimizer.step()
    assert float((loss.shown(output) - x).abs().max().detach()) < 0.02
    assert float(output[:, 1].max().detach()) < -2


# ---------------------------------------------------------------------- features


def test_stored_network_is_the_trained_one(training: ModuleType, classifier: nn.Module, features: FeatureNet, g: torch.Generator):
    """Folded and read back, it says what the classifier says, up to float16; the training script's own reading agrees exactly."""
    x = torch.rand(4, 3, 32, 32, generator=g)
    mean, std = torch.tensor(training.MEAN).view(1, 3, 1, 1), torch.tensor(training.STD).view(1, 3, 1, 1)
    assert torch.allclose(features.logits(x), classifier((x - mean) / std), atol=2e-2)
    assert torch.allclose(features.logits(x), training.logits(classifier.tensors(), x), atol=1e-5)


def test_features_of_any_size_and_colour(features: FeatureNet, g: torch.Generator):
    x = torch.rand(2, 1, 13, 9, generator=g)
    maps = features(x)
    assert [m.shape for m in maps] == [(2, 32, 13, 9), (2, 64, 6, 4), (2, 96, 3, 2)]
    assert torch.equal(features.pooled(x), features.pooled(x.expand(-1, 3, -1, -1)))
    assert features.pooled(x).shape == (2, features.dim)
    assert not list(features.parameters()) and not features.state_dict()
    with pytest.raises(ShapeError, match="1 or 3"):
        features(torch.rand(2, 2, 8, 8))


def test_feature_files(training: ModuleType, classifier: nn.Module, features: FeatureNet, tmp_path: Path, g: torch.Generator):
    from safetensors.torch import save_file
    path = tmp_path / "f.safetensors"
    save_file(classifier.tensors(), str(path), metadata={"features": json.dumps({"seed": 3})})
    loaded = FeatureNet.load(path)
    x = torch.rand(2, 3, 8, 8, generator=g)
    assert loaded.facts == {"seed": 3} and torch.equal(loaded.pooled(x), features.pooled(x))
    with pytest.raises(Unsupported, match="bundled are"):
        FeatureNet.load("features-imagenet")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FormatError, match="cannot be read"):
        FeatureNet.load(path)
    tensors = classifier.tensors()
    with pytest.raises(FormatError, match=r"head\.bias"):
        FeatureNet({name: value for name, value in tensors.items() if name != "head.bias"})
    with pytest.raises(FormatError, match="finite"):
        FeatureNet(tensors | {"head.bias": torch.full((10,), torch.inf)})
    with pytest.raises(FormatError, match="stem"):
        FeatureNet(tensors | {"stem.weight": torch.zeros(32, 3, 3)})


def test_bundled_network():
    """It is small, knows how it was made, and its README says the same; on grey pictures of another kind it minds blur far more than a
    change of brightness of the same squared error."""
    path = FOLDER / "features-cifar10.safetensors"
    assert path.stat().st_size < 700_000
    network = FeatureNet.load()
    readme = (FOLDER / "README.md").read_text()
    for key in ("test_accuracy", "test_accuracy_grey", "train_accuracy"):
        assert network.facts[key] > 0.85 and f"{100 * network.facts[key]:.1f} %" in readme
    assert f"--steps {network.facts['steps']}" in readme and sum(t.numel() for t in network.buffers()) == network.facts["parameters"]
    found = open_images(IMAGES / "t10k-images-idx3-ubyte.gz")
    x = torch.stack([torch.from_numpy(found[i].copy()) for i in range(16)]).permute(0, 3, 1, 2).float() / 255
    blurred = nn.functional.interpolate(nn.functional.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
    shift = (blurred - x).square().mean((1, 2, 3), keepdim=True).sqrt()
    distance = perceptual.perceptual("features-cifar10")
    assert bool((distance(blurred, x) > 1.5 * distance(x + shift, x)).float().mean() > 0.9)


def test_distance_properties(features: FeatureNet, g: torch.Generator):
    """Zero for equal images, symmetric, one number an image whatever stands beside it, growing with noise; gradients to images only."""
    distance = FeatureDistance(features)
    x, noise = torch.rand(3, 3, 16, 16, generator=g), torch.randn(3, 3, 16, 16, generator=g)
    assert torch.equal(distance(x, x), torch.zeros(3))
    near, far = distance(x, x + 0.02 * noise), distance(x, x + 0.2 * noise)
    assert bool((near < far).all()) and bool((near > 0).all())
    assert torch.allclose(distance(x + 0.2 * noise, x), far)
    assert torch.allclose(distance(x[:1], x[:1] + 0.2 * noise[:1]), far[:1], atol=1e-6)
    y = (x + 0.2 * noise).requires_grad_()
    asked = distance(y, x)
    assert torch.allclose(asked, far, atol=1e-6)
    asked.sum().backward()
    assert y.grad is not None and bool((y.grad != 0).any())
    assert distance(x[:0], x[:0]).shape == (0,)
    maps, maps_y = features(x), features(y.detach())
    by_hand = sum((1 - torch.cosine_similarity(a, b, dim=1)).mean((1, 2)) for a, b in zip(maps, maps_y))
    assert torch.allclose(far, by_hand, atol=1e-4)


def test_image_loss_with_features(features: FeatureNet, g: torch.Generator, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(perceptual, "perceptual", lambda name: FeatureDistance(features))
    loss = ImageLoss(weights={"l1": 1.0, "perceptual": 0.5})
    x, y = torch.rand(2, 1, 8, 8, generator=g), torch.rand(2, 1, 8, 8, generator=g).requires_grad_()
    found = loss(y, x)
    assert torch.allclose(found.total, found.terms["l1"] + 0.5 * FeatureDistance(features)(y, x).mean())
    assert not list(loss.parameters()) and not loss.state_dict()
    assert bool(torch.isfinite(torch.autograd.grad(found.total, y)[0]).all())


def test_lpips_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    import sys
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(Unsupported, match="pip install lpips"):
        perceptual.perceptual("lpips-vgg")


def test_training_script_packs(training: ModuleType, tmp_path: Path):
    """Parquet to one packed file: the same images and labels come out."""
    pa, image = pytest.importorskip("pyarrow"), pytest.importorskip("PIL.Image")
    import io

    import pyarrow.parquet as parquet
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        streams = []
        for _ in range(3):
            stream = io.BytesIO()
            image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(stream, "png")
            streams.append(stream.getvalue())
        parquet.write_table(pa.table({"image": streams, "label": [1, 0, 9]}), tmp_path / f"{part}.parquet")
    training.pack(tmp_path, tmp_path / "packed")
    for part in ("train", "test"):
        images, labels = training.read(tmp_path, part)
        again, same = training.read(tmp_path / "packed", part)
        assert images == again and labels.tolist() == same.tolist() == [1, 0, 9]
    x = training.decoded(images)
    changed = training.augmented(x, torch.Generator().manual_seed(0))
    assert changed.shape == (3, 3, 32, 32) and torch.equal(changed, training.augmented(x, torch.Generator().manual_seed(0)))
