"""The bundled sentence embeddings: 7,500 base rows and 500 held-out queries of width 384 (origin and licence: bundled/README.md)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from codeword.data.sentences import read_sentences
from codeword.data.vectors import Vectors, open_vectors

FOLDER = Path(__file__).parent / "bundled"
IMAGES = Path(__file__).parent / "bundled_images"
"""Fashion-MNIST's first 5,000 training and 1,000 test images, idx files (origin and licence: bundled_images/README.md)."""


class Bundled(NamedTuple):
    """``base`` (7500, 384) and ``queries`` (500, 384), float16, unit length, mapped; and the sentence of each row."""

    base: Vectors
    queries: Vectors
    base_sentences: list[str]
    query_sentences: list[str]

    @property
    def vectors(self) -> np.ndarray:
        """All rows in one array: base, then queries."""
        return np.concatenate([self.base[:], self.queries[:]])


def bundled() -> Bundled:
    """Open the bundled data; the first three queries are the ones ``codeword demo`` shows."""
    base, queries = open_vectors(FOLDER / "base.f16.npy"), open_vectors(FOLDER / "queries.f16.npy")
    return Bundled(base, queries, read_sentences(FOLDER / "base.txt", len(base)), read_sentences(FOLDER / "queries.txt", len(queries)))
