"""Optimized product quantization (Ge, He, Ke, Sun: Optimized Product Quantization for Approximate Nearest Neighbor Search, CVPR 2013).

Product quantization loses what its slices share and what they divide unevenly. A rotation R, learned together with the codebooks,
removes both; lengths and distances are kept, so the tables of PQ serve unchanged, with rotated queries.

    y = R x,   i_m = argmin_k |y^m - c^m_k|^2,   x^ = R' [c^1_{i_1} ... c^M_{i_M}],   R R' = I

Fitting alternates two exact steps on sum |R x - y^|^2. Codebooks: one pass of k-means a slice, going on from the last codewords.
Rotation: orthogonal Procrustes, R = U V' of sum y^ x' = U S V'. Both need the rows only through their sums a codeword,

    s^m_k = sum of x with i_m = k,   sum y^ x' = stack over m of C_m' S_m,   c^m_k = R_m s^m_k / n^m_k

so a round rotates and assigns the rows once, and the codewords follow the new rotation at no further pass. As codes change little from
round to round the steps are small and point the same way; each is therefore lengthened by nine tenths of the last one (heavy ball on
the rotation, brought back to R R' = I).

On the same rows round after round the codes soon stop changing, so a round sees a fresh random part of them, ever larger, and the last
rounds all (``parts/cooling``). The start is a random rotation: principal axes and pixels as they are begin lower and end higher.

Cost: encode d^2 + K d multiply-adds a vector; a round of fitting M d more. Bits: M ceil(log2 K); d^2 + K d floats shared.
With few wide slices a search needs no rotated row: as |R x - [.. c ..]|^2 and |x - R_m' c|^2 differ by what no choice of c changes, the
codewords are turned back instead, once, and whole rows are searched (M K d multiply-adds, all of them in ``ops.nearest``).
Departures: the momentum, the parts, the start (beside faiss's alternation: ``results/product.csv``). Only the repairs of the last steps, on
all rows, are reported: a codeword that a part leaves empty says nothing about the data.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from codeword import ops
from codeword.ops.searcher import Recipe
from codeword.parts import anisotropic, cooling, lookup, orthogonal, quadratic, slices
from codeword.parts.kept import Kept
from codeword.quantizer import Codes, Packed, Report

SAMPLE = 1 << 16
"""Rows that are learned from, at most, or 256 a codeword where that is more."""
COOLING = ((1 / 2, 32), (5 / 6, 64), (23 / 24, 128), (1.0, None))
"""Of the rounds (``cooling.Schedule``)."""
MOMENTUM = 0.9
"""Share of the last step of the rotation that is added to the next."""
TURNED_BACK = 1.5
"""M K over d up to which whole rows are searched; beyond it the products in M K d cost more than the rotation they save."""
FINISH = 4
"""Steps of k-means at the end, under the final rotation."""


class OPQ(lookup.Lookup):
    """dim: width; num_codebooks: slices M, a divisor of dim; codebook_size: codewords a slice; iterations: rounds; seed."""

    takes_metric = True
    later_arguments: ClassVar[dict[str, Any]] = {"anisotropy": 0.0}

    def __init__(self, *, dim: int, num_codebooks: int, codebook_size: int = 256, iterations: int = 120, seed: int = 0,
                 anisotropy: float = 0.0) -> None:
        super().__init__()
        slices.check_shape("opq", dim, num_codebooks, codebook_size, iterations)
        anisotropic.check_threshold("opq", anisotropy)
        self.dim, self.num_codebooks, self.codebook_size = dim, num_codebooks, codebook_size
        self.iterations, self.seed, self.anisotropy = iterations, seed, anisotropy
        self.weighs_rows = anisotropy > 0
        self.levels = (codebook_size,) * num_codebooks
        self.codebooks: Tensor
        self.rotation: Tensor
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, dim // num_codebooks))
        self.register_buffer("rotation", torch.zeros(dim, dim))
        self._kept = Kept()

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, iterations: int = 120, seed: int = 0, anisotropy: float = 0.0) -> Self:
        """256 codewords a slice where the slice width fits (dim / M = 8 / bits), else the next of 7, 6, 5, 4, 3, 9, ... bits that does."""
        books, size = slices.split_bits("opq", dim, bits)
        return cls(dim=dim, num_codebooks=books, codebook_size=size, iterations=iterations, seed=seed, anisotropy=anisotropy)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        rows, weights = cooling.part(rows, weights, max(SAMPLE, 256 * self.codebook_size), self.seed, "opq rows")
        state = None
        for turn, count in enumerate(cooling.part_sizes(len(rows), self.codebook_size, self.iterations, COOLING)):
            part = cooling.part(rows, weights, count, self.seed, f"opq round {turn}")
            state = self._round(self._start(*part) if state is None else state, *part)
        assert state is not None
        learned = slices.learn(ops.project(rows, state.rotation), self.num_codebooks, self.codebook_size, iterations=FINISH,
                               seed=self.seed, weights=weights, initial=state.codebooks)
        self.rotation.copy_(state.rotation)
        self.codebooks.copy_(learned.codebooks)
        if learned.repaired:
            self.report = Report(self.report, repaired_codewords=learned.repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        if metric is not None:
            turned = ops.project(rows, self.rotation)
            return quadratic.assign(turned, self.codebooks, orthogonal.turned_form(metric, self.rotation)), None
        if self.weighs_rows:
            return self._encode_relative(rows, rows, None)
        if self.num_codebooks * self.codebook_size > TURNED_BACK * self.dim:
            return slices.assign(ops.project(rows, self.rotation), self.codebooks), None
        compiling = torch.compiler.is_compiling()  # comparing numbers would break the graph
        books = self._turned_back() if compiling else self._kept((self.codebooks, self.rotation), self._turned_back)
        return torch.stack([ops.nearest(rows, book).indices for book in books], dim=1), None

    def _encode_relative(self, rows: Tensor, vectors: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        if metric is not None:
            return self._encode(rows, metric)
        turned, whole = ops.project(rows, self.rotation), ops.project(vectors, self.rotation)
        return anisotropic.assign(turned, self.codebooks, self.anisotropy, whole), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return ops.project(slices.values(self.codebooks, indices), self.rotation.mT)

    # ------------------------------------------------------------------ Scannable

    def pack(self, codes: Codes, given: Tensor | None = None) -> Packed:
        """``codes`` (rows, M) padded to whole blocks and, per row of a list, 2<c, x^> with c = given."""
        return lookup.pack_slices(self, codes, given)

    def prepare(self, queries: Tensor, metric: str) -> lookup.Query:
        """tables (q, M, K) of the rotated queries, as PQ's."""
        return lookup.slice_tables(ops.project(queries.float(), self.rotation), self.codebooks, metric, self.name)

    def recipe(self, metric: str) -> Recipe:
        return lookup.slice_recipe(self.codebooks, metric, self.name, self.rotation)

    def _turned_back(self) -> Tensor:
        """(M, K, d): every codeword where the rows are, R_m' c."""
        parts = self.rotation.split(self.dim // self.num_codebooks)
        return torch.stack([ops.project(book, part.mT.contiguous()) for book, part in zip(self.codebooks, parts, strict=True)])

    # ------------------------------------------------------------------ fitting

    def _start(self, rows: Tensor, weights: Tensor | None) -> _State:
        """A random rotation and codewords from a few steps of k-means under it."""
        rotation = orthogonal.random_rotation(self.dim, self.seed).to(rows.device)
        learned = slices.learn(ops.project(rows, rotation), self.num_codebooks, self.codebook_size, iterations=2, seed=self.seed,
                               weights=weights, start="sample")
        return _State(rotation, rotation, learned.codebooks)

    def _round(self, state: _State, rows: Tensor, weights: Tensor | None) -> _State:
        """Codes under the rotation at hand, the best rotation for them, a step beyond it, and the codewords there."""
        turned = ops.project(rows, state.rotation)
        width = state.codebooks.shape[2]
        means, moments = [], []
        for part, book, own in zip(turned.split(width, dim=1), state.codebooks, state.rotation.split(width), strict=True):
            found = ops.nearest(part, book)
            sums, counts, _ = slices.cluster_sums(rows, found, self.codebook_size, weights)
            mean, share = (sums / counts.clamp(min=1e-300).unsqueeze(1)).float(), (counts / counts.sum()).float()
            means.append(mean)
            moments.append(ops.project(ops.project(mean, own).mT, (mean * share.unsqueeze(1)).mT))
        best = orthogonal.procrustes(torch.cat(moments))
        rotation = orthogonal.procrustes(best + MOMENTUM * (best - state.best))
        books = torch.stack([ops.project(mean, own) for mean, own in zip(means, rotation.split(width), strict=True)])
        return _State(rotation, best, books)


class _State(NamedTuple):
    """Between rounds: the ``rotation`` in use and the ``best`` one for the last codes, (d, d); ``codebooks`` (M, K, d / M)."""

    rotation: Tensor
    best: Tensor
    codebooks: Tensor
