"""Vectors and sentences from files: opened lazily, checked strictly, larger than memory. Imports no torch."""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {"Vectors": "vectors", "open_vectors": "vectors", "read_sentences": "sentences", "Bundled": "bundle", "bundled": "bundle"}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"codeword.data.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'codeword.data' has no attribute {name!r}")
