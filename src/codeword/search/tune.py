"""Choosing ``nprobe`` and ``rerank`` for a recall target, honestly: chosen on one half of the queries, measured on the other.

recall@k of a query is the share of its k true ids among the k found. For every re-ranking depth the least ``nprobe`` that reaches the
target is found by bisection (recall grows with the lists visited); among these the cheapest wins, where cost counts slots scanned plus
re-ranked candidates, each worth ``RERANK_COST`` scanned ones. Costs are counted, not timed, so the choice is the same on a busy machine.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from codeword.errors import CodewordError, ShapeError
from codeword.parts import arrays, random

if TYPE_CHECKING:
    from codeword.search.index import Index

RERANK = (0, 1, 2, 4, 8, 16)
RERANK_COST = 16


class TuneReport(NamedTuple):
    """``recall`` and its standard error on the held-out half, at the chosen ``nprobe`` and ``rerank``; ``tuned_recall`` on the other;
    ``reached``: whether any setting met ``target`` on the tuning half (else the best one was set); ``tried``: (nprobe, rerank, recall)."""

    nprobe: int
    rerank: int
    k: int
    target: float
    reached: bool
    recall: float
    standard_error: float
    tuned_recall: float
    queries: tuple[int, int]
    tried: tuple[tuple[int, int, float], ...]


def recall_at(found: Any, truth: Any, k: int) -> np.ndarray:
    """(q,) share of the first k ids of ``truth`` (q, >= k) among the first k of ``found``; missing truths (-1) do not count."""
    found, truth = np.asarray(found)[:, :k], np.asarray(truth)[:, :k]
    hit = [np.isin(want[want >= 0], have).sum() for have, want in zip(found, truth, strict=True)]
    return np.array(hit, dtype=np.float64) / np.maximum(1, (truth >= 0).sum(1))


def tune(index: Index, queries: Any, truth: Any, target: float, width: int | None) -> TuneReport:
    """See ``Index.tune``."""
    n = arrays.check_rows(queries, index.dim, "tune")
    answers = arrays.as_tensor(truth).cpu().numpy()
    if queries.ndim != 2 or answers.ndim != 2 or answers.shape[0] != n or answers.dtype.kind not in "iu" or n < 2:
        raise ShapeError(f"tune got queries {tuple(queries.shape)} and truth {answers.shape}; (q >= 2, dim) and (q, k) ids are needed")
    k = answers.shape[1] if width is None else width
    if not 1 <= k <= answers.shape[1]:
        raise CodewordError(f"tune got k={k}; truth has {answers.shape[1]} ids a query")
    if not 0 < target <= 1:
        raise CodewordError(f"tune got recall={target}; a number in (0, 1] is needed")
    order = random.permutation(index.seed, n, stream="tune")
    first, second = np.sort(order[:n // 2]), np.sort(order[n // 2:])
    rows = {"tuning": arrays.take_rows(queries, index.dim, first), "held out": arrays.take_rows(queries, index.dim, second)}
    tried: dict[tuple[int, int], float] = {}

    def recall(nprobe: int, rerank: int) -> float:
        if (nprobe, rerank) not in tried:
            hits = index.search(rows["tuning"], k=k, nprobe=nprobe, rerank=rerank)
            tried[nprobe, rerank] = float(recall_at(hits.ids.numpy(), answers[first], k).mean())
        return tried[nprobe, rerank]

    lists = index.lists
    settings = []
    for rerank in RERANK if index.reranks else (0,):
        if recall(lists, rerank) < target:
            continue
        low, high = 0, 1  # recall(low) < target <= recall(high)
        while high < lists and recall(high, rerank) < target:
            low, high = high, min(2 * high, lists)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if recall(middle, rerank) >= target else (middle, high)
        settings.append((len(index) * high / lists + RERANK_COST * rerank * k, high, rerank))
    if settings:
        _, nprobe, rerank = min(settings)
    else:
        nprobe, rerank = max(tried, key=lambda setting: (tried[setting], -setting[1]))
    index.nprobe, index.rerank = nprobe, rerank
    held_out = recall_at(index.search(rows["held out"], k=k).ids.numpy(), answers[second], k)
    error = float(held_out.std(ddof=1) / math.sqrt(len(held_out))) if len(held_out) > 1 else math.nan
    return TuneReport(nprobe, rerank, k, target, bool(settings), float(held_out.mean()), error, tried[nprobe, rerank],
                      (len(first), len(second)), tuple((*key, value) for key, value in sorted(tried.items())))
