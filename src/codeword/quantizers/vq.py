"""Vector quantization: one codebook, nearest codeword in L2 (Gray 1984; trained inside networks: van den Oord et al. 2017).

    i = argmin_k |x - c_k|^2,   x^ = c_i
    loss = |sg(x) - c_i|^2 + beta |x - sg(c_i)|^2       (means over all elements; codebook term only where it learns by gradient)
         + penalties                                    (``parts/losses``: orthogonality, diversity, entropy ...)

``fit`` is k-means; it is also the start of training, since a codebook far from the data never catches up. In a network the codebook
follows the gradient of its loss term or, with ``learning="ema"``, moving averages of what was assigned to each codeword (Razavi et
al. 2019); either way, with ``revival``, codewords that are hardly ever chosen are moved onto data. Averages and revival act in
``update`` only, by the rules of ``parts/upkeep``; the optimizer's moments of a revived codeword are the optimizer's, and stay.

How the gradient passes the choice is ``estimator``'s matter (``parts/gradients``). Estimators that lead the gradient of the task to the
chosen codeword (nsvq, diveq, diveq_detached, gumbel) have no codebook term; their papers have no commitment either (commitment=0).
``ibq`` and ``gumbel`` use p = softmax_k(-|x - c_k|^2 / temperature); IBQ's authors take <x, c_k>, which would choose other codewords than
the nearest. Their look-up and the penalties run in blocks, so that K = 262,144 trains with any of them.

Cost: K d multiply-adds a vector. Bits: ceil(log2 K) a vector.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from codeword.errors import CodewordError, FormatError
from codeword.parts import gradients, losses
from codeword.parts.codebook import assign, size_for_bits
from codeword.parts.kmeans import kmeans
from codeword.parts.upkeep import Upkeep
from codeword.quantizer import Quantized, Quantizer, Report


class VQ(Quantizer):
    """dim, codebook_size; learning: "gradient" or "ema" in a network; commitment: beta; decay: of the averages; revival: codewords
    below this fraction of their expected hits are moved onto data (0: never; None: 0.05 with averages, else 0); iterations: of k-means,
    after as many on parts; seed; estimator: one of ``gradients.ESTIMATORS``; temperature: of p, in squared distance; penalties: weighted
    terms of ``losses.PENALTIES``, such as "diversity:0.01+orthogonality:0.1"."""

    takes_metric = True
    later_arguments: ClassVar[dict[str, Any]] = {"estimator": "straight_through", "temperature": 1.0, "penalties": None}

    def __init__(self, *, dim: int, codebook_size: int, learning: str = "gradient", commitment: float = 0.25, decay: float = 0.99,
                 revival: float | None = None, iterations: int = 25, seed: int = 0, estimator: str = "straight_through",
                 temperature: float = 1.0, penalties: str | None = None) -> None:
        super().__init__()
        if dim < 1 or not 1 <= codebook_size <= 1 << 24:
            raise CodewordError(f"vq got dim={dim} and codebook_size={codebook_size}; dim >= 1 and 1..2^24 codewords are allowed")
        if learning not in ("gradient", "ema") or not commitment >= 0 or not temperature > 0:
            raise CodewordError(f"vq got learning={learning!r}, commitment={commitment} and temperature={temperature}; 'gradient' or "
                                "'ema', at least 0, and a positive one are allowed")
        gradients.check("vq", estimator)
        self._weights = losses.parse("vq", penalties)
        if learning == "ema" and not self._weights.keys().isdisjoint(losses.OF_THE_CODEBOOK):
            raise CodewordError(f"vq got penalties={penalties!r} with learning='ema'; averages undo what orthogonality asks of codewords")
        self.dim, self.codebook_size, self.learning = dim, codebook_size, learning
        self.commitment, self.decay, self.revival = commitment, decay, revival
        self.iterations, self.seed = iterations, seed
        self.estimator, self.temperature, self.penalties = estimator, temperature, penalties
        self.levels = (codebook_size,)
        self.codebook = nn.Parameter(torch.zeros(codebook_size, dim), requires_grad=learning == "gradient")
        averages = learning == "ema"
        self.upkeep = Upkeep(codebook_size, dim, averages=averages, decay=decay,
                             revival=(0.05 if averages else 0.0) if revival is None else revival)

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """2^(bits dim) codewords, up to 16 bits a vector."""
        return cls(dim=dim, codebook_size=size_for_bits("vq", dim, bits), **options)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        result = kmeans(rows, self.codebook_size, iterations=self.iterations, seed=self.seed, weights=weights, start="cooled")
        with torch.no_grad():
            self.codebook.copy_(result.centroids)
        self.upkeep.start(result.centroids)
        if result.repaired:
            self.report = Report(self.report, repaired_codewords=result.repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return assign(rows, self.codebook.detach(), metric).unsqueeze(1), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return self.codebook.detach()[indices[:, 0]]

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        indices, chosen, values = gradients.choose(self.estimator, rows, self.codebook, training=self.training,
                                                   temperature=self.temperature)
        commit, pull = losses.both_terms(rows, chosen, keep)
        loss = self.commitment * commit
        if self.learning == "gradient" and gradients.needs_codebook_term(self.estimator):
            loss = loss + pull
        stats = {"codebook": pull.detach(), "commitment": commit.detach(), "error": commit.detach() * self.dim,
                 **self.upkeep.statistics(rows, indices, keep)}
        if self._weights:
            extra, terms = losses.penalties(self._weights, rows, self.codebook, indices, keep, self.temperature)
            loss, stats = loss + extra, stats | terms
        return values, indices.unsqueeze(1), None, loss, stats

    def update(self, out: Quantized) -> Report:
        return self.upkeep.step(self.codebook, out.stats)

    @property
    def shared_bytes(self) -> int:
        """The codebook alone: averages are saved for going on with training, but no reader of codes needs them."""
        return self.codebook.numel() * self.codebook.element_size()

    def check_state(self) -> None:
        super().check_state()
        if not self.upkeep.plausible():
            raise FormatError("value", "vq has a negative count among its averages")
