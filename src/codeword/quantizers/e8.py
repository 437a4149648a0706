"""E8P and its residual stages (Tseng, Chee, Sun, Kuleshov, De Sa: QuIP#, ICML 2024; the lattice: Conway, Sloane 1982).

Eight entries together become one point of the densest lattice in eight dimensions, cut to the 65,536 points nearest to where Gaussian
data lies: 16 bits, two a dimension, found exactly and decoded by a table of 256 patterns (``ops.e8_nearest`` has the codebook). Three
and four bits code what is left by a second, finer point.

    y = x opt / rms                 rms of the row (gain="row") or of the fitted rows ("global"), opt = 1.03, 0.98, 0.93
    c = E8P(y)                                                      2 bits
    c = E8P(y) + S((y - E8P(y)) 2.04) / 2.04                        3 bits, S: 256 points of E8: 0, its 240 roots, 15 of norm 4
    c = E8P(y) + E8P((y - E8P(y)) 3.45) / 3.45                      4 bits
    x^ = g c                        g = <x, c> / |c|^2, stored as a float ("row"), or rms / opt ("global")

On N(0, 1) the error at 2 bits is 0.091, where the best scalar quantizer leaves 0.1175 and Shannon's bound is 0.0625. It is made for
entries that are alike and Gaussian: rotate first (``Rotated``) where they are not; nothing is centred. Entries beyond about 3 rms
saturate. Cost: 512 scores of eight products a group of eight and stage. Bits: 2, 3 or 4, and 32/dim with gain="row"; nothing shared.

Departures: opt at 4 bits, where 1.03 leaves a tenth more error on N(0, 1), since more of it lies beyond the first stage's points. Which
29 patterns of norm 12, and which 15 vectors of norm 4 (all of +-2 e_i but -2 e_8), are ours, since only their numbers are known to us.
The row's gain is the least-squares one of the code instead of its rms. Stages are chosen one after the other, as there.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Self

import numpy as np
import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.ops import e8
from codeword.parts import rows as sums
from codeword.parts.moments import moments
from codeword.quantizer import Quantizer

OPT_SCALE = {2: 1.03, 3: 0.98, 4: 0.93}
FINER = {3: 2.04, 4: 3.45}
_LARGEST = torch.finfo(torch.float32).max


class E8(Quantizer):
    """dim: a multiple of 8; code_bits: 2, 3 or 4; gain: "global" (one fitted scale) or "row" (a float beside each row's code)."""

    def __init__(self, *, dim: int, code_bits: int = 2, gain: str = "global") -> None:
        super().__init__()
        if dim < 1 or dim % e8.DIM or code_bits not in OPT_SCALE:
            raise CodewordError(f"e8 got dim={dim} and code_bits={code_bits}; a multiple of 8, and 2, 3 or 4, are needed")
        if gain not in ("global", "row"):
            raise CodewordError(f"e8 got gain={gain!r}; 'global' and 'row' are known")
        self.dim, self.code_bits, self.gain = dim, code_bits, gain
        self.levels = (e8.POINTS, *{2: (), 3: (256,), 4: (e8.POINTS,)}[code_bits]) * (dim // e8.DIM)
        self.side_count = 1 if gain == "row" else 0
        self.learns = gain == "global"
        self.fitted = not self.learns
        self.rms: Tensor
        self.points: Tensor
        self.subset: Tensor
        if self.learns:
            self.register_buffer("rms", torch.ones(()))
        self.rebuild()

    def rebuild(self) -> None:
        """E8P in quarters, and S: constants, in memory once for all of these quantizers."""
        self.register_buffer("points", torch.from_numpy(e8.points()), persistent=False)
        self.register_buffer("subset", torch.from_numpy(_short_vectors()), persistent=False)

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, gain: str = "global") -> Self:
        """The largest of 2, 3, 4 bits whose stored bits (32/dim more for gain="row") exceed ``bits`` by no more than a quarter.
        Unsupported where none comes within a bit, and for widths that are no multiple of 8."""
        side = 32 / dim if gain == "row" else 0.0
        best = min(math.floor(bits + 0.25 - side + 1e-9), 4)
        if dim % e8.DIM or best < 2 or bits - best - side >= 1:
            raise Unsupported(f"e8 stores {2 + side:.3g}, {3 + side:.3g} or {4 + side:.3g} bits a dimension in widths that are multiples "
                              f"of 8; bits={bits} at dim={dim} is not near any")
        return cls(dim=dim, code_bits=best, gain=gain)

    # ------------------------------------------------------------------ the contract

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        if self.learns:
            mean, variance = moments(rows, weights)
            self.rms.fill_(float((mean.square() + variance).mean().sqrt().clamp(max=_LARGEST)))

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rms = self.rms.double() if self.learns else (sums.dot(rows, rows) / self.dim).sqrt().unsqueeze(1)
        scaled = (rows.double() * (OPT_SCALE[self.code_bits] / torch.where(rms > 0, rms, 1.0))).reshape(-1, e8.DIM)
        first = ops.e8_nearest(e8.integers(scaled))
        stages = [first]
        if self.code_bits > 2:
            left = (scaled - self.points[first].double() / 4) * FINER[self.code_bits]
            fine = left.nan_to_num(0).clamp(-64, 64).float()
            stages.append(ops.nearest(fine, self.subset).indices if self.code_bits == 3 else ops.e8_nearest(e8.integers(left)))
        index = torch.stack(stages, dim=1).reshape(rows.shape[0], len(self.levels))
        if self.learns:
            return index, None
        codeword = self._codewords(index)
        square = sums.dot(codeword, codeword)
        gain = torch.where(square > 0, sums.dot(rows, codeword) / square.clamp(min=1e-9), 0.0)
        return index, gain.clamp(-_LARGEST, _LARGEST).float().unsqueeze(1)

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        gain = self.rms.double() / OPT_SCALE[self.code_bits] if side is None else side.double()
        return (self._codewords(indices) * gain).clamp(-_LARGEST, _LARGEST).float()

    def check_state(self) -> None:
        super().check_state()
        if self.learns and not bool(self.rms >= 0):
            raise FormatError("value", f"rms of e8 is {float(self.rms)}; it cannot be negative")

    # ------------------------------------------------------------------ helpers

    def _codewords(self, indices: Tensor) -> Tensor:
        """c float64 (n, dim)."""
        stages = indices.reshape(-1, 1 if self.code_bits == 2 else 2)
        values = self.points[stages[:, 0]].double() / 4
        if self.code_bits == 3:
            values = values + self.subset[stages[:, 1]].double() / FINER[3]
        elif self.code_bits == 4:
            values = values + self.points[stages[:, 1]].double() / (4 * FINER[4])
        return values.reshape(-1, self.dim)


@cache
def _short_vectors() -> np.ndarray:
    """0; the roots (+-1, +-1, 0 ...) and (+-1/2 ...) with an even number of minus signs; 2 e_1, -2 e_1, ..., 2 e_8. In this order."""
    whole = [np.zeros(8)]
    for i, j in itertools.combinations(range(8), 2):
        for a, b in itertools.product((1, -1), repeat=2):
            whole.append(np.eye(8)[i] * a + np.eye(8)[j] * b)
    half = [np.array(s) / 2 for s in itertools.product((1, -1), repeat=8) if math.prod(s) == 1]
    long = [2 * s * np.eye(8)[i] for i in range(8) for s in (1, -1)][:15]
    return np.array(whole + half + long, np.float32)
