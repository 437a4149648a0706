"""Additive quantization (Babenko, Lempitsky: Additive Quantization for Extreme Vector Compression, CVPR 2014; local search and codebook
update after Martinez et al., ECCV 2016/2018).

A vector is the sum of M codewords, one from each of M codebooks of full width, none of which comes first: all are fitted together.

    x ~ x^ = sum_m c^m_{i_m}
    codes       min over i of |x - x^|^2: beam search over the codebooks in order, then sweeps that let every position change again
    codebooks   min_C |X - B C|^2, B the indicator of the codes: one linear system shared by all dimensions

``fit`` starts from the stages of a residual quantizer and alternates the two for ``rounds`` rounds; neither half makes the error
worse. The errors after each half step are in ``report["objective"]``.

Cost: encode M K d multiply-adds a vector and beam M^2 K additions of table entries a sweep; codebooks (M K)^3 / 3 a round. Bits:
M ceil(log2 K) a vector, no side information; M K d floats shared.

Departures. The beam goes through the codebooks in order instead of trying all unused ones at each step, which costs M times as much;
the sweeps over filled positions repair what the order did. Where local search perturbs codes at random, a beam of distinct codes
does the same without chance: a sweep also passes through worse codes. The regulariser holds codewords where they were instead of
drawing them to zero, so the error cannot rise.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from codeword.errors import CodewordError
from codeword.parts import additive
from codeword.quantizer import Quantizer, Report

SWEEPS = 3
"""Passes over all positions in ``encode``; the first fills them."""
FIT_BEAM = 4
"""Beam of the local search inside a round, at most: it starts from codes that are good already."""
DAMPING = 1e-2
"""Rows a codeword that hold it where it was in the least-squares update."""


class AQ(Quantizer):
    """dim; num_codebooks: M; codebook_size: K; beam: codes kept after each step of the search; rounds: of codes and codebooks in turn;
    iterations: of k-means for the start; seed."""

    def __init__(self, *, dim: int, num_codebooks: int, codebook_size: int = 256, beam: int = 16, rounds: int = 10, iterations: int = 10,
                 seed: int = 0) -> None:
        super().__init__()
        additive.check_arguments("aq", dim, num_codebooks, codebook_size, beam)
        if rounds < 0:
            raise CodewordError(f"aq got rounds={rounds}; at least 0 is allowed")
        self.dim, self.num_codebooks, self.codebook_size, self.beam = dim, num_codebooks, codebook_size, beam
        self.rounds, self.iterations, self.seed = rounds, iterations, seed
        self.levels = (codebook_size,) * num_codebooks
        self.codebooks: Tensor
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, dim))
        self._tables = additive.Remembered()

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """256 codewords a codebook where bits dim is a multiple of 8, else the next of 7, 6, 5, 4, ... bits that divides it."""
        books, size = additive.split_for_bits("aq", dim, bits)
        return cls(dim=dim, num_codebooks=books, codebook_size=size, **options)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        beam = min(self.beam, FIT_BEAM)
        stages = additive.fit_stages(rows, self.num_codebooks, self.codebook_size, beam=beam, iterations=self.iterations, seed=self.seed,
                                     weights=weights)
        books, codes = stages.codebooks, stages.codes
        objective = [additive.mean_error(books, codes, rows, weights)]
        for _ in range(self.rounds):
            books = additive.least_squares(books, codes, rows, weights, DAMPING)
            objective.append(additive.mean_error(books, codes, rows, weights))
            codes = additive.search(additive.tables(books), rows, additive.full_start(codes), beam=beam).codes[:, 0]
            objective.append(additive.mean_error(books, codes, rows, weights))
        self.codebooks = books
        self.report = Report(self.report, objective=objective)
        if stages.repaired:
            self.report = Report(self.report, repaired_codewords=stages.repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return additive.search(self._tables(self.codebooks), rows, beam=self.beam, sweeps=SWEEPS).codes[:, 0], None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return additive.decode(self.codebooks, indices)
