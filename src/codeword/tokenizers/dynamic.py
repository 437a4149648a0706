"""Images to a variable number of tokens: one coarse token for an easy cell, four fine ones for another (DQ-VAE: Huang et al. 2023).

    coarse (b, dim, h, w), fine (b, dim, 2h, 2w) = encoder(x);   g (b, h, w) in {0, 1} = router
    tokens: the coarse latents of cells with g = 0, the fine ones of cells with g = 1, all through one quantizer
    z^ = g fine^ + (1 - g) repeat2x2(coarse^),   x^ = decoder(z^ + positions)
    loss = the quantizer's over those tokens        (a learned router keeps its budget by itself: nets/router.py)

The quantizer is any of the catalog: it sees one sequence of coarse and fine places with a mask, so that each coarse latent is one row
of its losses, averages and usage. (The published code repeats it 2 x 2 first and weighs it by 1/4 in the loss, but not in the averages of
its codebook, which lean to backgrounds.) Where a branch is not taken its latent enters z^ with gate zero and as it is, so the router's
gradient is what the other branch would change; the published one multiplies only what was taken.

A code is a sequence of tokens with positions (``dynamic_codes.py``), which cost what the gate map costs, h w bits an image, or less
when coded: ``code_bits`` counts both. Two grids only; the published three-grid variant is not here.

``train.py`` trains it, as it trains the others: forward, ``out.loss`` beside the image loss, ``update(out)`` after the optimizer's
step. Identity and file: ``frame.py``. Images are (b, channels, size, size), floats in [0, 1] or uint8.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codeword.errors import CodewordError, NotFitted, ShapeError
from codeword.nets.dynamic import PositionalDecoder, TwoGridEncoder
from codeword.nets.router import Routed, make_router
from codeword.quantizer import Codes, Quantized, Quantizer, Report
from codeword.tokenizers import networks
from codeword.tokenizers.dynamic_codes import adaptive_bits, joined, pack, repeated, taken, unpack
from codeword.tokenizers.frame import TrainedTokenizer, token_quantizer
from codeword.tokenizers.tokens import Layout, Tokens

MAX_SIDE, MAX_WIDTH = 1 << 12, 4096


class DynamicReconstruction(NamedTuple):
    """``values`` (b, channels, size, size), not clipped; ``quantized``: over (b, h w + 4 h w) places, masked; ``loss``: all that the model
    asks for beside the reconstruction; ``gates`` (b, h, w); ``stats``: detached, with "fine" the share of fine cells, "tokens" an image."""

    values: Tensor
    quantized: Quantized
    loss: Tensor
    gates: Tensor
    stats: dict[str, Tensor]


class DynamicTokenizer(TrainedTokenizer):
    """quantizer: any without side information, or a spec string (then ``dim`` wide); router: "entropy", "learned" or
    "random"; fraction: share of fine cells it aims at; size: of the square images; width, multipliers, blocks,
    attention: of the networks, 2^(len(multipliers) - 1) pixels a side for a coarse token; seed: of the random router."""

    kind = "dynamic_tokenizer"
    fields: ClassVar = {"attention": bool, "blocks": int, "channels": int, "fraction": float, "multipliers": list, "router": str,
                        "seed": int, "size": int, "width": int}

    def __init__(self, *, quantizer: Quantizer | str, router: str = "entropy", fraction: float = 0.5,
                 channels: int = 3, size: int = 32, dim: int = 32, width: int = 32, multipliers: list[int] | tuple[int, ...] = (1, 2, 2, 2),
                 blocks: int = 1, attention: bool = False, seed: int = 0) -> None:
        super().__init__()
        multipliers = list(multipliers)
        if channels not in (1, 3) or not 1 <= size <= MAX_SIDE or not 2 <= len(multipliers) <= 8 or size % 2 ** (len(multipliers) - 1) \
                or not all(1 <= n <= MAX_WIDTH for n in (width, *multipliers)) or not 1 <= blocks <= 64:
            raise CodewordError(f"a dynamic tokenizer got channels={channels}, size={size}, multipliers={multipliers}, width={width}, "
                                f"blocks={blocks}; 1 or 3 channels, 2..8 multipliers, 1..64 blocks, and a size that their "
                                "halvings divide, are needed")
        made = token_quantizer(quantizer, dim)
        self.channels, self.size, self.fraction, self.seed = channels, size, float(fraction), seed
        self.router_kind, self.width, self.multipliers, self.blocks, self.attention = router, width, multipliers, blocks, attention
        self.factor = 2 ** (len(multipliers) - 1)
        self.cells = size // self.factor
        networks: dict[str, Any] = {"width": width, "blocks": blocks, "attention": attention}
        self.encoder = TwoGridEncoder(channels, made.dim, multipliers=multipliers, **networks)
        self.quantizer = made
        self.decoder = PositionalDecoder(channels, made.dim, grid=2 * self.cells, multipliers=multipliers[:-1], **networks)
        # Last, so that tokenizers with different routers start from the same encoder and decoder.
        self.router = make_router(router, dim=made.dim, cell=self.factor, cells=self.cells, fraction=self.fraction, seed=seed)
        self.about: dict[str, Any] = {}

    # ------------------------------------------------------------------ training

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Fit the router's threshold, where images alone decide it."""
        self.router.fit(images)  # type: ignore[operator]

    def rows(self, x: Tensor) -> Tensor:
        """Latents (n, dim) of the tokens that the router wants of pixels in [0, 1]."""
        latents, routed, _ = self._latents(x)
        return latents[taken(routed.gates)]

    def forward(self, x: Tensor) -> DynamicReconstruction:
        """Images in [0, 1] (b, channels, size, size), b >= 0. Changes no state; in training a learned router throws dice."""
        latents, (gates, scores), grids = self._latents(x)
        quantized = self.quantizer(latents, mask=taken(gates))
        values = self.decoder(self._joined(quantized.values, gates, grids))
        share = gates.detach().sum() / max(1, gates.numel())
        stats = {**quantized.stats, "fine": share, "tokens": self.cells ** 2 * (1 + 3 * share)}
        if self.router.learned:
            stats["router"] = self.router.statistics(scores)  # type: ignore[operator]
        return DynamicReconstruction(values, quantized, quantized.loss, gates, stats)

    def update(self, out: DynamicReconstruction) -> Report:
        """Moves the threshold of a learned router and calls the quantizer's ``update``: after the optimizer's step, on every rank."""
        if self.router.learned:
            self.router.follow(out.stats["router"])  # type: ignore[operator]
        return self.quantizer.update(out.quantized)

    # ------------------------------------------------------------------ use

    @torch.no_grad()
    def encode(self, images: Tensor | np.ndarray) -> Tokens:
        """Tokens (b, n, positions), n the most that one of the images has; ``positions`` (b, n, 3), ``mask`` (b, n)."""
        x = self.pixels(images)
        latents, (gates, _), _ = self._inference(self._latents, x)
        keep = taken(gates)
        indices = torch.zeros(*keep.shape, len(self.quantizer.levels), dtype=torch.int64, device=keep.device)
        indices[keep] = torch.as_tensor(self.quantizer.encode(latents[keep].float()).indices).long()
        packed, positions, mask = pack(gates > 0, indices.to(self.quantizer.index_dtype))
        layout = Layout("image", tuple(self.quantizer.levels), (), (self.channels, self.size, self.size))
        return Tokens(packed, positions, mask, layout, self.fingerprint)

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Images (b, channels, size, size), float32 in [0, 1], of a batch or, without its first axis, of one image. FormatError
        ("fingerprint") for tokens of another tokenizer, ShapeError where they do not cover every cell exactly once."""
        if tokens.indices.ndim == 2:
            return self.decode(joined([tokens]))[0]
        self._check_maker(tokens)
        if tokens.positions is None or tokens.mask is None:
            raise ShapeError("a dynamic tokenizer decodes tokens with positions and a mask")
        fine, indices = unpack(tokens.indices, tokens.positions, tokens.mask, self.cells)
        gates = fine.to(self.quantizer.device, torch.float32)
        keep = taken(gates)
        lengths = keep.to(torch.int32) * len(self.quantizer.levels)
        values = torch.as_tensor(self.quantizer.decode(Codes(indices.to(self.quantizer.device), lengths=lengths)))
        return self._inference(lambda v: self.decoder(self._joined(v, gates, None)), values).float().clamp(0, 1)

    def gates(self, tokens: Tokens) -> Tensor:
        """bool (b, cells, cells): which cells of a batch of tokens are fine."""
        if tokens.mask is None or tokens.positions is None:
            raise ShapeError("gates needs a batch of tokens with positions and a mask")
        return unpack(tokens.indices, tokens.positions, tokens.mask, self.cells)[0]

    def code_bits(self, tokens: Tokens) -> dict[str, float]:
        """Bits an image, mean over ``tokens``: "tokens" at ceil(log2 level) a position; "gates": the map, one bit a cell; "gates_coded":
        the map by an adaptive binary coder that sees three neighbours, over all these images in order; "total": tokens and the cheaper
        map."""
        fine = self.gates(tokens)
        assert tokens.mask is not None
        count = max(1, len(fine))
        spent = float(tokens.mask.sum()) * tokens.layout.bits / count
        raw, coded = float(self.cells ** 2), adaptive_bits(fine) / count
        return {"tokens": spent, "gates": raw, "gates_coded": coded, "total": spent + min(raw, coded)}

    @property
    def tokens_per_image(self) -> float:
        """Expected: cells^2 (1 + 3 fraction)."""
        return self.cells ** 2 * (1 + 3 * self.fraction)

    @property
    def bits_per_pixel(self) -> float:
        """Expected, with one bit a cell for the map of them."""
        return (self.tokens_per_image * sum(self.quantizer.widths) + self.cells ** 2) / self.size ** 2

    def pixels(self, images: Tensor | np.ndarray) -> Tensor:
        """(b, channels, size, size) images, checked, as float32 in [0, 1] on the tokenizer's device."""
        x = super().pixels(images)
        if x.shape[2:] != (self.size, self.size):
            raise ShapeError(f"images have shape {tuple(x.shape)}; (b, {self.channels}, {self.size}, {self.size}) is needed")
        return x

    @property
    def following(self) -> tuple[str, ...]:
        return ("router.threshold",) if self.router.learned else ()

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments beside the quantizer (and ``dim``, which is its width)."""
        return {"attention": self.attention, "blocks": self.blocks, "channels": self.channels,
                "fraction": self.fraction, "multipliers": self.multipliers, "router": self.router_kind, "seed": self.seed,
                "size": self.size, "width": self.width}

    @property
    def network(self) -> str:
        """As ``networks.parse`` reads it."""
        return networks.spell("dynamic", {key: self.config[key] for key in networks.NETWORKS["dynamic"].defaults})

    # ------------------------------------------------------------------ inside

    def _latents(self, x: Tensor) -> tuple[Tensor, Routed, tuple[Tensor, Tensor]]:
        """Rows of both grids (b, h w + 4 h w, dim), gates and scores (b, h, w), and the grids themselves."""
        if x.ndim != 4 or x.shape[1:] != (self.channels, self.size, self.size):
            raise ShapeError(f"images have shape {tuple(x.shape)}; (b, {self.channels}, {self.size}, {self.size}) is needed")
        coarse, fine = self.encoder(x)
        rows = torch.cat((coarse.flatten(2), fine.flatten(2)), 2).transpose(1, 2)
        return rows, self.router(x, coarse, fine), (coarse, fine)

    def _joined(self, values: Tensor, gates: Tensor, grids: tuple[Tensor, Tensor] | None) -> Tensor:
        """z^ (b, dim, 2h, 2w) of quantized rows. ``grids``: latents that stand for what was not quantized, for the router's gradient."""
        n = self.cells
        coarse, fine = (part.transpose(1, 2).reshape(-1, values.shape[2], side, side)
                        for part, side in zip(values.split((n * n, 4 * n * n), 1), (n, 2 * n)))
        gate = gates.unsqueeze(1)
        if grids is not None and gates.requires_grad:
            coarse = torch.where(gate > 0, grids[0].detach().to(coarse.dtype), coarse)
            fine = torch.where(repeated(gate) > 0, fine, grids[1].detach().to(fine.dtype))
        gate = gate.to(values.dtype)
        return repeated((1 - gate) * coarse) + repeated(gate) * fine

    def _check_complete(self) -> None:
        if self.router_kind == "entropy" and bool(self.router.threshold.isnan()):  # type: ignore[operator]
            raise NotFitted("an entropy router needs its threshold before it is saved; call prepare(images) first")

    def _rebuild(self) -> None:
        self.decoder.rebuild()
        if self.router_kind == "random":
            self.router.draws = torch.zeros(2, self.cells, self.cells)
            self.router.rebuild()  # type: ignore[operator]
