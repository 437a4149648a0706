"""Vector quantization: one codebook, nearest codeword in L2 (Gray 1984; trained inside networks: van den Oord et al. 2017).

    i = argmin_k |x - c_k|^2,   x^ = c_i
    loss = |sg(x) - c_i|^2 + beta |x - sg(c_i)|^2       (means over all elements; codebook term only where it learns by gradient)

``fit`` is k-means. In a network the codebook follows the gradient of its loss term or, with ``learning="ema"``, moving averages of
what was assigned to each codeword (Razavi et al. 2019), moved by ``update`` only:

    n_k <- g n_k + (1-g) count_k      m_k <- g m_k + (1-g) sum_k      c_k <- m_k / n_k  (Laplace-smoothed n)

Cost: K d multiply-adds a vector. Bits: ceil(log2 K) a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError
from codeword.parts import arrays
from codeword.parts.gradients import straight_through
from codeword.parts.kmeans import kmeans
from codeword.quantizer import Quantizer, Report


class VQ(Quantizer):
    """dim, codebook_size; learning: "gradient" or "ema" in a network; commitment: beta; seed."""

    takes_metric = True

    def __init__(self, *, dim: int, codebook_size: int, learning: str = "gradient", commitment: float = 0.25,
                 iterations: int = 25, seed: int = 0) -> None:
        super().__init__()
        if dim < 1 or not 1 <= codebook_size <= 1 << 24:
            raise CodewordError(f"vq got dim={dim} and codebook_size={codebook_size}; dim >= 1 and 1..2^24 codewords are allowed")
        if learning not in ("gradient", "ema"):
            raise CodewordError(f"vq got learning={learning!r}; 'gradient' or 'ema' are known")
        self.dim, self.codebook_size, self.learning = dim, codebook_size, learning
        self.commitment, self.iterations, self.seed = commitment, iterations, seed
        self.levels = (codebook_size,)
        self.codebook = torch.nn.Parameter(torch.zeros(codebook_size, dim), requires_grad=learning == "gradient")

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        result = kmeans(rows, self.codebook_size, iterations=self.iterations, seed=self.seed, weights=weights)
        with torch.no_grad():
            self.codebook.copy_(result.centroids)
        if result.repaired:
            self.report = Report(self.report, repaired_codewords=result.repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        codebook = self.codebook.detach()
        if metric is not None:
            root = arrays.metric_root(metric)
            rows, codebook = ops.project(rows, root), ops.project(codebook, root)
        return ops.nearest(rows, codebook).indices.unsqueeze(1), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return self.codebook.detach()[indices[:, 0]]

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        found = ops.nearest(rows, self.codebook)
        chosen = self.codebook[found.indices]
        codebook_term = arrays.masked_mean((chosen - rows.detach()).square().mean(-1), keep)
        commitment_term = arrays.masked_mean((rows - chosen.detach()).square().mean(-1), keep)
        loss = self.commitment * commitment_term + (codebook_term if self.learning == "gradient" else 0.0)
        stats = {"codebook": codebook_term.detach(), "commitment": commitment_term.detach()}
        return straight_through(rows, chosen), found.indices.unsqueeze(1), None, loss, stats
