"""Product quantization (Jegou, Douze, Schmid: Product Quantization for Nearest Neighbor Search, TPAMI 2011).

A vector is cut into ``num_codebooks`` slices of equal width; each slice is quantized by its own k-means codebook.

    x = [x^1 ... x^M],   i_m = argmin_k |x^m - c^m_k|^2,   x^ = [c^1_{i_1} ... c^M_{i_M}]

Distances to a query come from M tables (asymmetric distance computation), the part that no row shares taken out; c: a list's point:

    |q - c - x^|^2 = |q - c|^2 + sum_m T_m[i_m] + 2<c, x^>,   T_m[k] = |c^m_k|^2 - 2<q^m, c^m_k>

In a network each slice is a ``VQ`` of its own: its codebook follows the gradient of its codebook term or, with ``learning="ema"``, moving
averages (``parts/upkeep``); loss and ``estimator`` are those of VQ (``parts/gradients``, those that need the pair only), averaged over
the slices:

    loss = mean_m |sg(x^m) - c^m_{i_m}|^2 + beta |x^m - sg(c^m_{i_m})|^2                                 (means over all elements)

Cost: encode K d multiply-adds a vector; M look-ups a distance. Bits: M ceil(log2 K), no side information; K d floats shared.
``Product`` of VQs is the same object slice by slice, trained or fitted; this class exists because the tables make it fast.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from codeword import ops
from codeword.errors import CodewordError, FormatError
from codeword.ops.searcher import Recipe
from codeword.parts import anisotropic, gradients, lookup, losses, quadratic, slices
from codeword.parts.upkeep import Upkeep, stacked
from codeword.quantizer import Codes, Packed, Quantized, Report


class PQ(lookup.Lookup):
    """dim: width; num_codebooks: slices M, a divisor of dim; codebook_size: codewords a slice; iterations: of k-means, after as many on
    parts; seed: slice m starts from ``random.part_seed(seed, m)``; anisotropy: 0, or the inner product from which hits count; learning,
    commitment, decay, revival: as in ``VQ``; estimator: one of ``gradients.PAIRS``."""

    takes_metric = True
    later_arguments: ClassVar[dict[str, Any]] = {"anisotropy": 0.0, "learning": "gradient", "commitment": 0.25, "decay": 0.99,
                                                 "revival": None, "estimator": "straight_through"}

    def __init__(self, *, dim: int, num_codebooks: int, codebook_size: int = 256, iterations: int = 25, seed: int = 0,
                 anisotropy: float = 0.0, learning: str = "gradient", commitment: float = 0.25, decay: float = 0.99,
                 revival: float | None = None, estimator: str = "straight_through") -> None:
        super().__init__()
        slices.check_shape("pq", dim, num_codebooks, codebook_size, iterations)
        anisotropic.check_threshold("pq", anisotropy)
        if learning not in ("gradient", "ema") or not commitment >= 0:
            raise CodewordError(f"pq got learning={learning!r}, commitment={commitment}; 'gradient' or 'ema', and at least 0, are allowed")
        gradients.check("pq", estimator, gradients.PAIRS)
        self.dim, self.num_codebooks, self.codebook_size = dim, num_codebooks, codebook_size
        self.iterations, self.seed, self.anisotropy = iterations, seed, anisotropy
        self.learning, self.commitment, self.decay, self.revival, self.estimator = learning, commitment, decay, revival, estimator
        self.weighs_rows = anisotropy > 0
        self.levels = (codebook_size,) * num_codebooks
        averages = learning == "ema"
        self.codebooks = nn.Parameter(torch.zeros(num_codebooks, codebook_size, dim // num_codebooks), requires_grad=not averages)
        self.upkeep = Upkeep(codebook_size, dim // num_codebooks, averages=averages, decay=decay, num_codebooks=num_codebooks,
                             revival=(0.05 if averages else 0.0) if revival is None else revival)

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """256 codewords a slice where the slice width fits (dim / M = 8 / bits), else the next of 7, 6, 5, 4, 3, 9, ... bits that does."""
        books, size = slices.split_bits("pq", dim, bits)
        return cls(dim=dim, num_codebooks=books, codebook_size=size, **options)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        found = slices.learn(rows, self.num_codebooks, self.codebook_size, iterations=self.iterations, seed=self.seed, weights=weights)
        with torch.no_grad():
            self.codebooks.copy_(found.codebooks)
        self.upkeep.start(found.codebooks)
        if found.repaired:
            self.report = Report(self.report, repaired_codewords=found.repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        books = self.codebooks.detach()
        if metric is not None:
            return quadratic.assign(rows, books, metric), None
        return self._encode_relative(rows, rows, None) if self.weighs_rows else (slices.assign(rows, books), None)

    def _encode_relative(self, rows: Tensor, vectors: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        if metric is not None:
            return self._encode(rows, metric)
        return anisotropic.assign(rows, self.codebooks.detach(), self.anisotropy, vectors), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return slices.values(self.codebooks.detach(), indices)

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        indices = self._encode(rows.detach(), None)[0].to(torch.int64)
        commit, pull, values, stats = rows.new_zeros(()), rows.new_zeros(()), [], []
        width = self.dim // self.num_codebooks
        for m, (own, book) in enumerate(zip(rows.split(width, dim=1), self.codebooks, strict=True)):
            chosen = ops.gather(book, indices[:, m])
            more = losses.both_terms(own, chosen, keep)
            commit, pull = commit + more[0] / self.num_codebooks, pull + more[1] / self.num_codebooks
            values.append(gradients.passed(self.estimator, own, chosen, training=self.training))
            stats.append(self.upkeep.statistics(own, indices[:, m], keep, m))
        loss = self.commitment * commit
        if self.learning == "gradient" and gradients.needs_codebook_term(self.estimator):
            loss = loss + pull
        found = {"codebook": pull.detach(), "commitment": commit.detach(), "error": commit.detach() * self.dim, **stacked(stats, "slices")}
        return torch.cat(values, dim=1), indices, None, loss, found

    def update(self, out: Quantized) -> Report:
        return self.upkeep.step(self.codebooks, out.stats)

    @property
    def shared_bytes(self) -> int:
        """The codebooks alone, as in ``VQ``."""
        return self.codebooks.numel() * self.codebooks.element_size()

    def check_state(self) -> None:
        super().check_state()
        if not self.upkeep.plausible():
            raise FormatError("value", "pq has a negative count among its averages")

    # ------------------------------------------------------------------ Scannable

    def pack(self, codes: Codes, given: Tensor | None = None) -> Packed:
        """``codes`` (rows, M) padded to whole blocks and, per row of a list, 2<c, x^> with c = given."""
        return lookup.pack_slices(self, codes, given)

    def prepare(self, queries: Tensor, metric: str) -> lookup.Query:
        """tables (q, M, K): |c|^2 - 2<q^m, c> for l2, -<q^m, c> for ip; a query's are the same alone and in a batch."""
        return lookup.slice_tables(queries, self.codebooks.detach(), metric, self.name)

    def recipe(self, metric: str) -> Recipe:
        return lookup.slice_recipe(self.codebooks.detach(), metric, self.name)
