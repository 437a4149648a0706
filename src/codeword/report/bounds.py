"""The Shannon bound that a comparison measures against (Shannon 1959; reverse water-filling: Cover and Thomas, section 10.3).

A Gaussian vector whose covariance has eigenvalues l_1 >= ... >= l_d cannot be described with R bits a dimension at a squared error below

    D(R) = sum_i min(t, l_i),    t such that    R d = sum_i max(0, 1/2 log2(l_i / t)).

Figure in tables: gap = 10 log10(error / D(R)) dB, with the error measured on held-out rows and R the bits really stored. The Gaussian is
*matched*: l_i is the variance of the held-out rows along the i-th principal axis of the fit rows, around the mean of the fit rows. Axes
come from other rows than the variances, so a small sample does not make the spectrum look steeper than it is, and D(0) is exactly the
energy that "relative error" divides by. Among all sources of one covariance the Gaussian is the hardest, so real data may in
principle fall below 0 dB; a Gaussian source cannot.
"""

from __future__ import annotations

import math

import numpy as np

from codeword.errors import ShapeError


def distortion(spectrum: np.ndarray, bits: float) -> float:
    """D(R) of a Gaussian vector with eigenvalues ``spectrum`` at ``bits`` a dimension: squared error a vector."""
    eigenvalues = _descending(spectrum)
    positive = eigenvalues[eigenvalues > 0]
    if not len(positive):
        return 0.0
    # With m active components log2 t = (sum of their log2 l - 2 R d) / m; m is the largest whose own component stays above t.
    logs = np.log2(positive)
    count = np.arange(1, len(positive) + 1)
    water = (np.cumsum(logs) - 2 * bits * len(eigenvalues)) / count
    active = int(np.flatnonzero(water <= logs)[-1]) if (water <= logs).any() else 0
    return float((active + 1) * 2.0 ** water[active] + positive[active + 1:].sum())


def rate(spectrum: np.ndarray, error: float) -> float:
    """R(D), the inverse: bits a dimension that a squared error of ``error`` a vector needs at least."""
    eigenvalues = _descending(spectrum)
    if error >= eigenvalues.sum():
        return 0.0
    if error <= 0:
        return math.inf
    # D is piecewise linear in the water level t, with breaks at the eigenvalues.
    below = np.concatenate([np.cumsum(eigenvalues[::-1])[::-1][1:], [0.0]])
    at_break = np.arange(1, len(eigenvalues) + 1) * eigenvalues + below
    active = int(np.flatnonzero(at_break >= error)[-1])
    water = (error - below[active]) / (active + 1)
    return float(0.5 * np.log2(eigenvalues[:active + 1] / water).sum() / len(eigenvalues))


def gap_db(spectrum: np.ndarray, bits: float, error: float) -> float:
    """dB by which a squared error of ``error`` a vector at ``bits`` a dimension lies above the bound."""
    bound = distortion(spectrum, bits)
    if bound <= 0 or error <= 0:
        return math.inf if error > 0 else -math.inf if bound > 0 else 0.0
    return 10 * math.log10(error / bound)


def principal_axes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and orthonormal axes (d, d), one a row, strongest first, of ``rows`` (n, d)."""
    mean = rows.mean(axis=0, dtype=np.float64)
    centred = rows.astype(np.float64) - mean
    _, axes = np.linalg.eigh(centred.T @ centred / len(rows))
    return mean, np.ascontiguousarray(axes.T[::-1])


def matched_spectrum(mean: np.ndarray, axes: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Variance (d,) of ``held_out`` (n, d) around ``mean`` along each of ``axes``."""
    return np.square((held_out.astype(np.float64) - mean) @ axes.T).mean(axis=0)


def _descending(spectrum: np.ndarray) -> np.ndarray:
    eigenvalues = np.sort(np.asarray(spectrum, dtype=np.float64))[::-1]
    if eigenvalues.ndim != 1 or not len(eigenvalues) or not np.isfinite(eigenvalues).all() or eigenvalues[-1] < 0:
        raise ShapeError(f"a spectrum of shape {np.shape(spectrum)} was given; (d,) finite values >= 0 are needed")
    return eigenvalues
