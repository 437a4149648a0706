"""The index against brute force over its own decoded values: whatever the quantizer, lists, segments and filters, the same answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import codeword
from codeword.errors import CodewordError, NotFitted, ShapeError, Unsupported
from codeword.search import index as index_module
from codeword.search import scores
from codeword.search.truth import exact_search
from codeword.search.tune import recall_at

from .support import Grid, blobs, distances

DIM = 16
PQ1 = "pq:num_codebooks=4,codebook_size=16,iterations=4"
PQ2 = "pq:num_codebooks=8,codebook_size=16,iterations=4"
METRICS = ("l2", "ip", "cosine")


def built(metric: str = "l2", nlist: int | None = None, n: int = 300, quantizer: object = None, **options: object) -> tuple:
    x = blobs(n, DIM)
    index = codeword.Index(dim=DIM, metric=metric, quantizer=quantizer or Grid(dim=DIM), nlist=nlist, **options)
    index.fit(x)
    index.add(x)
    return index, x


def expect(index: codeword.Index, hits: tuple, queries: np.ndarray, k: int, keep: np.ndarray | None = None) -> None:
    """Hits are brute force over what the index decodes: same distances, and each id at its own distance."""
    ids = index.ids if keep is None else keep
    exact = distances(queries, index.reconstruct(ids), index.metric) if len(ids) else np.empty((len(queries), 0))
    wanted = np.sort(exact, axis=1)[:, :k]
    have = min(k, len(ids))
    np.testing.assert_allclose(hits.distances[:, :have], wanted, rtol=1e-4, atol=1e-4)
    assert (hits.ids[:, have:] == -1).all() and np.isposinf(hits.distances[:, have:]).all()
    assert (np.diff(hits.distances[:, :have], axis=1) >= 0).all()
    for row, (found, near) in enumerate(zip(hits.ids[:, :have], hits.distances[:, :have], strict=True)):
        assert len(set(found)) == have
        np.testing.assert_allclose(exact[row, np.searchsorted(ids, found)], near, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("nlist", [None, 5])
@pytest.mark.parametrize("quantizer", ["grid", PQ2, "vq:codebook_size=64"])
def test_search_is_brute_force_over_decoded_values(metric, nlist, quantizer):
    index, _ = built(metric, nlist, quantizer=Grid(dim=DIM) if quantizer == "grid" else quantizer)
    queries = blobs(20, DIM, seed=1)
    expect(index, index.search(queries, k=7, nprobe=5), queries, 7)


@pytest.mark.parametrize("metric", METRICS)
def test_fine_codes_find_the_true_neighbours(metric):
    index, x = built(metric)
    queries = blobs(50, DIM, seed=1)
    truth = exact_search(x, queries, 10, metric)
    hits = index.search(queries, k=10)
    assert recall_at(hits.ids, truth.ids, 10).mean() > 0.95


def test_reconstruct_is_the_quantizers_decode():
    index, x = built(nlist=None)
    grid = index.quantizer
    np.testing.assert_array_equal(index.reconstruct(np.arange(300)), grid.decode(grid.encode(x)))
    assert index.reconstruct(7).shape == (DIM,)
    lists, _ = built(nlist=4)
    schema = lists._schema
    given = schema.lists.centroids[schema.lists.assign(torch.from_numpy(x))]
    want = grid.decode(grid.encode(torch.from_numpy(x), given=given), given=given)
    np.testing.assert_array_equal(lists.reconstruct(np.arange(300)), want.numpy())
    assert isinstance(lists.reconstruct(torch.arange(3)), torch.Tensor)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("quantizer", ["grid", PQ2])
def test_the_same_answer_alone_in_a_batch_and_on_any_threads(metric, quantizer):
    index, _ = built(metric, nlist=6, quantizer=Grid(dim=DIM) if quantizer == "grid" else quantizer)
    queries = blobs(33, DIM, seed=2)
    together = index.search(queries, k=5, nprobe=3)
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        other = index.search(queries, k=5, nprobe=3, num_threads=count)
        np.testing.assert_array_equal(other.ids, together.ids)
        np.testing.assert_array_equal(other.distances, together.distances)
    torch.set_num_threads(threads)
    for i in (0, 7, 32):
        alone = index.search(queries[i], k=5, nprobe=3)
        assert alone.ids.shape == (5,)
        np.testing.assert_array_equal(alone.ids, together.ids[i])
        if quantizer == "grid":
            np.testing.assert_array_equal(alone.distances, together.distances[i])


def test_equal_rows_are_ordered_by_id_whatever_their_segment(monkeypatch):
    monkeypatch.setattr(index_module, "PENDING_ROWS", 4)
    index = codeword.Index(dim=DIM, quantizer=Grid(dim=DIM))
    row = np.ones((1, DIM), dtype=np.float32)
    for number in (9, 3, 7, 1, 8, 2, 6, 4, 5, 0):
        index.add(row, ids=[number])
    assert index.segments > 1
    np.testing.assert_array_equal(index.search(row[0], k=6).ids, np.arange(6))
    index.compact()
    np.testing.assert_array_equal(index.search(row[0], k=6).ids, np.arange(6))


def test_more_neighbours_than_rows_and_an_empty_index():
    index, _ = built(n=5)
    queries = blobs(3, DIM, seed=1)
    expect(index, index.search(queries, k=9), queries, 9)
    empty = codeword.Index(dim=DIM, quantizer=Grid(dim=DIM))
    hits = empty.search(queries, k=3)
    assert (hits.ids == -1).all() and np.isposinf(hits.distances).all() and hits.ids.shape == (3, 3)
    assert len(empty) == 0 and empty.bytes_per_vector == 0 and empty.ids.shape == (0,)
    assert empty.search(queries[:0], k=2).ids.shape == (0, 2)
    empty.add(queries[:0])
    assert len(empty) == 0
    assert index.search(queries.reshape(3, 1, DIM), k=2).ids.shape == (3, 1, 2)


def test_fewer_rows_than_lists():
    x = blobs(3, DIM)
    index = codeword.Index(dim=DIM, quantizer=Grid(dim=DIM), nlist=50)
    index.fit(x).add(x)
    assert index.report["nlist"] == 3
    expect(index, index.search(x, k=3, nprobe=50), x, 3)


@pytest.mark.parametrize("nlist", [None, 4])
def test_filters_equal_brute_force_over_what_they_leave(nlist):
    index, _ = built("cosine", nlist)
    queries = blobs(10, DIM, seed=3)
    rng = np.random.default_rng(0)
    some = np.sort(rng.choice(300, 40, replace=False))
    mask = np.zeros(300, dtype=bool)
    mask[some] = True
    for allow in (some, mask, torch.from_numpy(some), some.tolist(), mask[:some[-1] + 1]):
        expect(index, index.search(queries, k=6, nprobe=4, allow=allow), queries, 6, keep=some)
    others = np.setdiff1d(np.arange(300), some)
    for deny in (some, mask):
        expect(index, index.search(queries, k=6, nprobe=4, deny=deny), queries, 6, keep=others)
    expect(index, index.search(queries, k=6, nprobe=4, allow=some, deny=some[::2]), queries, 6, keep=some[1::2])
    assert (index.search(queries, k=2, allow=[]).ids == -1).all()
    assert (index.search(queries, k=2, allow=[10**12]).ids == -1).all()


def test_arrays_in_arrays_of_the_same_kind_out():
    index, x = built("cosine", 4)
    want = index.search(x[:4], k=3)
    for kind in (torch.from_numpy(x[:4]), torch.from_numpy(x[:4]).double()):
        hits = index.search(kind, k=3)
        assert isinstance(hits.ids, torch.Tensor) and hits.ids.dtype == torch.int64 and hits.distances.dtype == torch.float32
        np.testing.assert_array_equal(hits.ids.numpy(), want.ids)
    frozen = x[:4].copy()
    frozen.flags.writeable = False
    for array in (frozen, np.asfortranarray(x[:4]), x[:4].astype(">f4"), x[:8][::2][:2]):
        assert isinstance(index.search(array, k=3).ids, np.ndarray)
    half = codeword.Index(dim=DIM, quantizer=Grid(dim=DIM))
    half.add(x.astype(np.float16))
    full = codeword.Index(dim=DIM, quantizer=Grid(dim=DIM))
    full.add(x.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(half.reconstruct(np.arange(300)), full.reconstruct(np.arange(300)))


def test_changing_rows_one_at_a_time_keeps_segments_few(monkeypatch):
    monkeypatch.setattr(index_module, "PENDING_ROWS", 8)
    monkeypatch.setattr(index_module, "MERGED", 4)
    index = codeword.Index(dim=DIM, quantizer=Grid(dim=DIM), nlist=None)
    x = blobs(600, DIM)
    for number in range(600):
        index.add(x[number:number + 1])
        if number in (0, 1, 7, 8, 9, 100):
            assert index.search(x[number], k=1).ids[0] == number
    assert index.segments <= 4 * 4 and len(index) == 600
    expect(index, index.search(x[:5], k=5), x[:5], 5)
    before = index.search(x[:50], k=5)
    index.compact()
    after = index.search(x[:50], k=5)
    assert index.segments == 1
    np.testing.assert_array_equal(before.ids, after.ids)
    np.testing.assert_array_equal(before.distances, after.distances)


def test_blocks_and_segments_do_not_change_codes(monkeypatch):
    x = blobs(900, DIM)
    whole = codeword.Index(dim=DIM, quantizer=PQ2, nlist=4, metric="cosine").fit(x)
    whole.add(x)
    parts = codeword.Index(dim=DIM, quantizer=PQ2, nlist=4, metric="cosine").fit(x)
    monkeypatch.setattr("codeword.parts.arrays.BLOCK_VALUES", DIM * 100)
    monkeypatch.setattr(type(parts), "_segment_rows", property(lambda self: 250))
    parts.add(x)
    assert parts.segments > 1
    np.testing.assert_array_equal(whole.reconstruct(np.arange(900)), parts.reconstruct(np.arange(900)))
    a, b = whole.search(x[:30], k=5, nprobe=2), parts.search(x[:30], k=5, nprobe=2)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.distances, b.distances)


def test_remove_upsert_and_ids():
    index, x = built(nlist=4)
    assert index.remove([3, 5, 299]) == 3 and len(index) == 297 and 3 not in index and 4 in index
    assert not np.isin([3, 5, 299], index.search(x, k=10, nprobe=4).ids).any()
    with pytest.raises(CodewordError, match="id 3, which is not stored"):
        index.remove([1, 3])
    assert 1 in index and index.remove([1, 3], missing="ignore") == 1
    np.testing.assert_array_equal(index.add(x[:2]), [300, 301])
    with pytest.raises(CodewordError, match="id 300, which is stored already"):
        index.add(x[:1], ids=[300])
    with pytest.raises(CodewordError, match="id 7 twice"):
        index.add(x[:2], ids=[7, 7])
    index.upsert(x[10:12], ids=[300, 3])
    assert len(index) == 299
    np.testing.assert_array_equal(index.reconstruct([300, 3]), index.reconstruct([10, 11]))
    index.remove(index.ids)
    assert len(index) == 0 and (index.search(x[0], k=2).ids == -1).all()
    index.compact()
    assert index.segments == 0


def test_all_rows_are_added_or_none():
    index, x = built()
    bad = x.copy()
    bad[200, 3] = np.nan
    with pytest.raises(ShapeError):
        index.add(bad)
    with pytest.raises(ShapeError):
        index.upsert(bad, ids=np.arange(300))
    assert len(index) == 300 and index.search(x[0], k=1).ids[0] == 0


def test_rerank_from_finer_codes_and_from_vectors():
    x, queries = blobs(1000, DIM), blobs(40, DIM, seed=5)
    truth = exact_search(x, queries, 10, "cosine").ids

    def recall(**options):
        index = codeword.Index(dim=DIM, metric="cosine", quantizer=PQ1, nlist=4, **options).fit(x)
        index.add(x)
        depths = (0, 2, 20) if index.reranks else (0,)
        return index, [recall_at(index.search(queries, k=10, nprobe=4, rerank=depth).ids, truth, 10).mean() for depth in depths]

    plain, (none,) = recall()
    fine, (_, some, many) = recall(rerank_quantizer=Grid(dim=DIM, step=1 / 64))
    _, (_, _, full) = recall(store="float32")
    assert none < some < many and many > none + 0.1 and full > 0.95
    assert fine.bytes_per_vector == pytest.approx(plain.bytes_per_vector + DIM * 10 / 8, rel=0.1)
    with pytest.raises(Unsupported):
        plain.search(queries, rerank=4)


def test_reranked_distances_are_exact():
    for metric in METRICS:
        index, x = built(metric, nlist=4, quantizer=PQ1, store="float32")
        queries = blobs(9, DIM, seed=4)
        want = exact_search(x, queries, 5, metric)
        hits = index.search(queries, k=5, nprobe=4, rerank=60)  # all 300 rows
        np.testing.assert_array_equal(hits.ids, want.ids)
        np.testing.assert_allclose(hits.distances, want.distances, rtol=1e-6, atol=1e-6)


def test_every_byte_is_counted():
    index, _ = built("cosine", 4, store="float16")
    index.compact().remove(np.arange(50))
    stored = sum(t.numel() * t.element_size() for view in index._snapshot() for t in view.segment.tensors.values())
    tombstones = sum(view.segment.slots // 8 for view in index._snapshot() if view.deleted is not None)
    parts = index.breakdown()
    assert sum(parts.values()) - parts["shared"] == stored + tombstones
    assert index.bytes_per_vector == pytest.approx((stored + tombstones) / 250)
    assert parts["shared"] == 4 * DIM * 4 and parts["deleted"] > 0 and parts["ids"] == 250 * 8


def test_a_fitted_quantizer_is_used_as_it_is():
    x = blobs(400, DIM)
    pq = codeword.PQ(dim=DIM, num_codebooks=8, codebook_size=16).fit(x)
    books = pq.codebooks.clone()
    flat = codeword.Index(dim=DIM, quantizer=pq)
    flat.add(x)  # nothing is left to learn
    lists = codeword.Index(dim=DIM, quantizer=pq, nlist=6).fit(x)
    lists.add(x)
    assert torch.equal(books, pq.codebooks)
    np.testing.assert_array_equal(lists.reconstruct(np.arange(400)), pq.decode(pq.encode(x)))
    a, b = flat.search(x[:20], k=5), lists.search(x[:20], k=5, nprobe=6)
    np.testing.assert_allclose(a.distances, b.distances, rtol=1e-5, atol=1e-5)


def test_tune_reaches_its_target_and_reports_the_other_half():
    x, queries = blobs(800, DIM), blobs(60, DIM, seed=9)
    index = codeword.Index(dim=DIM, quantizer=Grid(dim=DIM), nlist=16, store="float32").fit(x)
    index.add(x)
    truth = exact_search(x, queries, 10)
    report = index.tune(queries, truth.ids, recall=0.9)
    assert report.reached and report.tuned_recall >= 0.9 and report.queries == (30, 30)
    assert index.nprobe == report.nprobe < 16 and index.rerank == report.rerank
    assert abs(report.recall - report.tuned_recall) < 6 * report.standard_error + 0.02
    assert (report.nprobe, report.rerank) in {(nprobe, rerank) for nprobe, rerank, _ in report.tried}
    assert index.tune(queries, truth.ids, recall=0.9) == report
    coarse = codeword.Index(dim=DIM, quantizer="vq:codebook_size=4").fit(x)
    coarse.add(x)
    assert not coarse.tune(queries, truth.ids, recall=0.99).reached


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda i, x: i.search(x[:, :5]), ShapeError, "16"),
    (lambda i, x: i.search(np.full(DIM, np.nan)), ShapeError, "finite"),
    (lambda i, x: i.search(np.full(DIM, 1e17)), ShapeError, "1e\\+16"),
    (lambda i, x: i.search(x.tolist()), ShapeError, "numpy array"),
    (lambda i, x: i.search(x, k=0), CodewordError, "k=0"),
    (lambda i, x: i.search(x, k=True), CodewordError, "k=True"),
    (lambda i, x: i.search(x, k=2**31), CodewordError, "k=2147483648"),
    (lambda i, x: i.search(x, nprobe=0), CodewordError, "nprobe=0"),
    (lambda i, x: i.search(x, num_threads=0), CodewordError, "num_threads=0"),
    (lambda i, x: i.search(x, allow=[0.5]), ShapeError, "allow"),
    (lambda i, x: i.search(x, deny=np.ones((2, 2), dtype=bool)), ShapeError, "deny"),
    (lambda i, x: i.add(x[:, :5]), ShapeError, "16"),
    (lambda i, x: i.add(x, ids=[1, 2]), ShapeError, "2 ids for 300 rows"),
    (lambda i, x: i.add(x[:1], ids=[-1]), ShapeError, "id -1"),
    (lambda i, x: i.add(x[:1], ids=[1.5]), ShapeError, "ids"),
    (lambda i, x: i.add(x[:1], ids=np.array([2**63], dtype=np.uint64)), ShapeError, "2\\^63"),
    (lambda i, x: i.add(x[:1], on_duplicate="x"), CodewordError, "on_duplicate"),
    (lambda i, x: i.reconstruct([10**6]), CodewordError, "id 1000000"),
    (lambda i, x: i.fit(x), CodewordError, "300 stored rows"),
    (lambda i, x: i.tune(x[:4], np.zeros((3, 2), dtype=int)), ShapeError, "truth"),
    (lambda i, x: i.tune(x[:4], np.zeros((4, 2), dtype=int), recall=0), CodewordError, "recall=0"),
])
def test_bad_calls_name_what_is_wrong(call, error, message):
    index, x = built()
    with pytest.raises(error, match=message):
        call(index, x)


@pytest.mark.parametrize("options", [
    {"metric": "hamming"}, {"nlist": 0}, {"nlist": True}, {"dim": 0}, {"store": "int8"}, {"quantizer": 3}, {"quantizer": "nothing"},
    {"quantizer": "pq:num_codebooks=4", "dim": 15}, {"store": "float32", "rerank_quantizer": PQ2}, {"quantizer": Grid(dim=3)},
])
def test_bad_configurations_are_refused(options):
    with pytest.raises(CodewordError):
        codeword.Index(**({"dim": DIM, "quantizer": PQ2} | options))


def test_nothing_works_before_fit():
    index = codeword.Index(dim=DIM, quantizer=PQ2, nlist=4)
    x = blobs(10, DIM)
    for call in (lambda: index.add(x), lambda: index.search(x), lambda: index.reconstruct([0]), index.compact):
        with pytest.raises(NotFitted):
            call()
    with pytest.raises(ShapeError):
        index.fit(x[:0])


def test_zero_vectors_have_no_cosine():
    index = codeword.Index(dim=DIM, metric="cosine", quantizer=Grid(dim=DIM))
    rows = blobs(3, DIM)
    rows[1] = 0
    for call in (index.add, index.search, index.fit):
        with pytest.raises(ShapeError, match="row 1 of a block"):
            call(rows)
    rows[1] = 1e-40
    index.add(rows)
    assert index.search(np.full(DIM, 1e16, dtype=np.float32), k=1).ids[0] == 1


@pytest.mark.parametrize("spec", ["rabitq:code_bits=1", "rabitq:code_bits=4", "pq:num_codebooks=4,codebook_size=8,iterations=3",
                                  "rotated(pq:num_codebooks=4,codebook_size=8,iterations=3)", "lvq:code_bits=4",
                                  "lvq:code_bits=4,residual_bits=4", "lvq:code_bits=8,residual_bits=5"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("nlist", [None, 5])
def test_the_fused_scan_agrees_with_its_definition(spec, metric, nlist):
    index, _ = built(metric, nlist, quantizer=spec)
    index.remove(np.arange(0, 300, 7))
    queries = blobs(12, DIM, seed=6)
    schema, (view,) = index._schema, index._snapshot()
    segment = view.segment
    prepared = scores.prepared(torch.from_numpy(queries), metric, "")
    kind = scores.scanned_metric(metric)
    query, probes = schema.scanner.prepare(prepared, kind), schema.lists.probe(prepared, 5, kind)
    estimate = schema.scanner.scan(segment.packed, query, 0, segment.slots)[0]
    coarse = torch.empty(12, schema.lists.count).scatter_(1, probes.lists, probes.coarse)
    estimate = (estimate + coarse[:, segment.labels(torch.arange(segment.slots))]) * (0.5 if metric == "cosine" else 1)
    estimate[:, ~view.alive()] = torch.inf
    hits = index.search(queries, k=8, nprobe=5)
    np.testing.assert_allclose(hits.distances, estimate.sort(dim=1).values[:, :8].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 4, 9])
def test_rabitq_rows_move_between_segments_without_loss(bits, monkeypatch):
    monkeypatch.setattr(index_module, "PENDING_ROWS", 64)
    x = blobs(300, DIM)
    index = codeword.Index(dim=DIM, metric="cosine", quantizer=f"rabitq:code_bits={bits}", nlist=5).fit(x)
    for rows in np.array_split(np.arange(300), 4):
        index.add(x[rows])
    assert index.segments == 4
    before, values = index.search(x[:40], k=6, nprobe=3), index.reconstruct(np.arange(300))
    index.remove([299])
    index.compact()
    after = index.search(x[:40], k=6, nprobe=3)
    assert index.segments == 1
    keep = (before.ids != 299).all(1)
    np.testing.assert_array_equal(before.ids[keep], after.ids[keep])
    np.testing.assert_array_equal(before.distances[keep], after.distances[keep])
    np.testing.assert_array_equal(values[:299], index.reconstruct(np.arange(299)))
    schema = index._schema
    rows = scores.prepared(torch.from_numpy(x), "cosine", "")
    given = schema.lists.given(schema.lists.assign(rows))
    decoded = index.quantizer.decode(index.quantizer.encode(rows, given=given), given=given)
    np.testing.assert_allclose(values, decoded.numpy(), rtol=1e-4, atol=1e-5)
