"""lut_scan: top-k over codes whose distances are sums of table look-ups.

    distance(q, row) = (((T_0[i_0] + T_1[i_1]) + ...) + T_{M-1}[i_{M-1}] + term) + coarse        float32, one rounding an addition

with T = tables[q] (M, K) and i = the row's M codes; ``term`` is the row's own number, left out where there is none. Whatever tables
hold, the answer is the k least pairs (distance, row) of the rows in the query's spans; distances of +inf and NaN are no hits. A code of
K or more, which only a file that nobody has checked yet can hold, counts as K - 1.

Codes lie in blocks of 32 rows, all codes of a block together, in the fewest bits of 4, 8, 16 that hold K - 1:

     4    uint8  (rows/32, ceil(M/4), 64)   byte [b, g, 4r + s]: book 4g+s, of row 32b+r in the low nibble, of row 32b+16+r in the high
     8    uint8  (rows/32, M, 32)           [b, m, j]: book m of row 32b+j
    16    uint16 (rows/32, M, 32)           the same

How a kernel avoids most of the look-ups is in csrc/lut_scan/README.md; it gives the bits of ``reference``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codeword.errors import ShapeError
from codeword.ops import dispatch

BLOCK = 32


class Blocks(NamedTuple):
    """``codes`` in the layout above, ``terms`` float32 (rows,) or None, the number of ``books`` M and their ``size`` K."""

    codes: Tensor
    terms: Tensor | None
    books: int
    size: int

    @property
    def rows(self) -> int:
        return len(self.codes) * BLOCK


def lut_scan(blocks: Blocks, tables: Tensor, spans: Tensor, coarse: Tensor, k: int, allowed: Tensor | None,
             num_threads: int) -> tuple[Tensor, Tensor]:
    """Distances float32 (q, k) ascending, padded with +inf, and rows int64 (q, k), padded with -1, for ``tables`` float32 (q, M, K).
    ``spans`` int64 (q, p, 2) row ranges that start at multiples of 32, ``coarse`` float32 (q, p), ``allowed`` bool (rows,) or None."""
    if spans.ndim != 3 or spans.shape[2] != 2 or coarse.shape != spans.shape[:2] or len(spans) != len(tables) or k < 1:
        raise ShapeError(f"lut_scan got spans {tuple(spans.shape)}, coarse {tuple(coarse.shape)}, {len(tables)} queries and k={k}")
    if tables.shape[1:] != (blocks.books, blocks.size):
        raise ShapeError(f"lut_scan got tables {tuple(tables.shape)}; (q, {blocks.books}, {blocks.size}) is needed")
    if allowed is not None and allowed.shape != (blocks.rows,):
        raise ShapeError(f"allowed has shape {tuple(allowed.shape)}; ({blocks.rows},) is needed")
    if dispatch.choice("lut_scan", blocks.codes.device) == "native":
        return _native(blocks, tables, spans, coarse, k, allowed, num_threads)
    start, stop = spans[..., 0], spans[..., 1]
    if bool(((start < stop) & ((start < 0) | (stop > blocks.rows) | (start % BLOCK != 0))).any()):
        raise ShapeError(f"lut_scan got a span outside 0..{blocks.rows} or one that does not start at a multiple of {BLOCK}")
    return reference(blocks, tables, spans, coarse, k, allowed)


def _native(blocks: Blocks, tables: Tensor, spans: Tensor, coarse: Tensor, k: int, allowed: Tensor | None,
            num_threads: int) -> tuple[Tensor, Tensor]:
    module = dispatch.native()
    assert module is not None
    distances = np.empty((len(spans), k), np.float32)
    found = np.empty((len(spans), k), np.int64)
    module.lut_scan(
        blocks.codes.numpy(), width(blocks.size), None if blocks.terms is None else blocks.terms.numpy(), tables.contiguous().numpy(),
        spans.contiguous().numpy(), coarse.float().contiguous().numpy(),
        None if allowed is None else allowed.contiguous().view(torch.uint8).numpy(), distances, found, num_threads)
    return torch.from_numpy(distances), torch.from_numpy(found)


def lut_tables(queries: Tensor, codebooks: Tensor, factor: float, first: Tensor | None) -> Tensor:
    """float32 (q, M, K): first[m, k] + factor <q_m, c_mk>, for ``queries`` (q, M, d), ``codebooks`` (M, d, K), coordinates first, and
    ``first`` float64 (M, K) or None. Accumulated over d in float64, in order, and rounded once: the same alone and in any batch."""
    if queries.ndim != 3 or codebooks.ndim != 3 or queries.shape[1:] != codebooks.shape[:2]:
        raise ShapeError(f"lut_tables got queries {tuple(queries.shape)} and codebooks {tuple(codebooks.shape)}; "
                         "(q, M, d) and (M, d, K) are needed")
    if factor not in (-1.0, -2.0):
        raise ShapeError(f"lut_tables got factor={factor}; -1 and -2 are allowed")
    if dispatch.choice("lut_tables", queries.device) == "native":
        module = dispatch.native()
        assert module is not None
        out = np.empty((len(queries), codebooks.shape[0], codebooks.shape[2]), np.float32)
        module.lut_tables(queries.detach().contiguous().numpy(), codebooks.detach().contiguous().numpy(), factor,
                          None if first is None else first.contiguous().numpy(), out, dispatch.num_threads())
        return torch.from_numpy(out)
    return tables_reference(queries, codebooks, factor, first)


# ---------------------------------------------------------------------- the definition


def tables_reference(queries: Tensor, codebooks: Tensor, factor: float, first: Tensor | None) -> Tensor:
    """One coordinate of all slices at a time."""
    total = queries.new_zeros(len(queries), codebooks.shape[0], codebooks.shape[2], dtype=torch.float64)
    if first is not None:
        total += first
    for i in range(codebooks.shape[1]):
        total += (factor * queries[:, :, i, None].double()) * codebooks[:, i].double()
    return total.float()


def reference(blocks: Blocks, tables: Tensor, spans: Tensor, coarse: Tensor, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Every distance of every span, sorted."""
    distances = torch.full((len(spans), k), torch.inf)
    found = torch.full((len(spans), k), -1, dtype=torch.int64)
    for i in range(len(spans)):
        near, where = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
        for (start, stop), offset in zip(spans[i].tolist(), coarse[i].float(), strict=True):
            if start < stop:
                near.append(sums(blocks, tables[i:i + 1], start, stop)[0] + offset)
                where.append(torch.arange(start, stop))
        distance, row = torch.cat(near), torch.cat(where)
        hit = distance < torch.inf
        if allowed is not None:
            hit &= allowed[row]
        distance, row = distance[hit], row[hit]
        order = torch.argsort(row, stable=True)
        order = order[torch.argsort(distance[order], stable=True)][:k]
        distances[i, :len(order)], found[i, :len(order)] = distance[order], row[order]
    return distances, found


def sums(blocks: Blocks, tables: Tensor, start: int, stop: int) -> Tensor:
    """float32 (q, stop - start): table entries added in order, then the row's term."""
    indices = unpack_codes(blocks.codes, torch.arange(start, stop), blocks.books, blocks.size).to(torch.int64).clamp(max=blocks.size - 1)
    total = torch.zeros(len(tables), stop - start)
    for m in range(blocks.books):
        total += tables[:, m].index_select(1, indices[:, m])
    return total if blocks.terms is None else total + blocks.terms[start:stop]


def example(generator: torch.Generator) -> tuple[Blocks, Tensor, Tensor, Tensor, int, None]:
    """Arguments of a small ``reference`` call, for the self check."""
    books, size, rows = 7, 100, 96
    codes = pack_codes(torch.randint(0, size, (rows, books), generator=generator), size)
    tables = torch.randn(2, books, size, generator=generator)
    spans = torch.tensor([[[0, 96]], [[32, 90]]])
    return Blocks(codes, torch.rand(rows, generator=generator), books, size), tables, spans, torch.ones(2, 1), 7, None


# ---------------------------------------------------------------------- layout


def width(size: int) -> int:
    """Bits of a stored code of a book of ``size`` entries."""
    return 4 if size <= 16 else 8 if size <= 256 else 16


def pack_codes(indices: Tensor, size: int) -> Tensor:
    """Blocks of ``indices`` (rows, M), rows a multiple of 32, values below ``size``."""
    rows, books = indices.shape
    if width(size) == 16:
        words = indices.to(torch.int32).to(torch.uint16).view(torch.int16)  # few operations know uint16
        return words.reshape(-1, BLOCK, books).transpose(1, 2).contiguous().view(torch.uint16)
    indices = indices.to(torch.uint8)
    if width(size) == 8:
        return indices.reshape(-1, BLOCK, books).transpose(1, 2).contiguous()
    padded = torch.nn.functional.pad(indices, (0, -books % 4)).reshape(rows // BLOCK, 2, 16, -1, 4)
    return (padded[:, 0] | padded[:, 1] << 4).transpose(1, 2).flatten(2)


def unpack_codes(codes: Tensor, rows: Tensor, books: int, size: int) -> Tensor:
    """Codes (n, M) of the chosen ``rows`` (n,) int64, uint8 or uint16 (as they are stored)."""
    block, lane = rows // BLOCK, rows % BLOCK
    if width(size) == 16:
        return codes.view(torch.int16)[block, :, lane].view(torch.uint16)
    if width(size) == 8:
        return codes[block, :, lane]
    four = codes.unflatten(2, (16, 4))[block, :, lane % 16].flatten(1)[:, :books]
    return (four >> (lane // 16 * 4).to(torch.uint8).unsqueeze(1)) & 15
