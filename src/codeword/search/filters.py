"""Which ids a search may return: ``allow`` and ``deny``, each a boolean mask over ids (mask[i] speaks for id i) or a list of ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from codeword.errors import ShapeError


def id_array(ids: Any, what: str) -> np.ndarray:
    """int64 (n,) of any integer array-like; ids are 0..2^63 - 1."""
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise ShapeError(f"{what} got ids of dtype {array.dtype} and shape {array.shape}; integers of shape (n,) are needed")
    array = np.atleast_1d(array)
    if array.size and (int(array.min()) < 0 or int(array.max()) >= 1 << 63):
        raise ShapeError(f"{what} got id {int(array.min()) if int(array.min()) < 0 else int(array.max())}; 0..2^63 - 1 are allowed")
    return array.astype(np.int64)


class Filter:
    """``allow`` and ``deny`` made ready; ``mask(ids)`` answers for an array of ids."""

    def __init__(self, allow: Any, deny: Any) -> None:
        self._tests = [(_ready(given, name), wanted) for given, name, wanted in ((allow, "allow", True), (deny, "deny", False))
                       if given is not None]

    def __bool__(self) -> bool:
        return bool(self._tests)

    def mask(self, ids: Tensor) -> Tensor:
        """(n,) bool: allowed and not denied."""
        numbers = ids.numpy()
        keep = np.ones(len(numbers), dtype=bool)
        for given, wanted in self._tests:
            keep &= _member(given, numbers) == wanted
        return torch.from_numpy(keep)


def _ready(given: Any, name: str) -> np.ndarray:
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if array.dtype == bool:
        if array.ndim != 1:
            raise ShapeError(f"{name} got a mask of shape {array.shape}; (largest id + 1,) is needed")
        return array
    return np.unique(id_array(given, name))


def _member(given: np.ndarray, ids: np.ndarray) -> np.ndarray:
    if not len(given):
        return np.zeros(len(ids), dtype=bool)
    if given.dtype == bool:
        return (ids >= 0) & (ids < len(given)) & given[np.clip(ids, 0, len(given) - 1)]
    return given[np.minimum(np.searchsorted(given, ids), len(given) - 1)] == ids
