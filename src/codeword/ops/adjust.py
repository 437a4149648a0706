"""adjust_code: a good point of a midpoint grid for each segment of a row, by sweeps over the coordinates instead of a search.

For a segment x (n,) with b bits, K = 2^(b-1) cells a sign, the code is the sign of each x_i and a cell u_i of a = |x|; its point has the
odd coordinates 2u+1. The start is u = min(floor(a / step), K-1) with the step of largest cosine among four: shares of the one that just
reaches the largest entry, max a / K, and of the one that is best for Gaussian entries, ``STEPS`` times their root mean square (``TRIALS``).
A sweep then visits the coordinates in order and takes a step of one cell up, or else down, where that raises the cosine. With
N = sum (2u+1) a and D = sum (2u+1)^2,

    up    a D (N + a) > 2 (u+1) N^2 (1 + 2^-40)   and u < K-1      N += 2a, D += 8 (u+1), u += 1
    down  a D (N - a) < 2 u N^2 (1 - 2^-40)       else             N -= 2a, D -= 8 u,     u -= 1

which is (N +- 2a)^2 D > N^2 D' multiplied out; the margin is above what rounding could feign, so the cosine never falls. All of it is
float64 in the order of the columns, one rounding an operation: the same on every machine, for any batch. No sweep changes a code that the
sweep before left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from codeword.errors import ShapeError
from codeword.ops import dispatch

MAX_BITS = 13
STEPS = (1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308, 0.0166, 0.00890, 0.00475, 0.00252, 0.00133)
"""Step of the best uniform quantizer of a unit Gaussian with 2^b levels, b = 1..13 (Max 1960; beyond 9 by its asymptote)."""
TRIALS = (((1, 0), (0, 1), (0, 1.1), (0, 0.9)), ((1, 0), (0.98, 0), (1.02, 0), (0, 1)))
"""Steps tried, as shares of (reaching, Gaussian) step, up to 4 bits and from 5; at most 1.05 of the reaching one."""
_LARGEST = torch.finfo(torch.float32).max


def adjust_code(rows: Tensor, lengths: Sequence[int], bits: Sequence[int], rounds: int,
                steps: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes (n, d), uint8 or with more than 8 bits uint16, of rows float32 (n, d) cut into segments of the given ``lengths`` and
    ``bits`` (1..13), and sums float64 (n, segments, 3): N, D, |x|^2. At most ``rounds`` sweeps; ``steps`` float64 (n, segments) replace
    the start's. Code c of b bits stands for c - (2^b - 1)/2, half of the odd coordinate. NaN counts as 0."""
    count = len(lengths)
    if (rows.ndim != 2 or len(bits) != count or any(n < 1 for n in lengths) or sum(lengths) != rows.shape[1]
            or any(not 1 <= b <= MAX_BITS for b in bits) or rounds < 0):
        raise ShapeError(f"adjust_code got rows {tuple(rows.shape)}, lengths {list(lengths)[:8]}, bits {list(bits)[:8]} and {rounds} "
                         f"rounds; lengths >= 1 that add up to the width, as many bits 1..{MAX_BITS} and rounds >= 0 are needed")
    if steps is not None and (steps.shape != (rows.shape[0], count) or steps.dtype != torch.float64):
        raise ShapeError(f"adjust_code got steps {tuple(steps.shape)} {steps.dtype}; float64 {(rows.shape[0], count)} are needed")
    return dispatch.run(_adjust_code, rows.detach().float().contiguous(), list(lengths), list(bits), rounds,
                        None if steps is None else steps.contiguous())


@torch.library.custom_op("codeword::adjust_code", mutates_args=())
def _adjust_code(rows: Tensor, lengths: Sequence[int], bits: Sequence[int], rounds: int, steps: Tensor | None) -> tuple[Tensor, Tensor]:
    if dispatch.choice("adjust_code", rows.device) == "native":
        module = dispatch.native()
        assert module is not None
        codes = torch.empty(rows.shape, dtype=_dtype(bits))
        sums = torch.empty(len(rows), len(bits), 3, dtype=torch.float64)
        module.adjust_code(rows.numpy(), np.array(lengths, dtype=np.int64), np.array(bits, dtype=np.int64), rounds,
                           None if steps is None else steps.numpy(), codes.numpy(), sums.numpy(), dispatch.num_threads())
        return codes, sums
    return reference(rows, lengths, bits, rounds, steps)


@_adjust_code.register_fake
def _(rows: Tensor, lengths: Sequence[int], bits: Sequence[int], rounds: int, steps: Tensor | None) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape, dtype=_dtype(bits)), rows.new_empty(rows.shape[0], len(bits), 3, dtype=torch.float64)


def reference(rows: Tensor, lengths: Sequence[int], bits: Sequence[int], rounds: int, steps: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One coordinate at a time for all rows."""
    codes, sums = torch.empty(rows.shape, dtype=torch.int64, device=rows.device), []
    start = 0
    for segment, (length, width) in enumerate(zip(lengths, bits, strict=True)):
        part = slice(start, start + length)
        cells, found = _segment(rows[:, part], width, rounds, None if steps is None else steps[:, segment])
        half = 1 << (width - 1)
        codes[:, part] = torch.where(rows[:, part] > 0, half + cells, half - 1 - cells)
        sums.append(found)
        start += length
    found = torch.stack(sums, dim=1) if sums else torch.zeros(len(rows), 0, 3, dtype=torch.float64, device=rows.device)
    return codes.to(_dtype(bits)), found


def _segment(rows: Tensor, bits: int, rounds: int, steps: Tensor | None) -> tuple[Tensor, Tensor]:
    a = list(rows.abs().nan_to_num(0, _LARGEST).double().unbind(1))
    half = 1 << (bits - 1)
    norm, largest = torch.zeros_like(a[0]), torch.zeros_like(a[0])
    for v in a:
        norm, largest = norm + v * v, torch.maximum(largest, v)
    if steps is None:
        steps = _start(a, bits, largest / half, STEPS[bits - 1] * (norm / len(a)).sqrt())
    u = _cells(a, steps, half)
    product, square = _sums(a, u)
    for _ in range(rounds if half > 1 else 0):
        moved = False
        for i, v in enumerate(a):
            p, h, above = v * square, product * product, u[i] + 1
            up = (p * (product + v) > h * (2 * (1 + 2.0**-40)) * above) & (u[i] < half - 1)
            down = (p * (product - v) < h * (2 * (1 - 2.0**-40)) * u[i]) & ~up
            change = up.double() - down.double()
            product = product + 2 * v * change
            square = square + torch.where(up, 8 * above, torch.where(down, -8 * u[i], 0.0))
            u[i] = u[i] + change
            moved = moved or bool((up | down).any())
        if not moved:
            break
    product, square = _sums(a, u)
    return torch.stack(u, dim=1).to(torch.int64), torch.stack((product, square, norm), dim=1)


def _start(a: list[Tensor], bits: int, reach: Tensor, gaussian: Tensor) -> Tensor:
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for near, far in TRIALS[bits > 4]:
        step = torch.minimum(reach * near + gaussian * far, reach * 1.05)
        if bits == 1:
            return step
        product, square = _sums(a, _cells(a, step, 1 << (bits - 1)))
        if best is None:
            best = step, product, square
        else:
            better = product * product * best[2] > best[1] * best[1] * square
            best = tuple(torch.where(better, x, y) for x, y in zip((step, product, square), best, strict=True))  # type: ignore[assignment]
    assert best is not None
    return best[0]


def _cells(a: list[Tensor], steps: Tensor, half: int) -> list[Tensor]:
    inverse = torch.where(steps > 0, 1 / steps, 0.0)
    return [(v * inverse).clamp(max=half - 1).floor() for v in a]


def _sums(a: list[Tensor], u: list[Tensor]) -> tuple[Tensor, Tensor]:
    product, square = torch.zeros_like(a[0]), torch.zeros_like(a[0])
    for v, cell in zip(a, u, strict=True):
        odd = 2 * cell + 1
        product, square = product + odd * v, square + odd * odd
    return product, square


def _dtype(bits: Sequence[int]) -> torch.dtype:
    return torch.uint8 if max(bits, default=1) <= 8 else torch.uint16
