"""Optimized product quantization (Ge, He, Ke, Sun: Optimized Product Quantization for Approximate Nearest Neighbor Search, CVPR 2013).

Product quantization loses what its slices share and what they divide unevenly. A rotation R, learned together with the codebooks,
removes both; lengths and distances are kept, so the tables of PQ serve unchanged, with rotated queries.

    y = R x,   i_m = argmin_k |y^m - c^m_k|^2,   x^ = R' [c^1_{i_1} ... c^M_{i_M}],   R R' = I

Fitting alternates two exact steps on sum |R x - y^|^2. Codebooks: one pass of k-means a slice, going on from the last codewords.
Rotation: orthogonal Procrustes, R = U V' of sum y^ x' = U S V'. Both need the rows only through their sums a codeword,

    s^m_k = sum of x with i_m = k,   sum y^ x' = stack over m of C_m' S_m,   c^m_k = R_m s^m_k / n^m_k

so a round rotates and assigns the rows once, and the codewords follow the new rotation at no further pass. It starts from principal
axes dealt to the slices so that their variances have equal products (the paper's parametric solution, optimal for a Gaussian) or from
a random rotation, whichever leaves less after a few rounds on a part of the rows.

Cost: encode d^2 + K d multiply-adds a vector; a round M d more. Bits: M ceil(log2 K); d^2 + K d floats shared.
Departures: the paper's non-parametric solution starts from the parametric one only; later rounds see all rows, earlier ones a sample.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from codeword import ops
from codeword.parts import lookup, orthogonal, random, slices
from codeword.parts.pca import pca
from codeword.quantizer import Codes, Packed, Quantizer, Report

SAMPLE = 1 << 16
"""Rows that the rotation is learned from, at most, or 256 a codeword where that is more."""
PREVIEW = 1 << 13
"""Rows of the rounds that choose a start."""
TRIAL = 4
"""Rounds of each start before one is chosen."""


class OPQ(Quantizer):
    """dim: width; num_codebooks: slices M, a divisor of dim; codebook_size: codewords a slice; iterations: rounds; seed."""

    def __init__(self, *, dim: int, num_codebooks: int, codebook_size: int = 256, iterations: int = 30, seed: int = 0) -> None:
        super().__init__()
        slices.check_shape("opq", dim, num_codebooks, codebook_size)
        self.dim, self.num_codebooks, self.codebook_size = dim, num_codebooks, codebook_size
        self.iterations, self.seed = iterations, seed
        self.levels = (codebook_size,) * num_codebooks
        self.codebooks: Tensor
        self.rotation: Tensor
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, dim // num_codebooks))
        self.register_buffer("rotation", torch.zeros(dim, dim))

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, iterations: int = 30, seed: int = 0) -> Self:
        """256 codewords a slice where the slice width fits (dim / M = 8 / bits), else the next of 7, 6, 5, 4, 3, 9, ... bits that does."""
        books, size = slices.split_bits("opq", dim, bits)
        return cls(dim=dim, num_codebooks=books, codebook_size=size, iterations=iterations, seed=seed)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        limit = max(SAMPLE, 256 * self.codebook_size)
        rows, weights = _part(rows, weights, limit, self.seed)
        preview = _part(rows, weights, PREVIEW, self.seed + 1)
        found = pca(rows, weights=weights)
        starts = [found.axes[orthogonal.balanced(found.variances, self.num_codebooks)], orthogonal.random_rotation(self.dim, self.seed)]
        trials = [self._rounds(self._start(rotation.to(rows.device), *preview), *preview, TRIAL) for rotation in starts]
        state = min(trials, key=lambda trial: trial.error)
        state = self._rounds(state, *_part(rows, weights, limit // 4, self.seed + 2), self.iterations // 2)
        state = self._rounds(state, rows, weights, self.iterations - self.iterations // 2)
        self.rotation.copy_(state.rotation)
        self.codebooks.copy_(state.codebooks)
        if state.repaired:
            self.report = Report(self.report, repaired_codewords=state.repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return slices.assign(ops.project(rows, self.rotation), self.codebooks), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return ops.project(slices.values(self.codebooks, indices), self.rotation.mT)

    # ------------------------------------------------------------------ Scannable

    def pack(self, codes: Codes, given: Tensor | None = None) -> Packed:
        """``codes`` (rows, M) padded to whole blocks and, per row of a list, 2<c, x^> with c = given."""
        indices = torch.as_tensor(codes.indices)
        terms = None
        if given is not None:
            values = self._decode(indices.to(torch.int64), None)
            terms = 2 * (values.double() * given.double()).sum(1)
        return lookup.pack(indices, self.levels, terms)

    def unpack(self, packed: Packed, rows: Tensor) -> Codes:
        return lookup.unpack(packed, rows, self.levels)

    def take(self, packed: Packed, rows: Tensor) -> dict[str, Tensor]:
        return lookup.take(packed, rows, self.levels)

    def lay(self, rows: dict[str, Tensor]) -> Packed:
        return lookup.lay(rows, self.levels)

    def check(self, packed: Packed) -> None:
        lookup.check(packed, self.levels, self.name)

    def prepare(self, queries: Tensor, metric: str) -> lookup.Query:
        """tables (q, M, K) of the rotated queries, as PQ's."""
        return lookup.slice_tables(ops.project(queries.float(), self.rotation), self.codebooks, metric, self.name)

    def scan(self, packed: Packed, query: lookup.Query, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return lookup.scan(packed, query, start, stop)

    def search_spans(self, packed: Packed, query: lookup.Query, spans: Tensor, coarse: Tensor, k: int,
                     allowed: Tensor | None, num_threads: int) -> tuple[Tensor, Tensor]:
        return lookup.search_spans(packed, query, spans, coarse, k, allowed, num_threads)

    # ------------------------------------------------------------------ fitting

    def _start(self, rotation: Tensor, rows: Tensor, weights: Tensor | None) -> _State:
        """A rotation and, as codewords, seeded rows."""
        turned = ops.project(rows, rotation)
        learned = slices.learn(turned, self.num_codebooks, self.codebook_size, iterations=2, seed=self.seed, weights=weights)
        return _State(rotation, learned.codebooks, float("inf"), learned.repaired)

    def _rounds(self, state: _State, rows: Tensor, weights: Tensor | None, count: int) -> _State:
        for _ in range(count):
            state = self._round(state, rows, weights)
        return state

    def _round(self, state: _State, rows: Tensor, weights: Tensor | None) -> _State:
        """Assign under the rotation at hand; then the best rotation for the codewords' means, and the means under it."""
        turned = ops.project(rows, state.rotation)
        width = state.codebooks.shape[2]
        moment = torch.zeros(self.dim, self.dim, dtype=torch.float64, device=rows.device)
        means, error, repaired = [], 0.0, state.repaired
        for m, (part, book) in enumerate(zip(turned.split(width, dim=1), state.codebooks, strict=True)):
            labels, distances = ops.nearest(part, book)
            error += float((distances.double() if weights is None else distances.double() * weights).sum())
            sums, counts = ops.segment_sum(rows, labels, self.codebook_size, weights)
            empty = (counts == 0).nonzero().squeeze(1)
            if len(empty):
                worst = torch.sort(distances, descending=True, stable=True).indices[:len(empty)]
                sums[empty[:len(worst)]], counts[empty[:len(worst)]] = rows[worst].double(), 1.0
                repaired += len(worst)
            mean = (sums / counts.clamp(min=1e-300).unsqueeze(1)).float()
            means.append(mean)
            codewords = ops.project(mean, state.rotation[m * width:(m + 1) * width])
            moment[m * width:(m + 1) * width] = ops.project(codewords.mT, sums.float().mT).double()
        rotation = orthogonal.procrustes(moment)
        books = [ops.project(mean, rotation[m * width:(m + 1) * width]) for m, mean in enumerate(means)]
        return _State(rotation, torch.stack(books), error, repaired)


class _State(NamedTuple):
    """Between rounds. ``error`` is what the round before the last update left, weighted."""

    rotation: Tensor
    codebooks: Tensor
    error: float
    repaired: int


def _part(rows: Tensor, weights: Tensor | None, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """A seeded sample of at most ``count`` rows, in the order of the rows."""
    if len(rows) <= count:
        return rows, weights
    keep = torch.from_numpy(random.choice(seed, len(rows), count, stream="opq rows")).to(rows.device).sort().values
    return rows[keep], None if weights is None else weights[keep]
