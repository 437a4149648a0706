"""What Scannable quantizers share: top-k over spans where there is no fused kernel, and moving rows between packed layouts.

Rows move without being decoded where a tensor's first axis runs over rows, or over blocks with the row in the block as its last axis
(a single axis: one value a block, the same for all rows of a list)."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor

from codeword.quantizer import BLOCK, Packed


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


def take(packed: Packed, rows: Tensor) -> dict[str, Tensor]:
    """The chosen rows (n,) int64 out of their layout, first axis n."""
    out = {}
    for name, tensor in packed.tensors.items():
        if len(tensor) == packed.rows:
            out[name] = tensor[rows]
        else:
            block, lane = rows // BLOCK, rows % BLOCK
            out[name] = tensor[block] if tensor.ndim == 1 else tensor[block, ..., lane]
    return out


def lay(rows: dict[str, Tensor], blocks: Container[str] = ()) -> Packed:
    """Inverse of ``take``: rows, a multiple of BLOCK of them, in the layout where the tensors named in ``blocks`` run over blocks."""
    count = len(next(iter(rows.values())))
    assert count % BLOCK == 0, count
    tensors = {}
    for name, tensor in rows.items():
        if name not in blocks:
            tensors[name] = tensor
        elif tensor.ndim == 1:
            tensors[name] = tensor.reshape(-1, BLOCK).amax(1)
        else:
            tensors[name] = tensor.unflatten(0, (-1, BLOCK)).movedim(1, -1).contiguous()
    return Packed(tensors, count)
