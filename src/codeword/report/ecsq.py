"""Entropy-coded scalar quantization: the strongest honest baseline, and the one comparisons usually leave out.

Every coordinate is divided by one step s and rounded; the integers go to an ideal entropy coder with one table a coordinate. At high
rate this lies 1/2 log2(2 pi e / 12) = 0.254 bit, 1.53 dB, above the Shannon bound of its coordinates (Gish and Pierce 1968), and one
common step is the right split of bits between them. With the principal axes of the data as coordinates ("pca") it is transform coding.

    k = clip(round((x - mean) / s), lowest, highest seen in fit)       x^ = mean of the fit rows in bin k
    bits = mean over held-out rows of -log2 p_i(k),   p_i(k) = (count + 1/2) / (n + bins / 2)

The tables come from the fit rows and the length is counted on held-out rows, so nothing is coded with knowledge of itself. The step
alone is set so that the held-out length meets the wanted rate. The code has variable length and no coder is run: it has no speed here,
and no random access to one row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from codeword.errors import Unsupported


class ECSQ(NamedTuple):
    """What was measured on the held-out rows."""

    bits: float
    """ideal code length a dimension"""
    values: np.ndarray
    """reconstruction (n, d) float32"""
    step: float
    shared_bytes: int
    """tables, bin means, and the axes where there are any"""


def ecsq(fit: np.ndarray, held_out: np.ndarray, bits: float, *, mean: np.ndarray | None = None, axes: np.ndarray | None = None,
         tolerance: float = 1e-3, floor: float = 1e-3) -> ECSQ:
    """Code ``held_out`` (n, d) at ``bits`` a dimension with tables of ``fit`` (m, d), along ``axes`` (orthonormal rows) if given.

    The length meets the rate within ``tolerance``, or lies below it by the step that few rows leave; the true one is returned. Raises
    Unsupported where the data cannot carry so many bits."""
    centre = fit.mean(axis=0, dtype=np.float64) if mean is None else mean
    known, unknown = (_coordinates(rows, centre, axes) for rows in (fit, held_out))
    spread = max(float(np.sqrt(np.square(known, dtype=np.float64).mean())), 1e-30)
    # In log2 s the length falls by at most one bit a unit: a bracket from the Gaussian figure, then false position (Illinois).
    low, high = np.log2(spread) - bits - 4, np.log2(spread) + 6
    above, below = _length(known, unknown, low)[0] - bits, _length(known, unknown, high)[0] - bits
    if above < 0 or below > floor:
        raise Unsupported(f"entropy-coded scalar quantization reaches {above + bits:.3g} bits a dimension "
                          f"at most on these rows, not {bits}")
    middle = high
    for _ in range(60):
        middle = low + (high - low) * min(0.95, max(0.05, above / (above - below)))
        excess = _length(known, unknown, middle)[0] - bits
        if abs(excess) <= tolerance:
            break
        if excess > 0:
            low, above, below = middle, excess, below / 2
        else:
            high, below, above = middle, excess, above / 2
        if high - low < 1e-4:  # few rows make the length a staircase: stay below the wanted rate
            middle = high
            break
    length, codes, tables = _length(known, unknown, middle)
    if abs(length - bits) > 0.05 * bits:
        raise Unsupported(f"entropy-coded scalar quantization finds no step for {bits} bits a dimension on these rows, only {length:.3g}")
    values = np.take(tables.means, codes + tables.offsets).astype(np.float32)
    rows = (values @ axes.astype(np.float32) if axes is not None else values) + centre.astype(np.float32)
    shared = 8 * len(tables.means) + 4 * len(centre) + (0 if axes is None else axes.size * 4)
    return ECSQ(length, rows, float(2.0**middle), shared)


class _Tables(NamedTuple):
    offsets: np.ndarray  # (d,) place of bin 0 of each coordinate in the flat tables
    means: np.ndarray


def _coordinates(rows: np.ndarray, mean: np.ndarray, axes: np.ndarray | None) -> np.ndarray:
    centred = (rows - mean).astype(np.float32)
    return centred if axes is None else centred @ axes.T.astype(np.float32)


def _length(fit: np.ndarray, held_out: np.ndarray, log_step: float) -> tuple[float, np.ndarray, _Tables]:
    scale = np.float32(2.0**-log_step)
    known = np.rint(fit * scale).astype(np.int32)
    lowest, highest = known.min(axis=0), known.max(axis=0)
    bins = (highest - lowest + 1).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(bins)])
    offsets = starts[:-1] - lowest
    place = (known + offsets).reshape(-1)
    counts = np.bincount(place, minlength=starts[-1])
    sums = np.bincount(place, weights=fit.reshape(-1), minlength=starts[-1])
    centres = (np.arange(starts[-1]) - np.repeat(offsets, bins)) * 2.0**log_step
    means = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
    lengths = -np.log2((counts + 0.5) / np.repeat(len(fit) + bins / 2, bins))
    codes = np.clip(np.rint(held_out * scale), lowest, highest).astype(np.int64)
    return float(lengths[codes + offsets].mean()), codes, _Tables(offsets, means)
