"""Finite scalar quantization (Mentzer, Minnen, Agustsson, Tschannen: Finite Scalar Quantization: VQ-VAE Made Simple, ICLR 2024).

Each dimension is squashed by a tanh and rounded to one of L values: a fixed grid, no codebook, nothing to collapse. ``grid`` holds
L_1 ... L_g; every g dimensions form one token, one position of the code.

    h = (L - 1)(1 - eps) / 2,   o = 1/2 if L is even else 0,   s = atanh(o / h),   eps = 1e-3
    b(z) = h tanh(z + s) - o,   j = round(b) + floor(L / 2) in 0 ... L - 1,   z^ = (j - floor(L / 2)) / floor(L / 2) in [-1, 1]
    token = sum_i j_i prod_{l<i} L_l                                              (mixed radix, the first dimension is fastest)

With ``noise`` > 0 that share of the numbers, drawn anew in each training pass, is not rounded but moved by uniform noise of half a
step either way: to a decoder much like rounding, and with an exact gradient (Parker et al.: Scaling Transformers for Low-Bitrate
High-Quality Speech Coding, 2024, with 1/2). The codes that forward returns are always the rounded ones.

``curve`` chooses b. "inner" is the paper's, above. "outer" has eps of the other sign, as a popular port (vector-quantize-pytorch): L values
as well, edges apart by 1e-3. "symmetric" has values in equal steps from -1 to 1 whether L is even or odd (Parker et al.):

    b(z) = tanh z,   j = floor((L - 1)(b + 1) / 2 + 1/2),   z^ = 2 j / (L - 1) - 1

L = 2 has neither of the first two (o > h): there b(z) = tanh z and z^ is its sign, 0 counting as +1, which is the symmetric one. Even L
above are asymmetric in the first two, -1 ... 1 - 2/L.
Gradient: of the smooth curve in the units of z^; only the rounding is passed straight through.

Exactness: a vectorised tanh may differ in its last bit with a row's place in the batch, so no tanh decides here. The rounding
changes at b = m + 1/2, that is at z = atanh((m + 1/2 + o) / h) - s: these edges are computed once in float64, rounded to float32,
and j counts the edges <= z (``ops.fsq_round``).

Cost: L - 1 comparisons a dimension, many at once. Bits: ceil(log2 prod L) a group of g dimensions. Values live in
[-1, 1], not in the input's space: ``Projected`` maps back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, Unsupported
from codeword.ops.fsq import level_values
from codeword.parts import arrays
from codeword.parts.codebook import usage
from codeword.quantizer import Quantizer

EPS = 1e-3
CURVES = ("inner", "outer", "symmetric")
WIDEST = 1 << 16
"""Dimensions, at most: of a file's word."""


class FSQ(Quantizer):
    """dim: a multiple of the length of ``grid``; grid: levels L_1 ... L_g of one token's dimensions, 2..256 each, e.g. [8, 5, 5, 5];
    noise: share of the numbers that training moves by noise instead of rounding them; curve: "inner", "outer" or "symmetric"."""

    learns = False
    later_arguments: ClassVar[dict[str, Any]] = {"noise": 0.0, "curve": "inner"}

    def __init__(self, *, dim: int, grid: Sequence[int], noise: float = 0.0, curve: str = "inner") -> None:
        group = len(grid)
        if not 1 <= group <= 32 or any(not 2 <= level <= 256 for level in grid) or math.prod(grid) > 1 << 32:
            raise CodewordError(f"fsq got grid={grid}; one or more levels of 2..256 with a product of at most 2^32 are allowed")
        if not 1 <= dim <= WIDEST or dim % group:
            raise CodewordError(f"fsq got dim={dim} for a grid of {group} levels; a multiple of {group} up to {WIDEST} is needed")
        if not 0 <= noise <= 1:
            raise CodewordError(f"fsq got noise={noise}; a share of 0..1 is needed")
        if curve not in CURVES:
            raise CodewordError(f"fsq got curve={curve!r}; one of {', '.join(CURVES)} is needed")
        super().__init__()
        self.dim, self.grid, self.noise, self.curve = dim, list(grid), noise, curve
        self.levels = (math.prod(self.grid),) * (dim // group)
        self.rebuild()

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """2^bits levels for every dimension; a fraction of a bit spreads 2^(g bits) codes over g dimensions, as evenly as they allow."""
        for group in range(1, 9):
            total = bits * group
            if dim % group == 0 and math.isclose(total, round(total), abs_tol=1e-9) and 1 <= bits <= 8 and total <= 32:
                return cls(dim=dim, grid=_even_grid(1 << round(total), group), **options)
        raise Unsupported(f"fsq has no grid of exactly {bits} bits a dimension for dim={dim}; 1..8 in steps of 1/g for a divisor g <= 8 "
                          "of dim (g bits <= 32) are possible")

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return self._round(rows)[0], None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        digits, rest = [], indices.reshape(-1)
        for level in self.grid:
            digits.append(rest % level)
            rest = torch.div(rest, level, rounding_mode="floor")
        return level_values(torch.stack(digits), self.rise, self.steps).mT.reshape(indices.shape[0], self.dim)

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        tokens, values, shifted = self._round(rows.detach())
        curve = shifted.tanh_()
        slope, gap = ops.fsq_curve(curve, values, self.scale, self.base)
        error = arrays.masked_mean(gap if len(self.levels) == 1 else gap.reshape(tokens.shape).sum(1), keep)
        if self.training and self.noise > 0:
            values = torch.where(torch.rand_like(values) < self.noise, curve * self.scale - self.base + self._half_steps(values), values)
        values = _Rounded.apply(rows.reshape(values.shape), values, slope)
        stats = {"error": error, **usage(tokens, self.levels[0], keep)}
        return values.reshape(rows.shape), tokens, None, rows.new_zeros(()), stats

    def rebuild(self) -> None:
        """The constants of the grid: they move with the module and are not stored."""
        forms = [_form(level, self.curve) for level in self.grid]
        longest = max(self.grid)
        tables: dict[str, list] = {name: [getattr(form, name) for form in forms] for name in _Form._fields}
        tables["scale"] = [form.span / form.steps for form in forms]
        tables["base"] = [form.offset / form.steps for form in forms]
        tables["edges"] = [_edges(level, self.curve) + [math.inf] * (longest - level) for level in self.grid]
        for name, values in tables.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64).to(torch.float32), persistent=False)

    # ------------------------------------------------------------------ helpers

    span: Tensor
    offset: Tensor
    shift: Tensor
    rise: Tensor
    steps: Tensor
    edges: Tensor
    scale: Tensor
    base: Tensor

    def _round(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (n, positions), and for each token (g) the values and z + s."""
        tokens, values, shifted = ops.fsq_round(rows.reshape(-1, len(self.grid)), self.edges, self.shift, self.rise, self.steps, self.grid)
        return tokens.reshape(rows.shape[0], len(self.levels)), values, shifted

    def _half_steps(self, values: Tensor) -> Tensor:
        """Uniform noise within half a step either way, in the units of the values."""
        return (torch.rand_like(values) - 0.5) * (self.rise / self.steps)


class _Rounded(torch.autograd.Function):
    """The values forward, the derivative of the smooth curve backward."""

    @staticmethod
    def forward(z: Tensor, values: Tensor, slope: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.saved_tensors[0], None, None  # type: ignore[attr-defined]


class _Form(NamedTuple):
    """Digit j has the value (rise j - steps) / steps, and b(z) = span tanh(z + shift) - offset the value b / steps."""

    span: float
    offset: float
    shift: float
    rise: int
    steps: int


def _form(level: int, curve: str) -> _Form:
    if level == 2 or curve == "symmetric":
        return _Form(level - 1, 0.0, 0.0, 2, level - 1)
    h, o = (level - 1) * (1 - EPS if curve == "inner" else 1 + EPS) / 2, 0.5 if level % 2 == 0 else 0.0
    return _Form(h, o, math.atanh(o / h), 1, level // 2)


def _edges(level: int, curve: str) -> list[float]:
    """The level - 1 places in z where the digit steps up, b half way between two values, ascending."""
    form = _form(level, curve)
    return [math.atanh((form.rise * (j + 0.5) - form.steps + form.offset) / form.span) - form.shift for j in range(level - 1)]


def _even_grid(codes: int, group: int) -> list[int]:
    """``group`` levels, nearly equal and descending, with the largest product up to ``codes`` that raising one at a time reaches."""
    grid = [max(2, int(codes ** (1 / group) + 1e-9))] * group
    while True:
        raised = next((i for i in sorted(range(group), key=lambda i: (grid[i], i))
                       if math.prod(grid) // grid[i] * (grid[i] + 1) <= codes), None)
        if raised is None:
            return sorted(grid, reverse=True)
        grid[raised] += 1
