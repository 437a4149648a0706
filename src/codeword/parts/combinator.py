"""What quantizers made of other quantizers share: naming, state, positions, statistics. Rotated, Product, Residual, ... derive from it.

The inner quantizers live in one ``ModuleList`` named ``parts``, so state is always called ``parts.0.codebook``; a combinator shows
them under its constructor's own argument name through a property. A code is the concatenation of the parts' positions and side
floats, in order; statistics of part i are called ``parts.i.name``, and ``update`` hands each part its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from codeword import catalog
from codeword.errors import CodewordError
from codeword.parts import random
from codeword.quantizer import Codes, Quantized, Quantizer, Report


class Combinator(Quantizer):
    """Base of combinators. ``repeats``: how many times each part's positions stand in a code (a shared part stands several times)."""

    def __init__(self, parts: Sequence[Quantizer], repeats: int = 1) -> None:
        super().__init__()
        kinds = [type(part).__name__ for part in parts if not isinstance(part, Quantizer)] if isinstance(parts, (list, tuple)) else [parts]
        if kinds:
            raise CodewordError(f"{self.name} got {kinds[0]!r}; Quantizer objects are needed (codeword.make builds one)")
        if not parts or len({id(part) for part in parts}) != len(parts):
            raise CodewordError(f"{self.name} got {len(parts)} quantizers, some twice; at least one, each a separate object, is needed")
        self.parts = nn.ModuleList(parts)
        self.repeats = repeats
        self.learns = any(part.learns for part in parts)
        self.fitted = all(part.fitted for part in parts)

    @property
    def inner(self) -> list[Quantizer]:
        """The parts as quantizers."""
        return [cast(Quantizer, part) for part in self.parts]

    @property
    def levels(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(level for part in self.inner for level in part.levels) * self.repeats

    @property
    def side_count(self) -> int:  # type: ignore[override]
        return sum(part.side_count for part in self.inner) * self.repeats

    @property
    def side_dtype(self) -> torch.dtype:  # type: ignore[override]
        """The parts' own where they agree, else float32, which holds every narrower float exactly."""
        kinds = {part.side_dtype for part in self.inner if part.side_count}
        return kinds.pop() if len(kinds) == 1 else torch.float32

    def update(self, out: Quantized) -> Report:
        found = [part.update(out._replace(stats=_under(f"parts.{i}.", out.stats))) for i, part in enumerate(self.inner)]
        return merged(found)

    def restore(self, structure: dict[str, Any]) -> None:
        """The parts are arguments, so they come with a structure of their own; but what is fitted has no unfitted part."""
        super().restore(structure)
        for part in self.inner:
            if self.fitted and not part.fitted:
                part.restore({**part.structure, "fitted": True})

    def check_state(self) -> None:
        for part in self.inner:
            part.check_state()
        super().check_state()

    # ------------------------------------------------------------------ for subclasses

    def _fit_part(self, i: int, rows: Tensor, weights: Tensor | None) -> None:
        """Fit part i and keep what it reports."""
        part = self.inner[i]
        part.fit(rows, weights=weights)
        if part.report:
            self.report = Report(self.report, **{f"parts.{i}": part.report})

    def _join(self, found: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
        """Indices (n, positions) int64 and side floats (n, side_count) of all parts side by side; each part's side floats are first
        rounded to that part's own dtype, since that is what its decode will see."""
        sides = [side.to(part.side_dtype).to(self.side_dtype)
                 for part, (_, side) in zip(self.inner, found, strict=True) if side is not None]
        indices = torch.cat([index.to(torch.int64) for index, _ in found], dim=1)
        return indices, torch.cat(sides, dim=1) if sides else None

    def _cut(self, indices: Tensor, side: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        """Inverse of ``_join``."""
        widths = [len(part.levels) for part in self.inner]
        counts = [part.side_count for part in self.inner]
        sides = side.split(counts, dim=1) if side is not None else [None] * len(counts)
        return [(index, own.to(part.side_dtype) if part.side_count and own is not None else None)
                for part, index, own in zip(self.inner, indices.split(widths, dim=1), sides, strict=True)]

    @staticmethod
    def _rows_of(codes: Codes) -> tuple[Tensor, Tensor | None]:
        """A part's forward codes as tensors (n, positions), (n, side_count)."""
        return cast(Tensor, codes.indices), cast(Tensor | None, codes.side)


def stats_of(outs: Sequence[Quantized]) -> dict[str, Tensor]:
    """The statistics of all parts under one roof."""
    return {f"parts.{i}.{key}": value for i, out in enumerate(outs) for key, value in out.stats.items()}


def _under(prefix: str, stats: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(prefix):]: value for key, value in stats.items() if key.startswith(prefix)}


def merged(reports: Sequence[Report]) -> Report:
    """One report of several parts; empty where all are."""
    return Report({f"parts.{i}": report for i, report in enumerate(reports) if report})


def copies(spec: str, dim: int, count: int) -> list[Quantizer]:
    """``count`` quantizers of one spec; copy i has the seeds of part i, so that random bases and starts differ."""
    first = catalog.make(spec, dim)
    return [reseeded(first, i) for i in range(count)]


def reseeded(quantizer: Quantizer, part: int) -> Quantizer:
    """An unfitted quantizer of the same configuration in which every seed is replaced by that of its part ``part``."""
    def moved(key: str, value: Any) -> Any:
        if isinstance(value, Quantizer):
            return reseeded(value, part)
        if isinstance(value, list):
            return [moved("", item) for item in value]
        return random.part_seed(value, part) if key == "seed" else value
    return type(quantizer)(**{key: moved(key, value) for key, value in quantizer.config.items()})
