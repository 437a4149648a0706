"""``nearest`` on a GPU: a screen of float16 products on the tensor cores, and the float64 definition for what it leaves over.

The answer is the definition's bit for bit (``ops/reference.py``): screens only rule codewords out, and they rule out by a proven bound.
With a centre m, a = x - m, b = c - m, the nearest codeword has the largest score s = a.b - |b|^2 / 2. Rows are scaled by 2^-f (f a row's
own), codewords by 2^-e (one e for all), so that the largest entry of a row, and of most codewords, lies in [8, 16); below, a, b and s are
scaled, and H = |b|^2 / 2 enters with the row's ``unit`` 2^(e-f). A and B are what float16 keeps of a and b, r = a - A and q = b - B what it
does not: computed exactly, so the bound has their true lengths, where a worst case would be twice as large.

    a.b - A.B = r.b + A.q                                         |.| <= |r| |b| + |A| |q|
    A.B on tensor cores                                           |.| <= gamma |A| |B|,   gamma = 3 (d + 16) 2^-22
    unit H in float32, and about six roundings after              |.| <= 2^-21 (|A| |B| + unit H)

**Tensor cores.** Products of float16 are exact. Sums are not IEEE: the addends of a block (4 to 16 of them, by generation) and the
accumulator are shifted to the largest exponent among them, cut off below, added, and the sum is cut off to float32 (Fasi, Higham,
Mikaitis, Pranesh 2021). At least 23 binary digits after the leading one of the largest addend survive, 22 where that one is a product
of two significands in [2, 4). So each addend, each accumulator and each result loses at most 2^-22 of the largest magnitude about, which
is at most |A| |B| (Cauchy-Schwarz); with blocks as short as one product there are d of each kind, hence 3 d. The 16 covers the padding
of d and the second order. IEEE float32 in any order (Triton's interpreter) has a quarter of that error at most.

With C, Q and W the largest |b| + |q|, |q| + (gamma + 2^-21)(|b| + |q|) and 2^-21 H of a tile of 128 codewords, each score of the tile is
within E = |r| C + |A| Q + unit W of its computed value (``stats`` and ``bounds`` are rounded up and have room for their own arithmetic).

**Scan.** A tile's scores fall into four groups of 32. Per row the scan keeps the largest lower bound L = max(computed - E) over the
groups, and in each of four lanes the two groups of largest upper bound and the largest upper bound of the others. The definition's own
error is rho D with rho = (d + 64) 2^-54, so the definition's answer can only be in a group whose upper bound reaches

    L - rho (|a|^2 / unit + 2 |L|)                                 since D = |a|^2 / unit - 2 s

Codewords that are infinite or lie too far for float32 have no part in this: the first have score -inf and a distance no finite one loses
to; the group of the second always counts as reaching.

**Settle.** Where no forgotten group reaches, the definition is evaluated for all codewords of those that do, mostly one group of 32.
The other rows are listed and scanned again with both float16 parts of each number, A + A' and B + B': r and q are then 2^-11 of
what they were, and small products are added before large ones, so that

    |error| <= (|r| + grain |A'|) |b| + |A| (|q| + grain |B'|) + gamma |A| |B| + ...,   grain = 12 (d + 16) 2^-22

What that leaves too (ties of many codewords, rows 2^60 times farther than the codewords) meets every codeword in float64.

Counts of listed rows stay on the device: there is no synchronisation, and a call can be captured in a CUDA graph. Lists fill in an
order that varies; what is computed for a row does not depend on it. Memory: 4 d + 100 bytes a row, for at most 131,072 rows at a time,
and 4 d + 4 bytes a codeword. Nothing grows with rows times codewords.
"""

# Kernels are a language of their own, launches take options of the compiler: neither has types that pyright could know.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from codeword.ops.triton import screen, settle

FEW = 64
"""Up to so many codewords there is no screen."""
BLOCK_BYTES = 1 << 26
BLOCK_ROWS = 1 << 17
PROGRAMS = 2112
"""Programs of kernels that loop over a list: 16 for each of 132 multiprocessors."""


class Shape(NamedTuple):
    """How the first scan is compiled: rows a program, warps, stages, most columns of one product; and into how many shares it (and the
    second) cuts the codewords, 0 for as many as fill the GPU."""

    rows: int = 128
    warps: int = 4
    stages: int = 3
    columns: int = 256
    splits: int = 0


class Counts(NamedTuple):
    """int32 tensors (1,): rows that the second screen, and that the full pass had to see, of the last block."""

    second: Tensor
    full: Tensor


class Book(NamedTuple):
    """A prepared codebook."""

    codebook: Tensor
    centre: Tensor
    scale: Tensor
    parts: Tensor
    half: Tensor
    bounds: Tensor
    flag: Tensor
    width: int


def nearest(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """int64 indices (n,) and float32 distances (n,) of contiguous float32 x (n, d), codebook (k, d)."""
    return counted(x, codebook)[:2]


def counted(x: Tensor, codebook: Tensor, shape: Shape | None = None) -> tuple[Tensor, Tensor, Counts]:
    """``nearest``, and how many rows took which way."""
    n, d = x.shape
    indices = torch.zeros(n, dtype=torch.int64, device=x.device)
    distances = torch.zeros(n, dtype=torch.float32, device=x.device)
    none = torch.zeros(2, dtype=torch.int32, device=x.device)
    counts = Counts(none[:1], none[1:])
    if n == 0 or d == 0:
        return indices, distances, counts
    with device_of(x):
        book = prepare(codebook)
        step = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * book.width)))
        for start in range(0, n, step):
            part = slice(start, start + step)
            counts = _block(x[part], book, indices[part], distances[part], shape or Shape())
    return indices, distances, counts


def device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Kernels start on the current device; make it that of ``x``."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def prepare(codebook: Tensor) -> Book:
    k, d = codebook.shape
    width = max(16, triton.next_power_of_2(d)) if d <= 256 else -(-d // 64) * 64
    tiles = triton.cdiv(k, screen.TILE)
    padded = tiles * screen.TILE
    new = codebook.new_empty
    book = Book(codebook, new(d), new(1, dtype=torch.int32), new(2, padded, width, dtype=torch.float16), new(padded),
                codebook.new_zeros(screen.BOUNDS, tiles), codebook.new_zeros(1, dtype=torch.int32), width)
    gamma, grain = _factors(width)
    columns = min(64, width)
    screen.centre_kernel[(1,)](codebook, book.centre, book.scale, k, d, SAMPLE=screen.SAMPLE, COLUMNS=16, num_warps=8)
    screen.codebook_kernel[(padded // screen.BOOK_ROWS.value,)](
        codebook, book.centre, book.scale, book.parts, book.half, book.bounds, book.flag, k, d, padded, tiles, gamma, grain,
        WIDTH=width, TILE=screen.TILE, GROUP=screen.GROUP, ROWS=screen.BOOK_ROWS, COLUMNS=columns)
    return book


def _factors(width: int) -> tuple[float, float]:
    """gamma, with the roundings after it, and grain."""
    unit = 2.0**-22
    return 3 * (width + 16) * unit + 2 * unit, 12 * (width + 16) * unit


def _block(x: Tensor, book: Book, indices: Tensor, distances: Tensor, shape: Shape) -> Counts:
    n, k, d = len(x), len(book.codebook), x.shape[1]
    seen = x.new_zeros(3, dtype=torch.int32)  # rows of the second screen, of the full pass, of the first screen
    seen[2:].fill_(n)
    everyone = indices  # a list that is not read
    if k <= FEW:
        _full(x, book, None, seen[2:], indices, distances)
        return Counts(seen[:1], seen[2:])
    parts, stats = split(x, book)
    listed = x.new_empty(2, n, dtype=torch.int32)
    shape = shape._replace(rows=min(shape.rows, max(16, triton.next_power_of_2(n))))
    for second in (False, True):
        splits = shares(n, book, shape, second)
        source, count = (listed[0], seen[:1]) if second else (everyone, seen[2:])
        found = scan(book, parts, stats, source, count, splits, second, shape)
        settle.settle_kernel[(min(n, PROGRAMS * 4),)](
            x, book.codebook, stats, *found, book.flag, source, count, indices, distances, listed[int(second)], seen[int(second):],
            n, k, d, splits, 2 * _rho(d), GROUP=screen.GROUP, SLOTS=8 * splits, SPLITS=splits, LISTED=second, num_warps=1,
            enable_fp_fusion=False)
    _full(x, book, listed[1], seen[1:2], indices, distances)
    return Counts(seen[:1], seen[1:2])


def split(x: Tensor, book: Book) -> tuple[Tensor, Tensor]:
    """The float16 parts (2, n, width) of rows x, and what is known of each row: stats (STATS, n)."""
    n, d = x.shape
    parts, stats = x.new_empty(2, n, book.width, dtype=torch.float16), x.new_empty(screen.STATS, n)
    screen.rows_kernel[(triton.cdiv(n, 16),)](x, book.centre, book.scale, parts, stats, n, d, _factors(book.width)[1], _rho(d),
                                              WIDTH=book.width, ROWS=16, COLUMNS=min(64, book.width))
    return parts, stats


def _rho(d: int) -> float:
    return (d + 64) * 2.0**-54


def shares(n: int, book: Book, shape: Shape, second: bool) -> int:
    """Into how many shares the tiles are cut: in the first scan to fill the GPU where rows are few, in the second so that each has its own
    kept groups too, at most 64 MiB of them."""
    tiles = book.bounds.shape[1]
    wanted = max(4, (1 << 19) // n) if second else triton.cdiv(2 * PROGRAMS // 16, triton.cdiv(n, shape.rows))
    return _share(tiles, shape.splits or wanted)


def _share(tiles: int, wanted: int) -> int:
    """A power of two near ``wanted``, at most 64 and not above ``tiles``."""
    return min(64, triton.next_power_of_2(max(1, wanted)), 1 << (tiles.bit_length() - 1))


def scan(book: Book, parts: Tensor, stats: Tensor, listed: Tensor, count: Tensor, splits: int, second: bool,
         shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """value and group (n, splits, 8), floor and loose (n, splits) of ``scan_kernel``."""
    n, tiles, padded = parts.shape[1], book.bounds.shape[1], len(book.half)
    value, group = stats.new_empty(n, splits, 8), stats.new_empty(n, splits, 8, dtype=torch.int32)
    floor, loose = stats.new_empty(n, splits), stats.new_empty(n, splits)
    rows, warps, stages, columns, _ = Shape(min(shape.rows, 64), 4, 2, 64) if second else shape
    chunk = min(book.width, columns if stats.is_cuda and _roomy(stats.device) else 128)
    chunk = chunk if book.width % chunk == 0 else 64
    screen.scan_kernel[(triton.cdiv(n, rows), splits)](
        parts, stats, book.parts, book.half, book.bounds, listed, count, value, group, floor, loose, n, padded, tiles,
        triton.cdiv(tiles, splits), splits, TILE=screen.TILE, ROWS=rows, CHUNK=chunk, CHUNKS=book.width // chunk, SECOND=second,
        num_warps=warps, num_stages=min(stages, 2 if chunk > 128 else 4))
    return value, group, floor, loose


def _roomy(device: torch.device) -> bool:
    """Whether a program has the shared memory for tiles of 256 columns (data-centre GPUs)."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin > 200_000


def _full(x: Tensor, book: Book, listed: Tensor | None, count: Tensor, indices: Tensor, distances: Tensor) -> None:
    n, (k, d) = len(x), book.codebook.shape
    splits = 1 if k <= FEW else _share(triton.cdiv(k, 64), max(1, (1 << 20) // n))
    best, best_at = x.new_empty(n, splits, dtype=torch.float64), x.new_empty(n, splits, dtype=torch.int32)
    source = indices if listed is None else listed
    units = triton.cdiv(n, 8) * splits
    settle.exact_kernel[(min(units, PROGRAMS),)](
        x, book.codebook, source, count, best, best_at, k, d, triton.cdiv(k, splits), splits, LISTED=listed is not None, ROWS=8, CODES=32,
        num_warps=4, enable_fp_fusion=False)
    settle.least_kernel[(min(n, PROGRAMS * 4),)](best, best_at, book.flag, source, count, indices, distances, SPLITS=splits,
                                                 LISTED=listed is not None, num_warps=1)
