"""Pyramid vector quantization (Fischer: A Pyramid Vector Quantizer, IEEE Trans. IT 1986; for network weights: van der Ouderaa et al.,
Pyramid Vector Quantization for LLMs, 2024).

Each group of D entries is coded as an integer vector with fixed L1 norm K, which stands for a direction, times a gain. The codebook
is implicit: points of the pyramid are numbered by a formula, so there is nothing to search and any rate is possible.

    P(D, K) = {y in Z^D : sum |y_i| = K},   N = |P(D, K)|                      (``parts.pyramid``: projection and numbering)
    y ~ argmax_y <x, y> / |y|,   s = <x, y> / |y|,   j = argmin_j |s - g_j|,   x^ = g_j y / |y|
    code = number(y) 2^b + j  in 0 .. N 2^b - 1

s is the least-squares gain for the direction y, and |x - x^|^2 = |x|^2 - s^2 + (s - g_j)^2, so the nearest level is the best one. The
2^b levels g are Lloyd-Max levels of s, learned from the data for each group position: this is all that ``fit`` does.
A group of zeros has no direction; it takes K e_1 and the lowest level.

Cost: O(D log D) a group and a few pulses more, no multiply-adds with a codebook; 2^b dim / D floats shared.
Bits: (ceil(log2 N) + b) / D, no side information. D=16 with 31 + 1 bits is one 32-bit word. N 2^b must stay below 2^63.
On Gaussian data at 2 bits the error is 0.105 (D=16) where the best scalar quantizer leaves 0.1175; sparse or heavy-tailed groups are
what a pyramid codes best, so a rotation before it (``Rotated``) helps with outlier columns and may hurt elsewhere.

Departures: the paper rotates, stores a norm a row, and places gain levels at the quantiles of a Beta law. Here the rotation is
``Rotated``, the row norm ``GainShape``, and the levels are the least-squares ones of the data, which no law has to fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.parts import pyramid
from codeword.parts.lloyd import lloyd_levels, midpoints
from codeword.quantizer import Quantizer

MAX_GROUP = 1 << 10
MAX_GAIN_BITS = 8


class PVQ(Quantizer):
    """dim: width; group: D, a divisor of dim; pulses: K; gain_bits: b, levels of the gain."""

    def __init__(self, *, dim: int, group: int, pulses: int, gain_bits: int = 1) -> None:
        super().__init__()
        if dim < 1 or not 1 <= group <= MAX_GROUP or dim % group:
            raise CodewordError(f"pvq got dim={dim} and group={group}; a divisor of dim, at most {MAX_GROUP}, is needed")
        if not 0 <= gain_bits <= MAX_GAIN_BITS:
            raise CodewordError(f"pvq got gain_bits={gain_bits}; 0..{MAX_GAIN_BITS} are allowed")
        sizes = pyramid.sizes(group, (pyramid.LIMIT - 1) >> gain_bits)
        if not 1 <= pulses <= len(sizes):
            raise CodewordError(f"pvq got pulses={pulses}; with group={group} and gain_bits={gain_bits} 1..{len(sizes)} are allowed")
        self.dim, self.group, self.pulses, self.gain_bits = dim, group, pulses, gain_bits
        self.levels = (sizes[pulses - 1] << gain_bits,) * (dim // group)
        self.gains: Tensor
        self.counts: Tensor
        self.sums: Tensor
        self.register_buffer("gains", torch.zeros(dim // group, 1 << gain_bits))
        for name in ("counts", "sums"):  # of the pyramid; they follow from the configuration
            self.register_buffer(name, torch.zeros(group, pulses + 1, dtype=torch.int64), persistent=False)
        self.rebuild()

    def rebuild(self) -> None:
        self.counts, self.sums = (table.to(self.gains.device) for table in pyramid.tables(self.group, self.pulses))

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """The group width, pulses and gain bits that leave the least error on Gaussian data within ``bits``."""
        found = list(_splits(dim, bits))
        if not found:
            raise Unsupported(f"pvq has no pyramid for dim={dim} in {bits:g} bits a dimension")
        best = min(found)
        return cls(dim=dim, group=best.group, pulses=best.pulses, gain_bits=best.gain_bits, **options)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        _, gain = pyramid.project(rows.reshape(-1, self.group).contiguous(), self.pulses)
        columns = gain.reshape(len(rows), -1).mT  # one for each group position
        self.gains.copy_(torch.stack([lloyd_levels(column, 1 << self.gain_bits, weights) for column in columns]))

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        groups = self.dim // self.group
        points, gain = pyramid.project(rows.reshape(-1, self.group).contiguous(), self.pulses)
        index = pyramid.number(points, self.counts, self.sums).reshape(-1, groups)
        thresholds = midpoints(self.gains.double())
        level = torch.searchsorted(thresholds, gain.reshape(-1, groups).mT.contiguous()).mT
        return (index << self.gain_bits) | level, None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        points = pyramid.point((indices >> self.gain_bits).reshape(-1), self.counts, self.sums)
        level = indices & ((1 << self.gain_bits) - 1)
        gain = self.gains.double()[torch.arange(indices.shape[1], device=indices.device), level].reshape(-1)
        norm = points.square().sum(1).double().sqrt()  # of integers: exact, then rounded once
        return (points * (gain / norm).unsqueeze(1)).float().reshape(-1, self.dim)

    def check_state(self) -> None:
        super().check_state()
        if bool((self.gains < 0).any()) or bool((self.gains.diff(dim=1) < 0).any()):
            raise FormatError("value", "gains of pvq are not non-negative and ascending")


class _Split(NamedTuple):
    error: float
    group: int
    gain_bits: int
    pulses: int


def _splits(dim: int, bits: float) -> Iterator[_Split]:
    """Every group width with its pulses and gain bits within ``bits`` a dimension."""
    for group in (d for d in range(1, min(dim, 256) + 1) if dim % d == 0):
        budget = min(63, math.floor(bits * group + 1e-9))
        for gain_bits in range(min(MAX_GAIN_BITS, budget) + 1):
            sizes = pyramid.sizes(group, min((pyramid.LIMIT - 1) >> gain_bits, 1 << (budget - gain_bits)))
            if sizes:
                pulses = sizes.index(sizes[-1]) + 1  # on a line all pyramids are alike
                yield _Split(_gaussian_error(group, sizes[-1], gain_bits), group, gain_bits, pulses)


@cache
def _gaussian_error(group: int, size: int, gain_bits: int) -> float:
    """Mean squared error on N(0, 1), within a few per cent: the shape's 2^(-2 R) law with a factor fitted to simulations of
    1..128 dimensions, plus what Lloyd-Max levels leave of the gain's variance, about 0.47 a group."""
    rate = math.log2(size) / group
    factor = (1 + 0.58 * (1 - math.exp(-1.15 * rate))) * (1 + 7.4 * group**-2.5)
    shape = factor * 2 ** (-2 * rate * group / (group - 1)) if group > 1 else 0.0
    left = (1.0, 0.3634, 0.1175, 0.03454, 0.009497)
    return shape + 0.47 / group * (left[gain_bits] if gain_bits < len(left) else 2.5 * 4.0**-gain_bits)
