"""Finite scalar quantization (Mentzer, Minnen, Agustsson, Tschannen: Finite Scalar Quantization: VQ-VAE Made Simple, ICLR 2024).

Each dimension is squashed by a tanh and rounded to one of L values: a fixed grid, no codebook, nothing to collapse. ``grid`` holds
L_1 ... L_g; every g dimensions form one token, one position of the code.

    h = (L - 1)(1 - eps) / 2,   o = 1/2 if L is even else 0,   s = atanh(o / h),   eps = 1e-3
    b(z) = h tanh(z + s) - o,   j = round(b) + floor(L / 2) in 0 ... L - 1,   z^ = (j - floor(L / 2)) / floor(L / 2) in [-1, 1]
    token = sum_i j_i prod_{l<i} L_l                                              (mixed radix, the first dimension is fastest)

With ``noise`` > 0 that share of the numbers, drawn anew in each training pass, is not rounded but moved by uniform noise of half a
step either way: to a decoder much like rounding, and with an exact gradient (Parker et al.: Scaling Transformers for Low-Bitrate
High-Quality Speech Coding, 2024, with 1/2). The codes that forward returns are always the rounded ones.

L = 2 has no such form (o > h): there b(z) = tanh z and z^ is its sign, 0 counting as +1. Even L is asymmetric, -1 ... 1 - 2/L.
Gradient: of the smooth b(z) / floor(L / 2); only the rounding is passed straight through.

Exactness: a vectorised tanh may differ in its last bit with a row's place in the batch, so no tanh decides here. The rounding
changes at b = m + 1/2, that is at z = atanh((m + 1/2 + o) / h) - s: these edges are computed once in float64, rounded to float32,
and j counts the edges <= z.

Cost: L - 1 comparisons a dimension, log2 L beyond 32 levels. Bits: ceil(log2 prod L) a group of g dimensions. Values live in
[-1, 1], not in the input's space: ``Projected`` maps back. A popular port has eps of the other sign; both give L values, and differ near
the edges by 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from codeword.errors import CodewordError, Unsupported
from codeword.parts import arrays
from codeword.parts.codebook import usage
from codeword.quantizer import Quantizer

EPS = 1e-3
COUNTED_EDGES = 32
"""Up to this many levels comparing with every edge beats a binary search."""


class FSQ(Quantizer):
    """dim: a multiple of the length of ``grid``; grid: levels L_1 ... L_g of one token's dimensions, 2..256 each, e.g. [8, 5, 5, 5];
    noise: share of the numbers that training moves by noise instead of rounding them."""

    learns = False
    later_arguments: ClassVar[dict[str, Any]] = {"noise": 0.0}

    def __init__(self, *, dim: int, grid: Sequence[int], noise: float = 0.0) -> None:
        group = len(grid)
        if not 1 <= group <= 32 or any(not 2 <= level <= 256 for level in grid) or math.prod(grid) > 1 << 32:
            raise CodewordError(f"fsq got grid={grid}; one or more levels of 2..256 with a product of at most 2^32 are allowed")
        if dim < 1 or dim % group:
            raise CodewordError(f"fsq got dim={dim} for a grid of {group} levels; a multiple of {group} is needed")
        if not 0 <= noise <= 1:
            raise CodewordError(f"fsq got noise={noise}; a share of 0..1 is needed")
        super().__init__()
        self.dim, self.grid, self.noise = dim, list(grid), noise
        self.levels = (math.prod(self.grid),) * (dim // group)
        self.rebuild()

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, noise: float = 0.0) -> Self:
        """2^bits levels for every dimension; a fraction of a bit spreads 2^(g bits) codes over g dimensions, as evenly as they allow."""
        for group in range(1, 9):
            total = bits * group
            if dim % group == 0 and math.isclose(total, round(total), abs_tol=1e-9) and 1 <= bits <= 8 and total <= 32:
                return cls(dim=dim, grid=_even_grid(1 << round(total), group), noise=noise)
        raise Unsupported(f"fsq has no grid of exactly {bits} bits a dimension for dim={dim}; 1..8 in steps of 1/g for a divisor g <= 8 "
                          "of dim (g bits <= 32) are possible")

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return self._tokens(self._digits(self._columns(rows)), rows.shape[0]), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        digits, rest = [], indices.reshape(-1)
        for level in self.grid:
            digits.append(rest % level)
            rest = torch.div(rest, level, rounding_mode="floor")
        return self._rows(self._values(torch.stack(digits)), indices.shape[0])

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        z = self._columns(rows)
        digits = self._digits(z.detach())
        tokens, values = self._tokens(digits, rows.shape[0]), self._values(digits)
        smooth = torch.addcmul(-self._column(self.offset / self.steps), torch.tanh(z.add_(self._column(self.shift))),
                               self._column(self.span / self.steps))
        error = self._error(smooth.detach(), values, keep, rows.shape[0])
        if self.training and self.noise > 0:
            values = torch.where(torch.rand_like(values) < self.noise, smooth.detach() + self._half_steps(values), values)
        stats = {"error": error, **usage(tokens, self.levels[0], keep)}
        return self._rows(_Rounded.apply(smooth, values), rows.shape[0]), tokens, None, rows.new_zeros(()), stats

    def rebuild(self) -> None:
        """The constants of the grid: they move with the module and are not stored."""
        h, o, s = zip(*map(_form, self.grid), strict=True)
        longest = max(self.grid)
        tables = {"span": h, "offset": o, "shift": s, "steps": [level // 2 for level in self.grid],
                  "rise": [2 if level == 2 else 1 for level in self.grid],
                  "edges": [_edges(level) + [math.inf] * (longest - level) for level in self.grid]}
        for name, values in tables.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64).to(torch.float32), persistent=False)

    # ------------------------------------------------------------------ helpers

    span: Tensor
    offset: Tensor
    shift: Tensor
    steps: Tensor
    rise: Tensor
    edges: Tensor

    # All work is done on (g, n tokens), one row for each dimension of a token: constants then belong to whole rows, and every operation
    # runs along memory.

    def _columns(self, rows: Tensor) -> Tensor:
        return rows.reshape(-1, len(self.grid)).mT.clone(memory_format=torch.contiguous_format)

    def _rows(self, columns: Tensor, rows: int) -> Tensor:
        return columns.mT.reshape(rows, self.dim)

    @staticmethod
    def _column(constants: Tensor) -> Tensor:
        return constants.unsqueeze(1)

    def _digits(self, z: Tensor) -> Tensor:
        """uint8 (g, n tokens): the number of edges at or below each number."""
        found = []
        for column, edges, level in zip(z, self.edges, self.grid, strict=True):
            if level > COUNTED_EDGES:
                found.append(torch.searchsorted(edges[:level - 1].contiguous(), column, right=True).to(torch.uint8))
                continue
            count = (column >= edges[0]).to(torch.uint8)
            for i in range(1, level - 1):
                count += column >= edges[i]
            found.append(count)
        return torch.stack(found)

    def _tokens(self, digits: Tensor, rows: int) -> Tensor:
        tokens, radix = digits[0].to(torch.int64), self.grid[0]
        for digit, level in zip(digits[1:], self.grid[1:], strict=True):
            tokens = tokens + digit.to(torch.int64) * radix
            radix *= level
        return tokens.reshape(rows, len(self.levels))

    def _values(self, digits: Tensor) -> Tensor:
        """(j - floor(L / 2)) / floor(L / 2), for two levels 2 j - 1: rounded once, as every step but the division is exact."""
        values = digits.to(torch.float32)  # the arithmetic is in place: new memory costs more than it
        if 2 in self.grid:
            values.mul_(self._column(self.rise))
        return values.sub_(self._column(self.steps)).div_(self._column(self.steps))

    def _error(self, smooth: Tensor, values: Tensor, keep: Tensor | None, rows: int) -> Tensor:
        """Mean over kept rows of the squared distance between the curve and its rounded values."""
        if keep is None:
            return torch.nn.functional.mse_loss(values, smooth, reduction="sum") / max(1, rows)
        gap = (values - smooth).square().sum(0)
        return arrays.masked_mean(gap.reshape(rows, len(self.levels)).sum(1), keep)

    def _half_steps(self, values: Tensor) -> Tensor:
        """Uniform noise within half a step either way, in the units of the values."""
        return (torch.rand_like(values) - 0.5) * self._column(self.rise / self.steps)


class _Rounded(torch.autograd.Function):
    """``straight_through`` in one pass: values plus 0 times the curve, which is NaN where the input was, else the values bit for bit."""

    @staticmethod
    def forward(smooth: Tensor, values: Tensor) -> Tensor:
        return torch.add(values, smooth, alpha=0)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _form(level: int) -> tuple[float, float, float]:
    """h, o and s of b(z) = h tanh(z + s) - o."""
    if level == 2:
        return 1.0, 0.0, 0.0
    h, o = (level - 1) * (1 - EPS) / 2, 0.5 if level % 2 == 0 else 0.0
    return h, o, math.atanh(o / h)


def _edges(level: int) -> list[float]:
    """The level - 1 places in z where the rounded b steps up, ascending."""
    h, o, s = _form(level)
    return [0.0] if level == 2 else [math.atanh((m + 0.5 + o) / h) - s for m in range(-(level // 2), level - 1 - level // 2)]


def _even_grid(codes: int, group: int) -> list[int]:
    """``group`` levels, nearly equal and descending, with the largest product up to ``codes`` that raising one at a time reaches."""
    grid = [max(2, int(codes ** (1 / group) + 1e-9))] * group
    while True:
        raised = next((i for i in sorted(range(group), key=lambda i: (grid[i], i))
                       if math.prod(grid) // grid[i] * (grid[i] + 1) <= codes), None)
        if raised is None:
            return sorted(grid, reverse=True)
        grid[raised] += 1
