"""Recall on real sentence vectors stays above floors a little below what was measured; finer codes and more lists find more."""

from __future__ import annotations

import numpy as np
import pytest

import codeword
from codeword.search.truth import exact_search
from codeword.search.tune import recall_at

from .support import minilm


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = minilm()
    base, queries = x[1000:4000], np.asarray(x[:150])
    return base, queries, exact_search(base, queries, 10, "cosine").ids


def recall(data, spec: str, nprobe: int = 16, rerank: int = 0, **options) -> float:
    base, queries, truth = data
    index = codeword.Index(dim=384, metric="cosine", quantizer=spec, **options).fit(base)
    index.add(base)
    return float(recall_at(index.search(queries, k=10, nprobe=nprobe, rerank=rerank).ids, truth, 10).mean())


@pytest.mark.parametrize(("spec", "floor"), [
    ("pq:num_codebooks=96,codebook_size=16,iterations=4", 0.64), ("rabitq:code_bits=1", 0.66), ("rabitq:code_bits=2", 0.81),
    ("rabitq:code_bits=4", 0.93),
])
def test_flat_recall(data, spec, floor):
    assert recall(data, spec) > floor


def test_lists_and_reranking(data):
    few, many = (recall(data, "rabitq:code_bits=4", nlist=16, nprobe=nprobe) for nprobe in (2, 12))
    assert few < many and many > 0.9
    plain = recall(data, "rabitq:code_bits=1", nlist=16, nprobe=16)
    finer = recall(data, "rabitq:code_bits=1", nlist=16, nprobe=16, rerank=4, rerank_quantizer="rabitq:code_bits=6")
    exact = recall(data, "rabitq:code_bits=1", nlist=16, nprobe=16, rerank=4, store="float16")
    assert plain < finer < exact and exact > 0.96
