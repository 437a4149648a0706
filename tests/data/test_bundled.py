"""The bundled sentences are what their README says, and can be made again."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import numpy as np
import pytest

from codeword.data import bundled
from codeword.data.bundle import FOLDER

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("CODEWORD_SHARED", ROOT.parent / "shared"))


def test_shapes_lengths_and_size() -> None:
    b = bundled()
    assert b.base.shape == (7500, 384) and b.queries.shape == (500, 384) and b.base.dtype == np.float16
    assert len(b.base_sentences) == 7500 and len(b.query_sentences) == 500 and b.vectors.shape == (8000, 384)
    np.testing.assert_allclose(np.linalg.norm(b.vectors.astype(np.float32), axis=1), 1, atol=2e-3)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8_000_000
    assert {"README.md", "base.f16.npy", "base.txt", "queries.f16.npy", "queries.txt"} == {path.name for path in FOLDER.iterdir()}


def test_sentences_are_long_enough_clean_and_distinct() -> None:
    b = bundled()
    texts = b.base_sentences + b.query_sentences
    assert all(len(text.split()) >= 6 and "<unk>" not in text and "@" not in text for text in texts)
    assert len({" ".join(text.lower().split()) for text in texts}) == 8000


def test_the_shown_queries_have_near_neighbours() -> None:
    b = bundled()
    best = (b.queries[:3].astype(np.float32) @ b.base[:].astype(np.float32).T).max(axis=1)
    assert (best > 0.5).all()


@pytest.mark.skipif(not (SHARED / "data/vectors/minilm_sentences.f16.npy").exists(), reason="the full set of sentences is not here")
@pytest.mark.skipif(not (ROOT / "tools/bundle_sentences.py").exists(), reason="no source checkout")
def test_the_script_makes_the_same_bytes(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "tools/bundle_sentences.py"))
    script["main"](SHARED / "data/vectors", tmp_path)
    assert tuple(bundled().query_sentences[:3]) == script["SHOWN"]
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name
