"""Product quantization (Jegou, Douze, Schmid: Product Quantization for Nearest Neighbor Search, TPAMI 2011).

A vector is cut into ``num_codebooks`` slices of equal width; each slice is quantized by its own k-means codebook.

    x = [x^1 ... x^M],   i_m = argmin_k |x^m - c^m_k|^2,   x^ = [c^1_{i_1} ... c^M_{i_M}]

Distances to a query come from M tables (asymmetric distance computation), the part that no row shares taken out; c: a list's point:

    |q - c - x^|^2 = |q - c|^2 + sum_m T_m[i_m] + 2<c, x^>,   T_m[k] = |c^m_k|^2 - 2<q^m, c^m_k>

Cost: encode K d multiply-adds a vector; M look-ups a distance. Bits: M ceil(log2 K), no side information; K d floats shared.
``Product`` of VQs is the same object slice by slice; this class exists because the tables make it fast.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from codeword.ops.searcher import Recipe
from codeword.parts import anisotropic, lookup, quadratic, slices
from codeword.quantizer import Codes, Packed, Quantizer, Report


class PQ(Quantizer):
    """dim: width; num_codebooks: slices M, a divisor of dim; codebook_size: codewords a slice; iterations: of k-means; seed."""

    takes_metric = True
    later_arguments: ClassVar[dict[str, Any]] = {"anisotropy": 0.0}

    def __init__(self, *, dim: int, num_codebooks: int, codebook_size: int = 256, iterations: int = 25, seed: int = 0,
                 anisotropy: float = 0.0) -> None:
        super().__init__()
        slices.check_shape("pq", dim, num_codebooks, codebook_size, iterations)
        anisotropic.check_threshold("pq", anisotropy)
        self.dim, self.num_codebooks, self.codebook_size = dim, num_codebooks, codebook_size
        self.iterations, self.seed, self.anisotropy = iterations, seed, anisotropy
        self.weighs_rows = anisotropy > 0
        self.levels = (codebook_size,) * num_codebooks
        self.codebooks: Tensor
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, dim // num_codebooks))

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, iterations: int = 25, seed: int = 0, anisotropy: float = 0.0) -> Self:
        """256 codewords a slice where the slice width fits (dim / M = 8 / bits), else the next of 7, 6, 5, 4, 3, 9, ... bits that does."""
        books, size = slices.split_bits("pq", dim, bits)
        return cls(dim=dim, num_codebooks=books, codebook_size=size, iterations=iterations, seed=seed, anisotropy=anisotropy)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        found = slices.learn(rows, self.num_codebooks, self.codebook_size, iterations=self.iterations, seed=self.seed, weights=weights)
        self.codebooks.copy_(found.codebooks)
        if found.repaired:
            self.report = Report(self.report, repaired_codewords=found.repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        if metric is not None:
            return quadratic.assign(rows, self.codebooks, metric), None
        return self._encode_relative(rows, rows, None) if self.weighs_rows else (slices.assign(rows, self.codebooks), None)

    def _encode_relative(self, rows: Tensor, vectors: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        if metric is not None:
            return self._encode(rows, metric)
        return anisotropic.assign(rows, self.codebooks, self.anisotropy, vectors), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return slices.values(self.codebooks, indices)

    # ------------------------------------------------------------------ Scannable

    def pack(self, codes: Codes, given: Tensor | None = None) -> Packed:
        """``codes`` (rows, M) padded to whole blocks and, per row of a list, 2<c, x^> with c = given."""
        indices = torch.as_tensor(codes.indices)
        if given is None:
            return lookup.pack(indices, self.levels, None)
        values = self._decode(indices.to(torch.int64), None)
        return lookup.pack(indices, self.levels, 2 * (values.double() * given.double()).sum(1))

    def unpack(self, packed: Packed, rows: Tensor) -> Codes:
        return lookup.unpack(packed, rows, self.levels)

    def take(self, packed: Packed, rows: Tensor) -> dict[str, Tensor]:
        return lookup.take(packed, rows, self.levels)

    def lay(self, rows: dict[str, Tensor]) -> Packed:
        return lookup.lay(rows, self.levels)

    def check(self, packed: Packed) -> None:
        lookup.check(packed, self.levels, self.name)

    def prepare(self, queries: Tensor, metric: str) -> lookup.Query:
        """tables (q, M, K): |c|^2 - 2<q^m, c> for l2, -<q^m, c> for ip; a query's are the same alone and in a batch."""
        return lookup.slice_tables(queries, self.codebooks, metric, self.name)

    def recipe(self, metric: str) -> Recipe:
        return lookup.slice_recipe(self.codebooks, metric, self.name)

    def scan(self, packed: Packed, query: lookup.Query, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return lookup.scan(packed, query, start, stop)

    def search_spans(self, packed: Packed, query: lookup.Query, spans: Tensor, coarse: Tensor, k: int,
                     allowed: Tensor | None, num_threads: int) -> tuple[Tensor, Tensor]:
        return lookup.search_spans(packed, query, spans, coarse, k, allowed, num_threads)
