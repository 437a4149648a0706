"""E8: known errors on Gaussian data, gains, widths."""

from __future__ import annotations

import numpy as np
import pytest

from codeword import E8, catalog
from codeword.errors import CodewordError, Unsupported
from codeword.parts import random
from codeword.quantizers.e8 import _short_vectors


def normal(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return random.normal(seed, n * dim, stream="e8 tests").reshape(n, dim)


@pytest.mark.parametrize(("bits", "low", "high"), [(2, 0.089, 0.093), (3, 0.025, 0.0305), (4, 0.007, 0.0092)])
@pytest.mark.parametrize("gain", ["global", "row"])
def test_gaussian_error(bits: int, low: float, high: float, gain: str) -> None:
    quantizer = E8(dim=64, code_bits=bits, gain=gain).fit(normal(500, 64))
    x = normal(1500, 64, seed=1)
    # A gain of its own fits a row of 64 a little better than the scale of all, for half a bit a dimension more.
    error = float(np.square(x - quantizer.decode(quantizer.encode(x))).mean())
    assert low < error < high if gain == "global" else 0.9 * low < error < high


def test_subset_is_short_vectors_of_e8() -> None:
    s = _short_vectors().astype(np.float64)
    assert len(np.unique(s, axis=0)) == 256 and sorted(np.square(s).sum(1).astype(int).tolist()) == [0] + [2] * 240 + [4] * 15
    assert ((2 * s) % 2 == (2 * s)[:, :1] % 2).all() and (s.sum(1) % 2 == 0).all()


def test_row_gain_is_least_squares_and_follows_the_row() -> None:
    quantizer = E8(dim=16, gain="row")
    x = normal(200, 16) * np.logspace(-3, 3, 200, dtype=np.float32)[:, None]
    codes = quantizer.encode(x)
    values = quantizer.decode(codes)
    assert np.allclose(np.square(x - values).sum(1) / np.square(x).sum(1), 0.09, atol=0.09)
    assert np.abs((values * (x - values)).sum(1) / np.square(x).sum(1)).max() < 1e-6  # what is left is orthogonal to what was kept
    assert (quantizer.decode(quantizer.encode(np.zeros((2, 16), np.float32))) == 0).all()


@pytest.mark.parametrize("gain", ["global", "row"])
def test_codes_do_not_depend_on_a_power_of_two(gain: str) -> None:
    x = normal(60, 16)
    a, b = (E8(dim=16, code_bits=4, gain=gain).fit(y) for y in (x, x * np.float32(2.0**20)))
    assert (a.encode(x).indices == b.encode(x * np.float32(2.0**20)).indices).all()


def test_dial_and_refusals() -> None:
    assert E8.for_bits(384, 2).nominal_bits == 2 and E8.for_bits(384, 4, gain="row").nominal_bits == pytest.approx(4 + 32 / 384)
    assert catalog.make("e8:bits=3", 24).levels == (65536, 256) * 3
    for dim, bits in ((12, 2), (16, 1), (16, 6)):
        with pytest.raises(Unsupported):
            E8.for_bits(dim, bits)
    for bad in ({"dim": 12}, {"code_bits": 5}, {"gain": "column"}):
        with pytest.raises(CodewordError):
            E8(**{"dim": 16, **bad})
