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


def top_k_groups(quantizer: Any, packed: Packed, query: Any, spans: Tensor, coarse: Tensor, k: int, allowed: Tensor | None,
                 step: int) -> tuple[Tensor, Tensor]:
    """The same where a scan's cost is in reading rows: each span is read once, ``step`` rows at a time, for all queries that visit it;
    ``query.take(who)`` must give the prepared queries ``who`` (n,). In row order, so equal distances keep the lower row."""
    distances = torch.full((len(spans), k), torch.inf)
    rows = torch.full((len(spans), k), -1, dtype=torch.int64)
    pairs, group = torch.unique(spans.reshape(-1, 2), dim=0, return_inverse=True)
    members = torch.argsort(group, stable=True).split(torch.bincount(group, minlength=len(pairs)).tolist())
    for (first, last), member in zip(pairs.tolist(), members, strict=True):
        who, offset = member // spans.shape[1], coarse.reshape(-1)[member].unsqueeze(1)
        some = query.take(who)
        for start in range(first, last, step):
            stop = min(start + step, last)
            found = quantizer.scan(packed, some, start, stop)[0] + offset
            if allowed is not None:
                found = torch.where(allowed[start:stop], found, torch.inf)
            distances[who], rows[who] = _merge(distances[who], rows[who], found, torch.arange(start, stop), k)
    return distances, rows


def _merge(distances: Tensor, rows: Tensor, found: Tensor, where: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k least (distance, row) of kept (q, k) and newly found (q, m) ones."""
    some = min(k, found.shape[1])
    edge = found.kthvalue(some, dim=1, keepdim=True).values  # of equal distances the lower rows: ties are sorted, not selected
    keep = (found <= edge).any(0)
    found, where = found[:, keep], where[keep]
    everything = torch.cat((rows, where.expand(len(rows), -1)), dim=1)
    pool = torch.cat((distances, found), dim=1)
    by_row = torch.where(everything < 0, torch.iinfo(torch.int64).max, everything).argsort(dim=1, stable=True)
    order = by_row.gather(1, pool.gather(1, by_row).argsort(dim=1, stable=True))[:, :k]
    pool = pool.gather(1, order)
    return pool, torch.where(torch.isinf(pool), -1, everything.gather(1, order))


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
