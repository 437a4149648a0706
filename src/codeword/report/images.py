"""Measures of reconstructed images. Images are (b, channels, H, W), floats in [0, 1] (``peak`` for another range); one float64 an image.

    psnr      10 log10(peak^2 / mean (x - y)^2); +inf for equal images
    ssim      Wang et al. 2004: the mean over places of
                  (2 mx my + C1) (2 sxy + C2) / ((mx^2 + my^2 + C1) (sx^2 + sy^2 + C2)),   C1 = (0.01 peak)^2, C2 = (0.03 peak)^2
              with means, variances and the covariance under an 11 x 11 Gaussian window of deviation 1.5, wherever it fits wholly
    ms_ssim   Wang, Simoncelli, Bovik 2003: the product over scales of the second fraction's mean ^ weight, the first fraction only at
              the coarsest scale; from scale to scale images are halved by means over 2 x 2
    frechet_distance   |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) between Gaussians of the same moments as two sets of features
              (Dowson, Landau 1982; on Inception's features: FID, Heusel et al. 2017)

Channels are measured apart and averaged (the 2004 paper has grey images only). Five scales need sides of 176; smaller images get fewer
only where the caller asks: ``scales=most_scales(h, w)``, the first weights scaled to sum 1, which is then another measure and to be named
with its scales. A negative mean of the second fraction counts as zero, since its power is not defined. The Frechet distance is biased
upwards by small sets: compare equal sizes only. Over ``nets/features.py`` it is reported as "reconstruction Frechet distance over
features-cifar10": no published FID is comparable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from codeword.errors import CodewordError, ShapeError
from codeword.nets.features import FeatureNet

WINDOW, DEVIATION = 11, 1.5
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def mse(x: Tensor, y: Tensor) -> Tensor:
    """(b,): mean squared error."""
    x, y = _pair(x, y, 1)
    return (x - y).square().flatten(1).mean(1)


def psnr(x: Tensor, y: Tensor, *, peak: float = 1.0) -> Tensor:
    """(b,): decibels."""
    return 10 * torch.log10(peak * peak / mse(x, y))


def ssim(x: Tensor, y: Tensor, *, peak: float = 1.0) -> Tensor:
    """(b,): at most 1, which equal images have. Sides of at least 11."""
    x, y = _pair(x, y, WINDOW)
    first, second = _fractions(x, y, peak)
    return (first * second).mean((1, 2, 3))


def ms_ssim(x: Tensor, y: Tensor, *, peak: float = 1.0, scales: int = 5) -> Tensor:
    """(b,): over ``scales`` 1..5. Sides of at least 11 * 2^(scales - 1)."""
    if not 1 <= scales <= len(WEIGHTS):
        raise CodewordError(f"ms_ssim got scales={scales}; 1..{len(WEIGHTS)} are allowed")
    x, y = _pair(x, y, WINDOW << (scales - 1))
    weights = [w / sum(WEIGHTS[:scales]) for w in WEIGHTS[:scales]]
    product = x.new_ones(x.shape[:2])                                                   # (b, channels)
    for at, weight in enumerate(weights):
        first, second = _fractions(x, y, peak)
        term = second if at < scales - 1 else first * second
        product = product * term.mean((2, 3)).clamp(min=0) ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product.mean(1)


def most_scales(height: int, width: int) -> int:
    """The most scales of ``ms_ssim`` that images of this size have room for, at most 5; 0 where the window does not fit once."""
    side = min(height, width)
    return next((scales for scales in range(len(WEIGHTS), 0, -1) if side >= WINDOW << (scales - 1)), 0)


def _fractions(x: Tensor, y: Tensor, peak: float) -> tuple[Tensor, Tensor]:
    """The two fractions at every place, (b, channels, H - 10, W - 10)."""
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mx, my = _windowed(x), _windowed(y)
    vx, vy, cov = _windowed(x * x) - mx * mx, _windowed(y * y) - my * my, _windowed(x * y) - mx * my
    return (2 * mx * my + c1) / (mx * mx + my * my + c1), (2 * cov + c2) / (vx + vy + c2)


def _windowed(x: Tensor) -> Tensor:
    """Gaussian-weighted means at every place where the window fits."""
    at = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-at.square() / (2 * DEVIATION ** 2))
    weights = weights / weights.sum()
    b, c, h, w = x.shape
    x = F.conv2d(x.reshape(b * c, 1, h, w), weights.view(1, 1, -1, 1))
    return F.conv2d(x, weights.view(1, 1, 1, -1)).reshape(b, c, h - WINDOW + 1, w - WINDOW + 1)


def _pair(x: Tensor, y: Tensor, side: int) -> tuple[Tensor, Tensor]:
    if x.ndim != 4 or x.shape != y.shape or min(x.shape[1:]) < 1 or min(x.shape[2:]) < side:
        raise ShapeError(f"got images {tuple(x.shape)} and {tuple(y.shape)}; equal shapes (b, channels, H, W) with sides of at least "
                         f"{side} are needed")
    return x.detach().double(), y.detach().double()


# ---------------------------------------------------------------------- sets of features


class Moments:
    """Count, mean and scatter of rows that come in batches, in float64. Batches are centred before they are merged (Chan, Golub,
    LeVeque 1979), so an offset costs no digits; the order of merging changes the last digits only."""

    def __init__(self, dim: int) -> None:
        self.count, self.mean = 0, torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, rows: Tensor) -> Self:
        """``rows`` (n, dim), n >= 0."""
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise ShapeError(f"Moments got rows {tuple(rows.shape)}; (n, {len(self.mean)}) is needed")
        if len(rows):
            rows = rows.detach().to("cpu", torch.float64)
            part = Moments(len(self.mean))
            part.count, part.mean = len(rows), rows.mean(0)
            part.scatter = (rows - part.mean).mT @ (rows - part.mean)
            self.merge(part)
        return self

    def merge(self, other: Moments) -> Self:
        """As if the rows of ``other`` had been added."""
        total = self.count + other.count
        if total:
            step = other.mean - self.mean
            self.scatter = self.scatter + other.scatter + torch.outer(step, step) * (self.count * other.count / total)
            self.mean = self.mean + step * (other.count / total)
            self.count = total
        return self

    @property
    def covariance(self) -> Tensor:
        """(dim, dim), divided by count - 1."""
        if self.count < 2:
            raise ShapeError(f"a covariance needs two rows or more, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Between two sets of features; at least 0, up to rounding, and 0 for equal moments."""
    first, second = a.covariance, b.covariance
    if first.shape != second.shape:
        raise ShapeError(f"got features of width {len(first)} and {len(second)}; equal widths are needed")
    # tr (S S')^(1/2) = tr (R S' R)^(1/2) with R = S^(1/2): symmetric, so eigenvalues are real and at least 0 up to rounding.
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    middle = root @ second @ root
    shared = torch.linalg.eigvalsh((middle + middle.mT) / 2).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + first.trace() + second.trace() - 2 * shared)


def feature_moments(network: FeatureNet, batches: Iterable[Tensor]) -> Moments:
    """Moments of ``network.pooled`` over batches of images in [0, 1]."""
    moments = Moments(network.dim)
    with torch.no_grad():
        for images in batches:
            if len(images):
                moments.add(network.pooled(images))
    return moments


def linear_probe(features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor, *, penalty: float = 1e-3) -> float:
    """Share of test rows that softmax regression on ``features`` (n, dim), ``labels`` (n,) gets right. Features are standardised by the
    training rows' moments; ``penalty``: of the squared weights. L-BFGS in float64 from zero, so there is no seed."""
    if features.ndim != 2 or len(features) != len(labels) or len(test_features) != len(test_labels) or not len(labels):
        raise ShapeError(f"linear_probe got features {tuple(features.shape)}, labels {tuple(labels.shape)}; (n, dim) and (n,) are needed")
    x, y = features.detach().double(), labels.long()
    mean, scale = x.mean(0), x.std(0).clamp(min=1e-8)
    x, test = (x - mean) / scale, (test_features.detach().double() - mean) / scale
    classes = 1 + int(torch.cat((y, test_labels.long())).max())
    weight = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight[:, :-1].mT + weight[:, -1], y) + penalty * weight[:, :-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]
    found = (test @ weight[:, :-1].mT + weight[:, -1]).argmax(1)
    return float((found == test_labels).double().mean()) if len(test_labels) else math.nan
