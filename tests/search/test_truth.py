"""Exact search against float64 brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codeword.errors import CodewordError, ShapeError
from codeword.ops.reference import exact_distances
from codeword.search import truth
from codeword.search.scores import exact_distance, prepared

from .support import blobs, distances


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_exact_search_is_brute_force(metric, scale, monkeypatch):
    monkeypatch.setattr(truth, "_ROWS", 37)
    monkeypatch.setattr(truth, "_QUERIES", 7)
    x, q = blobs(500, 13) * np.float32(scale), blobs(20, 13, seed=1) * np.float32(scale)
    hits = truth.exact_search(x, q, 9, metric)
    rows = prepared(torch.from_numpy(x), metric, "x").numpy()
    exact = distances(q, rows, metric)
    wanted = np.argsort(exact, axis=1, kind="stable")[:, :9]
    np.testing.assert_allclose(hits.distances, np.take_along_axis(exact, wanted, 1), rtol=1e-5, atol=2e-7 * scale**2)
    if metric != "cosine":  # there the queries' own rounding may swap near ties
        np.testing.assert_array_equal(hits.ids, wanted)


def test_close_calls_are_decided_in_float64():
    """Rows that float32 products cannot tell apart."""
    base = np.full((200, 8), 1000, dtype=np.float32)
    base[:, 0] += np.random.default_rng(0).permutation(200).astype(np.float32) * np.float32(2**-13)
    query = np.full((1, 8), 1000, dtype=np.float32)
    np.testing.assert_array_equal(truth.exact_search(base, query, 5).ids[0], np.argsort(base[:, 0], kind="stable")[:5])


def test_ties_ids_and_padding():
    x = np.ones((6, 4), dtype=np.float32)
    hits = truth.exact_search(x, x[0], 8, ids=[5, 3, 9, 1, 7, 0])
    np.testing.assert_array_equal(hits.ids, [0, 1, 3, 5, 7, 9, -1, -1])
    assert np.isposinf(hits.distances[6:]).all() and hits.distances.dtype == np.float32
    assert isinstance(truth.exact_search(torch.ones(3, 4), torch.ones(2, 4), 1).ids, torch.Tensor)
    assert truth.exact_search(x[:0], x, 2).ids.shape == (6, 2)
    assert truth.exact_search(x, x[:0], 2).ids.shape == (0, 2)


def test_sums_have_the_order_of_the_reference():
    for n, d in ((1, 1), (3, 7), (5, 45), (200, 384)):
        x, y = torch.from_numpy(blobs(n, d)), torch.from_numpy(blobs(n, d, seed=1))
        assert torch.equal(exact_distance(x, y, "l2"), exact_distances(x, y))


def test_a_pairs_distance_depends_on_the_pair_alone():
    x, y = torch.from_numpy(blobs(50, 45)), torch.from_numpy(blobs(50, 45, seed=1))
    for metric in ("l2", "ip", "cosine"):
        every = exact_distance(x, y, metric)
        assert all(torch.equal(exact_distance(x[i], y[i], metric), every[i]) for i in range(50))
    assert torch.equal(torch.cat([prepared(x[i:i + 1], "cosine", "x") for i in range(50)]), prepared(x, "cosine", "x"))


@pytest.mark.parametrize(("base", "queries", "options"), [
    (np.ones((3, 4)), np.ones((3, 5)), {}), (np.ones(4), np.ones(4), {}), (np.full((3, 4), np.inf), np.ones(4), {}),
    (np.ones((3, 4)), np.ones(4), {"k": 0}), (np.ones((3, 4)), np.ones(4), {"metric": "dot"}), (np.ones((3, 4)), np.ones(4), {"ids": [1]}),
])
def test_bad_input(base, queries, options):
    with pytest.raises((ShapeError, CodewordError)):
        truth.exact_search(base, queries, **({"k": 2} | options))
