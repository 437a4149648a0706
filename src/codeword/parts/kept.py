"""A tensor derived from others, kept until any of these holds other numbers: an effective codebook between two calls of ``encode``.

The numbers are compared, so that no way of writing them is missed (an optimizer, ``.data``, numpy, loading, assignment). That costs one
pass over them; what is kept must cost more than that to make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class Kept:
    """``kept(sources, make)`` is ``make()``, without gradient, made anew only where the sources have changed."""

    def __init__(self) -> None:
        self._sources: tuple[Tensor, ...] = ()
        self._value: Tensor | None = None

    def __call__(self, sources: Iterable[Tensor], make: Callable[[], Tensor]) -> Tensor:
        now = tuple(source.detach() for source in sources)
        if self._value is None or len(now) != len(self._sources) or not all(map(_same, now, self._sources)):
            with torch.no_grad():
                self._sources, self._value = tuple(source.clone() for source in now), make()
        return self._value


def _same(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)
