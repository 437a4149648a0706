"""Half precision floats as codes (IEEE 754-2008 binary16; bfloat16: Wang, Kanwar, BFloat16, 2019).

An entry becomes the nearest 16-bit float, ties to even. It is the baseline at 16 bits a dimension that every vector store has, and the
yardstick for what a code of 8 bits loses. The alphabet holds the finite values only, so every code decodes to a number:

    code = magnitude bits + [x < 0 or x = -0] K / 2,   x^ = the float with these bits;   K = 63488 (float16), 65280 (bfloat16)

Cost: a conversion an entry. Bits: 16, nothing beside them. Departure: values beyond the largest finite one saturate instead of
becoming infinite.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from codeword.errors import CodewordError, Unsupported
from codeword.quantizer import Quantizer

FORMATS = {"float16": (torch.float16, 0x7C00), "bfloat16": (torch.bfloat16, 0x7F80)}
"""dtype, and how many magnitudes are finite."""


class Half(Quantizer):
    """dim; format: "float16" (11 bits of precision, up to 65504) or "bfloat16" (8 bits, the range of float32)."""

    learns = False

    def __init__(self, *, dim: int, format: str = "float16") -> None:
        super().__init__()
        if dim < 1 or format not in FORMATS:
            raise CodewordError(f"half got dim={dim} and format={format!r}; at least 1, and 'float16' or 'bfloat16', are needed")
        self.dim, self.format = dim, format
        self.levels = (2 * FORMATS[format][1],) * dim

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """16 bits a dimension, within a quarter."""
        if not 15.75 <= bits <= 16.25:
            raise Unsupported(f"half stores 16 bits a dimension; bits={bits} is not near it")
        return cls(dim=dim, **options)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        """Nothing to learn."""

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        dtype, _ = FORMATS[self.format]
        largest = torch.finfo(dtype).max
        return self.indices(rows.clamp(-largest, largest).to(dtype)), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        dtype, finite = FORMATS[self.format]
        pattern = torch.where(indices < finite, indices, indices - finite - (1 << 15))
        return pattern.to(torch.int16).view(dtype).float()

    def indices(self, values: Tensor) -> Tensor:
        """int64 codes of finite ``values`` that are of the format already."""
        pattern = values.view(torch.int16).to(torch.int64)
        return torch.where(pattern < 0, pattern + (1 << 15) + FORMATS[self.format][1], pattern)
