"""The networks of dynamic-granularity tokenizers (DQ-VAE: Huang et al. 2023): two grids of latents out of one encoder, and a decoder that
is told where it is.

    encoder   the levels of ``nets/vqgan.py``; the last but one gives the fine grid, the last the coarse one, each through a middle,
              norm, SiLU and convolution of its own:  (b, channels, H, W) -> coarse (b, dim, h, w), fine (b, dim, 2h, 2w), h = H / 2^(L-1)
    decoder   z (b, dim, 2h, 2w) + W [sin, cos of (2^k pi y, 2^k pi x), k < FREQUENCIES] + learned positions, then ``ConvDecoder``

The decoder sees the same vector four times where a cell is coarse, so without positions it could not tell its quarters apart. Positions
are learned for one image size. The fine grid costs no more than the coarse branch's own last level does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codeword.errors import CodewordError, ShapeError
from codeword.nets.vqgan import ConvDecoder, check_images, level, level_widths, middle, out_convolution

FREQUENCIES = 4


class TwoGridEncoder(nn.Module):
    """Two latents grids of one image; at least two multipliers."""

    def __init__(self, channels: int, dim: int, *, width: int = 32, multipliers: Sequence[int] = (1, 2, 2, 2), blocks: int = 1,
                 attention: bool = False) -> None:
        super().__init__()
        widths = level_widths(channels, dim, width, multipliers, blocks)
        if len(widths) < 2:
            raise CodewordError(f"TwoGridEncoder got multipliers={list(multipliers)}; two or more are needed, for a fine and a coarse grid")
        self.channels, self.dim, self.factor = channels, dim, 2 ** (len(widths) - 1)
        self.head = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(level(a, b, blocks) for a, b in zip((widths[0], *widths[:-1]), widths))
        self.halvings = nn.ModuleList(nn.Conv2d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.fine = nn.Sequential(middle(widths[-2], attention), out_convolution(widths[-2], dim))
        self.coarse = nn.Sequential(middle(widths[-1], attention), out_convolution(widths[-1], dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(coarse, fine); ``factor`` pixels a side for a coarse latent, half as many for a fine one."""
        check_images(x, self.channels, self.factor, "TwoGridEncoder")
        x = self.head(x)
        for part, halving in zip(self.levels, self.halvings):
            inner = part(x)
            x = halving(inner)
        return self.coarse(self.levels[-1](x)), self.fine(inner)


class PositionalDecoder(nn.Module):
    """(b, dim, grid, grid) -> (b, channels, H, W), H = grid * 2^(len(multipliers) - 1)."""

    def __init__(self, channels: int, dim: int, *, grid: int, width: int = 32, multipliers: Sequence[int] = (1, 2, 2), blocks: int = 1,
                 attention: bool = False) -> None:
        super().__init__()
        if grid < 1:
            raise CodewordError(f"PositionalDecoder got grid={grid}; a positive integer is needed")
        self.grid = grid
        self.body = ConvDecoder(channels, dim, width=width, multipliers=multipliers, blocks=blocks, attention=attention)
        self.places = nn.Conv2d(4 * FREQUENCIES, dim, 1)
        self.learned = nn.Parameter(torch.zeros(1, dim, grid, grid))
        self.waves: Tensor
        self.register_buffer("waves", fourier_features(grid), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        if z.ndim != 4 or z.shape[2:] != (self.grid, self.grid):
            raise ShapeError(f"PositionalDecoder got {tuple(z.shape)}; (b, {self.body.dim}, {self.grid}, {self.grid}) is needed")
        return self.body(z + self.places(self.waves) + self.learned)

    def rebuild(self) -> None:
        """What is not saved."""
        self.waves = fourier_features(self.grid).to(self.learned.device)

    @property
    def last(self) -> nn.Parameter:
        """See ``ConvDecoder.last``."""
        return self.body.last


def fourier_features(grid: int) -> Tensor:
    """(1, 4 FREQUENCIES, grid, grid): sines and cosines of both coordinates in [-1, 1] at doubling frequencies."""
    at = (2 * torch.arange(grid, dtype=torch.float32) + 1) / grid - 1
    angles = math.pi * 2.0 ** torch.arange(FREQUENCIES, dtype=torch.float32).view(-1, 1) * at          # (F, grid)
    rows = angles.unsqueeze(2).expand(-1, grid, grid)
    columns = angles.unsqueeze(1).expand(-1, grid, grid)
    return torch.cat((rows.sin(), rows.cos(), columns.sin(), columns.cos())).unsqueeze(0)
