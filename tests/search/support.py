"""What the tests of this folder share: a nearly exact quantizer, small data, and brute force in plain numpy."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest
import torch
from torch import Tensor

from codeword.quantizer import Quantizer


class Grid(Quantizer):
    """Every coordinate rounded to one of 1000 steps: no data, no scan of its own, so it is searched through its decoded values."""

    learns = False

    def __init__(self, *, dim: int, step: float = 1 / 64) -> None:
        super().__init__()
        self.dim, self.step = dim, step
        self.levels = (1000,) * dim

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return (rows / self.step).round().clamp(-500, 499).to(torch.int64) + 500, None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return (indices - 500).float() * self.step


def blobs(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """float32 (n, dim): a few clusters, so that lists mean something."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(8, dim))
    return (centers[rng.integers(8, size=n)] + 0.4 * rng.normal(size=(n, dim))).astype(np.float32)


def distances(queries: np.ndarray, rows: np.ndarray, metric: str) -> np.ndarray:
    """(q, n) float64 by the textbook formula; cosine: half of l2 to the normalised query, rows are as indexed."""
    q, x = queries.astype(np.float64), rows.astype(np.float64)
    if metric == "ip":
        return -q @ x.T
    if metric == "cosine":
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
    return ((q[:, None] - x[None]) ** 2).sum(-1) * (0.5 if metric == "cosine" else 1)


def minilm() -> np.ndarray:
    """The MiniLM sentence vectors beside the repository, float16 memory map; skips where they are absent."""
    home = pathlib.Path(os.environ.get("CODEWORD_SHARED", pathlib.Path(__file__).parents[2].parent / "shared"))
    path = home / "data" / "vectors" / "minilm_sentences.f16.npy"
    if not path.exists():
        pytest.skip(f"needs {path.name} in the shared data folder (CODEWORD_SHARED)")
    return np.load(path, mmap_mode="r")
