"""CAQ (Li et al.: SAQ: Pushing the Limits of Vector Quantization through Code Adjustment and Dimension Segmentation, SIGMOD 2026).

The codes, the floats and the estimates of RaBitQ, but not its search: a code starts as the best of a few uniform grids and is then
adjusted, one coordinate after the other by one cell, where that raises its cosine with the vector (``ops.adjust_code``). A few rounds are
nearly as good as the exact optimum and cost O(rounds d), whatever the number of bits.

    r = P(x - center)                  P: random rotation from the seed
    x_ = u - (2^B - 1)/2               u_i +- 1 where cos(x_, r) rises, ``rounds`` times over all i
    decode   center + scale P^-1 x_,   scale = <r, x_>/|x_|^2
    <r, s> ~ kappa <x_, s>,            kappa = |r|^2/<r, x_>: unbiased

Side information: ``scale`` and ``|r|``, B + 64/dim bits a dimension. u >> s is a code of B - s bits of the same vector (``coarser``).
Decoding and the scan are those of ``parts.rotated_grid``.

Departures. The start is the best of four grids instead of the one that just reaches the largest entry, from which high rates need many
more rounds. The float64 sums run in the order of the dimensions, so codes depend on nothing but the vector.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, Unsupported
from codeword.parts import arrays
from codeword.parts.rotated_grid import RotatedGrid
from codeword.quantizer import Codes


class CAQ(RotatedGrid):
    """dim; code_bits: B bits a dimension, 1..9, without the side information that ``bits`` counts; rounds: at most so many sweeps over the
    coordinates; slack: of the bound, in standard deviations; seed."""

    def __init__(self, *, dim: int, code_bits: int = 4, rounds: int = 6, slack: float = 1.9, seed: int = 0) -> None:
        super().__init__(dim, code_bits, slack, seed)
        if not 0 <= rounds <= 64:
            raise CodewordError(f"caq got rounds={rounds}; 0..64 are allowed")
        self.rounds = rounds

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, rounds: int = 6, slack: float = 1.9, seed: int = 0) -> Self:
        """As for RaBitQ: the largest B whose stored bits B + 64/dim exceed ``bits`` by no more than a quarter; Unsupported where no B
        comes within a bit."""
        side = 64 / dim
        best = min(math.floor(bits + 0.25 - side + 1e-9), 9)
        if best < 1 or bits - best - side >= 1:
            raise Unsupported(f"caq stores {1 + side:.3g} to {9 + side:.3g} bits a dimension at dim={dim}; bits={bits} is not near any")
        return cls(dim=dim, code_bits=best, rounds=rounds, slack=slack, seed=seed)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._assign(*self._rotated(rows))

    def _assign(self, rotated: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
        indices, sums = ops.adjust_code(rotated, [self.dim], [self.code_bits], self.rounds)
        product, square, norm = sums[:, 0].unbind(1)
        missing = torch.where(rotated.isnan().any(1), torch.nan, 0.0)  # a row that is not one decodes to NaN
        return indices, self._side(2 * product / square + missing, norm.sqrt(), exponent)

    # ------------------------------------------------------------------ shorter codes

    def coarser(self, codes: Codes, code_bits: int) -> tuple[CAQ, Codes]:
        """The quantizer with fewer bits and the same rotation and center, and its codes u >> (B - code_bits), without the vectors.
        Norms stay; a scale is the least-squares one for the longer code's vector. (``Progressive`` is about leading positions.)"""
        if not 1 <= code_bits <= self.code_bits:
            raise CodewordError(f"caq.coarser got code_bits={code_bits}; 1..{self.code_bits} are allowed")
        other = CAQ(dim=self.dim, code_bits=code_bits, rounds=self.rounds, slack=self.slack, seed=self.seed).to(self.device)
        other.center = self.center.clone()
        indices, side, _ = self._check_codes(codes)
        assert side is not None
        short = indices >> (self.code_bits - code_bits)
        fine, coarse = 2 * indices - (2**self.code_bits - 1), 2 * short - (2**code_bits - 1)
        factor = (fine * coarse).sum(-1).double() / coarse.square().sum(-1).double()
        side = torch.stack((side[..., 0].double() * factor, side[..., 1].double()), dim=-1).float()
        return other, arrays.like_codes(Codes(short.to(other.index_dtype), side, codes.lengths), codes.indices)
