"""The Shannon bound against closed forms, and entropy-coded scalar quantization against its theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeword.errors import ShapeError, Unsupported
from codeword.report import bounds
from codeword.report.ecsq import ecsq


def test_white_gaussian_is_two_to_the_minus_two_r() -> None:
    for rate in (0.0, 0.25, 1.0, 2.0, 4.5):
        assert math.isclose(bounds.distortion(np.full(5, 3.0), rate), 15 * 2 ** (-2 * rate), rel_tol=1e-12)
    assert math.isclose(bounds.gap_db(np.ones(4), 1.0, 4 * 0.25 * 10), 10.0)
    assert math.isclose(bounds.gap_db(np.ones(4), 1.0, 1.0), 0.0, abs_tol=1e-12)


def test_two_components_by_hand() -> None:
    # Variances 4 and 1. The weak one joins when the strong one is down to 1: at 1 bit in all, half a bit a dimension.
    spectrum = np.array([1.0, 4.0])
    assert math.isclose(bounds.distortion(spectrum, 0.25), 4 * 2**-1 + 1)
    assert math.isclose(bounds.distortion(spectrum, 0.5), 2.0)
    assert math.isclose(bounds.distortion(spectrum, 1.5), 2 * 2 * 2 ** (-2 * 1.5))  # both active: 2 (l1 l2)^1/2 2^-2R


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30), st.floats(0, 8))
def test_rate_inverts_distortion_and_water_filling_is_a_minimum(values: list[float], rate: float) -> None:
    spectrum = np.array(values)
    error = bounds.distortion(spectrum, rate)
    assert 0 < error <= spectrum.sum() * (1 + 1e-12)
    assert math.isclose(bounds.rate(spectrum, error), rate, rel_tol=1e-6, abs_tol=1e-6)
    # No other split of the same bits does better: here the even one.
    assert error <= (spectrum * 2.0 ** (-2 * rate)).sum() * (1 + 1e-9)


def test_dead_dimensions_cost_nothing_and_wrong_spectra_are_refused() -> None:
    assert math.isclose(bounds.distortion(np.array([1.0, 0.0]), 1.0), 2.0**-4)
    assert bounds.distortion(np.zeros(3), 1.0) == 0.0
    for wrong in (np.array([1.0, -1.0]), np.array([np.nan]), np.ones((2, 2)), np.array([])):
        with pytest.raises(ShapeError):
            bounds.distortion(wrong, 1.0)


def test_the_matched_spectrum_sums_to_the_energy_and_finds_the_variances() -> None:
    random = np.random.default_rng(0)
    turn, _ = np.linalg.qr(random.normal(size=(6, 6)))
    scales = np.array([3, 2, 1, 0.5, 0.25, 0.1])
    fit, held = ((random.normal(size=(20_000, 6)) * scales) @ turn + 5 for _ in range(2))
    mean, axes = bounds.principal_axes(fit)
    spectrum = bounds.matched_spectrum(mean, axes, held)
    assert math.isclose(spectrum.sum(), np.square(held - mean).sum(axis=1).mean(), rel_tol=1e-9)
    np.testing.assert_allclose(spectrum, scales**2, rtol=0.06)
    np.testing.assert_allclose(axes @ axes.T, np.eye(6), atol=1e-12)


# ---------------------------------------------------------------- entropy-coded scalar quantization

GAUSSIAN = np.random.default_rng(1).normal(size=(2, 60_000, 4)).astype(np.float32)


@pytest.mark.parametrize("rate", [3.0, 4.0, 5.0])
def test_the_high_rate_gap_is_a_quarter_of_a_bit(rate: float) -> None:
    """1/2 log2(2 pi e / 12) = 0.2546 bit = 1.533 dB (Gish and Pierce 1968)."""
    coded = ecsq(*GAUSSIAN, rate)
    error = np.square(GAUSSIAN[1] - coded.values).sum(axis=1).mean()
    assert abs(coded.bits - rate) <= 1e-3
    assert abs(bounds.gap_db(np.ones(4), coded.bits, float(error)) - 1.533) < 0.05
    assert abs(coded.bits - bounds.rate(np.ones(4), float(error)) - 0.2546) < 0.01


def test_at_low_rates_the_gap_closes() -> None:
    gaps = []
    for rate in (0.1, 0.5, 1.0):
        coded = ecsq(*GAUSSIAN, rate)
        gaps.append(bounds.gap_db(np.ones(4), coded.bits, float(np.square(GAUSSIAN[1] - coded.values).sum(axis=1).mean())))
    assert gaps == sorted(gaps) and 0 < gaps[0] < 0.5 and gaps[2] < 1.533


def test_principal_axes_gain_what_water_filling_promises() -> None:
    random = np.random.default_rng(2)
    turn, _ = np.linalg.qr(random.normal(size=(8, 8)))
    fit, held = (((random.normal(size=(20_000, 8)) * 2.0 ** -np.arange(8)) @ turn).astype(np.float32) for _ in range(2))
    mean, axes = bounds.principal_axes(fit)
    spectrum = bounds.matched_spectrum(mean, axes, held)
    gap = {}
    for name, used in (("plain", None), ("pca", axes)):
        coded = ecsq(fit, held, 2.0, mean=mean, axes=used)
        gap[name] = bounds.gap_db(spectrum, coded.bits, float(np.square(held - coded.values).sum(axis=1).mean()))
    assert 1.0 < gap["pca"] < 1.7 < 6 < gap["plain"]


def test_tables_of_other_rows_are_paid_for() -> None:
    """Coded with tables of rows from another distribution, the same step needs more bits; nothing is coded with its own tables."""
    near, far = GAUSSIAN[0][:2000], GAUSSIAN[1][:2000] * 3
    held = GAUSSIAN[1][2000:4000]
    own, other = (ecsq(fit, held, 2.0) for fit in (near, far))
    assert np.square(held - own.values).sum() < 0.95 * np.square(held - other.values).sum()


def test_rows_with_one_value_cannot_carry_bits() -> None:
    with pytest.raises(Unsupported, match="bits a dimension"):
        ecsq(np.ones((50, 3), np.float32), np.ones((50, 3), np.float32), 2.0)
