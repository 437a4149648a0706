"""Lookup-free quantization (Yu et al.: Language Model Beats Diffusion: Tokenizer is Key to Visual Generation, ICLR 2024).

A code is the sign of every dimension: 2^d codewords that nobody stores or searches. Left alone an encoder would use few of them, so an
entropy loss asks each vector to be certain of its code and the batch to use all codes.

    z^_i = s if z_i > 0 else -s,   token = sum_i [z_i > 0] 2^i            (over the bits of the token; the first dimension is bit 0)
    p(c | z) ~ exp(-|z - c|^2 / tau),   so bit i is + with probability sigma(4 s z_i / tau), independently
    loss = beta mean |z - sg(z^)|^2 + weight (mean_n H(p_n) - gamma H(mean_n p_n))                       (entropies in nats)

The first entropy is exactly a sum of binary entropies. The second needs the joint distribution of the bits: here that of groups of at
most ``entropy_bits`` bits, exact within a group and an upper bound beyond (``parts/entropy``). No table of 2^d codes exists anywhere,
so d = 36 or 200 work as 10 does. It is the entropy of one process's batch; the paper's code averages over all.

Cost: O(d) a vector, and in training 2^g multiply-adds for each group of g bits. Bits: one a dimension. Values are +-s, not the input's
space: ``Projected`` maps back. Implementations differ in the order of bits: Open-MAGVIT2 has the least significant first, as here
with ``bit_order`` "low", vector-quantize-pytorch the most significant ("high"). Gradient: straight through.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

from torch import Tensor

from codeword.errors import CodewordError
from codeword.parts import arrays, entropy, signs
from codeword.parts.codebook import usage
from codeword.parts.gradients import straight_through
from codeword.parts.losses import commitment_term
from codeword.quantizer import Quantizer


class LFQ(Quantizer):
    """dim: bits; num_codebooks: tokens they form (None: the fewest of at most 18 bits); scale: s; commitment: beta; entropy_weight, gamma,
    temperature (tau): of the entropy loss; entropy_bits: bits whose joint distribution is exact, 1..18; bit_order: of a token, its
    first bit "low" or "high"."""

    learns = False
    later_arguments: ClassVar[dict[str, Any]] = {"bit_order": "low"}

    def __init__(self, *, dim: int, num_codebooks: int | None = None, scale: float = 1.0, commitment: float = 0.25,
                 entropy_weight: float = 0.1, gamma: float = 1.0, temperature: float = 0.01, entropy_bits: int = 12,
                 bit_order: str = "low") -> None:
        super().__init__()
        self._sizes = signs.sizes("lfq", dim, num_codebooks)
        if not scale > 0 or not temperature > 0 or min(commitment, entropy_weight, gamma) < 0:
            raise CodewordError(f"lfq got scale={scale}, temperature={temperature}, commitment={commitment}, entropy_weight="
                                f"{entropy_weight} and gamma={gamma}; the first two must be positive, the others at least 0")
        if not 1 <= entropy_bits <= entropy.MOST_GROUPED:
            raise CodewordError(f"lfq got entropy_bits={entropy_bits}; 1..{entropy.MOST_GROUPED} are allowed")
        if bit_order not in signs.ORDERS:
            raise CodewordError(f"lfq got bit_order={bit_order!r}; 'low' or 'high' is needed")
        self.bit_order = bit_order
        self.dim, self.num_codebooks, self.scale, self.commitment = dim, num_codebooks, scale, commitment
        self.entropy_weight, self.gamma, self.temperature, self.entropy_bits = entropy_weight, gamma, temperature, entropy_bits
        self.levels = tuple(1 << size for size in self._sizes)

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """One bit a dimension: ``bits`` must be 1."""
        signs.check_rate("lfq", bits)
        return cls(dim=dim, **options)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return signs.tokens(rows > 0, self._sizes, self.bit_order), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return signs.corners(signs.bits(indices, self._sizes, self.bit_order), self.scale)

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        plus = rows.detach() > 0
        indices, values = signs.tokens(plus, self._sizes, self.bit_order), signs.corners(plus, self.scale, rows.dtype)
        commit = commitment_term(rows, values, keep)
        groups = math.ceil(self.dim / self.entropy_bits)
        sample, batch = entropy.sign_entropies(rows * (4 * self.scale / self.temperature), keep, group=math.ceil(self.dim / groups))
        loss = self.commitment * commit + self.entropy_weight * entropy.difference(sample, batch, self.gamma)
        error = arrays.masked_mean((rows.detach() - values).square().sum(-1), keep)
        stats = {"commitment": commit.detach(), "sample_entropy": sample.detach(), "batch_entropy": batch.detach(), "error": error}
        if len(set(self.levels)) == 1:
            stats |= usage(indices, self.levels[0], keep)
        return straight_through(rows, values), indices, None, loss, stats
