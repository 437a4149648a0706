"""RaBitQ without a rotation of its own (Gao, Long: RaBitQ, SIGMOD 2024; Gao et al., SIGMOD 2025), as faiss keeps it.

The residual r = x - center is coded by the point of a grid nearest to its direction, and a factor that makes inner products with the
decoded value unbiased where the data were rotated at random before. The rotation is left to the caller (``rotated(...)``, a linear map
in front); ``RaBitQ`` has its own and a fused scan, and is the one to build new indexes with. This one exists to read such codes exactly.

    x_ = the grid point among {-(K-1)/2, ..., (K-1)/2}^d, K = 2^B, of largest cosine with r;   code = x_ + (K-1)/2
    kappa = |r|^2 / <r, x_>,   x^ = center + kappa x_

For B = 1 the code is the signs of r and kappa = 2 |r|^2 / |r|_1. x^ overshoots the least-squares value by 1 / cos^2(r, x_), which is
what keeps <q, x^> unbiased. Cost: encode O(d) for B = 1, else one exact search a row (``ops.grid_code``). Bits: B, and 32/d.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, Unsupported
from codeword.ops.grid import TOP
from codeword.parts import rows as sums
from codeword.quantizer import Quantizer

LARGEST = torch.finfo(torch.float32).max


class PlainRaBitQ(Quantizer):
    """dim; code_bits: B bits a dimension, 1..9. Works without data; ``fit`` sets ``center`` to the mean of its rows."""

    learns = False
    side_count = 1

    def __init__(self, *, dim: int, code_bits: int = 1) -> None:
        super().__init__()
        if dim < 1 or not 1 <= code_bits <= 9:
            raise CodewordError(f"plain_rabitq got dim={dim} and code_bits={code_bits}; at least 1, and 1..9, are needed")
        self.dim, self.code_bits = dim, code_bits
        self.levels = (1 << code_bits,) * dim
        self.center: Tensor
        self.register_buffer("center", torch.zeros(dim))

    @classmethod
    def for_bits(cls, dim: int, bits: float) -> Self:
        """The largest B whose stored bits B + 32/dim exceed ``bits`` by no more than a quarter; Unsupported where none is within a bit."""
        side = 32 / dim
        best = min(math.floor(bits + 0.25 - side + 1e-9), 9)
        if best < 1 or bits - best - side >= 1:
            raise Unsupported(f"plain_rabitq stores {1 + side:.3g} to {9 + side:.3g} bits a dimension at dim={dim}; "
                              f"bits={bits} is not near any")
        return cls(dim=dim, code_bits=best)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        total, counts = ops.segment_sum(rows, torch.zeros(len(rows), dtype=torch.int64, device=rows.device), 1, weights)
        self.center = (total[0] / counts[0]).float()

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = rows.double() - self.center.double()
        unit = residual.abs().amax(1, keepdim=True).clamp(min=1e-300) / TOP
        whole = (residual / unit).round().nan_to_num()  # integers up to 2^30: their sums below are exact
        half = 1 << (self.code_bits - 1)
        odd = 2 * ops.grid_code(whole.abs().to(torch.int32), half).to(torch.int64) + 1  # |2 x_|
        square, product = sums.dot(residual, residual), sums.dot(odd, residual.abs())
        kappa = torch.where(product == 0, 0.0, 2 * square / product)
        codes = torch.where(whole > 0, odd, -odd) + (2 * half - 1)
        return codes // 2, kappa.clamp(max=LARGEST).float().unsqueeze(1)

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        assert side is not None
        points = indices.float() - ((1 << self.code_bits) - 1) / 2
        return (self.center + side * points).clamp(-LARGEST, LARGEST)
