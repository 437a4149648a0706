"""Any quantizer as a Scannable: codes are kept as bytes, decoded block by block, and compared exactly.

    |q - c - x^|^2 = |q - c|^2 + (|x^|^2 + 2<c, x^>) - 2<q, x^>          -<q, c + x^> = -<q, c> - <q, x^>

The bracket depends on the row alone and is stored (one float32); the product goes through ``ops.project``, so a distance depends on
neither batch nor threads. Cost: one decode of each visited row per call and d multiply-adds per query and row. A quantizer with a
fused scan is many times faster; this is what makes every other one searchable, and it is the definition the fused ones are tested on.

Bytes per row: ceil(bits / 8) for the indices, the side floats, 4 for the row's term.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from codeword import ops
from codeword.parts import arrays, scan
from codeword.quantizer import BLOCK, Codes, Packed, Quantizer
from codeword.search.scores import exact_dot

_ROWS = 4096
"""Rows decoded at once."""


def to_bytes(quantizer: Quantizer, codes: Codes) -> dict[str, Tensor]:
    """``indices`` (n, ceil(bits / 8)) uint8, each row one little-endian bit string, and ``side`` (n, side_count) where there is one."""
    indices = arrays.as_tensor(codes.indices).to(torch.int64)
    widths, pad = _widths(quantizer)
    if pad:
        indices = torch.nn.functional.pad(indices, (0, 1))
    out = {"indices": ops.pack(indices, widths).reshape(len(indices), -1)}
    if codes.side is not None:
        out["side"] = arrays.as_tensor(codes.side)
    return out


def from_bytes(quantizer: Quantizer, tensors: Mapping[str, Tensor], rows: Tensor) -> Codes:
    """Codes of the chosen rows (n,) int64 of ``to_bytes``' tensors."""
    widths, pad = _widths(quantizer)
    indices = ops.unpack(tensors["indices"][rows].reshape(-1), widths, len(rows))
    side = tensors["side"][rows] if "side" in tensors else None
    return Codes(indices[:, :len(indices[0]) - 1] if pad and len(indices) else indices[:, :len(quantizer.levels)], side)


def _widths(quantizer: Quantizer) -> tuple[tuple[int, ...], int]:
    """Bit widths of a row's positions, with one more that fills the last byte where needed."""
    total = sum(quantizer.widths)
    pad = math.ceil(total / 8) * 8 - total
    return (*quantizer.widths, pad) if pad else quantizer.widths, pad


class DecodedQuery(NamedTuple):
    queries: Tensor
    metric: str

    def take(self, who: Tensor) -> DecodedQuery:
        """The prepared queries ``who`` (n,)."""
        return DecodedQuery(self.queries[who], self.metric)


class DecodedScan:
    """The Scannable protocol around a fitted ``quantizer``."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer

    def pack(self, codes: Codes, given: Tensor | None = None) -> Packed:
        tensors = to_bytes(self.quantizer, codes)
        count = len(tensors["indices"])
        rows = -(-count // BLOCK) * BLOCK
        tensors["row_terms"] = torch.empty(count)
        for start in range(0, count, _ROWS):
            part = slice(start, start + _ROWS)
            values = arrays.as_tensor(self.quantizer.decode(Codes(codes.indices[part], None if codes.side is None else codes.side[part])))
            offset = values if given is None else values + 2 * given[part].double()
            tensors["row_terms"][part] = exact_dot(values, offset).float()
        return Packed({name: torch.nn.functional.pad(t, (0, 0) * (t.ndim - 1) + (0, rows - count)) for name, t in tensors.items()}, rows)

    def unpack(self, packed: Packed, rows: Tensor) -> Codes:
        return from_bytes(self.quantizer, packed.tensors, rows)

    def take(self, packed: Packed, rows: Tensor) -> dict[str, Tensor]:
        return scan.take(packed, rows)

    def lay(self, rows: dict[str, Tensor]) -> Packed:
        return scan.lay(rows)

    def check(self, packed: Packed) -> None:
        for start in range(0, packed.rows, _ROWS):
            codes = self.unpack(packed, torch.arange(start, min(start + _ROWS, packed.rows)))
            arrays.check_indices(codes.indices, self.quantizer.levels, self.quantizer.name)
        for name in packed.tensors.keys() - {"indices"}:
            arrays.check_finite(packed.tensors[name].float(), f"{self.quantizer.name}.{name}")

    def prepare(self, queries: Tensor, metric: str) -> DecodedQuery:
        return DecodedQuery(queries.float(), metric)

    def scan(self, packed: Packed, query: DecodedQuery, start: int, stop: int) -> tuple[Tensor, Tensor]:
        values = arrays.as_tensor(self.quantizer.decode(self.unpack(packed, torch.arange(start, stop))))
        product = ops.project(query.queries, values)
        distance = packed.tensors["row_terms"][start:stop] - 2 * product if query.metric == "l2" else -product
        return distance, distance

    def search_spans(self, packed: Packed, query: DecodedQuery, spans: Tensor, coarse: Tensor, k: int,
                     allowed: Tensor | None, num_threads: int) -> tuple[Tensor, Tensor]:
        """Each span is decoded once for all queries that visit it."""
        return scan.top_k_groups(self, packed, query, spans, coarse, k, allowed, _ROWS)
