"""Gain-shape quantization (Buzo, Gray, Gray, Markel 1980; Sabin, Gray: Product Code Vector Quantizers, 1984): length and direction apart.

Any quantizer codes the direction u = x / |x|; the length is a number of its own. What the inner quantizer decodes is taken as a
direction only, so one whose decode has another scale than its input (sign codes, cosine codes) comes back to the input's space.

    codes = encode(u),   v = decode(codes),   s = <x, v> / |v|,   j = argmin_j |s - g_j|,   x^ = g_j v / |v|

s is the least-squares gain for the direction v, and |x - x^|^2 = |x|^2 - s^2 + (s - g_j)^2: the nearest level is the best one.
``gain_bits`` says how many bits the gain takes: 1..12, Lloyd-Max levels of s learned from the data, one more position of the code;
0, a single level for all (embeddings of length 1 lose nothing); 16 or 32, a float beside the indices (16: divided by a fitted power
of two, so that it stays in float16's range).

A row of zeros has no direction: it is coded as e_1 with the gain nearest to 0, and left out when the directions are fitted.
Cost: the inner quantizer's plus three passes over a row. Bits: the inner quantizer's plus gain_bits / dim; 2^gain_bits floats shared.
Departure: the shape is chosen first, by the inner quantizer and for the unit vector, not jointly with the gain; with a least-squares gain
this loses nothing where the inner quantizer decodes to unit length.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from codeword import catalog
from codeword.errors import CodewordError, FormatError
from codeword.parts import arrays
from codeword.parts.combinator import Combinator, stats_of
from codeword.parts.gradients import straight_through
from codeword.parts.lloyd import lloyd_levels, midpoints
from codeword.parts.rows import dot, unit
from codeword.quantizer import Quantizer

MAX_CODED_BITS = 12
_FLOATS = {16: torch.float16, 32: torch.float32}


class GainShape(Combinator):
    """quantizer: what codes the directions; gain_bits: 0..12 learned levels, or a float of 16 or 32 bits."""

    def __init__(self, *, quantizer: Quantizer, gain_bits: int = 8) -> None:
        super().__init__([quantizer])
        if gain_bits not in _FLOATS and not 0 <= gain_bits <= MAX_CODED_BITS:
            raise CodewordError(f"gain_shape got gain_bits={gain_bits}; 0..{MAX_CODED_BITS}, 16 or 32 are allowed")
        self.dim, self.gain_bits = quantizer.dim, gain_bits
        self.learns = quantizer.learns or gain_bits != 32
        self.fitted = not self.learns
        self.gains: Tensor
        self.register_buffer("gains", torch.ones(1 if gain_bits in _FLOATS else 1 << gain_bits))

    @classmethod
    def wrap(cls, inner: tuple[str, ...], dim: int, *, gain_bits: int = 8) -> Self:
        """``gain_shape(fsq:bits=2):gain_bits=8``"""
        if len(inner) != 1:
            raise CodewordError(f"gain_shape takes one inner quantizer, got {len(inner)}")
        return cls(quantizer=catalog.make(inner[0], dim), gain_bits=gain_bits)

    @property
    def quantizer(self) -> Quantizer:
        return self.inner[0]

    @property
    def levels(self) -> tuple[int, ...]:  # type: ignore[override]
        return (*self.quantizer.levels, 1 << self.gain_bits) if 0 < self.gain_bits <= MAX_CODED_BITS else self.quantizer.levels

    @property
    def side_count(self) -> int:  # type: ignore[override]
        return self.quantizer.side_count + (self.gain_bits in _FLOATS)

    @property
    def side_dtype(self) -> torch.dtype:  # type: ignore[override]
        """The gain's float, or float32 where the inner quantizer keeps floats of another width."""
        kinds = {self.quantizer.side_dtype} if self.quantizer.side_count else set()
        kinds |= {_FLOATS[self.gain_bits]} if self.gain_bits in _FLOATS else set()
        return kinds.pop() if len(kinds) == 1 else torch.float32

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        directions, usable = unit(rows)
        if bool(usable.any()):
            kept = None if weights is None else weights[usable]
            self._fit_part(0, directions[usable].float(), kept)
        else:
            self._fit_part(0, directions[:1].float(), None)
        step = arrays.block_rows(self.dim)
        gain = torch.cat([self._code_shape(part)[2] for part in rows.split(step)])
        if self.gain_bits <= MAX_CODED_BITS:
            self.gains.copy_(lloyd_levels(gain, len(self.gains), weights))
        elif self.gain_bits == 16:
            self.gains.fill_(_float16_scale(gain.abs()))

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self._with_gain(*self._code_shape(rows))

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        count = len(self.quantizer.levels)
        shape = self._direction(indices[:, :count], None if side is None else side[:, :self.quantizer.side_count])
        if self.gain_bits in _FLOATS:
            assert side is not None
            gain = side[:, -1].double() * self.gains[0].double()
        else:
            gain = self.gains.double()[indices[:, -1] if self.gain_bits else torch.zeros_like(indices[:, 0])]
        return (shape * gain.unsqueeze(1)).float()

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor, dict[str, Tensor]]:
        out = self.quantizer(unit(rows)[0].float(), mask=keep)
        with torch.no_grad():
            index, side = self._rows_of(out.codes)
            index = index.to(torch.int64)
            index, side = self._with_gain(index, side, dot(rows, self._direction(index, side)))
            side = None if side is None else side.to(self.side_dtype)
            values = self._decode(index, side)
            error = arrays.masked_mean((values - rows).square().sum(-1), keep)
        return straight_through(rows, values), index, side, out.loss, {"error": error, **stats_of([out])}

    def check_state(self) -> None:
        super().check_state()
        if bool((self.gains.diff() < 0).any()) or (self.gain_bits in _FLOATS and not bool(self.gains[0] > 0)):
            raise FormatError("value", "gains of gain_shape are not ascending, or the scale of its floats is not positive")

    # ------------------------------------------------------------------ helpers

    def _code_shape(self, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Inner indices, inner side floats as stored, and the gain s float64."""
        index, side = self.quantizer._encode(unit(rows)[0].float(), None)
        index = index.to(torch.int64)
        side = None if side is None else side.to(self.quantizer.side_dtype)
        return index, side, dot(rows, self._direction(index, side))

    def _direction(self, indices: Tensor, side: Tensor | None) -> Tensor:
        """v / |v| float64; zero where the inner quantizer decodes to zero."""
        inner_side = None if side is None or not self.quantizer.side_count else side.to(self.quantizer.side_dtype)
        direction, usable = unit(self.quantizer._decode(indices, inner_side).detach())
        return torch.where(usable.unsqueeze(1), direction, 0.0)

    def _with_gain(self, index: Tensor, side: Tensor | None, gain: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.gain_bits in _FLOATS:
            kind = _FLOATS[self.gain_bits]
            most = torch.finfo(kind).max  # a gain beyond what was fitted saturates, as the highest level does
            own = (gain / self.gains[0].double()).clamp(-most, most).to(kind).to(self.side_dtype).unsqueeze(1)
            return index, own if side is None else torch.cat((side.to(self.side_dtype), own), dim=1)
        if self.gain_bits:
            level = torch.searchsorted(midpoints(self.gains.double()), gain)
            index = torch.cat((index, level.unsqueeze(1)), dim=1)
        return index, side


def _float16_scale(size: Tensor) -> float:
    """A power of two near the median, where float16 is most precise, but large enough that the largest gain fits."""
    centre = max(float(size.median()), float(size.max()) / 2**15)
    return 2.0 ** max(math.frexp(centre)[1], -126) if centre else 1.0
