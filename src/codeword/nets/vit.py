"""The ViT encoder and decoder of image tokenizers, after ViT-VQGAN (Yu et al. 2022), stage 1.

    encoder   tokens = patches W + positions;  blocks (norms first);  norm;  W2 tanh(W1 t)      (b, channels, H, W) -> (b, dim, h, w)
    decoder   tokens = z W + positions;        blocks;                norm;  W2 tanh(W1 t), laid out as patch x patch pixels

``image_size`` = patch * grid, one token a patch; positions are learned, so another image size is another network. The tanh stands in
the two-layer heads only; blocks use GELU (an unofficial release has tanh everywhere). The published head is two layers back to the
width and then a linear map to the look-up width or to pixels; two linear maps in a row are one, so here the second layer ends there.

Cost: grid^2 (12 width^2 + 2 grid^2 width) multiply-adds a block and image. Published sizes: depth 8, heads 8, width 512 (Small);
12, 12, 768 (Base); 32, 16, 1280 (Large), with patch 8 on 256 x 256.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codeword.errors import CodewordError, ShapeError
from codeword.nets.transformer import Transformer, linear


class ViTEncoder(nn.Module):
    """(b, channels, image_size, image_size) -> (b, dim, grid, grid), grid = image_size / patch."""

    def __init__(self, channels: int, dim: int, *, image_size: int, patch: int, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.grid = grid_side(channels, dim, image_size, patch)
        self.channels, self.dim, self.image_size, self.factor = channels, dim, image_size, patch
        self.patches = linear(channels * patch * patch, width)
        self.positions = positions(self.grid, width)
        self.transformer = Transformer(width=width, heads=heads, depth=depth)
        self.head = tanh_head(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1:] != (self.channels, self.image_size, self.image_size):
            raise ShapeError(f"ViTEncoder got {tuple(x.shape)}; (b, {self.channels}, {self.image_size}, {self.image_size}) is needed")
        tokens = self.transformer(self.patches(to_patches(x, self.factor)) + self.positions)
        return to_grid(self.head(tokens), self.grid)


class ViTDecoder(nn.Module):
    """(b, dim, grid, grid) -> (b, channels, image_size, image_size)."""

    def __init__(self, channels: int, dim: int, *, image_size: int, patch: int, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.grid = grid_side(channels, dim, image_size, patch)
        self.channels, self.dim, self.image_size, self.factor = channels, dim, image_size, patch
        self.lift = linear(dim, width)
        self.positions = positions(self.grid, width)
        self.transformer = Transformer(width=width, heads=heads, depth=depth)
        self.head = tanh_head(width, channels * patch * patch)

    def forward(self, z: Tensor) -> Tensor:
        if z.ndim != 4 or z.shape[1:] != (self.dim, self.grid, self.grid):
            raise ShapeError(f"ViTDecoder got {tuple(z.shape)}; (b, {self.dim}, {self.grid}, {self.grid}) is needed")
        tokens = self.transformer(self.lift(z.flatten(2).transpose(1, 2)) + self.positions)
        return from_patches(self.head(tokens), self.channels, self.factor, self.grid)

    @property
    def last(self) -> nn.Parameter:
        """The weight of the pixel projection: where an adversary's gradient is weighed against the reconstruction's."""
        return self.head[-1].weight  # type: ignore[return-value]


def to_patches(x: Tensor, patch: int) -> Tensor:
    """(b, c, gh p, gw p) -> (b, gh gw, c p p), patches in raster order."""
    b, c, height, width = x.shape
    x = x.reshape(b, c, height // patch, patch, width // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b, (height // patch) * (width // patch), c * patch * patch)


def from_patches(tokens: Tensor, channels: int, patch: int, grid: int) -> Tensor:
    """Inverse of ``to_patches`` on a square grid."""
    x = tokens.reshape(-1, grid, grid, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, channels, grid * patch, grid * patch)


def to_grid(tokens: Tensor, grid: int) -> Tensor:
    """(b, grid^2, d) -> (b, d, grid, grid)."""
    return tokens.transpose(1, 2).reshape(-1, tokens.shape[2], grid, grid)


def positions(grid: int, width: int) -> nn.Parameter:
    """(1, grid^2, width), small random."""
    return nn.Parameter(0.02 * torch.randn(1, grid * grid, width))


def tanh_head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(linear(width, 4 * width), nn.Tanh(), linear(4 * width, outputs))


def grid_side(channels: int, dim: int, image_size: int, patch: int) -> int:
    if min(channels, dim, image_size, patch) < 1 or image_size % patch:
        raise CodewordError(f"a ViT got channels={channels}, dim={dim}, image_size={image_size}, patch={patch}; positive integers, and a "
                            "patch that divides image_size, are needed")
    return image_size // patch
