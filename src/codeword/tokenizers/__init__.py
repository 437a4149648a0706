"""Signals and Tokens: tokenizers that a user trains, and the shards that generators read. Imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {"Tokens": "tokens", "Layout": "tokens", "TokenShards": "shards", "TokenWriter": "shards", "ImageTokenizer": "image",
          "load_tokenizer": "frame", "DynamicTokenizer": "dynamic", "GraphTokenizer": "graph",
          "Settings": "train", "train": "train", "evaluate": "evaluate"}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"codeword.tokenizers.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'codeword.tokenizers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
