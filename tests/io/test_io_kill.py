"""R14: a writer killed at any moment leaves the last acknowledged version or the next, never a mixture."""

from __future__ import annotations

import io_kill
import pytest


def test_ten_kills(tmp_path):
    assert io_kill.rounds(tmp_path, 10, seed=1) > 10


@pytest.mark.night
def test_two_hundred_kills(tmp_path):
    assert io_kill.rounds(tmp_path, 200, seed=2) > 200
