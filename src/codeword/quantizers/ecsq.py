"""Entropy-coded scalar quantization (Gish, Pierce: Asymptotically Efficient Quantizing, IEEE Trans. IT 1968).

Every entry is divided by one step and rounded, and the integers go through an entropy coder with a frozen table for each dimension
(``parts.rans``). At high rate that lies 0.254 bit, 1.53 dB, above the Shannon bound of its coordinates, at low rate closer, and one step
for all dimensions is the right split of bits between them: a dimension of less spread than the step costs almost nothing, which is
reverse water-filling. No quantizer of fixed length does better entry by entry, so this is the baseline to beat.

    k_i = clamp(round((x_i - center_i) / step), lowest_i, highest_i)       x^_i = center_i + mean of the fitted rows' entries in bin k_i
    bits = sum_i log2(2^16 / f_i(k_i)),   f_i ~ how many fitted rows fell in the bin: integers >= 1 that sum to 2^16

``fit`` searches for the step at which the fitted rows take ``rate`` bits a dimension. Indices are k - lowest. A file holds them as the
coded stream, whose true length ``bits`` tells; ``nominal_bits`` is the length expected of rows like the fitted ones. Where codes are kept
so that any row can be read (an index, a cache), they take ``stored_bytes``, which is more: variable length is paid for with access.
Wrap it for transform coding: ``projected(ecsq:bits=2):map=pca``, ``rotated(ecsq:bits=2)``; the stream stays coded.

Cost: O(1) an entry, and the coder's handful of integer operations. Shared: 8 bytes a bin and 12 a dimension. Values beyond all fitted ones
saturate; a dimension has at most 4096 bins, those about its median. With few rows the step stops where every row has its own bins, below
``rate``. No dead zone beyond rounding's: bin means take most of what a wider zero bin would gain.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.parts import rans
from codeword.parts.moments import moments
from codeword.quantizer import Quantizer, Report

MAX_BINS = 4096
MAX_RATE = 10.0
_LARGEST = torch.finfo(torch.float32).max
_ROWS = 1 << 20
"""Values put into bins at once."""


class ECSQ(Quantizer):
    """dim; rate: bits a dimension that the coded indices of the fitted rows take, 0.01..10."""

    fit_values = 1 << 24

    def __init__(self, *, dim: int, rate: float) -> None:
        super().__init__()
        if dim < 1 or not 0.01 <= rate <= MAX_RATE:
            raise CodewordError(f"ecsq got dim={dim} and rate={rate}; at least 1, and 0.01..{MAX_RATE:g}, are needed")
        self.dim, self.rate = dim, rate
        self.center: Tensor
        self.step: Tensor
        self.lowest: Tensor
        self.frequencies: Tensor
        self.means: Tensor
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("step", torch.ones((), dtype=torch.float64))
        self.register_buffer("lowest", torch.zeros(dim, dtype=torch.int64))
        self._allocate([1] * dim)

    @classmethod
    def for_bits(cls, dim: int, bits: float) -> Self:
        """The step at which the fitted rows take ``bits``."""
        if not 0.01 <= bits <= MAX_RATE:
            raise Unsupported(f"ecsq codes 0.01..{MAX_RATE:g} bits a dimension; got bits={bits}")
        return cls(dim=dim, rate=bits)

    # ------------------------------------------------------------------ the contract

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        mean = moments(rows, weights)[0].clamp(-_LARGEST, _LARGEST).float()
        centred = (rows - mean).clamp(-_LARGEST, _LARGEST)
        found = _search(_Sample(centred.cpu().numpy(), None if weights is None else weights.cpu().numpy()), self.rate - rans.OVERHEAD)
        self._allocate(found.bins.tolist())
        self.center.copy_(mean)
        self.step.fill_(found.step)
        self.lowest.copy_(torch.from_numpy(found.lowest.astype(np.int64)))
        self.frequencies.copy_(torch.from_numpy(found.frequency))
        self.means.copy_(torch.from_numpy(found.means).clamp(-_LARGEST, _LARGEST))
        if abs(found.length + rans.OVERHEAD - self.rate) > 0.02 * self.rate:
            self.report = Report(self.report, reached_rate=found.length + rans.OVERHEAD)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        scaled = ((rows - self.center).double() / self.step).round().nan_to_num(0)
        top = torch.tensor(self.levels, dtype=torch.float64, device=rows.device) - 1
        return (scaled - self.lowest).clamp(min=0).minimum(top).to(torch.int64), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        sizes = torch.tensor(self.levels, device=indices.device)
        return (self.center + self.means[sizes.cumsum(0) - sizes + indices]).clamp(-_LARGEST, _LARGEST)

    @property
    def structure(self) -> dict[str, Any]:
        return {**super().structure, "bins": list(self.levels)}

    def restore(self, structure: dict[str, Any]) -> None:
        super().restore(structure)
        bins = structure.get("bins")
        if not isinstance(bins, list) or len(bins) != self.dim or any(type(n) is not int or not 1 <= n <= MAX_BINS for n in bins):
            raise FormatError("config", f"structure of ecsq needs {self.dim} numbers of bins 1..{MAX_BINS}")
        self._allocate(bins)

    def check_state(self) -> None:
        super().check_state()
        if not bool(self.step > 0) or bool((self.lowest.abs() > 1 << 52).any()):
            raise FormatError("value", "step of ecsq must be positive and its lowest bins whole float64 numbers")
        try:
            self._tables()
        except CodewordError as error:
            raise FormatError("value", f"tables of ecsq: {error}") from None

    # ------------------------------------------------------------------ EntropyCoded

    def code_length(self) -> float:
        """Of a vector drawn from the tables; the wanted one before there are any."""
        if not self.fitted:
            return self.rate * self.dim
        return float(self._tables().entropy().sum()) + rans.OVERHEAD * self.dim

    def compress(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(self._tables().encode(indices.cpu().numpy().astype(np.int64).reshape(-1), self._models(len(indices))))

    def expand(self, data: Tensor, rows: int) -> Tensor:
        return torch.from_numpy(self._tables().decode(data.cpu().numpy(), self._models(rows))).reshape(rows, self.dim)

    def _tables(self) -> rans.Tables:
        return rans.Tables(self.frequencies.cpu().numpy(), np.array(self.levels))

    def _models(self, rows: int) -> np.ndarray:
        return np.tile(np.arange(self.dim, dtype=np.int32), rows)

    def _allocate(self, bins: list[int]) -> None:
        self.levels = tuple(bins)
        device = self.center.device
        self.register_buffer("frequencies", torch.full((sum(bins),), rans.TOTAL, dtype=torch.int32, device=device))
        self.register_buffer("means", torch.zeros(sum(bins), device=device))


# ---------------------------------------------------------------------- the step


class _Sample(NamedTuple):
    values: np.ndarray  # float32 (n, d), centred
    weights: np.ndarray | None


class _Found(NamedTuple):
    length: float  # ideal bits a dimension
    step: float
    lowest: np.ndarray  # float64 (d,), whole
    bins: np.ndarray
    frequency: np.ndarray
    means: np.ndarray


def _search(sample: _Sample, rate: float) -> _Found:
    """The step of the wanted length: false position (Illinois) in its logarithm, in which the length falls by at most one bit a unit."""
    unit = float(np.abs(sample.values).max())
    if unit == 0:
        return _binned(sample, 1.0)
    power = float(np.square(sample.values / np.float32(unit), dtype=np.float64).mean())
    middle = math.log2(unit) + math.log2(power) / 2
    low, high = middle - rate - 4, middle + 6
    above, below = _binned(sample, 2.0**low).length - rate, _binned(sample, 2.0**high).length - rate
    if above <= 0:
        return _binned(sample, 2.0**low)
    best = high
    for _ in range(40):
        best = low + (high - low) * min(0.95, max(0.05, above / (above - below)))
        excess = _binned(sample, 2.0**best).length - rate
        if abs(excess) <= 5e-4 or high - low < 1e-4:
            break
        if excess > 0:
            low, above, below = best, excess, below / 2
        else:
            high, below, above = best, excess, above / 2
    return _binned(sample, 2.0**best)


def _binned(sample: _Sample, step: float) -> _Found:
    """Tables of the sample at one step."""
    values, d = sample.values, sample.values.shape[1]
    lowest, highest = (np.rint(edge.astype(np.float64) / step) for edge in (values.min(axis=0), values.max(axis=0)))
    wide = np.flatnonzero(highest - lowest >= MAX_BINS)
    if len(wide):
        middle = np.rint(np.median(values[:, wide], axis=0).astype(np.float64) / step)
        lowest[wide] = np.maximum(lowest[wide], middle - MAX_BINS // 2)
        highest[wide] = np.minimum(highest[wide], lowest[wide] + MAX_BINS - 1)
    bins = (highest - lowest).astype(np.int64) + 1
    first = np.cumsum(bins) - bins
    counts, sums = np.zeros(bins.sum()), np.zeros(bins.sum())
    for start in range(0, len(values), max(1, _ROWS // d)):
        part = values[start:start + max(1, _ROWS // d)].astype(np.float64)
        place = (np.clip(np.rint(part / step), lowest, highest) - lowest).astype(np.int64) + first
        mass = np.ones_like(part) if sample.weights is None else np.repeat(sample.weights[start:start + len(part), None], d, axis=1)
        counts += np.bincount(place.ravel(), weights=mass.ravel(), minlength=len(counts))
        sums += np.bincount(place.ravel(), weights=(mass * part).ravel(), minlength=len(counts))
    frequency = np.concatenate([rans.frequencies(own) for own in np.split(counts, first[1:])])
    centres = (np.arange(len(counts)) - np.repeat(first - lowest, bins)) * step
    means = np.where(counts > 0, sums / np.where(counts > 0, counts, 1), centres)
    length = float((counts * (rans.TOTAL_BITS - np.log2(frequency))).sum() / counts.sum())
    return _Found(length, step, lowest, bins, frequency, means)
