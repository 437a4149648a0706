"""Residual vector quantization with beam search (Juang, Gray 1982; beam: Babenko, Lempitsky 2014; Liu, Lu, Hu 2015).

Each of M stages codes what the stages before it left over, each with a codebook of the full width. Choosing the nearest codeword
stage by stage is greedy; a beam keeps the ``beam`` best codes after each stage and chooses at the end.

    r_0 = x,   i_m = argmin_k |r_{m-1} - c^m_k|^2,   r_m = r_{m-1} - c^m_{i_m},   x^ = sum_m c^m_{i_m}                beam 1
    loss = sum_m |sg(r_{m-1}) - c^m_{i_m}|^2 + beta |r_{m-1} - sg(c^m_{i_m})|^2                          (means over all elements)

``fit`` is k-means stage by stage on what the beam's best codes leave over. Stages are ordered: a prefix of a code is a coarser code.
In a network all stages follow the gradient of the loss, and the straight-through gradient passes once, on the sum.

Cost: M K d multiply-adds a vector and, with a beam, beam M^2 K / 2 additions of table entries (``ops.additive_search``) instead of the
beam M K d multiply-adds of searching residuals. Bits: M ceil(log2 K) a vector, no side information; M K d floats shared. In an
index |x^|^2 is kept with the codes, 4 bytes a vector.

With beam 1 the exact nearest codeword of each float32 residual is taken, which is Residual of VQs with the stages' seeds bit for bit.
With a beam, decisions are made on inner products rounded to float32, so beam 2 may choose another code of equal error up to that rounding.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from codeword import ops
from codeword.errors import CodewordError, Unsupported
from codeword.ops.searcher import Recipe
from codeword.parts import additive, arrays, lookup, random
from codeword.parts.codebook import usage
from codeword.parts.gradients import straight_through
from codeword.parts.kmeans import kmeans
from codeword.parts.losses import codebook_term, commitment_term
from codeword.quantizer import Codes, Packed, Quantizer, Report


class RVQ(Quantizer):
    """dim; num_codebooks: stages M; codebook_size: codewords a stage; beam: codes kept after each stage; commitment: beta; iterations:
    of k-means; seed: stage m starts from ``random.part_seed(seed, m)``."""

    def __init__(self, *, dim: int, num_codebooks: int, codebook_size: int = 256, beam: int = 8, commitment: float = 0.25,
                 iterations: int = 25, seed: int = 0) -> None:
        super().__init__()
        additive.check_arguments("rvq", dim, num_codebooks, codebook_size, beam)
        if iterations < 1:
            raise CodewordError(f"rvq got iterations={iterations}; at least 1 is needed")
        if not commitment >= 0:
            raise CodewordError(f"rvq got commitment={commitment}; at least 0 is allowed")
        self.dim, self.num_codebooks, self.codebook_size, self.beam = dim, num_codebooks, codebook_size, beam
        self.commitment, self.iterations, self.seed = commitment, iterations, seed
        self.levels = (codebook_size,) * num_codebooks
        self.codebooks = nn.Parameter(torch.zeros(num_codebooks, codebook_size, dim))
        self._tables = additive.Remembered()

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """256 codewords a stage where bits dim is a multiple of 8, else the next of 7, 6, 5, 4, ... bits that divides it."""
        books, size = additive.split_for_bits("rvq", dim, bits)
        return cls(dim=dim, num_codebooks=books, codebook_size=size, **options)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        if self.beam == 1:
            repaired = self._fit_greedy(rows, weights)
        else:
            stages = additive.fit_stages(rows, self.num_codebooks, self.codebook_size, beam=self.beam, iterations=self.iterations,
                                         seed=self.seed, weights=weights)
            repaired = stages.repaired
            with torch.no_grad():
                self.codebooks.copy_(stages.codebooks)
        if repaired:
            self.report = Report(self.report, repaired_codewords=repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        if self.beam == 1:
            return self._greedy(rows), None
        return self._tables.codes(self.codebooks, rows, beam=self.beam), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return additive.decode(self.codebooks.detach(), indices)

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        indices = self._encode(rows.detach(), None)[0].to(torch.int64)
        left, total, pull, commit, stats = rows, None, rows.new_zeros(()), rows.new_zeros(()), {}
        for m, book in enumerate(self.codebooks):
            chosen = book[indices[:, m]]
            pull = pull + codebook_term(left, chosen, keep)
            commit = commit + commitment_term(left, chosen, keep)
            left = left - chosen.detach()
            total = chosen.detach() if total is None else total + chosen.detach()
            stats |= {f"stages.{m}.{key}": value for key, value in usage(indices[:, m], self.codebook_size, keep).items()}
        assert total is not None
        error = arrays.masked_mean(left.detach().square().sum(-1), keep)
        stats |= {"codebook": pull.detach(), "commitment": commit.detach(), "error": error}
        return straight_through(rows, total), indices, None, pull + self.commitment * commit, stats

    # ------------------------------------------------------------------ Progressive

    def truncate(self, codes: Codes, bits: float) -> Codes:
        """The longest prefix of stages within ``bits`` a dimension; what is cut off becomes zero. The code keeps its shape: a file stores
        the zeros too, and ``bits`` counts them. Unsupported where not even the first stage fits."""
        width = self.widths[0]
        stages = min(self.num_codebooks, int((bits * self.dim + 1e-9) // width))
        if stages < 1:
            raise Unsupported(f"rvq cannot truncate to {bits} bits a dimension; its first stage takes {width / self.dim:g}")
        indices, _, lengths = self._check_codes(codes)
        room = torch.full(indices.shape[:-1], stages, device=indices.device) if lengths is None else lengths.clamp(max=stages)
        valid = torch.arange(self.num_codebooks, device=indices.device) < stages
        cut = Codes((indices * valid).to(self.index_dtype), None, room.to(torch.int32))
        return arrays.like_codes(cut, codes.indices)

    # ------------------------------------------------------------------ Scannable

    def pack(self, codes: Codes, given: Tensor | None = None) -> Packed:
        """``codes`` (rows, M) padded to whole blocks and, per row, |x^|^2 + 2<c, x^> with c = given (0 where None)."""
        indices = torch.as_tensor(codes.indices)
        return lookup.pack(indices, self.levels, additive.row_terms(self.codebooks.detach(), indices, given))

    def unpack(self, packed: Packed, rows: Tensor) -> Codes:
        return lookup.unpack(packed, rows, self.levels)

    def take(self, packed: Packed, rows: Tensor) -> dict[str, Tensor]:
        return lookup.take(packed, rows, self.levels)

    def lay(self, rows: dict[str, Tensor]) -> Packed:
        return lookup.lay(rows, self.levels)

    def check(self, packed: Packed) -> None:
        lookup.check(packed, self.levels, self.name)

    def prepare(self, queries: Tensor, metric: str) -> lookup.Query:
        """tables (q, M, K): -2<q, c> for l2, -<q, c> for ip; a query's are the same alone and in a batch."""
        factor = lookup.require_metric(metric, self.name)
        products = ops.project(queries.float(), self.codebooks.detach().flatten(0, 1))
        return lookup.Query((factor * products).unflatten(1, self.codebooks.shape[:2]), metric)

    def recipe(self, metric: str) -> Recipe:
        return lookup.sum_recipe(self.codebooks, metric, self.name)

    def scan(self, packed: Packed, query: lookup.Query, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return lookup.scan(packed, query, start, stop)

    def search_spans(self, packed: Packed, query: lookup.Query, spans: Tensor, coarse: Tensor, k: int,
                     allowed: Tensor | None, num_threads: int) -> tuple[Tensor, Tensor]:
        return lookup.search_spans(packed, query, spans, coarse, k, allowed, num_threads)

    # ------------------------------------------------------------------ helpers

    def _decode_some(self, indices: Tensor, side: Tensor | None, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            return self._decode(indices, side)
        total = indices.new_zeros(len(indices), self.dim, dtype=torch.float32)
        for m, book in enumerate(self.codebooks.detach()):
            total = torch.where((lengths > m).unsqueeze(1), total + book[indices[:, m]], total)
        return total

    def _fit_greedy(self, rows: Tensor, weights: Tensor | None) -> int:
        repaired = 0
        for m in range(self.num_codebooks):
            result = kmeans(rows, self.codebook_size, iterations=self.iterations, seed=random.part_seed(self.seed, m), weights=weights)
            with torch.no_grad():
                self.codebooks[m] = result.centroids
            rows = rows - result.centroids[ops.nearest(rows, result.centroids).indices]
            repaired += result.repaired
        return repaired

    def _greedy(self, rows: Tensor) -> Tensor:
        found = []
        for book in self.codebooks.detach():
            found.append(ops.nearest(rows, book).indices)
            rows = rows - book[found[-1]]
        return torch.stack(found, dim=1)
