"""Sums of codewords, one from each of M codebooks (M, K, d): their tables, codes by beam search, and codebooks by least squares.

Both halves of an alternation that never makes the error worse:

    codes      min_i |x - sum_m c^m_{i_m}|^2 for every row                                                 ``ops.additive_search``
    codebooks  min_C |X - B C|^2 + ridge |C|^2:  (B'WB + ridge I) C = B'W X                                ``LeastSquares``

B (n, MK) has M ones a row. B'B holds how often two codewords meet, is shared by all d columns, and has rank at most MK - M + 1, since
constants can move from one codebook to another; the ridge makes the solution unique. The search measures from the mean of the first
codebook and in units of the codebooks' largest entry, so neither offset nor scale of the data costs precision.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, Unsupported
from codeword.ops.additive import MOST_CODEBOOKS, WIDTH
from codeword.parts import random
from codeword.parts import rows as row_sums
from codeword.parts.codebook import center
from codeword.parts.kmeans import ROWS_PER_CENTROID
from codeword.parts.progressive import progressive_kmeans
from codeword.parts.threads import one_thread

MOST_ENTRIES = 1 << 28
"""Entries of the table of inner products, 1 GiB."""
FARTHEST = 2.0**40
"""Rows farther than this, in units of the codebooks, are brought nearer: their terms stay finite."""
MOST_STATES = 1024
"""Widest beam."""
FIT_STATES = 5
"""Codes of each row whose leftovers k-means sees, at most. Fewer fit the rows closer; more hold better elsewhere where rows are few."""
BLOCK_TERMS = 1 << 22
"""Terms computed at once."""
BLOCK_NEAR = 256
"""Rows brought near at once: they stay in the cache."""


class Tables(NamedTuple):
    """What the search needs of codebooks: ``books`` (M, K, d) times 2^-exponent, the first one minus ``center`` (d,); of the last
    P of them ``half`` (P, W) = |c|^2/2, +inf beyond K, and ``gram`` (P, M, K, W) = <c^l_i, c^m_k> at [m, l, i, k]."""

    books: Tensor
    center: Tensor
    exponent: int
    half: Tensor
    gram: Tensor


def check_arguments(name: str, dim: int, num_codebooks: int, codebook_size: int, beam: int) -> None:
    """CodewordError where a sum of codebooks cannot be searched."""
    if dim < 1 or not 1 <= num_codebooks <= MOST_CODEBOOKS or not 2 <= codebook_size <= 1 << 16:
        raise CodewordError(f"{name} got dim={dim}, num_codebooks={num_codebooks} and codebook_size={codebook_size}; at least 1, "
                            f"1..{MOST_CODEBOOKS} and 2..65536 are allowed")
    if not 1 <= beam <= MOST_STATES:
        raise CodewordError(f"{name} got beam={beam}; 1..{MOST_STATES} are allowed")
    entries = num_codebooks**2 * codebook_size * padded(codebook_size)
    if entries > MOST_ENTRIES and not (name == "rvq" and beam == 1):
        raise CodewordError(f"{name} got {num_codebooks} codebooks of {codebook_size}, whose table of products has {entries} entries; "
                            f"at most {MOST_ENTRIES} are allowed" + (" (beam=1 needs no table)" if name == "rvq" else ""))


def split_for_bits(name: str, dim: int, bits: float) -> tuple[int, int]:
    """(num_codebooks, codebook_size) that store ``bits`` a dimension, with indices of 8 bits or as near to it as there are."""
    total = bits * dim
    for width in (8, 7, 6, 5, 4, 3, 9, 10, 2, 1):
        books = total / width
        if math.isclose(books, round(books), abs_tol=1e-9) and 1 <= books <= MOST_CODEBOOKS:
            return round(books), 1 << width
    raise Unsupported(f"{name} got bits={bits:g} at dim={dim}: {total:g} bits a vector are not 1..{MOST_CODEBOOKS} "
                      "indices of 1..10 bits each")


def padded(size: int) -> int:
    return -(-size // WIDTH) * WIDTH


def tables(codebooks: Tensor, *, first: int = 0, exponent: int | None = None) -> Tables:
    """Of float32 ``codebooks`` (M, K, d), for searching positions ``first`` and up; every entry is a float64 sum rounded once."""
    books = codebooks.detach().double()
    count, size, dim = books.shape
    middle = center(codebooks[0].detach())
    books = torch.cat((books[:1] - middle.double(), books[1:]))
    exponent = _exponent(books) if exponent is None else exponent
    books = torch.ldexp(books, torch.tensor(-exponent)).float()
    fill = padded(size) - size
    half = torch.nn.functional.pad((row_sums.dot(books[first:], books[first:]) / 2).float(), (0, fill), value=torch.inf)
    gram = books.new_empty(count - first, count, size, size + fill)
    for m in range(first, count):
        gram[m - first] = torch.nn.functional.pad(ops.project(books.reshape(-1, dim), books[m]), (0, fill)).unflatten(0, (count, size))
    return Tables(books, middle, exponent, half, gram)


class Remembered:
    """Codes of rows, and the tables of the codebooks last asked for: a gram matrix costs more than coding a few rows. Compares values, so
    nothing that changes codebooks has to tell."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tables] | None = None

    def codes(self, codebooks: Tensor, rows: Tensor, *, beam: int, sweeps: int = 1) -> Tensor:
        """int32 (n, M): the best state of ``search``."""
        codebooks, rows = codebooks.detach(), rows.detach()
        if torch.compiler.is_compiling() or type(rows) is not Tensor:
            return _codes(codebooks, rows, beam, sweeps)
        return search(self.tables(codebooks), rows, beam=beam, sweeps=sweeps).codes[:, 0]

    def tables(self, codebooks: Tensor) -> Tables:
        last = self._last
        if last is not None and last[0].device == codebooks.device and torch.equal(last[0], codebooks):
            return last[1]
        made = tables(codebooks)
        self._last = codebooks.clone(), made
        return made

    def __deepcopy__(self, memo: dict) -> Remembered:
        return Remembered()

    def __reduce__(self) -> tuple:
        return Remembered, ()


@torch.library.custom_op("codeword::additive_codes", mutates_args=())
def _codes(codebooks: Tensor, rows: Tensor, beam: int, sweeps: int) -> Tensor:
    """For torch.compile and export, which cannot look into tables."""
    return search(tables(codebooks), rows, beam=beam, sweeps=sweeps).codes[:, 0].contiguous()


@_codes.register_fake
def _(codebooks: Tensor, rows: Tensor, beam: int, sweeps: int) -> Tensor:
    return rows.new_empty(rows.shape[0], codebooks.shape[0], dtype=torch.int32)


def search(table: Tables, rows: Tensor, start: ops.States | None = None, *, beam: int, sweeps: int = 1) -> ops.States:
    """States of float32 ``rows`` (n, d). ``start``: full codes, which are improved, or states filled up to the tables' first position."""
    positions, count = table.gram.shape[:2]
    filled = count if start is not None and positions == count else count - positions
    block = max(1, BLOCK_TERMS // (positions * table.half.shape[1]))
    found = []
    for at in range(0, max(1, len(rows)), block):
        part = rows[at:at + block]
        begin = ops.empty_states(len(part), count, rows.device) if start is None else ops.States(*(s[at:at + block] for s in start))
        found.append(ops.additive_search(_terms(table, part), table.gram, begin, filled=filled, beam=beam, sweeps=sweeps))
    return ops.States(*(torch.cat(parts) for parts in zip(*found, strict=True)))


class Stages(NamedTuple):
    """``codebooks`` (M, K, d), the ``codes`` (n, M) that fitting ended with, and ``repaired`` clusters of k-means."""

    codebooks: Tensor
    codes: Tensor
    repaired: int


def fit_stages(rows: Tensor, num_codebooks: int, codebook_size: int, *, beam: int, iterations: int, seed: int,
               weights: Tensor | None = None) -> Stages:
    """Codebooks one after the other: k-means on what the best codes so far leave of each row (Liu et al. 2015). Codebook m
    starts from ``random.part_seed(seed, m)``."""
    books = rows.new_zeros(num_codebooks, codebook_size, rows.shape[1])
    states, exponent, repaired = ops.empty_states(len(rows), 0, rows.device), None, 0
    for m in range(num_codebooks):
        own = random.part_seed(seed, m)
        left, mass = _left_over(books[:m], rows, states.codes[:, :FIT_STATES], weights, codebook_size, own)
        result = progressive_kmeans(left, codebook_size, iterations=iterations, seed=own, weights=mass)
        books[m], repaired = result.centroids, repaired + result.repaired
        table = tables(books[:m + 1], first=m, exponent=exponent)
        exponent = table.exponent
        states = search(table, rows, ops.States(torch.nn.functional.pad(states.codes, (0, 1)), states.costs), beam=beam)
    return Stages(books, states.codes[:, 0], repaired)


def full_start(codes: Tensor) -> ops.States:
    """A start from one full code a row (n, M); costs count from it."""
    return ops.States(codes.to(torch.int32).unsqueeze(1), torch.zeros(len(codes), 1, dtype=torch.float64, device=codes.device))


def decode(codebooks: Tensor, codes: Tensor) -> Tensor:
    """sum_m c^m_{i_m} of codes (..., M), added in order."""
    codes = codes.to(torch.int64)
    total = codebooks[0][codes[..., 0]]
    for m in range(1, codes.shape[-1]):
        total += codebooks[m][codes[..., m]]
    return total


def row_terms(codebooks: Tensor, codes: Tensor, given: Tensor | None) -> Tensor:
    """float32 (n,): |x^|^2 + 2<c, x^> of the decoded rows, with c = ``given`` (n, d) or 0. What a look-up scan adds to -2<q, x^>."""
    values = decode(codebooks, codes).double()
    other = values if given is None else values + 2 * given.double()
    return row_sums.dot(values, other).float()


class Normal(NamedTuple):
    """What codes say of their rows: ``meetings`` = B'WB (MK, MK) and ``sums`` = B'WX (MK, d), both float64."""

    meetings: Tensor
    sums: Tensor


class LeastSquares:
    """min_C |X - B C|^2 + ridge |C|^2 for the codes B of centred ``rows`` (n, d), all of them or ``weights`` (n,) of each; the ridge
    is then ``ridge`` times the mean weight."""

    def __init__(self, rows: Tensor, size: int, weights: Tensor | None, ridge: float) -> None:
        self.rows, self.size, self.weights = rows, size, weights
        squares = row_sums.dot(rows, rows)
        with one_thread():
            self.mass = len(rows) if weights is None else float(weights.double().sum())
            self.square = float(squares.sum() if weights is None else (squares * weights.double()).sum())
        self.ridge = ridge * self.mass / len(rows)

    def normal(self, codes: Tensor) -> Normal:
        """Of ``codes`` (n, M)."""
        codes = codes.to(torch.int64)
        sums = [ops.segment_sum(self.rows, codes[:, m], self.size, self.weights)[0] for m in range(codes.shape[1])]
        return Normal(_meetings(codes, self.size, self.weights), torch.cat(sums))

    def solve(self, normal: Normal) -> Tensor:
        """The codebooks (M, K, d)."""
        meetings = normal.meetings.clone()
        meetings.diagonal().add_(self.ridge)
        with one_thread():
            factor = torch.linalg.cholesky(meetings)
            return torch.cholesky_solve(normal.sums, factor).unflatten(0, (-1, self.size)).float()

    def objective(self, books: Tensor, normal: Normal) -> float:
        """The (weighted) mean over rows of |x - x^|^2 + ridge |C|^2 / n, the same for any number of threads: X enters by its products
        alone, |X|^2 - 2 <C, B'X> + <C, B'B C>, which costs MK/n of decoding the rows."""
        books = books.double().flatten(0, 1)
        with one_thread():
            errors = self.square - 2 * float((books * normal.sums).sum()) + float((books * (normal.meetings @ books)).sum())
            return (max(0.0, errors) + self.ridge * float(books.square().sum())) / self.mass


def _left_over(books: Tensor, rows: Tensor, codes: Tensor, weights: Tensor | None, size: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """What the codes (n, states, m) leave of their rows: of all states, or of as many as k-means reads, drawn by the seed."""
    states = codes.shape[1]
    chosen = torch.from_numpy(random.choice(seed, len(rows) * states, ROWS_PER_CENTROID * size, stream="states")).to(rows.device)
    row, state = chosen // states, chosen % states
    left = rows[row]
    for m in range(len(books)):
        left = left - books[m][codes[row, state, m].to(torch.int64)]
    return left, None if weights is None else weights[row]


def _terms(table: Tables, rows: Tensor) -> Tensor:
    """(n, P, W): |c|^2/2 - <x, c>."""
    books = table.books[-len(table.half):]
    center, unit = table.center.double(), math.ldexp(1.0, -table.exponent)
    near = torch.cat([part.double().sub_(center).mul_(unit).clamp_(-FARTHEST, FARTHEST).float() for part in rows.split(BLOCK_NEAR)])
    products = ops.project(near, books.flatten(0, 1)).unflatten(1, books.shape[:2])
    if products.shape[2] == table.half.shape[1]:
        return torch.sub(table.half, products, out=products)
    return table.half - torch.nn.functional.pad(products, (0, table.half.shape[1] - products.shape[2]))


def _meetings(codes: Tensor, size: int, weights: Tensor | None) -> Tensor:
    """B'WB float64 (MK, MK): how often codewords meet in a row, counted in row order."""
    count = codes.shape[1]
    normal = torch.zeros(count, size, count, size, dtype=torch.float64, device=codes.device)
    weights = None if weights is None else weights.double()
    for m in range(count):
        for other in range(m + 1):
            pairs = torch.bincount(codes[:, other] * size + codes[:, m], weights=weights, minlength=size * size)
            normal[other, :, m] = pairs.reshape(size, size)
            normal[m, :, other] = normal[other, :, m].mT
    return normal.reshape(count * size, count * size)


def _exponent(books: Tensor) -> int:
    """Of the power of two above the largest entry; 0 where all are zero."""
    return int(torch.frexp(books.abs().max()).exponent)
