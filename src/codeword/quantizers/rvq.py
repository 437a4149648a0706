"""Residual vector quantization with beam search (Juang, Gray 1982; beam: Babenko, Lempitsky 2014; Liu, Lu, Hu 2015).

Each of M stages codes what the stages before it left over, each with a codebook of the full width. Choosing the nearest codeword
stage by stage is greedy; a beam keeps the ``beam`` best codes after each stage and chooses at the end.

    r_0 = x,   i_m = argmin_k |r_{m-1} - c^m_k|^2,   r_m = r_{m-1} - c^m_{i_m},   x^ = sum_m c^m_{i_m}                beam 1
    loss = sum_m |sg(r_{m-1}) - c^m_{i_m}|^2 + beta |r_{m-1} - sg(c^m_{i_m})|^2                          (means over all elements)

``fit`` is k-means stage by stage on what the beam's best codes leave over. Stages are ordered: a prefix of a code is a coarser code.
In a network each stage follows the gradient of its codebook term or, with ``learning="ema"``, moving averages (``parts/upkeep``, a
state for each stage); every stage holds the encoder to its codewords. The gradient of what follows passes once, on the sum, by
``estimator`` (``parts/gradients``), so an encoder receives it times 1; written stage by stage, as it often is, the factor is M.

With ``dropout``, in training, that share of the items along the first axis of x uses only its first n stages, n drawn from 1..M
(SoundStream, Zeghidour et al. 2021): deeper stages are missing from values, losses and averages, and ``lengths`` of the codes say so.

Cost: M K d multiply-adds a vector and, with a beam, beam M^2 K / 2 additions of table entries (``ops.additive_search``) instead of the
beam M K d multiply-adds of searching residuals. Bits: M ceil(log2 K) a vector, no side information; M K d floats shared. In an
index |x^|^2 is kept with the codes, 4 bytes a vector.

With beam 1 the exact nearest codeword of each float32 residual is taken, which is Residual of VQs with the stages' seeds bit for bit.
With a beam, decisions are made on inner products rounded to float32, so beam 2 may choose another code of equal error up to that rounding.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from codeword import ops
from codeword.errors import CodewordError, FormatError
from codeword.ops.searcher import Recipe
from codeword.parts import additive, arrays, gradients, lookup, losses, random
from codeword.parts.kmeans import kmeans
from codeword.parts.prefixes import truncated
from codeword.parts.upkeep import Upkeep, stacked
from codeword.quantizer import Codes, Packed, Quantized, Report


class RVQ(lookup.Lookup):
    """dim; num_codebooks: stages M; codebook_size: codewords a stage; beam: codes kept after each stage; commitment: beta; iterations:
    of k-means; seed: stage m starts from ``random.part_seed(seed, m)``; learning, decay, revival: as in ``VQ``;
    estimator: one of ``gradients.PAIRS``; dropout: share of the items that use fewer stages in training."""

    later_arguments: ClassVar[dict[str, Any]] = {"learning": "gradient", "decay": 0.99, "revival": None, "estimator": "straight_through",
                                                 "dropout": 0.0}

    def __init__(self, *, dim: int, num_codebooks: int, codebook_size: int = 256, beam: int = 8, commitment: float = 0.25,
                 iterations: int = 25, seed: int = 0, learning: str = "gradient", decay: float = 0.99, revival: float | None = None,
                 estimator: str = "straight_through", dropout: float = 0.0) -> None:
        super().__init__()
        additive.check_arguments("rvq", dim, num_codebooks, codebook_size, beam)
        if iterations < 1:
            raise CodewordError(f"rvq got iterations={iterations}; at least 1 is needed")
        if not commitment >= 0 or learning not in ("gradient", "ema") or not 0 <= dropout <= 1:
            raise CodewordError(f"rvq got commitment={commitment}, learning={learning!r} and dropout={dropout}; at least 0, 'gradient' or "
                                "'ema', and a share of 0..1 are allowed")
        gradients.check("rvq", estimator, gradients.PAIRS)
        self.dim, self.num_codebooks, self.codebook_size, self.beam = dim, num_codebooks, codebook_size, beam
        self.commitment, self.iterations, self.seed = commitment, iterations, seed
        self.learning, self.decay, self.revival, self.estimator, self.dropout = learning, decay, revival, estimator, dropout
        self.levels = (codebook_size,) * num_codebooks
        averages = learning == "ema"
        self.codebooks = nn.Parameter(torch.zeros(num_codebooks, codebook_size, dim), requires_grad=not averages)
        self.upkeep = Upkeep(codebook_size, dim, averages=averages, decay=decay, num_codebooks=num_codebooks,
                             revival=(0.05 if averages else 0.0) if revival is None else revival)
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
        self.upkeep.start(self.codebooks)
        if repaired:
            self.report = Report(self.report, repaired_codewords=repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        if self.beam == 1:
            return self._greedy(rows), None
        return self._tables.codes(self.codebooks, rows, beam=self.beam), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return additive.decode(self.codebooks.detach(), indices)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Quantized:
        """As every quantizer's; in training ``dropout`` decides how many stages each item uses."""
        if not (self.training and self.dropout > 0 and isinstance(x, Tensor) and x.ndim):
            return super().forward(x, mask=mask)
        used = gradients.drawn_lengths(x, self.num_codebooks, self.dropout)
        return self._forward_with(x, mask, lambda rows, keep: self._stages(rows, keep, used.reshape(-1)), used)

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        return self._stages(rows, keep, None)

    def _stages(self, rows: Tensor, keep: Tensor | None, used: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        """``_forward`` where row n takes part in the first ``used[n]`` stages, in all where None."""
        known = None if self.beam == 1 else self._encode(rows.detach(), None)[0].to(torch.int64)
        left, total, commit, pull = rows, torch.zeros_like(rows), rows.new_zeros(()), rows.new_zeros(())
        indices, stats = [], []
        for m, book in enumerate(self.codebooks):
            active = None if used is None else used > m
            index = ops.nearest(left, book).indices if known is None else known[:, m]
            chosen = ops.gather(book, index)
            more = losses.both_terms(left, chosen, keep, active)
            counted = keep if active is None else active if keep is None else active & keep
            stats.append(self.upkeep.statistics(left, index, counted, m))
            if active is not None:
                chosen, index = torch.where(active.unsqueeze(1), chosen, 0.0), torch.where(active, index, 0)
            commit, pull, total, left = commit + more[0], pull + more[1], total + chosen, left - chosen.detach()
            indices.append(index)
        loss = self.commitment * commit
        if self.learning == "gradient" and gradients.needs_codebook_term(self.estimator):
            loss = loss + pull
        error = arrays.masked_mean(left.detach().square().sum(-1), keep)
        found = {"codebook": pull.detach(), "commitment": commit.detach(), "error": error, **stacked(stats, "stages")}
        values = gradients.passed(self.estimator, rows, total, training=self.training)
        return values, torch.stack(indices, dim=1), None, loss, found

    def update(self, out: Quantized) -> Report:
        return self.upkeep.step(self.codebooks, out.stats)

    @property
    def shared_bytes(self) -> int:
        """The codebooks alone, as in ``VQ``."""
        return self.codebooks.numel() * self.codebooks.element_size()

    def check_state(self) -> None:
        super().check_state()
        if not self.upkeep.plausible():
            raise FormatError("value", "rvq has a negative count among its averages")

    # ------------------------------------------------------------------ Progressive

    def truncate(self, codes: Codes, bits: float) -> Codes:
        """The longest prefix of stages within ``bits`` a dimension; what is cut off becomes zero. The code keeps its shape: a file stores
        the zeros too, and ``bits`` counts them. Unsupported where not even the first stage fits."""
        return truncated(self, codes, bits, range(1, self.num_codebooks + 1), "stage")

    # ------------------------------------------------------------------ Scannable

    def pack(self, codes: Codes, given: Tensor | None = None) -> Packed:
        """``codes`` (rows, M) padded to whole blocks and, per row, |x^|^2 + 2<c, x^> with c = given (0 where None)."""
        indices = torch.as_tensor(codes.indices)
        return lookup.pack(indices, self.levels, additive.row_terms(self.codebooks.detach(), indices, given))

    def prepare(self, queries: Tensor, metric: str) -> lookup.Query:
        """tables (q, M, K): -2<q, c> for l2, -<q, c> for ip; a query's are the same alone and in a batch."""
        return lookup.sum_tables(queries, self.codebooks.detach(), metric, self.name)

    def recipe(self, metric: str) -> Recipe:
        return lookup.sum_recipe(self.codebooks, metric, self.name)

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
            result = kmeans(rows, self.codebook_size, iterations=self.iterations, seed=random.part_seed(self.seed, m), weights=weights,
                            start="cooled")
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
