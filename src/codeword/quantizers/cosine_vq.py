"""CosineVQ: the codebook of ViT-VQGAN (Yu et al.: Vector-quantized Image Modeling with Improved VQGAN, ICLR 2022).

Vectors and codewords are compared by direction alone. Lengths then cannot decide who is chosen, so codewords of odd length no longer
starve the others: the paper's usage rises from 2 % to 96 % at K = 8192, in a space of 32 dimensions.

    u = x / |x|,   c^_k = c_k / |c_k|,   i = argmin_k |u - c^_k|^2 = argmax_k cos(x, c_k),   x^ = c^_i
    loss = |sg(u) - c^_i|^2 + beta |u - sg(c^_i)|^2 + entropy (mean_n H(p_n) - H(mean_n p_n)),   p_n = softmax_k(-|u_n - c^_k|^2 / 0.01)

Gradients pass from x^ to u and from there through the normalisation to x: the length of x gets none. ``decode`` gives unit vectors, not
x: a decoder network regenerates scale, and ``gain_shape(cosine_vq:...)`` keeps it. The entropy term (FQGAN's, off here by default)
asks for sure choices and evenly used codewords. ``fit`` is spherical k-means. With ``learning="ema"`` codewords follow the direction
of the averaged sum of what chose them; revival is VQ's.
The paper's second half, a linear map to a low lookup width and back, is the network's: its last and first layer, or ``Projected``.
There is no ``bake``: a plain VQ does not normalise its input.

Cost: K d multiply-adds a vector, and K d once for the directions whenever the codebook has changed. Bits: ceil(log2 K) a vector.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from codeword import ops
from codeword.errors import CodewordError, FormatError
from codeword.parts import entropy as entropies
from codeword.parts import gradients
from codeword.parts.codebook import size_for_bits
from codeword.parts.gradients import passed
from codeword.parts.kept import Kept
from codeword.parts.losses import both_terms
from codeword.parts.spherical import directions, spherical_kmeans
from codeword.parts.upkeep import Upkeep
from codeword.quantizer import Quantized, Quantizer, Report

TEMPERATURE = 0.01
"""Of p, in squared distance between unit vectors (FQGAN's)."""


class CosineVQ(Quantizer):
    """dim, codebook_size; learning: "gradient" or "ema" in a network; commitment: beta; entropy: weight of the entropy term; decay: of
    the averages; revival: codewords below this fraction of their expected hits are moved onto data (None: 0.05 with averages, else 0);
    iterations: of spherical k-means; seed; estimator: one of ``gradients.PAIRS``."""

    def __init__(self, *, dim: int, codebook_size: int, learning: str = "gradient", commitment: float = 0.25, entropy: float = 0.0,
                 decay: float = 0.99, revival: float | None = None, iterations: int = 25, seed: int = 0,
                 estimator: str = "straight_through") -> None:
        super().__init__()
        if dim < 1 or not 1 <= codebook_size <= 1 << 24:
            raise CodewordError(f"cosine_vq got dim={dim} and codebook_size={codebook_size}; dim >= 1 and 1..2^24 codewords are allowed")
        if learning not in ("gradient", "ema") or not commitment >= 0 or not entropy >= 0 or iterations < 0:
            raise CodewordError(f"cosine_vq got learning={learning!r}, commitment={commitment}, entropy={entropy} and "
                                f"iterations={iterations}; 'gradient' or 'ema', and numbers of at least 0, are allowed")
        gradients.check("cosine_vq", estimator, gradients.PAIRS)
        self.dim, self.codebook_size, self.learning = dim, codebook_size, learning
        self.commitment, self.entropy, self.decay, self.revival = commitment, entropy, decay, revival
        self.iterations, self.seed, self.estimator = iterations, seed, estimator
        self.levels = (codebook_size,)
        self.codebook = nn.Parameter(torch.zeros(codebook_size, dim), requires_grad=learning == "gradient")
        averages = learning == "ema"
        self.upkeep = Upkeep(codebook_size, dim, averages=averages, decay=decay,
                             revival=(0.05 if averages else 0.0) if revival is None else revival)
        self._kept = Kept()

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """2^(bits dim) codewords, up to 16 bits a vector."""
        return cls(dim=dim, codebook_size=size_for_bits("cosine_vq", dim, bits), **options)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        result = spherical_kmeans(rows, self.codebook_size, iterations=self.iterations, seed=self.seed, weights=weights)
        with torch.no_grad():
            self.codebook.copy_(result.centroids)
        self.upkeep.start(result.centroids)
        if result.repaired:
            self.report = Report(self.report, repaired_codewords=result.repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return ops.nearest(directions(rows), self._directions()).indices.unsqueeze(1), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return self._directions()[indices[:, 0]]

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        u = directions(rows)
        # The same values and gradients either way: through all directions, or through the winners' alone where they are fewer.
        whole = self.entropy > 0 or torch.compiler.is_compiling() or rows.shape[0] >= self.codebook_size
        codebook = self.effective() if whole else directions(self.codebook.detach())
        indices = ops.nearest(u, codebook).indices
        chosen = ops.gather(codebook, indices) if whole else directions(ops.gather(self.codebook, indices))
        commit, pull = both_terms(u, chosen, keep)
        loss = self.commitment * commit
        if self.learning == "gradient" and gradients.needs_codebook_term(self.estimator):
            loss = loss + pull
        stats = {"codebook": pull.detach(), "commitment": commit.detach(), "error": commit.detach() * self.dim,
                 **self.upkeep.statistics(u, indices, keep)}
        if self.entropy:
            sample, batch = entropies.codebook_entropies(u, codebook, TEMPERATURE, keep)
            loss = loss + self.entropy * entropies.difference(sample, batch)
            stats |= {"sample_entropy": sample.detach(), "batch_entropy": batch.detach()}
        return passed(self.estimator, u, chosen, training=self.training), indices.unsqueeze(1), None, loss, stats

    def update(self, out: Quantized) -> Report:
        report = self.upkeep.step(self.codebook, out.stats)
        if self.upkeep.averages:
            with torch.no_grad():  # the averages are sums of unit vectors: their direction is the codeword
                self.codebook.copy_(directions(self.codebook))
        return report

    @property
    def shared_bytes(self) -> int:
        """The codebook alone: averages are saved for going on with training, but no reader of codes needs them."""
        return self.codebook.numel() * self.codebook.element_size()

    def check_state(self) -> None:
        super().check_state()
        if not self.upkeep.plausible():
            raise FormatError("value", "cosine_vq has a negative count among its averages")

    # ------------------------------------------------------------------ beyond the contract

    def effective(self) -> Tensor:
        """The codebook in use: directions float32 (codebook_size, dim), differentiable in ``codebook``."""
        return directions(self.codebook)

    def _directions(self) -> Tensor:
        return self._kept((self.codebook,), self.effective)
