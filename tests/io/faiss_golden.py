"""Makes the tiny faiss files that the reader is tested on, and what faiss itself says they hold. Needs faiss; the tests do not.

    python tests/io/faiss_golden.py            adds what is missing under tests/io/golden/faiss-1.15

Each NAME.faiss is written by ``faiss.write_index``; NAME.npz beside it holds ``ids``, the ``vectors`` that were added and ``values``,
what faiss reconstructs.
Existing files stay: they are what releases of faiss wrote, and must be readable for ever.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

HOME = Path(__file__).parent / "golden" / "faiss-1.15"
ROWS = 7


def rows(count: int, dim: int, seed: int = 1) -> np.ndarray:
    """float32 (count, dim), off centre, of unequal variances."""
    values = np.random.default_rng(seed).standard_normal((count, dim)) * np.linspace(0.5, 2, dim) + 0.25
    return values.astype(np.float32)


def scalar_types() -> dict[str, Any]:
    import faiss
    kinds = ("8bit", "4bit", "6bit", "8bit_uniform", "4bit_uniform", "fp16", "bf16", "8bit_direct", "8bit_direct_signed", "1bit_tqmse",
             "2bit_tqmse", "3bit_tqmse", "4bit_tqmse", "8bit_tqmse")
    return {kind: getattr(faiss.ScalarQuantizer, f"QT_{kind}") for kind in kinds if hasattr(faiss.ScalarQuantizer, f"QT_{kind}")}


def indexes(dim: int = 8, lists: int = 3) -> dict[str, Any]:
    """Untrained faiss indexes of every kind that is read, by name."""
    import faiss
    l2, ip = faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT
    half = dim // 2

    def coarse(metric: int = l2, width: int = dim) -> Any:
        return faiss.IndexFlat(width, metric)

    made = {"pq": faiss.IndexPQ(dim, half, 2), "pq_ip": faiss.IndexPQ(dim, 2, 3, ip),
            "opq": faiss.IndexPreTransform(faiss.OPQMatrix(dim, 2), faiss.IndexPQ(dim, 2, 3)),
            "pca_pq": faiss.IndexPreTransform(faiss.PCAMatrix(dim, half), faiss.IndexPQ(half, 2, 3)),
            "rotation_sq": faiss.IndexPreTransform(faiss.RandomRotationMatrix(dim, dim),
                                                   faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, l2)),
            "centre_rabitq": faiss.IndexPreTransform(faiss.CenteringTransform(dim), faiss.IndexRaBitQ(dim, l2, 1)),
            "idmap_pq": faiss.IndexIDMap2(faiss.IndexPQ(dim, 2, 2))}
    for name, kind in scalar_types().items():
        made[f"sq_{name}"] = faiss.IndexScalarQuantizer(dim, kind, l2)
    for bits in (1, 2, 4, 9):
        made[f"rabitq{bits}"] = faiss.IndexRaBitQ(dim, l2, bits)
        made[f"rabitq{bits}_ip"] = faiss.IndexRaBitQ(dim, ip, bits)
        made[f"ivf_rabitq{bits}"] = faiss.IndexIVFRaBitQ(coarse(), dim, lists, l2, True, bits)
    made["ivf_pq"] = faiss.IndexIVFPQ(coarse(), dim, lists, 2, 3)
    made["ivf_pq_ip"] = faiss.IndexIVFPQ(coarse(ip), dim, lists, 2, 3, ip)
    made["ivf_pq_plain"] = faiss.IndexIVFPQ(coarse(), dim, lists, 2, 3)
    made["ivf_pq_plain"].by_residual = False
    made["ivf_sq_8bit"] = faiss.IndexIVFScalarQuantizer(coarse(), dim, lists, faiss.ScalarQuantizer.QT_8bit, l2, True)
    made["ivf_sq_4bit_plain"] = faiss.IndexIVFScalarQuantizer(coarse(), dim, lists, faiss.ScalarQuantizer.QT_4bit, l2, False)
    made["ivf_sq_fp16"] = faiss.IndexIVFScalarQuantizer(coarse(), dim, lists, faiss.ScalarQuantizer.QT_fp16, l2, True)
    made["opq_ivf_pq"] = faiss.IndexPreTransform(faiss.OPQMatrix(dim, 2), faiss.IndexIVFPQ(coarse(), dim, lists, 2, 3))
    made["pca_ivf_pq"] = faiss.IndexPreTransform(faiss.PCAMatrix(dim, half),
                                                 faiss.IndexIVFPQ(coarse(width=half), half, lists, 2, 3))
    return made


def fill(name: str, index: Any, dim: int, count: int = ROWS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train and add; (ids, vectors, faiss's reconstructions)."""
    import faiss
    faiss.omp_set_num_threads(1)
    x, train = rows(count, dim), rows(300 + count, dim, seed=2)
    if name.startswith("sq_8bit_direct"):
        x, train = np.round(x * 9) + (0 if name.endswith("signed") else 90), np.round(train * 9)
    inner = index
    while isinstance(inner, (faiss.IndexPreTransform, faiss.IndexIDMap)):
        inner = faiss.downcast_index(inner.index)
    if hasattr(inner, "pq"):
        inner.pq.cp.min_points_per_centroid = 1
        inner.pq.cp.niter = 4
    if hasattr(inner, "cp"):
        inner.cp.min_points_per_centroid = 1
    if isinstance(index, faiss.IndexPreTransform) and name.startswith("opq"):
        faiss.downcast_VectorTransform(index.chain.at(0)).niter = 3
    index.train(train)
    ids = np.arange(count)
    if isinstance(index, faiss.IndexIDMap):
        ids = 5000 - 10 * ids
        index.add_with_ids(x, ids)
    else:
        index.add(x)
    if hasattr(inner, "make_direct_map"):
        inner.make_direct_map()
    return ids, x, np.stack([index.reconstruct(int(i)) for i in ids])


def make(home: Path = HOME) -> list[str]:
    """Write what is missing; returns the names added."""
    import faiss
    home.mkdir(exist_ok=True)
    added = []
    for name, index in indexes().items():
        if (home / f"{name}.faiss").exists():
            continue
        ids, vectors, values = fill(name, index, 8)
        inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
        if hasattr(inner, "make_direct_map"):
            inner.make_direct_map(False)
        faiss.write_index(index, str(home / f"{name}.faiss"))
        np.savez_compressed(home / f"{name}.npz", ids=ids, values=values, vectors=vectors)
        added.append(name)
    return added


if __name__ == "__main__":
    sys.exit(print("\n".join(make()) or "nothing to add"))
