"""Binary spherical quantization (Zhao, Xiong, Kraehenbuehl: Image and Video Tokenization with Binary Spherical Quantization, ICLR 2025).

The signs of a vector after it was brought to length 1: the codewords are the corners of the cube that fits into the unit sphere. So
the error is bounded, which that of plain signs (LFQ) is not, and no commitment loss is needed.

    u = z / |z|,   u^_i = 1/sqrt(d) if u_i >= 0 else -1/sqrt(d),   token = sum_i [u_i >= 0] 2^i
    |u - u^|^2 = 2 - 2 |u|_1 / sqrt(d) <= 2 - 2 / sqrt(d)                                         (equality on the coordinate axes)
    p(c | u) ~ exp(-|u - c|^2 / tau),   so bit i is + with probability q_i = sigma(4 u_i / (sqrt(d) tau)), independently
    loss = weight (gamma0 mean_n sum_i H(q_ni) - gamma sum_i H(mean_n q_ni))                                   (H in nats)

The second sum takes each bit alone, an upper bound of the joint entropy that is linear in d (``parts/entropy``): d = 36 costs twice
d = 18. The paper writes p ~ exp(tau' <c, u>), that is tau = 2 / tau'.

Cost: O(d) a vector. Bits: one a dimension. Values live on the unit sphere, not in the input's space: ``Projected`` or ``GainShape``
maps back. Gradient: straight through to u, then that of the normalisation; a zero vector gets the code of all + and no gradient.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor

from codeword.errors import CodewordError
from codeword.parts import arrays, entropy, signs
from codeword.parts.codebook import usage
from codeword.parts.gradients import straight_through
from codeword.quantizer import Quantizer


class BSQ(Quantizer):
    """dim: bits; num_codebooks: tokens they form (None: the fewest of at most 18 bits); entropy_weight, gamma0, gamma, temperature (tau):
    of the entropy loss."""

    learns = False

    def __init__(self, *, dim: int, num_codebooks: int | None = None, entropy_weight: float = 0.1, gamma0: float = 1.0,
                 gamma: float = 1.0, temperature: float = 0.01) -> None:
        super().__init__()
        self._sizes = signs.sizes("bsq", dim, num_codebooks)
        if not temperature > 0 or min(entropy_weight, gamma0, gamma) < 0:
            raise CodewordError(f"bsq got temperature={temperature}, entropy_weight={entropy_weight}, gamma0={gamma0} and gamma={gamma}; "
                                "a positive temperature and weights of at least 0 are needed")
        self.dim, self.num_codebooks, self.entropy_weight = dim, num_codebooks, entropy_weight
        self.gamma0, self.gamma, self.temperature = gamma0, gamma, temperature
        self.levels = tuple(1 << size for size in self._sizes)

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """One bit a dimension: ``bits`` must be 1."""
        signs.check_rate("bsq", bits)
        return cls(dim=dim, **options)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return signs.tokens(rows >= 0, self._sizes), None  # a positive factor changes no sign

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return signs.corners(signs.bits(indices, self._sizes), 1 / math.sqrt(self.dim))

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        plus, corner = rows.detach() >= 0, 1 / math.sqrt(self.dim)
        indices, values = signs.tokens(plus, self._sizes), signs.corners(plus, corner, rows.dtype)
        u = _unit(rows)
        sample, batch = entropy.sign_entropies(u * (4 * corner / self.temperature), keep)
        loss = self.entropy_weight * (self.gamma0 * sample - self.gamma * batch)
        error = arrays.masked_mean((u.detach() - values).square().sum(-1), keep)
        stats = {"sample_entropy": sample.detach(), "batch_entropy": batch.detach(), "error": error}
        if len(set(self.levels)) == 1:
            stats |= usage(indices, self.levels[0], keep)
        return straight_through(u, values), indices, None, loss, stats


def _unit(rows: Tensor) -> Tensor:
    """rows / |rows|, scaled first by the largest entry so that no square leaves float32; zero rows stay zero, without gradient."""
    top = rows.detach().abs().amax(dim=1, keepdim=True)
    zero = top == 0
    near = rows / torch.where(zero, 1.0, top)
    length = torch.linalg.vector_norm(torch.where(zero, 1.0, near), dim=1, keepdim=True)
    return torch.where(zero, 0.0, near / length)
