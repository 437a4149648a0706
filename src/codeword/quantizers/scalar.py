"""Scalar quantization (Lloyd: Least Squares Quantization in PCM, 1957/1982; Max: Quantizing for Minimum Distortion, IRE 1960).

Every entry is coded by itself, as one of K = 2^B levels. The levels are those of its dimension, of all dimensions together, or of its
vector, whose offset and scale then travel beside the code.

    minmax, mse   x^ = low + ((c + 1/2) / (K - 1)) span,   c = clamp(floor((x - low) (K - 1) / span), 0, K - 1)
    lloyd         x^ = table[c], the means of what is nearest to them      (per vector: offset + scale table[c], scale = its deviation)

``minmax`` tiles the range from the least to the greatest value with K equal cells and nothing is clipped; ``mse`` takes the uniform grid
of least squared error, which clips outliers (``parts.lloyd.uniform_levels``; per vector the best of a few widths about the middle of its
range); ``lloyd`` lets the levels be unequal. On N(0, 1) at 1, 2, 3, 4 bits: 0.3634, 0.1188, 0.0374, 0.0115 for the best uniform grid,
0.3634, 0.1175, 0.0345, 0.0095 for Lloyd-Max. Cost: O(1) an entry. Bits: B, and 64/dim per vector; two floats or K a table are shared.

The uniform formula is that of faiss's IndexScalarQuantizer (QT_4bit, QT_6bit, QT_8bit: per="dim"; their _uniform forms: per="all"),
with low = vmin and span = vdiff, to the last bit of float32: (c + 1/2) / (K - 1) is rounded, then multiplied and added in one rounding
where dim is a multiple of 8 and in two where it is not, because faiss does so. Its trained ranges leave the greatest value a cell of its
own, ours do not; codes agree but for values on a cell's edge.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.parts import rows as sums
from codeword.parts.lloyd import lloyd_levels, midpoints, uniform_levels
from codeword.quantizer import Quantizer

LARGEST = torch.finfo(torch.float32).max
WIDTHS = tuple(1 - 0.05 * i for i in range(13))
"""Parts of a vector's range that its grid may span."""


class ScalarQuantizer(Quantizer):
    """dim; code_bits: B, 1..8, without the side information of per="vector" that ``bits`` counts; placement: "minmax", "mse" or "lloyd";
    per: "dim", "all" (one table for all dimensions) or "vector"."""

    fit_values = 1 << 25  # one sort in float64 where a table is for all

    def __init__(self, *, dim: int, code_bits: int = 8, placement: str = "minmax", per: str = "dim") -> None:
        super().__init__()
        if dim < 1 or not 1 <= code_bits <= 8:
            raise CodewordError(f"scalar got dim={dim} and code_bits={code_bits}; at least 1, and 1..8, are needed")
        if placement not in ("minmax", "mse", "lloyd"):
            raise CodewordError(f"scalar got placement={placement!r}; 'minmax', 'mse' and 'lloyd' are known")
        if per not in ("dim", "all", "vector"):
            raise CodewordError(f"scalar got per={per!r}; 'dim', 'all' and 'vector' are known")
        self.dim, self.code_bits, self.placement, self.per = dim, code_bits, placement, per
        self.levels = (1 << code_bits,) * dim
        self.side_count = 2 if per == "vector" else 0
        if per == "vector" and placement != "lloyd":
            self.learns, self.fitted = False, True
        self.low: Tensor
        self.span: Tensor
        self.table: Tensor
        tables = dim if per == "dim" else 1
        if placement == "lloyd":
            self.register_buffer("table", torch.zeros(tables, 1 << code_bits))
        elif per != "vector":
            self.register_buffer("low", torch.zeros(tables))
            self.register_buffer("span", torch.zeros(tables))

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, placement: str = "mse", per: str = "dim") -> Self:
        """The largest B whose stored bits exceed ``bits`` by no more than a quarter (B itself but for per="vector", where 64/dim is
        added). Unsupported where no B comes within a bit."""
        side = 64 / dim if per == "vector" else 0.0
        best = min(math.floor(bits + 0.25 - side + 1e-9), 8)
        if best < 1 or bits - best - side >= 1:
            raise Unsupported(f"scalar stores {1 + side:.3g} to {8 + side:.3g} bits a dimension at dim={dim}; bits={bits} is not near any")
        return cls(dim=dim, code_bits=best, placement=placement, per=per)

    # ------------------------------------------------------------------ the contract

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        if not self.learns:
            return
        if self.per == "vector":
            side = self._row_scales(rows)
            rows = (rows.double() - side[:, :1]) / torch.where(side[:, 1:] > 0, side[:, 1:].double(), 1.0)
        columns = list(rows.mT) if self.per == "dim" else [rows.flatten()]
        if weights is not None and self.per != "dim":
            weights = weights.repeat_interleave(self.dim)
        if self.placement == "lloyd":
            self.table.copy_(torch.stack([lloyd_levels(column, 1 << self.code_bits, weights) for column in columns]))
            return
        grids = [self._grid(column, weights) for column in columns]
        self.low.copy_(torch.tensor([low for low, _ in grids], dtype=torch.float64).clamp(-LARGEST, LARGEST))
        self.span.copy_(torch.tensor([span for _, span in grids], dtype=torch.float64).clamp(max=LARGEST))

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.per != "vector":
            return (self._nearest(rows) if self.placement == "lloyd" else self._cells(rows, self.low, self.span)), None
        if self.placement == "lloyd":
            side = self._row_scales(rows)
            scaled = (rows.double() - side[:, :1]) / torch.where(side[:, 1:] > 0, side[:, 1:].double(), 1.0)
            return self._nearest(scaled), side
        side = self._row_grids(rows.double())
        return self._cells(rows, *side.split(1, dim=1)), side

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        if self.placement == "lloyd":
            tables = torch.arange(len(self.table), device=indices.device)
            values = self.table[tables, indices].double()
            if side is not None:
                values = side[:, :1].double() + side[:, 1:].double() * values
            return values.clamp(-LARGEST, LARGEST).float()
        low, span = (self.low, self.span) if side is None else side.float().split(1, dim=1)
        place = (indices.float() + 0.5) / float((1 << self.code_bits) - 1)
        product = place.double() * span.double()  # exact
        if self.dim % 8:
            product = product.float().double()
        return (product + low.double()).clamp(-LARGEST, LARGEST).float()

    def check_state(self) -> None:
        super().check_state()
        if self.placement == "lloyd":
            if bool((self.table.diff(dim=1) < 0).any()):
                raise FormatError("value", "a table of scalar is not ascending")
        elif self.per != "vector" and bool((self.span < 0).any()):
            raise FormatError("value", "a span of scalar is negative")

    # ------------------------------------------------------------------ helpers

    def _grid(self, column: Tensor, weights: Tensor | None) -> tuple[float, float]:
        """low and span of a sample, K cells of span / (K - 1)."""
        count = 1 << self.code_bits
        if self.placement == "mse":
            low, width = uniform_levels(column, count, weights)
        else:
            low, high = column.min().item(), column.max().item()
            width = (high - low) / count
        return low, width * (count - 1)

    def _cells(self, rows: Tensor, low: Tensor, span: Tensor) -> Tensor:
        steps = (1 << self.code_bits) - 1
        scaled = (rows.double() - low.double()) * (steps / torch.where(span > 0, span.double(), 1.0))
        return torch.where(span > 0, scaled.floor().clamp(0, steps), 0.0).to(torch.int64)

    def _nearest(self, values: Tensor) -> Tensor:
        """Level nearest to each entry, the lower one on ties."""
        thresholds = midpoints(self.table.double())
        if len(thresholds) == 1:
            return torch.searchsorted(thresholds[0], values.double())
        return torch.searchsorted(thresholds, values.double().mT.contiguous()).mT

    def _row_scales(self, rows: Tensor) -> Tensor:
        """float32 (n, 2): mean and deviation of each row."""
        values = rows.double()
        mean = (sums.dot(values, torch.ones_like(values)) / self.dim).float()
        centred = values - mean.double().unsqueeze(1)
        return torch.stack((mean, (sums.dot(centred, centred) / self.dim).sqrt().clamp(max=LARGEST).float()), dim=1)

    def _row_grids(self, rows: Tensor) -> Tensor:
        """float32 (n, 2): low and span of each row's grid."""
        count = 1 << self.code_bits
        low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
        if self.placement == "minmax":
            return self._side(low, (high - low) / count)
        best, error = self._side(low, (high - low) / count), torch.full_like(low, torch.inf)
        for part in WIDTHS:
            width = part * (high - low) / count
            side = self._side((low + high) / 2 - width * count / 2, width)
            missed = rows - self._decode(self._cells(rows, *side.split(1, dim=1)), side).double()
            left = sums.dot(missed, missed).unsqueeze(1)
            best, error = torch.where(left < error, side, best), torch.minimum(left, error)
        return best

    def _side(self, low: Tensor, width: Tensor) -> Tensor:
        return torch.cat((low, (width * ((1 << self.code_bits) - 1)).clamp(max=LARGEST)), dim=1).float()
