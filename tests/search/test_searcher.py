"""The search in one native call gives the bits of the Python path it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import codeword
from codeword.errors import ShapeError
from codeword.ops import dispatch
from codeword.search.index import Index
from tests.search.support import blobs

NATIVE = dispatch.native()
pytestmark = pytest.mark.skipif(NATIVE is None or dispatch.choice("bit_scan") != "native",
                                reason="the compiled module is absent or not in use")

DIM = 20
QUANTIZERS = {
    "pq": lambda: codeword.PQ(dim=DIM, num_codebooks=5, codebook_size=16, iterations=2),
    "pq of 8 bits": lambda: codeword.PQ(dim=DIM, num_codebooks=10, codebook_size=100, iterations=1),
    "opq": lambda: codeword.OPQ(dim=DIM, num_codebooks=5, codebook_size=16, iterations=1),
    "rvq": lambda: codeword.RVQ(dim=DIM, num_codebooks=3, codebook_size=16, iterations=2, beam=1),
    "aq": lambda: codeword.AQ(dim=DIM, num_codebooks=2, codebook_size=16),
    "rabitq": lambda: codeword.RaBitQ(dim=DIM, code_bits=3),
    "rabitq of 1 bit": lambda: codeword.RaBitQ(dim=DIM, code_bits=1),
    "caq": lambda: codeword.CAQ(dim=DIM, code_bits=2),
    "saq": lambda: codeword.SAQ(dim=DIM, rate=5, granularity=4, deviations=4.0),
}


def filled(name: str, metric: str, nlist: int | None, **options: Any) -> tuple[Index, np.ndarray]:
    """An index of three segments with equal rows in different ones and tombstones, and queries: rows, far ones, a zero."""
    x = blobs(400, DIM, seed=1) + (3 if metric == "ip" else 0)
    index = Index(dim=DIM, metric=metric, quantizer=QUANTIZERS[name](), nlist=nlist, **options)
    index.fit(x)
    for part in (slice(0, 150), slice(150, 300), slice(100, 250)):
        index.add(x[part], np.arange(part.stop - part.start) * 7 + 1000 * part.start)
        seal(index)
    index.remove(index.ids[::5])
    queries = np.concatenate((x[:20], x[300:330] * 2, 1e-3 * x[:5], x[:1] * 0 if metric != "cosine" else x[7:8]))
    return index, queries.astype(np.float32)


def seal(index: Index) -> None:
    """Rows that wait become a segment of their own."""
    index._views.append(index._snapshot()[-1])
    index._pending = index._pending_view = None



def by_definition(index: Index, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch, **options: Any) -> codeword.Hits:
    with monkeypatch.context() as patch:
        patch.setattr(Index, "_native", lambda self, schema, views: None)
        return index.search(queries, **options)


@pytest.mark.parametrize("nlist", [None, 6])
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_native_search_is_the_python_path(name, metric, nlist, monkeypatch):
    assert NATIVE is not None
    index, queries = filled(name, metric, nlist)
    calls = []
    search = codeword.ops.searcher.Searcher.search
    monkeypatch.setattr(codeword.ops.searcher.Searcher, "search", lambda self, *a: calls.append(1) or search(self, *a))
    for k, nprobe in ((1, 2), (10, 3), (300, 100)):
        want = by_definition(index, queries, monkeypatch, k=k, nprobe=nprobe)
        for isa in NATIVE.runnable_isas():
            NATIVE.set_isa(isa)
            for threads in (1, 3):
                NATIVE.set_thread_bytes(0 if threads > 1 else 1.5e6)
                some = index.search(queries, k=k, nprobe=nprobe, num_threads=threads)
                one = index.search(torch.from_numpy(queries[3]), k=k, nprobe=nprobe, num_threads=threads)
                assert np.array_equal(some.ids, want.ids) and np.array_equal(some.distances, want.distances), (isa, threads, k)
                assert isinstance(one.ids, torch.Tensor) and one.ids.tolist() == want.ids[3].tolist()
                assert one.distances.tolist() == want.distances[3].tolist()
        NATIVE.set_isa("")
        NATIVE.set_thread_bytes(1.5e6)
    assert len(calls) == 3 * 2 * 2 * len(NATIVE.runnable_isas())


@pytest.mark.parametrize("store", ["float16", "none"])
def test_reranked_too(store, monkeypatch):
    options = {"store": store} if store != "none" else {"rerank_quantizer": codeword.RaBitQ(dim=DIM, code_bits=8)}
    index, queries = filled("rabitq of 1 bit", "cosine", 6, **options)
    for k, rerank in ((5, 3), (200, 50)):
        want = by_definition(index, queries, monkeypatch, k=k, nprobe=4, rerank=rerank)
        found = index.search(queries, k=k, nprobe=4, rerank=rerank)
        assert np.array_equal(found.ids, want.ids) and np.array_equal(found.distances, want.distances)


def test_what_changes_is_noticed(monkeypatch):
    index, queries = filled("pq", "l2", None)
    first = index.search(queries)
    index.add(queries[:1] * 0.5, [5])
    assert 5 in index.search(queries * 0.5, 1).ids
    index.remove([5])
    again = index.search(queries)
    assert np.array_equal(again.ids, first.ids) and np.array_equal(again.distances, first.distances)
    index.quantizer.codebooks.detach().mul_(2)  # not what an index is for, but its answers follow
    want = by_definition(index, queries, monkeypatch)
    found = index.search(queries)
    assert not np.array_equal(found.distances, first.distances)
    assert np.array_equal(found.ids, want.ids) and np.array_equal(found.distances, want.distances)


def test_other_ways_when_asked_for(monkeypatch):
    index, queries = filled("rabitq", "l2", 6)
    want = index.search(queries)
    monkeypatch.setenv("CODEWORD_OPS", "reference")
    found = index.search(queries[:3])
    assert np.array_equal(found.ids, want.ids[:3]) and np.array_equal(found.distances, want.distances[:3])
    monkeypatch.delenv("CODEWORD_OPS")
    for same in (queries.astype(np.float64), np.asfortranarray(queries), torch.from_numpy(queries)):
        assert np.array_equal(np.asarray(index.search(same).ids), want.ids)


def test_bad_queries_are_named():
    index, queries = filled("rabitq", "cosine", None)
    for row, message in ((np.nan, "finite"), (0.0, "direction")):
        bad = queries.copy()
        bad[2] = row
        with pytest.raises(ShapeError, match=message):
            index.search(bad)
    flat, queries = filled("pq", "l2", None)
    with pytest.raises(ShapeError, match="magnitude"):
        flat.search(queries * 1e20)


def test_more_queries_than_a_block(monkeypatch):
    index, queries = filled("caq", "ip", 6)
    many = np.tile(queries, (20, 1))
    want = by_definition(index, many, monkeypatch, k=3)
    found = index.search(many, k=3)
    assert len(many) > 1024 and np.array_equal(found.ids, want.ids) and np.array_equal(found.distances, want.distances)


def test_the_native_class_refuses_what_does_not_fit():
    assert NATIVE is not None
    searcher = NATIVE.Searcher(8, "l2")
    rows, out, ids = np.zeros((2, 8), np.float32), np.zeros((2, 3), np.float32), np.zeros((2, 3), np.int64)
    with pytest.raises(ValueError, match="at least 1"):
        searcher.search(rows, 3, 1, 1, out, ids, None, None)
    searcher.set_bits(np.zeros(8, np.float32), np.ones((4, 8), np.float32), 1, 1.9)
    with pytest.raises(ValueError, match="twice"):
        searcher.set_sums(np.zeros((8, 4), np.float32), 1, 4, -1.0)
    with pytest.raises(ValueError, match="table codes"):
        none = np.zeros(1, np.int64)
        searcher.add_codes(np.zeros((1, 1, 64), np.uint8), 4, None, np.zeros(32, np.int64), none, none, None, 1)
    block = (np.zeros((1, 1, 32), np.uint8), np.zeros((1, 3, 32), np.float32), np.zeros(1, np.float32), None, None, np.arange(32))
    with pytest.raises(ValueError, match="span"):
        searcher.add_bits(*block, np.zeros(1, np.int64), np.full(1, 33), None, 1)
    searcher.add_bits(*block, np.zeros(1, np.int64), np.full(1, 32), None, 32)
    bad = ((rows[:, :7], out, ids), (rows.astype(np.float64), out, ids), (rows, out[:1], ids), (rows, out, ids.astype(np.int32)))
    for queries, distances, numbers in bad:
        with pytest.raises((ValueError, BufferError)):
            searcher.search(queries, 3, 1, 1, distances, numbers, None, None)
    assert searcher.search(rows, 3, 1, 1, out, ids, None, None) and ids.tolist() == [[0, 1, 2]] * 2
