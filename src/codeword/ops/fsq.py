"""fsq_round and fsq_curve: finite scalar quantization of tokens, rows (n, g) of one number a dimension, with L_i levels for dimension i.

    fsq_round    digit j_i = how many of the dimension's L_i - 1 edges are <= z_i (0 for NaN)
                 token     = sum_i j_i prod_{l<i} L_l
                 value     = (rise_i j_i - steps_i) / steps_i; NaN where z_i is
                 shifted   = z_i + shift_i
    fsq_curve    with t = tanh(shifted), which is torch's and decides nothing:
                 slope     = (1 - t_i t_i) scale_i                                  the derivative of the smooth curve t_i scale_i - base_i
                 gap       = sum_i (value_i - (t_i scale_i - base_i))^2             in order of i

All float32, one rounding an operation. The plain implementation works on columns, one a dimension: its constants then belong to whole
columns and every operation runs along memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from codeword.ops import dispatch

COUNTED_EDGES = 32
"""Up to this many levels comparing with every edge beats a binary search in the plain implementation."""


def fsq_round(z: Tensor, edges: Tensor, shift: Tensor, rise: Tensor, steps: Tensor,
              grid: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """token int64 (n,), value and shifted float32 (n, g), of ``z`` float32 (n, g); ``edges`` (g, at least max(grid) - 1) ascending
    from the left; ``shift``, ``rise``, ``steps`` (g,); ``grid``: levels of 2..256, product at most 2^32, g <= 32. No gradient."""
    return dispatch.run(_round, *(tensor.contiguous() for tensor in (z, edges, shift, rise, steps)), list(grid))


def fsq_curve(curve: Tensor, values: Tensor, scale: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """slope float32 (n, g) and gap (n,) of ``curve`` = tanh(shifted) and ``values``, both float32 (n, g); ``scale``, ``base`` (g,)."""
    return dispatch.run(_curve, *(tensor.contiguous() for tensor in (curve, values, scale, base)))


@torch.library.custom_op("codeword::fsq_round", mutates_args=())
def _round(z: Tensor, edges: Tensor, shift: Tensor, rise: Tensor, steps: Tensor, grid: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    if dispatch.choice("fsq_round", z.device) == "native":
        token, values, shifted = torch.empty(len(z), dtype=torch.int64), torch.empty_like(z), torch.empty_like(z)
        _native().fsq_round(z.numpy(), edges.numpy(), shift.numpy(), rise.numpy(), steps.numpy(), np.asarray(grid, np.int64),
                            token.numpy(), values.numpy(), shifted.numpy(), dispatch.num_threads())
        return token, values, shifted
    return reference_round(z, edges, shift, rise, steps, grid)


@_round.register_fake
def _(z: Tensor, edges: Tensor, shift: Tensor, rise: Tensor, steps: Tensor, grid: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(z.shape[0], dtype=torch.int64), torch.empty_like(z), torch.empty_like(z)


def reference_round(z: Tensor, edges: Tensor, shift: Tensor, rise: Tensor, steps: Tensor,
                    grid: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Column by column."""
    columns = z.mT.contiguous()
    digits = torch.stack([_digits(column, own[:level - 1]) for column, own, level in zip(columns, edges, grid, strict=True)])
    token, radix = digits[0].to(torch.int64), grid[0]
    for digit, level in zip(digits[1:], grid[1:], strict=True):
        token = token + digit.to(torch.int64) * radix
        radix *= level
    values = torch.where(columns.isnan(), columns, level_values(digits, rise, steps))
    return token, values.mT.contiguous(), (columns + shift.unsqueeze(1)).mT.contiguous()


def level_values(digits: Tensor, rise: Tensor, steps: Tensor) -> Tensor:
    """float32 (g, n) of digits (g, n): rounded once, as every step but the division is exact."""
    values = digits.to(torch.float32)  # the arithmetic is in place: new memory costs more than it
    return values.mul_(rise.unsqueeze(1)).sub_(steps.unsqueeze(1)).div_(steps.unsqueeze(1))


def _digits(column: Tensor, edges: Tensor) -> Tensor:
    """uint8 (n,): the number of edges at or below each number."""
    if len(edges) >= COUNTED_EDGES:
        found = torch.searchsorted(edges.contiguous(), column, right=True).to(torch.uint8)
        return found.masked_fill_(column.isnan(), 0)
    count = (column >= edges[0]).to(torch.uint8)
    for edge in edges[1:]:
        count += column >= edge
    return count


@torch.library.custom_op("codeword::fsq_curve", mutates_args=())
def _curve(curve: Tensor, values: Tensor, scale: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    if dispatch.choice("fsq_curve", curve.device) == "native":
        slope, gap = torch.empty_like(curve), torch.empty(len(curve), dtype=torch.float32)
        _native().fsq_curve(curve.numpy(), values.numpy(), scale.numpy(), base.numpy(), slope.numpy(), gap.numpy(), dispatch.num_threads())
        return slope, gap
    return reference_curve(curve, values, scale, base)


@_curve.register_fake
def _(curve: Tensor, values: Tensor, scale: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(curve), curve.new_empty(curve.shape[0])


def reference_curve(curve: Tensor, values: Tensor, scale: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Column by column."""
    t, scales = curve.mT.contiguous(), scale.unsqueeze(1)
    squares = (values.mT - (t * scales - base.unsqueeze(1))).square()
    gap = squares[0].clone()
    for column in squares[1:]:
        gap += column
    return ((1 - t * t) * scales).mT.contiguous(), gap


def _native() -> ModuleType:
    module = dispatch.native()
    assert module is not None
    return module
