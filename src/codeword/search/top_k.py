"""One search over several segments: probe lists, scan each segment, merge, re-rank.

Hits are ordered by (distance, id). Inside a list equal distances go to the lower id because rows lie in id order there; between
segments the merge compares ids. So the answer depends on neither threads nor the batch a query came in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from codeword.ops.searcher import Part, Searcher
from codeword.search.filters import Filter
from codeword.search.lists import Probes
from codeword.search.scores import prepared, scanned_metric
from codeword.search.segments import Schema, View

QUERIES = 1024
"""Queries prepared at once."""


def top_k(schema: Schema, views: Sequence[View], queries: Tensor, k: int, nprobe: int, rerank: int, keep: Filter,
          num_threads: int) -> tuple[Tensor, Tensor]:
    """Distances float32 (q, k) ascending and ids int64 (q, k) of prepared ``queries``; missing hits are +inf and -1."""
    allowed = [_allowed(view, keep) for view in views]
    parts = queries.split(QUERIES) if len(queries) > QUERIES else (queries,)
    blocks = [_block(schema, views, allowed, part, k, nprobe, rerank, num_threads) for part in parts]
    return _padded(k, _joined([d for d, _ in blocks], 0), _joined([i for _, i in blocks], 0))


def top_k_native(schema: Schema, views: Sequence[View], searcher: Searcher, rows: np.ndarray, k: int, nprobe: int, rerank: int,
                 num_threads: int) -> tuple[np.ndarray, np.ndarray] | None:
    """``top_k`` without a filter, of raw float32 ``rows`` (q, dim), by the searcher of all ``views``; None where a query is no good."""
    if len(rows) > QUERIES:
        blocks = [rows[i:i + QUERIES] for i in range(0, len(rows), QUERIES)]
        parts = [top_k_native(schema, views, searcher, block, k, nprobe, rerank, num_threads) for block in blocks]
        good = [part for part in parts if part is not None]
        return (np.concatenate([d for d, _ in good]), np.concatenate([i for _, i in good])) if len(good) == len(parts) else None
    if not rerank:
        return searcher.search(rows, k, nprobe, num_threads)
    found = searcher.candidates(rows, min(k * rerank, sum(view.live for view in views)), nprobe, num_threads)
    if found is None:
        return None
    _, ids, which, slots = found
    queries = prepared(torch.from_numpy(rows), schema.metric, "search")
    refined = schema.refine([view.segment for view in views], which, slots, queries)
    distances, ids = _padded(k, *_ordered(k, refined, ids))
    return distances.numpy(), ids.numpy()


def _padded(k: int, distances: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """With k columns."""
    short = k - distances.shape[1]
    return (distances, ids) if not short else (torch.nn.functional.pad(distances, (0, short), value=torch.inf),
                                               torch.nn.functional.pad(ids, (0, short), value=-1))


def part_of(view: View) -> Part:
    """A view as the native search takes it."""
    t = view.segment.tensors
    return Part(view.segment.packed.tensors, view.segment.ids, t["starts"], t["counts"], _allowed(view, Filter(None, None)), view.live)


def _block(schema: Schema, views: Sequence[View], allowed: Sequence[Tensor | None], queries: Tensor, k: int, nprobe: int, rerank: int,
           num_threads: int) -> tuple[Tensor, Tensor]:
    """At most k columns; fewer where there are fewer rows."""
    metric = scanned_metric(schema.metric)
    wanted = k * max(1, rerank)
    query = schema.scanner.prepare(queries, metric)
    probes = schema.lists.probe(queries, nprobe, metric)
    found = [_segment(schema, view, mask, query, probes, min(wanted, view.live), num_threads)
             for view, mask in zip(views, allowed, strict=True) if view.live]
    if not found:
        return torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    distances = _joined([d for d, _, _ in found], 1)
    slots = _joined([s for _, s, _ in found], 1)
    ids = _joined([i for _, _, i in found], 1)
    which = _joined([torch.full(s.shape, n) for n, (_, s, _) in enumerate(found)], 1) if rerank else slots
    if schema.metric == "cosine":
        distances = 0.5 * distances
    if len(found) > 1 or _ties(distances):
        distances, ids, slots, which = _ordered(wanted, distances, ids, slots, which)
    if rerank:
        which = torch.where(slots < 0, -1, which)
        refined = schema.refine([view.segment for view in views if view.live], which, slots, queries)
        distances, ids = _ordered(k, refined, ids)
    return distances[:, :k], ids[:, :k]


def _segment(schema: Schema, view: View, allowed: Tensor | None, query: object, probes: Probes, k: int,
             num_threads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(distances, slots, ids), each (q, k), of one segment."""
    # numpy: with one query the calls themselves are the cost, and torch's take several times as long
    lists, starts, counts = (t.numpy() for t in (probes.lists, view.segment.tensors["starts"], view.segment.tensors["counts"]))
    spans = np.empty((*lists.shape, 2), np.int64)
    spans[..., 0] = starts[lists]
    spans[..., 1] = spans[..., 0] + counts[lists]
    distances, slots = schema.scanner.search_spans(view.segment.packed, query, torch.from_numpy(spans), probes.coarse, k, allowed,
                                                   num_threads)
    found = slots.numpy()
    ids = view.segment.ids.numpy()[np.maximum(found, 0)]
    ids[found < 0] = -1
    return distances, slots, torch.from_numpy(ids)


def _allowed(view: View, keep: Filter) -> Tensor | None:
    if not keep:
        return None if view.deleted is None else ~view.deleted
    mask = keep.mask(view.segment.ids)
    return mask if view.deleted is None else mask & ~view.deleted


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _ties(distances: Tensor) -> bool:
    values = distances.numpy()
    return bool((values[:, 1:] == values[:, :-1]).any())


def _ordered(k: int, distances: Tensor, ids: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The first k columns of each row by (distance, id), missing ones last; ``others`` follow."""
    last = np.where(ids.numpy() < 0, np.iinfo(np.int64).max, ids.numpy())
    order = torch.from_numpy(np.lexsort((last, distances.numpy()), axis=-1)[:, :k].copy())
    return tuple(t.gather(1, order) for t in (distances, ids, *others))
