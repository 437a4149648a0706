"""RaBitQ (Gao, Long: RaBitQ, SIGMOD 2024; Gao et al.: Practical and Asymptotically Optimal Quantization, SIGMOD 2025).

Rotate at random, keep of each vector the point of a midpoint grid whose direction is closest, and two floats. After a random
rotation what the code misses is orthogonal noise, so inner products with the code, rescaled, are unbiased with a known error.

    r = P(x - center)          P: FHT-Kac rotation from the seed (``ops.rotate``), any width, no padding
    x_ = u - (2^B - 1)/2       u in 0..2^B-1 per dimension; top bit = [r_i > 0]; the rest from ``ops.grid_code``: largest cosine
    decode   center + scale P^-1 x_,   scale = <r, x_>/|x_|^2                      (least squares)
    <r, s>  ~  kappa <x_, s>,  kappa = |r|^2/<r, x_>    unbiased; sigma = |r||s| sqrt((1/cos^2 - 1)/(d - 1)), cos = cos(x_, r)

``scale`` and ``|r|`` are the side information: B + 64/dim bits a dimension. Cost: O(2^B d log d) a vector, or O(d) with ``fast=True``,
which takes the best uniform step for a Gaussian (Max 1960) instead of searching and loses a little of the cosine. ``CAQ`` finds nearly
the same codes in O(d). Decoding and the scan are those of ``parts.rotated_grid``.

Departures from the paper and its library. No padding: the rotation takes any width. Factors come from codes, not from the vector,
so codes alone can be packed; the first bit's bound is about the refined estimate that is returned. For ip <r, c> is not kept, so its
error follows |q| instead of |q - c|: normalised vectors are better searched with l2. The query is rounded to integers, far below the
code's own error, which makes every inner product exact.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, Unsupported
from codeword.ops import grid
from codeword.parts.rotated_grid import RotatedGrid, row_norm

GAUSSIAN_STEP = (1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308, 0.0166)
"""Step of the best uniform quantizer of a unit Gaussian with 2^B levels, B = 1..9 (Max 1960)."""


class RaBitQ(RotatedGrid):
    """dim; code_bits: B bits a dimension, 1..9, without the side information that ``bits`` counts; fast: constant step instead of the
    exact search; slack: of the bound, in standard deviations; seed."""

    def __init__(self, *, dim: int, code_bits: int = 4, fast: bool = False, slack: float = 1.9, seed: int = 0) -> None:
        super().__init__(dim, code_bits, slack, seed)
        self.fast = fast

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, fast: bool = False, slack: float = 1.9, seed: int = 0) -> Self:
        """The largest B whose stored bits B + 64/dim exceed ``bits`` by no more than a quarter. So from width 256 on the dial is B and
        the two floats come on top (4.167 bits at width 384 for bits=4: ``nominal_bits`` tells); at smaller widths, where they would
        weigh, they are paid for out of the dial. Unsupported where no B comes within a bit."""
        if not 0 < bits < math.inf:
            raise CodewordError(f"rabitq got bits={bits}; a positive number is needed")
        side = 64 / dim
        best = min(math.floor(bits + 0.25 - side + 1e-9), 9)
        if best < 1 or bits - best - side >= 1:
            raise Unsupported(f"rabitq stores {1 + side:.3g} to {9 + side:.3g} bits a dimension at dim={dim}; bits={bits} is not near any")
        return cls(dim=dim, code_bits=best, fast=fast, slack=slack, seed=seed)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._assign(*self._rotated(rows))

    def _assign(self, rotated: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
        magnitudes, unit = _integers(rotated.abs())
        half = 1 << (self.code_bits - 1)
        plus = rotated > 0
        if half == 1:  # signs alone
            product, square, indices = magnitudes.sum(1), self.dim, plus.to(torch.uint8)
        else:
            cells = (self._constant_step(rotated.abs()) if self.fast else ops.grid_code(magnitudes, half)).to(torch.int32)
            odd = 2 * cells + 1
            product, square = (odd.to(torch.int64) * magnitudes).sum(1), odd.square().sum(1).double()  # integers: exact in any order
            indices = torch.where(plus, half + cells, half - 1 - cells)
        scale = 2 * (product.double() / square) * unit
        return indices, self._side(scale, row_norm(rotated), exponent)

    def _constant_step(self, magnitudes: Tensor) -> Tensor:
        """Cells by the step that is optimal for Gaussian entries of this row's mean square, or the one that just reaches the row's
        largest entry where that is finer."""
        step = GAUSSIAN_STEP[self.code_bits - 1] * row_norm(magnitudes) / math.sqrt(self.dim)
        step = torch.minimum(step, magnitudes.amax(1).double() / (1 << (self.code_bits - 1)))
        cells = (magnitudes.double() / step.clamp(min=1e-300).unsqueeze(1)).nan_to_num().floor()
        return cells.clamp(max=(1 << (self.code_bits - 1)) - 1).to(torch.int64)


def _integers(magnitudes: Tensor) -> tuple[Tensor, Tensor]:
    """int32 (n, d) with the largest of each row at 2^30, and the float64 unit (n,) they count in. NaN counts as 0."""
    unit = magnitudes.amax(1).double() / grid.TOP
    return (magnitudes.double() / unit.clamp(min=1e-300).unsqueeze(1)).nan_to_num(0, 0, 0).round().to(torch.int32), unit
