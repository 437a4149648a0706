"""The convolutional encoder and decoder of image tokenizers, after VQGAN (Esser, Rombach, Ommer 2021), at widths that two cores can train.

    encoder   3 x 3 convolution to width m_1; at each level i ``blocks`` residual blocks of width m_i, then a halving (not after the
              last); a middle; norm, SiLU, 3 x 3 convolution to dim
    decoder   the mirror: 3 x 3 convolution, a middle, levels from the last to the first with doublings between, norm, SiLU,
              convolution to pixels
    block     x + conv(silu(norm(conv(silu(norm(x))))))                 (1 x 1 convolution beside it where the width changes)
    middle    block, [attention over all places,] block

With widths ``width * multipliers`` and L of them, an image (b, channels, H, W) becomes (b, dim, H/f, W/f), f = 2^(L-1). Halving is a
3 x 3 convolution of stride 2, doubling repeats each value 2 x 2 and convolves. Norms are over groups of at least four channels, so any
width works and nothing depends on the batch.

Departures from the published network: as many blocks a level in the decoder as in the encoder (there: one more); no attention inside
levels, only in the middle and only where asked; the second convolution of each block starts at zero, so a block starts as its skip.

Cost: about 18 width^2 (2 blocks + 1) H W multiply-adds an image for the first level, which usually dominates: 4 times as much at twice
the width. Images are floats in [0, 1]; the decoder's output is not clipped. Both work on ``channels_last`` tensors, faster on CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from codeword.errors import CodewordError, ShapeError
from codeword.nets.transformer import Attention

MOST_LEVELS = 8


class ConvEncoder(nn.Module):
    """(b, channels, H, W) -> (b, dim, H/f, W/f), f = ``factor`` = 2^(len(multipliers) - 1)."""

    def __init__(self, channels: int, dim: int, *, width: int = 32, multipliers: Sequence[int] = (1, 2, 2), blocks: int = 1,
                 attention: bool = False) -> None:
        super().__init__()
        widths = level_widths(channels, dim, width, multipliers, blocks)
        self.channels, self.dim, self.factor = channels, dim, 2 ** (len(widths) - 1)
        self.head = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(level(a, b, blocks) for a, b in zip((widths[0], *widths[:-1]), widths))
        self.halvings = nn.ModuleList(nn.Conv2d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.middle = middle(widths[-1], attention)
        self.tail = out_convolution(widths[-1], dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """(b, last width, H/f, W/f): what the last norm and convolution see."""
        check_images(x, self.channels, self.factor, "ConvEncoder")
        x = self.head(x)
        for i, part in enumerate(self.levels):
            x = part(x)
            if i < len(self.halvings):
                x = self.halvings[i](x)
        return self.middle(x)


class ConvDecoder(nn.Module):
    """(b, dim, h, w) -> (b, channels, f h, f w), the mirror of ``ConvEncoder`` with the same arguments."""

    def __init__(self, channels: int, dim: int, *, width: int = 32, multipliers: Sequence[int] = (1, 2, 2), blocks: int = 1,
                 attention: bool = False) -> None:
        super().__init__()
        widths = level_widths(channels, dim, width, multipliers, blocks)[::-1]
        self.channels, self.dim, self.factor = channels, dim, 2 ** (len(widths) - 1)
        self.head = nn.Conv2d(dim, widths[0], 3, padding=1)
        self.middle = middle(widths[0], attention)
        self.levels = nn.ModuleList(level(a, b, blocks) for a, b in zip((widths[0], *widths[:-1]), widths))
        self.doublings = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in widths[:-1])
        self.tail = out_convolution(widths[-1], channels)

    def forward(self, z: Tensor) -> Tensor:
        if z.ndim != 4 or z.shape[1] != self.dim:
            raise ShapeError(f"ConvDecoder got {tuple(z.shape)}; (b, {self.dim}, h, w) is needed")
        x = self.middle(self.head(z))
        for i, part in enumerate(self.levels):
            x = part(x)
            if i < len(self.doublings):
                x = self.doublings[i](F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.tail(x)

    @property
    def last(self) -> nn.Parameter:
        """The weight of the last convolution: where an adversary's gradient is weighed against the reconstruction's."""
        return self.tail[-1].weight  # type: ignore[return-value]


class ResidualBlock(nn.Module):
    """Two normed 3 x 3 convolutions, added to the input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = group_norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class PlaceAttention(nn.Module):
    """One head of attention over the places of (b, width, h, w), added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.attention = Attention(width=width, heads=1)

    def forward(self, x: Tensor) -> Tensor:
        b, width, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)                                # (b, h w, width)
        return x + self.attention(tokens).transpose(1, 2).reshape(b, width, h, w)


def level(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks)))


def middle(width: int, attention: bool) -> nn.Sequential:
    between = [PlaceAttention(width)] if attention else []
    return nn.Sequential(ResidualBlock(width, width), *between, ResidualBlock(width, width))


def out_convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(group_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))


def group_norm(width: int) -> nn.GroupNorm:
    """The most groups up to 32 that divide ``width`` and have four channels or more; one group where there are none."""
    groups = max((g for g in range(1, 33) if width % g == 0 and width // g >= 4), default=1)
    return nn.GroupNorm(groups, width, eps=1e-6)


def level_widths(channels: int, dim: int, width: int, multipliers: Sequence[int], blocks: int) -> list[int]:
    """Width of each level; CodewordError for arguments that make no network."""
    factors = list(multipliers)
    if min(channels, dim, width, blocks, *factors, 1) < 1 or not 1 <= len(factors) <= MOST_LEVELS:
        raise CodewordError(f"a convolutional network got channels={channels}, dim={dim}, width={width}, multipliers={factors}, "
                            f"blocks={blocks}; positive integers and 1..{MOST_LEVELS} multipliers are needed")
    return [width * factor for factor in factors]


def check_images(x: Tensor, channels: int, factor: int, what: str) -> None:
    """ShapeError where ``x`` is no (b, channels, H, W) with sides that ``factor`` divides."""
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % factor or x.shape[3] % factor or not x.shape[2] * x.shape[3]:
        raise ShapeError(f"{what} got {tuple(x.shape)}; (b, {channels}, H, W) with sides that {factor} divides is needed")
