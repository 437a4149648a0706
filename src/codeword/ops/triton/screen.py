"""The screen of ``nearest``: float16 parts of rows and codewords, and the scan that keeps what may be nearest. See ``nearest.py`` for the
letters and the bound.
"""

# Kernels are a language of their own, launches take options of the compiler: neither has types that pyright could know.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

TILE = 128
"""Codewords that one step of the scan scores; it has four groups."""
GROUP = 32
SAMPLE = 64
"""Codewords in each of the three means of the centre."""
BOOK_ROWS = tl.constexpr(16)
STATS = 6
"""Numbers kept of a row: norm, p of the first screen, p of the second, unit, slack, and one that is not zero where it is unsure."""
BOUNDS = 4
"""Numbers kept of a tile: C, q of the first screen, q of the second, W."""


@triton.jit
def wide(number):
    """An integer, whether a tensor, an argument or a plain number, as int64."""
    return tl.zeros((), tl.int64) + number


@triton.jit
def exponent(value):
    """e with 2^e <= value < 2^(e+1), of a float64; -1023 of zero."""
    return ((value.to(tl.int64, bitcast=True) >> 52) & 0x7FF).to(tl.int32) - 1023


@triton.jit
def power(e):
    """2^e in float64, -1022 <= e <= 1023."""
    return ((e + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)


@triton.jit
def middle(a, b, c):
    return tl.maximum(tl.minimum(a, b), tl.minimum(tl.maximum(a, b), c))


@triton.jit
def sampled(codebook, k, d, g, columns, SAMPLE: tl.constexpr):
    """Every third of 3 SAMPLE evenly spaced codewords, from the g-th: float64, what is not finite as zero."""
    at = (tl.arange(0, SAMPLE).to(tl.int64) * 3 + g) * k // (3 * SAMPLE)
    values = tl.load(codebook + at[:, None] * d + columns[None, :], mask=columns[None, :] < d, other=0.0)
    return tl.where(tl.abs(values) < float("inf"), values, 0.0).to(tl.float64)


@triton.jit(do_not_specialize=["k", "d"])
def centre_kernel(codebook, centre, scale, k, d, SAMPLE: tl.constexpr, COLUMNS: tl.constexpr):
    """centre (d,): entry-wise median of three means of codewords; scale: the exponent that brings the median of their three largest
    differences from it into [8, 16)."""
    most0 = tl.full((), 0, tl.float64)
    most1 = tl.full((), 0, tl.float64)
    most2 = tl.full((), 0, tl.float64)
    for start in range(0, d, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        a = sampled(codebook, k, d, 0, columns, SAMPLE)
        b = sampled(codebook, k, d, 1, columns, SAMPLE)
        c = sampled(codebook, k, d, 2, columns, SAMPLE)
        m = middle(tl.sum(a, axis=0) / SAMPLE, tl.sum(b, axis=0) / SAMPLE, tl.sum(c, axis=0) / SAMPLE).to(tl.float32)
        tl.store(centre + columns, m, mask=columns < d)
        m = m.to(tl.float64)[None, :]
        most0 = tl.maximum(most0, tl.max(tl.max(tl.abs(a - m), axis=1), axis=0))
        most1 = tl.maximum(most1, tl.max(tl.max(tl.abs(b - m), axis=1), axis=0))
        most2 = tl.maximum(most2, tl.max(tl.max(tl.abs(c - m), axis=1), axis=0))
    tl.store(scale, tl.maximum(exponent(middle(most0, most1, most2)) - 3, -160))


@triton.jit
def halves(value):
    """value in float64 -> its two float16 parts, and what they leave over after one and after both, exact in float64."""
    first = tl.minimum(tl.maximum(value, -65504.0), 65504.0).to(tl.float32).to(tl.float16)
    rest = value - first.to(tl.float64)
    second = tl.minimum(tl.maximum(rest, -65504.0), 65504.0).to(tl.float32).to(tl.float16)
    return first, second, rest, rest - second.to(tl.float64)


@triton.jit
def upper(value):
    """A float32 above a float64 >= 0, with room for the few roundings of the arithmetic it enters; at most 3e38."""
    return tl.minimum(value * 1.0001 + 1e-37, 3e38).to(tl.float32)


@triton.jit(do_not_specialize=["n", "d"])
def rows_kernel(x, centre, scale, parts, stats, n, d, grain, rho, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """parts float16 (2, n, width) and stats float32 (STATS, n) of rows x (n, d)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    most = tl.zeros((ROWS,), tl.float64)
    finite = tl.full((ROWS,), 1, tl.int32)
    for start in range(0, d, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        here = inside[:, None] & (columns < d)[None, :]
        value = tl.load(x + row[:, None] * d + columns[None, :], mask=here, other=0.0)
        good = tl.abs(value) < float("inf")
        finite = tl.minimum(finite, tl.min(good.to(tl.int32), axis=1))
        m = tl.load(centre + columns, mask=columns < d, other=0.0).to(tl.float64)
        most = tl.maximum(most, tl.max(tl.where(good & here, tl.abs(value.to(tl.float64) - m[None, :]), 0.0), axis=1))
    e = tl.load(scale)
    f = tl.maximum(exponent(most) - 3, e - 40)
    unsure = f > e + 60
    f = tl.minimum(f, e + 60)
    shrink = power(-f)
    norm = tl.zeros((ROWS,), tl.float64)
    left = tl.zeros((ROWS,), tl.float64)
    least = tl.zeros((ROWS,), tl.float64)
    for start in range(0, WIDTH, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        here = inside[:, None] & (columns < d)[None, :]
        value = tl.load(x + row[:, None] * d + columns[None, :], mask=here, other=0.0).to(tl.float64)
        m = tl.load(centre + columns, mask=columns < d, other=0.0).to(tl.float64)
        value = tl.where(here & (finite == 1)[:, None], (value - m[None, :]) * shrink[:, None], 0.0)
        first, second, rest, last = halves(value)
        norm += tl.sum(value * value, axis=1)
        left += tl.sum(rest * rest, axis=1)
        least += tl.sum(last * last, axis=1)
        place = row[:, None] * WIDTH + columns[None, :]
        keep = inside[:, None] & (columns < WIDTH)[None, :]
        tl.store(parts + place, first, mask=keep)
        tl.store(parts + place + wide(n) * WIDTH, second, mask=keep)
    unit = power(e - f)
    left, least = tl.sqrt(left), tl.sqrt(least)
    tl.store(stats + row, tl.where(finite == 1, upper(tl.maximum(tl.sqrt(norm) + left, 8.0)), float("nan")), mask=inside)
    tl.store(stats + n + row, upper(left), mask=inside)
    tl.store(stats + 2 * n + row, upper(least + grain * left), mask=inside)
    tl.store(stats + 3 * n + row, unit.to(tl.float32), mask=inside)
    tl.store(stats + 4 * n + row, upper(rho * norm / unit), mask=inside)
    tl.store(stats + 5 * n + row, unsure.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["k", "d", "padded", "tiles"])
def codebook_kernel(codebook, centre, scale, parts, half, bounds, flag, k, d, padded, tiles, gamma, grain,
                    WIDTH: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """parts float16 (2, padded, width) and half float32 (padded,), codewords of a tile in the order that gives a thread of a matrix
    instruction whole groups; bounds float32 (BOUNDS, tiles), zero before; flag 1 where the codebook has a NaN."""
    code = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = code < k
    tile = tl.program_id(0) * ROWS // TILE
    within = (code % TILE).to(tl.int32)
    member = within % GROUP
    place = code - within + member // 2 * (2 * (TILE // GROUP)) + within // GROUP * 2 + member % 2
    shrink = power(-tl.load(scale))
    finite = tl.full((ROWS,), 1, tl.int32)
    norm = tl.zeros((ROWS,), tl.float64)
    left = tl.zeros((ROWS,), tl.float64)
    least = tl.zeros((ROWS,), tl.float64)
    nan = tl.full((), 0, tl.int32)
    for start in range(0, WIDTH, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        here = inside[:, None] & (columns < d)[None, :]
        value = tl.load(codebook + code[:, None] * d + columns[None, :], mask=here, other=0.0)
        nan = tl.maximum(nan, tl.max(tl.max((value != value).to(tl.int32), axis=1), axis=0))
        finite = tl.minimum(finite, tl.min((tl.abs(value) < float("inf")).to(tl.int32), axis=1))
        m = tl.load(centre + columns, mask=columns < d, other=0.0).to(tl.float64)
        value = tl.where(here & (tl.abs(value) < float("inf")), (value.to(tl.float64) - m[None, :]) * shrink, 0.0)
        first, second, rest, last = halves(value)
        norm += tl.sum(value * value, axis=1)
        left += tl.sum(rest * rest, axis=1)
        least += tl.sum(last * last, axis=1)
        at = place[:, None] * WIDTH + columns[None, :]
        keep = (columns < WIDTH)[None, :] & (code < padded)[:, None]
        tl.store(parts + at, first, mask=keep)
        tl.store(parts + at + wide(padded) * WIDTH, second, mask=keep)
    real = inside & (finite == 1)
    far = norm > 1e24
    tl.store(half + place, tl.where(real, tl.minimum(norm / 2, 1e24).to(tl.float32), float("inf")), mask=code < padded)
    norm, left, least = tl.where(real, norm, 0.0), tl.where(real, tl.sqrt(left), 0.0), tl.where(real, tl.sqrt(least), 0.0)
    length = tl.sqrt(norm) + left
    first_q = tl.where(far & real, 3e38, tl.maximum(left + gamma * length, 1e-18))
    second_q = tl.where(far & real, 3e38, tl.maximum(least + gamma * length + grain * left, 1e-18))
    tl.atomic_max(bounds + tile, upper(tl.max(tl.where(far & real, 3e38, length), axis=0)))
    tl.atomic_max(bounds + tiles + tile, upper(tl.max(first_q, axis=0)))
    tl.atomic_max(bounds + 2 * tiles + tile, upper(tl.max(second_q, axis=0)))
    tl.atomic_max(bounds + 3 * tiles + tile, upper(tl.max(norm * 2.5e-7, axis=0)))
    tl.atomic_max(flag, nan)


@triton.jit(do_not_specialize=["n", "padded", "tiles", "each", "splits"])
def scan_kernel(parts, stats, books, half, bounds, listed, count, value, group, floor, loose, n, padded, tiles, each, splits,
                TILE: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, SECOND: tl.constexpr):
    """For a block of rows and a share of the tiles: the two groups of largest upper bound in each of the four lanes (value, group:
    (rows, splits, 8)), the largest lower bound and the largest upper bound that was not kept (floor, loose: (rows, splits))."""
    total = tl.load(count)
    if tl.program_id(0) * ROWS >= total:
        return
    split = tl.program_id(1)
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = at < total
    row = tl.load(listed + at, mask=inside, other=0) if SECOND else tl.where(inside, at, 0)
    norm = tl.load(stats + row)
    p = tl.load(stats + (2 if SECOND else 1) * n + row)
    unit = tl.load(stats + 3 * n + row)

    WIDTH: tl.constexpr = CHUNK * CHUNKS
    columns = tl.arange(0, CHUNK)
    codes = tl.arange(0, TILE)
    own = parts + row.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    theirs = books + codes[None, :] * WIDTH + columns[:, None]
    own_rest = wide(n) * WIDTH
    their_rest = wide(padded) * WIDTH
    if CHUNKS == 1:
        a = tl.load(own)
        if SECOND:
            a_rest = tl.load(own + own_rest)

    best = tl.full((ROWS, 4), float("-inf"), tl.float32)
    second = tl.full((ROWS, 4), float("-inf"), tl.float32)
    third = tl.full((ROWS, 4), float("-inf"), tl.float32)
    lowest = tl.full((ROWS, 4), float("-inf"), tl.float32)
    best_at = tl.zeros((ROWS, 4), tl.int32)
    second_at = tl.zeros((ROWS, 4), tl.int32)
    for tile in range(split * each, tl.minimum((split + 1) * each, tiles)):
        h = tl.load(half + tile * TILE + codes)  # asked for early: what the products take hides the latency
        c_most = tl.load(bounds + tile)
        q_most = tl.load(bounds + (2 if SECOND else 1) * tiles + tile)
        w_most = tl.load(bounds + 3 * tiles + tile)
        b_at = theirs + wide(tile) * TILE * WIDTH
        if CHUNKS == 1:
            b = tl.load(b_at)
            if SECOND:  # small products first
                b_rest = tl.load(b_at + their_rest)
                scores = tl.dot(a_rest, b_rest)
                scores = tl.dot(a_rest, b, scores)
                scores = tl.dot(a, b_rest, scores)
                scores = tl.dot(a, b, scores)
            else:
                scores = tl.dot(a, b)
        else:
            scores = tl.zeros((ROWS, TILE), tl.float32)
            if SECOND:
                for chunk in range(CHUNKS):
                    a = tl.load(own + chunk * CHUNK)
                    a_rest = tl.load(own + own_rest + chunk * CHUNK)
                    b = tl.load(b_at + chunk * CHUNK)
                    b_rest = tl.load(b_at + their_rest + chunk * CHUNK)
                    scores = tl.dot(a_rest, b_rest, scores)
                    scores = tl.dot(a_rest, b, scores)
                    scores = tl.dot(a, b_rest, scores)
            for chunk in range(CHUNKS):
                scores = tl.dot(tl.load(own + chunk * CHUNK), tl.load(b_at + chunk * CHUNK), scores)
        scores = scores - unit[:, None] * h[None, :]
        top = tl.max(tl.max(tl.reshape(scores, (ROWS, TILE // 8, 4, 2)), axis=3), axis=1)
        error = tl.minimum(p * c_most + norm * q_most + unit * w_most, 3e38)[:, None]
        reach = top + error
        lowest = tl.maximum(lowest, top - error)
        third = tl.maximum(third, tl.minimum(second, reach))
        second_at = tl.where(reach > best, best_at, tl.where(reach > second, tile, second_at))
        second = tl.maximum(second, tl.minimum(best, reach))
        best_at = tl.where(reach > best, tile, best_at)
        best = tl.maximum(best, reach)

    lane = tl.arange(0, 4)
    out = (at.to(tl.int64) * splits + split)[:, None] * 8 + lane[None, :]
    keep = inside[:, None] & (lane < 4)[None, :]
    tl.store(value + out, best, mask=keep)
    tl.store(value + out + 4, second, mask=keep)
    tl.store(group + out, best_at * 4 + lane[None, :], mask=keep)
    tl.store(group + out + 4, second_at * 4 + lane[None, :], mask=keep)
    tl.store(floor + at.to(tl.int64) * splits + split, tl.max(lowest, axis=1), mask=inside)
    tl.store(loose + at.to(tl.int64) * splits + split, tl.max(third, axis=1), mask=inside)
