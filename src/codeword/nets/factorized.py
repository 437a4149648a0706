"""The heads of FQGAN (Bai et al. 2024): one encoder, an adapter for each of several codebooks, and a representation head for some.

    adapter m   features of the shared encoder -> latents x^m (b, dim / M, h, w); concatenated they are what ``FactorizedVQ`` slices
                "conv": residual blocks, norm, SiLU, 3 x 3 convolution
                "transformer": norm, positions, blocks over all places, norm, then the same convolution (the published one, six deep)
    head        f = the class token of [class, mlp(q^m) + positions] after a small transformer, g = frozen features of the same image;
                weight * InfoNCE(f, g) (``parts/alignment``), on the quantized slice, so that its gradient goes through the codes into the
                adapter and the encoder

Published targets are CLIP and DINO features. Here the caller passes the features; ``FeatureNet.pooled`` (``nets/features.py``) is at hand,
a substitute that was trained with labels and is to be named where numbers are shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codeword.errors import CodewordError, ShapeError
from codeword.nets.transformer import Transformer, linear
from codeword.nets.vit import to_grid
from codeword.nets.vqgan import ConvEncoder, ResidualBlock, level_widths, out_convolution
from codeword.parts.alignment import info_nce

ADAPTERS = ("conv", "transformer")


class FactorizedEncoder(nn.Module):
    """(b, channels, H, W) -> (b, dim, h, w): the levels of ``ConvEncoder``, then ``num_codebooks`` adapters of ``adapter_depth`` blocks,
    dim / num_codebooks channels each. image_size: of the square images, needed by transformers alone (their positions)."""

    def __init__(self, channels: int, dim: int, *, num_codebooks: int = 2, adapter: str = "conv", adapter_depth: int = 1,
                 adapter_heads: int = 4, image_size: int | None = None, width: int = 32, multipliers: Sequence[int] = (1, 2, 2),
                 blocks: int = 1, attention: bool = False) -> None:
        super().__init__()
        if not 1 <= num_codebooks <= dim or dim % num_codebooks or adapter not in ADAPTERS or not 0 <= adapter_depth <= 64 \
                or (adapter == "transformer" and image_size is None):
            raise CodewordError(f"FactorizedEncoder got dim={dim}, num_codebooks={num_codebooks}, adapter={adapter!r}, "
                                f"adapter_depth={adapter_depth}, image_size={image_size}; codebooks that divide dim, "
                                f"{' or '.join(ADAPTERS)}, depth 0..64, and for transformers an image_size are needed")
        self.channels, self.dim, self.num_codebooks = channels, dim, num_codebooks
        inner, each = level_widths(channels, dim, width, multipliers, blocks)[-1], dim // num_codebooks
        self.trunk = ConvEncoder(channels, dim, width=width, multipliers=multipliers, blocks=blocks, attention=attention)
        self.trunk.tail = nn.Sequential()
        self.factor = self.trunk.factor
        self.adapters = nn.ModuleList(
            ConvAdapter(inner, each, depth=adapter_depth) if adapter == "conv" else
            TransformerAdapter(inner, each, grid=(image_size or 0) // self.factor, depth=adapter_depth, heads=adapter_heads)
            for _ in range(num_codebooks))

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk.features(x)
        return torch.cat([adapter(features) for adapter in self.adapters], 1)


class ConvAdapter(nn.Module):
    """(b, width, h, w) -> (b, outputs, h, w)."""

    def __init__(self, width: int, outputs: int, *, depth: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(ResidualBlock(width, width) for _ in range(depth)), out_convolution(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TransformerAdapter(nn.Module):
    """(b, width, grid, grid) -> (b, outputs, grid, grid)."""

    def __init__(self, width: int, outputs: int, *, grid: int, depth: int = 1, heads: int = 4) -> None:
        super().__init__()
        if grid < 1:
            raise CodewordError(f"TransformerAdapter got grid={grid}; a positive integer is needed")
        self.grid, self.width = grid, width
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.positions = nn.Parameter(0.02 * torch.randn(1, grid * grid, width))
        self.transformer = Transformer(width=width, heads=heads, depth=depth)
        self.tail = out_convolution(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1:] != (self.width, self.grid, self.grid):
            raise ShapeError(f"TransformerAdapter got {tuple(x.shape)}; (b, {self.width}, {self.grid}, {self.grid}) is needed")
        tokens = self.transformer(self.norm(x.flatten(2).transpose(1, 2)) + self.positions)
        return self.tail(to_grid(tokens, self.grid))


class RepresentationHead(nn.Module):
    """dim: width of what the quantizer returns; part: which of ``num_codebooks`` slices learns; target_dim: width of the frozen features;
    grid: places a side; width, depth, heads: of the head, which only training needs; weight, temperature: of the loss (0.5 and 1 as
    published, which is weak: about log b - 1 at best)."""

    def __init__(self, *, dim: int, target_dim: int, grid: int, num_codebooks: int = 2, part: int = 0, width: int = 64, depth: int = 1,
                 heads: int = 4, weight: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__()
        if min(dim, target_dim, grid, num_codebooks) < 1 or dim % num_codebooks or not 0 <= part < num_codebooks or not weight >= 0:
            raise CodewordError(f"RepresentationHead got dim={dim}, target_dim={target_dim}, grid={grid}, num_codebooks={num_codebooks}, "
                                f"part={part}, weight={weight}; positive integers, codebooks that divide dim, one of their numbers and a "
                                "weight of at least 0 are needed")
        self.dim, self.target_dim, self.grid, self.weight, self.temperature = dim, target_dim, grid, weight, temperature
        self.each, self.part = dim // num_codebooks, part
        self.lift = nn.Sequential(linear(self.each, width), nn.GELU(), linear(width, width))
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, grid * grid, width))
        self.transformer = Transformer(width=width, heads=heads, depth=depth)
        self.out = linear(width, target_dim)

    def predict(self, values: Tensor) -> Tensor:
        """Quantized latents (b, grid, grid, dim) -> (b, target_dim)."""
        if values.ndim != 4 or values.shape[1:] != (self.grid, self.grid, self.dim):
            raise ShapeError(f"RepresentationHead got {tuple(values.shape)}; (b, {self.grid}, {self.grid}, {self.dim}) is needed")
        own = values[..., self.part * self.each:(self.part + 1) * self.each].flatten(1, 2)
        tokens = torch.cat((self.token.expand(len(own), -1, -1), self.lift(own) + self.positions), 1)
        return self.out(self.transformer(tokens)[:, 0])

    def forward(self, values: Tensor, targets: Tensor) -> Tensor:
        """weight * InfoNCE of ``values`` (as the quantizer returned them, straight-through) against ``targets`` (b, target_dim), which get
        no gradient. An empty batch has loss zero."""
        predicted = self.predict(values)
        if not len(predicted):
            return 0.0 * predicted.sum()
        return self.weight * info_nce(predicted, targets, temperature=self.temperature)
