"""VQBridge (Chang et al.: Scalable Training for Vector-Quantized Networks with 100% Codebook Utilization, ICLR 2026): a codebook made
of another one by a small transformer that mixes all of it.

    tokens = LN(compress(C in groups of p rows)) + places        (K/p, width)
    C^     = expand(transformer(tokens))                         (K/p, p d) -> (K, d);  no residual from C to C^

Whatever moves one row of C^ moves the weights that make all the others, and attention carries its gradient to every group of C.
Matrices start as Xavier's uniform, places small, and the last layer, ``expand``, as zero (the paper; all of C^ is then equal) or small.
Permuting whole groups of C permutes C^ where there are no places.
Departures, as the paper describes it rather than its code: groups of consecutive rows, not patches of C seen as an image (K need not be
a square); plain pre-norm blocks without affine norms, not blocks modulated by a constant; learned places on one axis.
Cost: 2 K d width + depth (K/p) (8 width^2 + 2 K/p width) multiply-adds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeword.errors import CodewordError, ShapeError
from codeword.nets.transformer import EPS, Transformer, linear


class Bridge(nn.Module):
    """C (codebook_size, dim) -> C^ of the same shape. group: p, a divisor of codebook_size; width, heads, depth: of the transformer, its
    perceptrons are 2 width wide; places: whether tokens know where they stand."""

    def __init__(self, *, codebook_size: int, dim: int, group: int, width: int = 128, heads: int = 4, depth: int = 2,
                 places: bool = True) -> None:
        super().__init__()
        if codebook_size < 1 or dim < 1 or not 1 <= group <= codebook_size or codebook_size % group:
            raise CodewordError(f"Bridge got codebook_size={codebook_size}, dim={dim} and group={group}; positive numbers and a group "
                                "that divides the codebook are needed")
        self.codebook_size, self.dim, self.group, self.width = codebook_size, dim, group, width
        self.compress = linear(group * dim, width)
        self.places = nn.Parameter(0.02 * torch.randn(codebook_size // group, width)) if places else None
        self.mix = Transformer(width=width, heads=heads, depth=depth, hidden=2 * width, affine=False)
        self.expand = linear(width, group * dim)
        nn.init.zeros_(self.expand.weight)

    def forward(self, codebook: Tensor) -> Tensor:
        if codebook.shape != (self.codebook_size, self.dim):
            raise ShapeError(f"Bridge got {tuple(codebook.shape)}; ({self.codebook_size}, {self.dim}) is needed")
        tokens = self.compress(codebook.reshape(-1, self.group * self.dim))
        tokens = F.layer_norm(tokens, (self.width,), eps=EPS)
        tokens = tokens if self.places is None else tokens + self.places
        return self.expand(self.mix(tokens.unsqueeze(0))[0]).reshape(self.codebook_size, self.dim)
