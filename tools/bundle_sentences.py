"""Make src/codeword/data/bundled from the full set of MiniLM sentence embeddings: ``python tools/bundle_sentences.py FOLDER``.

FOLDER holds minilm_sentences.f16.npy and minilm_sentences.txt (origin: src/codeword/data/bundled/README.md). Kept are sentences of at
least six words without ``<unk>`` and ``@``, each text once; then a seeded choice, the same on every machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from codeword.data import open_vectors, read_sentences
from codeword.parts import random

BASE, QUERIES, SEED = 7_500, 500, 0

SHOWN = (
    "the depression transitioned to an extratropical cyclone .",
    "Steel was also an obvious material for armor .",
    "I am combined by a sacred vow",
)
"""The first three queries: what ``codeword demo`` searches for."""


def choose(sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the base and of the queries."""
    seen: set[str] = set()
    rows: list[int] = []
    for row, text in enumerate(sentences):
        plain = " ".join(text.lower().split())
        if len(text.split()) >= 6 and "<unk>" not in text and "@" not in text and plain not in seen:
            seen.add(plain)
            rows.append(row)
    shown = [sentences.index(text) for text in SHOWN]
    others = np.array([row for row in rows if row not in shown])
    chosen = others[random.choice(SEED, len(others), BASE + QUERIES - len(shown), stream="bundle")]
    return chosen[:BASE], np.array([*shown, *chosen[BASE:]])


def main(source: Path, target: Path) -> None:
    vectors = open_vectors(source / "minilm_sentences.f16.npy")
    sentences = read_sentences(source / "minilm_sentences.txt", len(vectors))
    for name, rows in zip(("base", "queries"), choose(sentences)):
        with (target / f"{name}.f16.npy").open("wb") as file:
            np.lib.format.write_array(file, np.ascontiguousarray(vectors[rows]), version=(1, 0), allow_pickle=False)
        (target / f"{name}.txt").write_text("".join(f"{sentences[row]}\n" for row in rows), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parents[1] / "src/codeword/data/bundled")
