"""Additive quantization (Babenko, Lempitsky: Additive Quantization for Extreme Vector Compression, CVPR 2014; local search and codebook
update after Martinez et al., ECCV 2016/2018).

A vector is the sum of M codewords, one from each of M codebooks of full width, none of which comes first: all are fitted together.

    x ~ x^ = sum_m c^m_{i_m}
    codes       min over i of |x - x^|^2: beam search over the codebooks in order, then sweeps that let every position change again
    codebooks   min_C |X - B C|^2, B the indicator of the codes: one linear system shared by all dimensions

``fit`` starts from random codes and alternates the two. For most of the rounds codes are searched with codebooks that were shaken by
noise of falling size (the stochastic relaxation of Martinez et al. 2018): started from a residual quantizer or without noise it ends
in much worse optima. In the rounds after that neither half step makes the objective worse; ``report["objective"]`` has it
after every half step:

    J = mean |x - x^|^2 + ridge/n sum |c|^2                                            (rows and codewords minus the rows' mean)

Cost: encode M K d multiply-adds a vector and beam M^2 K additions of table entries a sweep; codebooks (M K)^3 / 3 + (M K)^2 d a round.
Bits: M ceil(log2 K) a vector, no side information; M K d floats shared. In an index |x^|^2 is kept with the codes, 4 bytes a vector.

Departures. The beam goes through the codebooks in order instead of trying all unused ones at each step, which costs M times as much;
the sweeps over filled positions repair what the order did. Local search keeps a beam of distinct codes instead of perturbing one at
random, so it too passes through worse codes, without chance. The ridge is larger than what the singular system needs, since each
codeword is fitted to few rows: it costs error on the rows fitted and saves more on others.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from codeword.errors import CodewordError
from codeword.ops.searcher import Recipe
from codeword.parts import additive, lookup, random
from codeword.parts.moments import moments
from codeword.quantizer import Codes, Packed, Report

SWEEPS = 3
"""Passes over all positions in ``encode``; the first fills them."""
FIT_BEAM, FIT_SWEEPS = 8, 2
"""Of the search inside a round, at most: it starts from the codes of the round before."""
RIDGE, ENOUGH = 2.0, 32
"""In rows, where there are as many rows a codeword; less in proportion where there are fewer, which fewer codewords can fit exactly."""
QUIET = 0.2
"""Share of the rounds without noise, the last ones."""
LARGEST = torch.finfo(torch.float32).max


class AQ(lookup.Lookup):
    """dim; num_codebooks: M; codebook_size: K; beam: codes kept after each step of the search; rounds: of codebooks and codes in turn;
    seed."""

    def __init__(self, *, dim: int, num_codebooks: int, codebook_size: int = 256, beam: int = 16, rounds: int = 25, seed: int = 0) -> None:
        super().__init__()
        additive.check_arguments("aq", dim, num_codebooks, codebook_size, beam)
        if rounds < 1:
            raise CodewordError(f"aq got rounds={rounds}; at least 1 is needed")
        self.dim, self.num_codebooks, self.codebook_size, self.beam = dim, num_codebooks, codebook_size, beam
        self.rounds, self.seed = rounds, seed
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
        mean, variance = moments(rows, weights)
        rows = (rows.double() - mean).clamp(-LARGEST, LARGEST).float()
        spread = variance.sqrt() / self.num_codebooks
        problem = additive.LeastSquares(rows, self.codebook_size, weights, self._ridge(len(rows)))
        noisy = round((1 - QUIET) * self.rounds)
        codes, objective = self._random_codes(len(rows), rows.device), []
        normal = problem.normal(codes)
        for i in range(self.rounds):
            books = shaken = problem.solve(normal)
            if i < noisy:
                shaken = books + (math.sqrt(1 - (i + 1) / self.rounds) * spread * self._noise(i, rows.device)).float()
            else:
                objective.append(problem.objective(books, normal))
            codes = additive.search(additive.tables(shaken), rows, additive.full_start(codes), beam=min(self.beam, FIT_BEAM),
                                    sweeps=FIT_SWEEPS).codes[:, 0]
            normal = problem.normal(codes)
            if i >= noisy:
                objective.append(problem.objective(books, normal))
        books = problem.solve(normal)
        objective.append(problem.objective(books, normal))
        books[0] = (books[0].double() + mean).clamp(-LARGEST, LARGEST).float()
        self.codebooks.copy_(books)
        self.report = Report(self.report, objective=objective)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return self._tables.codes(self.codebooks, rows, beam=self.beam, sweeps=SWEEPS), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return additive.decode(self.codebooks, indices)

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

    def _random_codes(self, n: int, device: torch.device) -> Tensor:
        drawn = random.bits(self.seed, n * self.num_codebooks, stream="aq codes") >> np.uint64(32)
        return torch.from_numpy((drawn % np.uint64(self.codebook_size)).astype(np.int64)).reshape(n, -1).to(device)

    def _noise(self, i: int, device: torch.device) -> Tensor:
        """Of unit variance, in round ``i``."""
        shape = self.codebooks.shape
        return torch.from_numpy(random.normal(self.seed, shape.numel(), stream=f"aq noise {i}")).reshape(shape).to(device)

    def _ridge(self, n: int) -> float:
        return RIDGE * min(1.0, n / (ENOUGH * self.codebook_size))
