"""Tiny pictures: coloured shapes on gradients, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_pictures import pictures


@pytest.fixture
def array_file(tmp_path: Path) -> Path:
    path = tmp_path / "pictures.npy"
    np.save(path, pictures(40))
    return path
