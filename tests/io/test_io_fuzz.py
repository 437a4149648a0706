"""The fuzz targets hold on their seeds, and on every input that ever broke one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "fuzz"
sys.path.insert(0, str(FUZZ))

import targets  # noqa: E402


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds(name):
    count = 0
    for data in targets.seeds(name):
        targets.TARGETS[name](data)
        count += 1
    assert count >= len(targets.TARGETS)


@pytest.mark.parametrize("path", sorted((FUZZ / "regressions").glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_regressions(path):
    targets.TARGETS[path.parent.name](path.read_bytes())


def test_the_targets_can_fail(monkeypatch):
    """A target that notices nothing would be a comfort, not a test."""
    from codeword.io import canonical, tensors
    data = next(targets.seeds("json"))
    monkeypatch.setattr(canonical, "encode", lambda value: b"{}")
    with pytest.raises(AssertionError):
        targets.json_text(data)
    monkeypatch.undo()
    monkeypatch.setattr(tensors, "_check_padding", lambda *_: (_ for _ in ()).throw(KeyError("slip")))
    with pytest.raises(KeyError):
        targets.tensor_file(next(targets.seeds("tensors")))
