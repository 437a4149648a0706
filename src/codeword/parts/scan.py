"""Top-k over spans of packed rows for any Scannable: the plain path where a quantizer has no fused kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from codeword.quantizer import Packed


def top_k_spans(quantizer: Any, packed: Packed, query: Any, spans: Tensor, coarse: Tensor, k: int,
                allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """``search_spans`` in terms of ``scan``; ``query.select(i)`` must give one prepared query. Ties go to the lower row."""
    count = len(spans)
    distances = torch.full((count, k), torch.inf)
    rows = torch.full((count, k), -1, dtype=torch.int64)
    for i in range(count):
        single = query.select(i)
        found, where = [], []
        for (start, stop), offset in zip(spans[i].tolist(), coarse[i].tolist(), strict=True):
            if start >= stop:
                continue
            distance = quantizer.scan(packed, single, start, stop)[0][0] + offset
            found.append(distance)
            where.append(torch.arange(start, stop))
        if not found:
            continue
        distance, row = torch.cat(found), torch.cat(where)
        if allowed is not None:
            keep = allowed[row]
            distance, row = distance[keep], row[keep]
        distances[i], rows[i] = smallest(distance, row, k)
    return distances, rows


def smallest(distance: Tensor, row: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k least (distance, row) pairs in that total order, padded with (+inf, -1)."""
    order = torch.argsort(row, stable=True)
    order = order[torch.argsort(distance[order], stable=True)][:k]
    pad = k - len(order)
    return (torch.cat((distance[order], distance.new_full((pad,), torch.inf))),
            torch.cat((row[order], row.new_full((pad,), -1))))
