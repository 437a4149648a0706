"""Masked-channel residual vector quantization (Ji et al.: Language-Codec: Reducing the Gaps Between Discrete Codec Representation and
Speech Language Models, ACL 2025).

In a residual code the first token carries most of the content, and whoever predicts tokens must predict it first. Here the first layer is
split: each of its ``masked`` codebooks sees only a share of the channels, so its information is spread evenly over that many tokens.
Ordinary residual layers over all channels follow.

    channels 0 ... d-1 in shares s_j = [floor(j d / m), floor((j+1) d / m)),   q_j = c^j_{i_j} on s_j and 0 elsewhere,  j = 0 ... m-1
    r_1 = x - sum_j q_j,   then i_l = argmin_k |r_l - c^l_k|^2,   r_{l+1} = r_l - c^l_{i_l},   x^ = sum_j q_j + sum_l c^l_{i_l}
    loss = sum over layers of beta mean |r - sg(q)|^2                       (plus mean |sg(r) - q|^2 with learning="gradient")

Masked codewords have entries in their own share only: they cannot leak into other channels. (There they are as wide as the vector,
and only averages of zeros keep the rest of them near zero.) Without residual layers this is ``PQ`` of unequal slices.
With ``dropout``, in training, that share of the items along the first axis of x keeps a number of layers drawn from 1 ... all, the first
one always (there: one draw for a whole batch). The rest is missing from values, losses and averages, and ``lengths`` of the codes say so.

Departures: codebooks start by k-means of all rows given to ``fit``; the sum is passed straight through once, so the encoder's gradient
is its decoder's (there it grows with the number of layers); the loss is a sum over layers, not a mean, and beta is 0.25, not 1.
Averages and revival follow ``parts/upkeep``.

Cost: (1 + L) K d multiply-adds a vector. Bits: (m + L) ceil(log2 K) a vector; (1 + L) K d floats shared.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Self

from torch import Tensor

from codeword.errors import CodewordError, Unsupported
from codeword.parts import gradients, stages
from codeword.parts.prefixes import truncated
from codeword.quantizer import Codes, Quantized


class MaskedRVQ(stages.Layered):
    """dim; masked: codebooks m of the first layer; layers: residual layers L after it; codebook_size: codewords of each of the m + L
    codebooks; learning: "ema" or "gradient" in a network; commitment: beta; dropout: share of the items that use fewer layers in training;
    revival: codewords below this fraction of their expected hits are moved onto data (0: never; None: 0.05 with averages, else 0);
    iterations: of k-means; seed: codebook number p starts from ``random.part_seed(seed, p)``."""

    def __init__(self, *, dim: int, masked: int = 3, layers: int = 5, codebook_size: int = 1024, learning: str = "ema",
                 commitment: float = 0.25, dropout: float = 1.0, revival: float | None = None, iterations: int = 25,
                 seed: int = 0) -> None:
        super().__init__()
        if not 1 <= masked <= dim or layers < 0 or not 0 <= dropout <= 1:
            raise CodewordError(f"masked_rvq got dim={dim}, masked={masked}, layers={layers} and dropout={dropout}; 1..dim masked "
                                "codebooks, at least 0 layers and a share of 0..1 are allowed")
        stages.check_arguments("masked_rvq", dim, masked + layers, codebook_size, iterations, learning, commitment, "straight_through")
        self.dim, self.masked, self.layers, self.codebook_size, self.learning = dim, masked, layers, codebook_size, learning
        self.commitment, self.dropout, self.revival, self.iterations, self.seed = commitment, dropout, revival, iterations, seed
        shares = [b - a for a, b in pairwise(j * dim // masked for j in range(masked + 1))]
        self._build((shares, *((dim,),) * layers), codebook_size, revival)

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, masked: int = 3, **options: Any) -> Self:
        """``masked`` codebooks and at least one residual layer, of 10 bits where those fit, else of the next of 8, 9, 7, 6, ... bits."""
        found = stages.whole_layers(bits * dim, 1, masked + 1)
        if not 1 <= masked <= dim or found is None:
            raise Unsupported(f"masked_rvq has no {masked} masked and further codebooks of 1..12 bits with exactly {bits:g} bits a "
                              f"dimension at dim={dim}")
        return cls(dim=dim, masked=masked, layers=found[0] - masked, codebook_size=found[1], **options)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Quantized:
        """As every quantizer's; in training ``dropout`` decides how many layers each item uses."""
        if not (self.training and self.dropout > 0 and self.layers and isinstance(x, Tensor) and x.ndim):
            return super().forward(x, mask=mask)
        used = gradients.drawn_lengths(x, 1 + self.layers, self.dropout)
        return self._forward_with(x, mask, lambda rows, keep: self._pass(rows, keep, used.reshape(-1), "straight_through"),
                                  used + (self.masked - 1))

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        return self._pass(rows, keep, None, "straight_through")

    def truncate(self, codes: Codes, bits: float) -> Codes:
        """The longest prefix of tokens within ``bits`` a dimension, channels without a token at zero; what is cut off becomes zero. The
        code keeps its shape: a file stores the zeros too, and ``bits`` counts them. Unsupported where no token fits."""
        return truncated(self, codes, bits, range(1, len(self.levels) + 1), "token")
