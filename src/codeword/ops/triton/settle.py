"""The definition of ``nearest`` in Triton: float64 distances in 8 lanes, for the groups that a screen left over or for all codewords.

These kernels are compiled without fused multiply-add: the square of a difference is rounded before it is added.
"""

# Kernels are a language of their own, launches take options of the compiler: neither has types that pyright could know.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from codeword.ops.triton.screen import wide

NONE = tl.constexpr(0x7FFFFFFF)
"""No codeword: larger than any index."""


@triton.jit
def fold(lanes, ROWS: tl.constexpr):
    """(ROWS, 8) -> (ROWS,): ((0+4)+(2+6)) + ((1+5)+(3+7)), sums of two, which have one value in either order."""
    fours = tl.sum(tl.reshape(lanes, (ROWS, 2, 4)), axis=1)
    twos = tl.sum(tl.reshape(fours, (ROWS, 2, 2)), axis=1)
    return tl.sum(twos, axis=1)


@triton.jit(do_not_specialize=["n", "k", "d", "splits"])
def settle_kernel(x, codebook, stats, value, group, floor, loose, flag, listed, count, indices, distances, again, again_count,
                  n, k, d, splits, rho, GROUP: tl.constexpr, SLOTS: tl.constexpr, SPLITS: tl.constexpr, LISTED: tl.constexpr):
    """The nearest codeword of each row whose candidates are all among the kept groups; the other rows are appended to ``again``."""
    total = tl.load(count)
    nan = tl.load(flag) != 0
    slots = tl.arange(0, SLOTS)
    parts = tl.arange(0, SPLITS)
    lanes = tl.arange(0, 8)
    for i in range(tl.program_id(0), total, tl.num_programs(0)):
        row = tl.load(listed + i) if LISTED else i
        bad = (tl.load(stats + row) != tl.load(stats + row)) | nan
        low = tl.max(tl.load(floor + wide(i) * splits + parts), axis=0)
        low = low - (tl.load(stats + 4 * n + row) + rho * tl.abs(low))
        more = (tl.max(tl.load(loose + wide(i) * splits + parts), axis=0) >= low) | (tl.load(stats + 5 * n + row) != 0)
        reach = tl.load(value + wide(i) * SLOTS + slots)
        held = tl.load(group + wide(i) * SLOTS + slots)
        open_ = (reach >= low) & (reach > float("-inf"))
        held = tl.where(open_, held, NONE)
        rounds = tl.where(bad | more, 0, tl.sum(open_.to(tl.int32), axis=0))
        least = tl.full((), float("inf"), tl.float64)
        winner = tl.full((), NONE, tl.int32)
        mine = x + row.to(tl.int64) * d
        for _ in range(0, rounds):
            now = tl.min(held, axis=0)
            held = tl.where(held == now, NONE, held)
            code = now * GROUP + tl.arange(0, GROUP)
            theirs = codebook + code.to(tl.int64)[:, None] * d
            sums = tl.zeros((GROUP, 8), tl.float64)
            for j in tl.range(0, d, 8, loop_unroll_factor=4):
                column = j + lanes
                value_x = tl.load(mine + column, mask=column < d, other=0.0).to(tl.float64)
                value_c = tl.load(theirs + column[None, :], mask=(code < k)[:, None] & (column < d)[None, :], other=0.0).to(tl.float64)
                gap = value_x[None, :] - value_c
                sums += gap * gap
            distance = tl.where(code < k, fold(sums, GROUP), float("inf"))
            nearest = tl.min(distance, axis=0)
            first = tl.min(tl.where((distance == nearest) & (code < k), code, NONE), axis=0)
            winner = tl.where(nearest < least, first, tl.where(nearest == least, tl.minimum(first, winner), winner))
            least = tl.minimum(least, nearest)
        if more & (bad == 0):
            tl.store(again + tl.atomic_add(again_count, 1), row)
        tl.store(indices + row, tl.where(bad | (winner == NONE), 0, winner).to(tl.int64))
        tl.store(distances + row, tl.where(bad, float("nan"), least).to(tl.float32))


@triton.jit(do_not_specialize=["k", "d", "each", "splits"])
def exact_kernel(x, codebook, listed, count, best, best_at, k, d, each, splits, LISTED: tl.constexpr, ROWS: tl.constexpr,
                 CODES: tl.constexpr):
    """Least distance and lowest index of it, for each listed row and share of the codewords; NaN for rows that are not finite."""
    total = tl.load(count)
    lanes = tl.arange(0, 8)
    for unit in range(tl.program_id(0), tl.cdiv(total, ROWS) * splits, tl.num_programs(0)):
        split = unit % splits
        at = unit // splits * ROWS + tl.arange(0, ROWS)
        inside = at < total
        row = tl.load(listed + at, mask=inside, other=0) if LISTED else tl.where(inside, at, 0)
        mine = x + row.to(tl.int64)[:, None] * d
        least = tl.full((ROWS,), float("inf"), tl.float64)
        winner = tl.full((ROWS,), NONE, tl.int32)
        finite = tl.full((ROWS,), 1, tl.int32)
        for start in range(split * each, tl.minimum((split + 1) * each, k), CODES):
            code = start + tl.arange(0, CODES)
            theirs = codebook + code.to(tl.int64)[:, None] * d
            sums = tl.zeros((ROWS, CODES, 8), tl.float64)
            for j in range(0, d, 8):
                column = j + lanes
                value_x = tl.load(mine + column[None, :], mask=inside[:, None] & (column < d)[None, :], other=0.0)
                finite = tl.minimum(finite, tl.min((tl.abs(value_x) < float("inf")).to(tl.int32), axis=1))
                value_c = tl.load(theirs + column[None, :], mask=(code < k)[:, None] & (column < d)[None, :], other=0.0)
                gap = value_x.to(tl.float64)[:, None, :] - value_c.to(tl.float64)[None, :, :]
                sums += gap * gap
            distance = tl.reshape(fold(tl.reshape(sums, (ROWS * CODES, 8)), ROWS * CODES), (ROWS, CODES))
            distance = tl.where((code < k)[None, :], distance, float("inf"))
            nearest = tl.min(distance, axis=1)
            first = tl.min(tl.where((distance == nearest[:, None]) & (code < k)[None, :], code[None, :], NONE), axis=1)
            winner = tl.where(nearest < least, first, tl.where(nearest == least, tl.minimum(first, winner), winner))
            least = tl.minimum(least, nearest)
        out = at.to(tl.int64) * splits + split
        tl.store(best + out, tl.where(finite == 1, least, float("nan")), mask=inside)
        tl.store(best_at + out, winner, mask=inside)


@triton.jit
def least_kernel(best, best_at, flag, listed, count, indices, distances, SPLITS: tl.constexpr, LISTED: tl.constexpr):
    """The least over the shares, the lower index among equals."""
    total = tl.load(count)
    nan = tl.load(flag) != 0
    parts = tl.arange(0, SPLITS)
    for i in range(tl.program_id(0), total, tl.num_programs(0)):
        row = tl.load(listed + i) if LISTED else i
        distance = tl.load(best + wide(i) * SPLITS + parts)
        index = tl.load(best_at + wide(i) * SPLITS + parts)
        bad = (tl.max((distance != distance).to(tl.int32), axis=0) != 0) | nan
        least = tl.min(distance, axis=0)
        winner = tl.min(tl.where(distance == least, index, NONE), axis=0)
        tl.store(indices + row, tl.where(bad, 0, winner).to(tl.int64))
        tl.store(distances + row, tl.where(bad, float("nan"), least).to(tl.float32))
