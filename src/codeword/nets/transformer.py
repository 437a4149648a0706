"""A pre-norm transformer (Vaswani et al. 2017; norms first: Xiong et al. 2020), small enough for codebooks, images and priors alike.

    x <- x + Attention(norm(x)),   x <- x + W2 gelu(W1 norm(x)),   depth times; then a last norm

    attention of one head:  softmax(q k' / sqrt(width / heads)) v        (``scaled_dot_product_attention``: n x n is never stored)

``causal``: a token sees itself and what came before. ``rotary``: queries and keys are turned by angles that grow with their place
(Su et al. 2021), so that attention depends on distances; without it the block does not know places, and a permutation of the tokens
permutes the output: add positions to the input where they matter. ``mask`` (b, n), False for padding: nobody sees such a token but
itself, so nothing becomes NaN; what stands at its place in the output means nothing.
GELU is the tanh form. Matrices start as Xavier's uniform, biases at zero. Cost a block: n width (4 width + 2 hidden) + 2 n^2 width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeword.errors import CodewordError, ShapeError

M = TypeVar("M", bound=nn.Module)

EPS = 1e-6
BASE = 10000.0
"""Longest wavelength of the rotary angles over 2 pi."""


class Attention(nn.Module):
    """Multi-head self-attention over (b, n, width) -> the same shape; heads must divide width (by an even head width with rotary)."""

    def __init__(self, *, width: int, heads: int, causal: bool = False, rotary: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        if width < 1 or heads < 1 or width % heads or (rotary and width // heads % 2):
            raise CodewordError(f"Attention got width={width} and heads={heads}; a positive width that heads divide is needed, "
                                "with rotary into even widths")
        self.width, self.heads, self.causal, self.rotary, self.dropout = width, heads, causal, rotary, dropout
        self.to_qkv = linear(width, 3 * width)
        self.out = linear(width, width)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.to_qkv(x).reshape(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)   # (b, heads, n, each)
        if self.rotary:
            q, k = rotate_by_place(q), rotate_by_place(k)
        seen = None if mask is None else self._seen(mask)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=self.causal and seen is None,
                                               dropout_p=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).reshape(b, n, width))

    def _seen(self, mask: Tensor) -> Tensor:
        """bool (b, 1, n, n): which token (last axis) each token sees."""
        n = mask.shape[-1]
        itself = torch.eye(n, dtype=torch.bool, device=mask.device)
        seen = mask.to(torch.bool).unsqueeze(-2) | itself
        if self.causal:
            seen = seen & torch.ones(n, n, dtype=torch.bool, device=mask.device).tril()
        return seen.unsqueeze(1)


class Block(nn.Module):
    """Attention, then a two-layer perceptron of width ``hidden`` (default 4 width), each on normed input and added to it."""

    def __init__(self, *, width: int, heads: int, hidden: int | None = None, causal: bool = False, rotary: bool = False,
                 affine: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = 4 * width if hidden is None else hidden
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=EPS, elementwise_affine=affine) for _ in range(2))
        self.attention = Attention(width=width, heads=heads, causal=causal, rotary=rotary, dropout=dropout)
        self.mlp = nn.Sequential(linear(width, hidden), nn.GELU(approximate="tanh"), linear(hidden, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x), mask=mask))
        return x + self.drop(self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """``depth`` blocks and a last norm over (b, n, width). ``affine`` False: norms without weights of their own."""

    def __init__(self, *, width: int, heads: int, depth: int, hidden: int | None = None, causal: bool = False, rotary: bool = False,
                 affine: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        if depth < 0 or (hidden is not None and hidden < 1) or not 0 <= dropout < 1:
            raise CodewordError(f"Transformer got depth={depth}, hidden={hidden} and dropout={dropout}; depth >= 0, hidden >= 1 and "
                                "0 <= dropout < 1 are allowed")
        self.width = width
        self.blocks = nn.ModuleList(Block(width=width, heads=heads, hidden=hidden, causal=causal, rotary=rotary, affine=affine,
                                          dropout=dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=affine)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """``mask`` (b, n) bool, False for padding. ShapeError where shapes do not fit."""
        if x.ndim != 3 or x.shape[2] != self.width or (mask is not None and mask.shape != x.shape[:2]):
            raise ShapeError(f"Transformer got x {tuple(x.shape)} and mask {None if mask is None else tuple(mask.shape)}; "
                             f"(b, n, {self.width}) and (b, n) or None are needed")
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.norm(x)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts as Xavier's uniform and a zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def rotate_by_place(x: Tensor) -> Tensor:
    """Token i of (..., n, each), each even: the pair (x_j, x_{j + each/2}) turned by the angle i / BASE^(2j/each)."""
    n, half = x.shape[-2], x.shape[-1] // 2
    rates = BASE ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angle = torch.arange(n, dtype=torch.float32, device=x.device).unsqueeze(1) * rates
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def unstarted(make: Callable[[], M]) -> M:
    """The module that ``make`` builds, with all parameters zero and no random number drawn on the way: for modules that are started
    from a seed of their own."""
    place = torch.get_default_device()
    with torch.device("meta"):
        module = make()
    module = module.to_empty(device=place)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module
