"""How evenly a data set uses the alphabet of each position of its codes. A batch cannot tell: it has fewer tokens than a large codebook
has words. (``parts/codebook.usage`` is the batch's own figure.)

    usage        share of the alphabet that occurred
    entropy      - sum p log2 p, in bits: what an ideal coder with this table would spend on an index
    perplexity   2^entropy: the size of an evenly used alphabet of the same entropy

Counts are kept for the indices that occurred, so alphabets may be as large as indices can be. The entropy of few tokens is biased
downwards; ``tokens`` belongs beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from codeword.errors import ShapeError
from codeword.quantizer import Codes


class UsageMeter:
    """levels: size of the alphabet of each position. Meters of one shape can be merged: parts of a data set, ranks."""

    def __init__(self, levels: Sequence[int]) -> None:
        if not len(levels) or min(levels) < 1:
            raise ShapeError(f"UsageMeter got levels={list(levels)}; one positive size a position is needed")
        self.levels = tuple(int(level) for level in levels)
        self._words = [np.empty(0, dtype=np.int64) for _ in self.levels]
        self._counts = [np.empty(0, dtype=np.int64) for _ in self.levels]

    def add(self, indices: Any, *, mask: Any = None) -> Self:
        """Integers (..., positions), torch or numpy; ``mask`` (...) False where there is no code."""
        values = _numpy(indices)
        if values.dtype.kind not in "iu" or values.ndim == 0 or values.shape[-1] != len(self.levels):
            raise ShapeError(f"UsageMeter got {values.dtype} {values.shape}; integers (..., {len(self.levels)}) are needed")
        rows = values.reshape(-1, len(self.levels))
        if mask is not None:
            kept = _numpy(mask).astype(bool)
            if kept.shape != values.shape[:-1]:
                raise ShapeError(f"UsageMeter got a mask {kept.shape}; {values.shape[:-1]} is needed")
            rows = rows[kept.reshape(-1)]
        for at, level in enumerate(self.levels):
            words, counts = np.unique(rows[:, at].astype(np.int64), return_counts=True)
            if len(words) and (words[0] < 0 or words[-1] >= level):
                wrong = words[0] if words[0] < 0 else words[-1]
                raise ShapeError(f"UsageMeter got index {wrong} at position {at}; 0..{level - 1} are allowed")
            self._include(at, words, counts)
        return self

    def add_codes(self, codes: Codes) -> Self:
        """What ``encode`` returned; rows of length 0 are left out, later positions of shorter ones too."""
        if codes.lengths is None:
            return self.add(codes.indices)
        indices, lengths = _numpy(codes.indices).reshape(-1, len(self.levels)), _numpy(codes.lengths).reshape(-1)
        for at in range(len(self.levels)):
            words, counts = np.unique(indices[lengths > at, at].astype(np.int64), return_counts=True)
            self._include(at, words, counts)
        return self

    def merge(self, other: UsageMeter) -> Self:
        """As if everything added to ``other`` had been added here."""
        if other.levels != self.levels:
            raise ShapeError(f"meters of levels {self.levels[:4]} and {other.levels[:4]} cannot be merged")
        for at in range(len(self.levels)):
            self._include(at, other._words[at], other._counts[at])
        return self

    @property
    def tokens(self) -> list[int]:
        """How many indices were counted at each position."""
        return [int(counts.sum()) for counts in self._counts]

    @property
    def usage(self) -> list[float]:
        return [len(words) / level for words, level in zip(self._words, self.levels)]

    @property
    def entropy(self) -> list[float]:
        """Bits, at each position; 0 where nothing was counted."""
        found = []
        for counts in self._counts:
            p = counts / max(1, counts.sum())
            found.append(max(0.0, float(-(p * np.log2(p)).sum())))
        return found

    @property
    def perplexity(self) -> list[float]:
        return [2.0 ** bits for bits in self.entropy]

    def histogram(self, position: int = 0) -> np.ndarray:
        """int64 (level,): counts of every index at one position."""
        out = np.zeros(self.levels[position], dtype=np.int64)
        out[self._words[position]] = self._counts[position]
        return out

    def summary(self) -> dict[str, float]:
        """Means over positions, for a table."""
        return {"usage": float(np.mean(self.usage)), "perplexity": float(np.mean(self.perplexity)), "entropy": float(np.mean(self.entropy)),
                "tokens": sum(self.tokens)}

    def _include(self, at: int, words: np.ndarray, counts: np.ndarray) -> None:
        both, place = np.unique(np.concatenate((self._words[at], words)), return_inverse=True)
        total = np.zeros(len(both), dtype=np.int64)
        np.add.at(total, place.reshape(-1), np.concatenate((self._counts[at], counts)))
        self._words[at], self._counts[at] = both, total


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
