"""Random histories of an index against a dictionary: whatever was added, removed, replaced, saved, loaded or compacted, a search is
brute force over the decoded vectors of what should be there."""

from __future__ import annotations

import numpy as np
import pytest

import codeword
from codeword.search import index as index_module

from .support import Grid, blobs, distances

DIM = 6
PQ = "pq:num_codebooks=3,codebook_size=8,iterations=2"


def history(seed: int, steps: int, folder, monkeypatch) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(index_module, "PENDING_ROWS", int(rng.integers(2, 12)))
    monkeypatch.setattr(index_module, "MERGED", int(rng.integers(2, 5)))
    pool = blobs(4000, DIM, seed=seed)
    metric = ("l2", "ip", "cosine")[seed % 3]
    on_disk = seed % 2 == 0
    index = codeword.Index(dim=DIM, metric=metric, nlist=(None, 3, 7)[seed % 5 % 3], quantizer=PQ if on_disk else Grid(dim=DIM),
                           seed=seed).fit(pool[:60])
    model: dict[int, np.ndarray] = {}  # id -> the vector's decoded value
    fresh = 0

    def decode(rows: np.ndarray) -> np.ndarray:
        alone = codeword.Index(dim=DIM, metric=metric, nlist=index.nlist, quantizer=index.quantizer)
        alone._schema = index._schema
        alone.add(rows)
        return alone.reconstruct(np.arange(len(rows)))

    def take(n: int) -> np.ndarray:
        nonlocal fresh
        fresh += n
        return pool[(np.arange(fresh - n, fresh)) % len(pool)]

    for step in range(steps):
        known = np.array(sorted(model), dtype=np.int64)
        action = rng.choice(["add", "ids", "remove", "upsert", "search", "compact", "save"], p=[0.2, 0.15, 0.15, 0.15, 0.2, 0.05, 0.1])
        if action == "add":
            rows = take(int(rng.integers(1, 20)))
            model.update(zip(index.add(rows).tolist(), decode(rows), strict=True))
        elif action == "ids":
            ids = np.setdiff1d(rng.choice(5000, 8, replace=False), known)
            rows = take(len(ids))
            index.add(rows, ids)
            model.update(zip(ids.tolist(), decode(rows), strict=True))
        elif action == "remove" and len(known):
            gone = rng.choice(known, min(len(known), int(rng.integers(1, 12))), replace=False)
            assert index.remove(np.concatenate((gone, [10**7])), missing="ignore") == len(gone)
            for number in gone.tolist():
                del model[number]
        elif action == "upsert":
            ids = np.unique(np.concatenate((rng.choice(known, min(len(known), 4), replace=False), rng.choice(5000, 2))).astype(np.int64))
            rows = take(len(ids))
            index.upsert(rows, ids)
            model.update(zip(ids.tolist(), decode(rows), strict=True))
        elif action == "compact":
            index.compact()
            assert index.segments <= 1
        elif action == "save" and on_disk:
            index.save(folder / "index.cw")
            if rng.random() < 0.7:
                index = codeword.Index.load(folder / "index.cw", mmap=bool(rng.random() < 0.5))
        if action == "search" or step == steps - 1:
            check(index, model, take(3), int(rng.integers(1, 15)), rng)


def check(index: codeword.Index, model: dict[int, np.ndarray], queries: np.ndarray, k: int, rng: np.random.Generator) -> None:
    ids = np.array(sorted(model), dtype=np.int64)
    assert len(index) == len(ids)
    np.testing.assert_array_equal(index.ids, ids)
    if len(ids):
        np.testing.assert_array_equal(index.reconstruct(ids), np.stack([model[i] for i in ids.tolist()]))
    allow = None
    if len(ids) and rng.random() < 0.4:
        ids = np.sort(rng.choice(ids, max(1, len(ids) // 3), replace=False))
        allow = ids
    hits = index.search(queries, k=k, nprobe=100, allow=allow)
    have = min(k, len(ids))
    assert (hits.ids[:, have:] == -1).all()
    if not have:
        return
    exact = distances(queries, np.stack([model[i] for i in ids.tolist()]), index.metric)
    np.testing.assert_allclose(hits.distances[:, :have], np.sort(exact, axis=1)[:, :have], rtol=1e-4, atol=1e-4)
    for row, found in enumerate(hits.ids[:, :have]):
        assert np.isin(found, ids).all() and len(set(found.tolist())) == have
        np.testing.assert_allclose(exact[row, np.searchsorted(ids, found)], hits.distances[row, :have], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_an_index_is_a_dictionary_with_exact_search(seed, tmp_path, monkeypatch):
    history(seed, 40, tmp_path, monkeypatch)


@pytest.mark.night
@pytest.mark.parametrize("seed", range(100, 500))
def test_many_long_histories(seed, tmp_path, monkeypatch):
    history(seed, 200, tmp_path, monkeypatch)


def test_searches_and_changes_at_once_see_whole_states(monkeypatch):
    """Readers in threads while a writer changes rows: every answer is that of one state between changes."""
    import threading
    monkeypatch.setattr(index_module, "PENDING_ROWS", 16)
    x = blobs(64, DIM)
    index = codeword.Index(dim=DIM, quantizer=Grid(dim=DIM))
    index.add(x)
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            ids = index.search(x[0], k=64).ids
            count = int((ids >= 0).sum())
            if count not in (60, 64) or len(set(ids[:count].tolist())) != count:
                wrong.append(ids)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(60):
        index.remove([1, 2, 3, 4])
        index.add(x[1:5], ids=[1, 2, 3, 4])
        index.upsert(x[10:20], ids=np.arange(10, 20))
    index.compact()
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
