"""Scannable for every quantizer whose distances are sums of table look-ups: PQ, OPQ, RVQ, AQ and their kin.

    distance(q, row) = coarse(q, c) + term(row) + sum_m T[q, m, i_m]

A quantizer says what its tables and terms are; this file does the rest. Two recipes, with c the point a row's list is relative to:

                                       tables l2            term l2                 tables ip     term ip
    slices (PQ, OPQ: x^ = [c_1 ..])    |c_k|^2 - 2<q, c_k>  2<c, x^>, none if c = 0  -<q, c_k>     none
    sums (RVQ, AQ: x^ = sum_m c_m)     -2<q, c_k>           |x^|^2 + 2<c, x^>        -<q, c_k>     none

    class of the quantizer   Lookup, which has everything of Scannable but these:
    pack(codes, given)       lookup.pack_slices(self, codes, given), or lookup.pack(indices, self.levels, terms or None)
    prepare(queries, metric) lookup.slice_tables(queries, codebooks, metric, self.name), lookup.sum_tables(...), or
                             lookup.Query(tables (q, M, max(levels)), metric)
    recipe(metric)           lookup.slice_recipe(...) or lookup.sum_recipe(...): prepare for a search in one native call

Bytes per row: M codes of 4, 8 or 16 bits, the fewest that hold the largest level, M rounded up to a multiple of 4 for 4 bits; 4 for the
term where there is one.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import Unsupported
from codeword.ops import lut_blocks, searcher
from codeword.ops.lut_blocks import Blocks
from codeword.parts import arrays
from codeword.parts import rows as row_sums
from codeword.quantizer import BLOCK, Codes, Packed, Quantizer

CHECKED = 1 << 16
"""Rows whose codes are looked at together."""


class Query(NamedTuple):
    """Prepared queries: ``tables`` float32 (q, M, K); ``metric`` decides whether terms count."""

    tables: Tensor
    metric: str

    def select(self, i: int) -> Query:
        """The prepared query ``i`` alone."""
        return Query(self.tables[i:i + 1], self.metric)


class Lookup(Quantizer):
    """Base of quantizers that are searched by look-ups: they add ``pack`` and ``prepare``."""

    def unpack(self, packed: Packed, rows: Tensor) -> Codes:
        return unpack(packed, rows, self.levels)

    def take(self, packed: Packed, rows: Tensor) -> dict[str, Tensor]:
        """The chosen rows out of their blocks: ``indices`` (n, M) and ``row_terms``."""
        terms = packed.tensors.get("row_terms")
        return {"indices": arrays.as_tensor(self.unpack(packed, rows).indices)} | ({} if terms is None else {"row_terms": terms[rows]})

    def lay(self, rows: dict[str, Tensor]) -> Packed:
        return pack(rows["indices"], self.levels, rows.get("row_terms"))

    def check(self, packed: Packed) -> None:
        """ShapeError where a code is not below its level or a term not finite."""
        for start in range(0, packed.rows, CHECKED):
            some = torch.arange(start, min(start + CHECKED, packed.rows))
            arrays.check_indices(self.unpack(packed, some).indices, self.levels, self.name)
        if "row_terms" in packed.tensors:
            arrays.check_finite(packed.tensors["row_terms"], f"{self.name}.row_terms")

    def scan(self, packed: Packed, query: Query, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Distances (q, stop - start) without coarse, twice: they are their own bound."""
        distance = lut_blocks.sums(_blocks(packed, query), query.tables, start, stop)
        return distance, distance

    def search_spans(self, packed: Packed, query: Query, spans: Tensor, coarse: Tensor, k: int, allowed: Tensor | None,
                     num_threads: int) -> tuple[Tensor, Tensor]:
        return ops.lut_scan(_blocks(packed, query), query.tables, spans, coarse, k, allowed, num_threads)


def require_metric(metric: str, name: str) -> float:
    """The factor of <q, c> in a distance."""
    if metric not in ("l2", "ip"):
        raise Unsupported(f"{name}.prepare got metric={metric!r}; 'l2' and 'ip' are known (cosine: l2 of normalised vectors)")
    return -2.0 if metric == "l2" else -1.0


class Books(NamedTuple):
    """Codebooks of slices as ``ops.lut_tables`` takes them: ``turned`` float32 (M, d, K), ``squares`` float64 (M, K): |c|^2."""

    turned: Tensor
    squares: Tensor


_BOOKS: dict[int, tuple[weakref.ref[Tensor], int, Books]] = {}


def books_of(codebooks: Tensor) -> Books:
    """Of ``codebooks`` (M, K, d); remembered as long as that tensor lives and is not written to."""
    key, version = id(codebooks), -1 if codebooks.is_inference() else codebooks._version
    known = _BOOKS.get(key)
    if known is not None and known[0]() is codebooks and known[1] == version >= 0:
        return known[2]
    turned = codebooks.detach().float().transpose(1, 2).contiguous()
    squares = torch.zeros(turned.shape[0], turned.shape[2], dtype=torch.float64, device=turned.device)
    for i in range(turned.shape[1]):
        squares += turned[:, i].double().square()
    _BOOKS[key] = weakref.ref(codebooks, lambda gone: _forget(key, gone)), version, Books(turned, squares)
    return _BOOKS[key][2]


def _forget(key: int, gone: weakref.ref[Tensor]) -> None:
    if key in _BOOKS and _BOOKS[key][0] is gone:
        del _BOOKS[key]


def slice_tables(queries: Tensor, codebooks: Tensor, metric: str, name: str) -> Query:
    """Tables of the recipe for slices: ``queries`` (q, dim), ``codebooks`` (M, K, dim / M)."""
    factor, books = require_metric(metric, name), books_of(codebooks)
    slices = queries.float().reshape(len(queries), *books.turned.shape[:2])
    return Query(ops.lut_tables(slices, books.turned, factor, books.squares if metric == "l2" else None), metric)


def slice_recipe(codebooks: Tensor, metric: str, name: str, rotation: Tensor | None = None) -> searcher.Recipe:
    """The same for ``ops.searcher``: of queries, or of queries times ``rotation``."""
    factor, books = require_metric(metric, name), books_of(codebooks)
    return searcher.Slices(books.turned, books.squares if metric == "l2" else None, factor, rotation)


def sum_recipe(codebooks: Tensor, metric: str, name: str) -> searcher.Recipe:
    """Of the recipe for sums: ``codebooks`` (M, K, dim)."""
    return searcher.Sums(codebooks.detach(), require_metric(metric, name))


def sum_tables(queries: Tensor, codebooks: Tensor, metric: str, name: str) -> Query:
    """Tables of the recipe for sums: ``queries`` (q, dim), ``codebooks`` (M, K, dim)."""
    factor = require_metric(metric, name)
    return Query((factor * ops.project(queries.float(), codebooks.flatten(0, 1))).unflatten(1, codebooks.shape[:2]), metric)


def pack_slices(quantizer: Quantizer, codes: Codes, given: Tensor | None) -> Packed:
    """``pack`` of the recipe for slices."""
    indices = arrays.as_tensor(codes.indices)
    if given is None:
        return pack(indices, quantizer.levels, None)
    return pack(indices, quantizer.levels, 2 * row_sums.dot(arrays.as_tensor(quantizer.decode(codes)).double(), given.double()))


def pack(indices: Tensor, levels: tuple[int, ...], terms: Tensor | None) -> Packed:
    """Blocks of ``indices`` (rows, M) and their ``terms`` (rows,), padded with zeros to whole blocks."""
    fill = -len(indices) % BLOCK
    whole = indices if indices.dtype in (torch.uint8, torch.int16, torch.int32, torch.int64) else indices.to(torch.int32)
    tensors = {"codes": lut_blocks.pack_codes(torch.nn.functional.pad(whole, (0, 0, 0, fill)), max(levels))}
    if terms is not None:
        tensors["row_terms"] = torch.nn.functional.pad(terms.float(), (0, fill))
    return Packed(tensors, len(indices) + fill)


def unpack(packed: Packed, rows: Tensor, levels: tuple[int, ...]) -> Codes:
    return Codes(lut_blocks.unpack_codes(packed.tensors["codes"], rows, len(levels), max(levels)))


def _blocks(packed: Packed, query: Query) -> Blocks:
    terms = packed.tensors.get("row_terms") if query.metric == "l2" else None
    return Blocks(packed.tensors["codes"], terms, *query.tables.shape[1:])
