"""Images to a variable number of tokens: one coarse token for an easy cell, four fine ones for another (DQ-VAE: Huang et al. 2023).

    coarse (b, dim, h, w), fine (b, dim, 2h, 2w) = encoder(x);   g (b, h, w) in {0, 1} = router
    tokens: the coarse latents of cells with g = 0, the fine ones of cells with g = 1, all through one quantizer
    z^ = g fine^ + (1 - g) repeat2x2(coarse^),   x^ = decoder(z^ + positions)
    loss = the quantizer's over those tokens + budget (E mean g - fraction)^2      (the second where the router learns)

The quantizer is any of the catalog: it sees one sequence of coarse and fine places with a mask, so that each coarse latent is one row
of its losses, averages and usage. (The published code repeats it 2 x 2 first and weighs it by 1/4 in the loss, but not in the averages of
its codebook, which lean to backgrounds.) Where a branch is not taken its latent enters z^ with gate zero and as it is, so the router's
gradient is what the other branch would change; the published one multiplies only what was taken.

A code is a sequence of tokens with positions (``dynamic_codes.py``), which cost what the gate map costs, h w bits an image, or less
when coded: ``code_bits`` counts both. Two grids only; the published three-grid variant is not here.

``fit`` is the bare training loop: Adam, cosine schedule, losses of ``nets/pixel_losses.py``. Another loop calls forward, adds ``out.loss``
to its own losses, and calls ``update(out)`` after the optimizer's step.

One file holds it all, as for ``ImageTokenizer``. Images are (b, channels, size, size), floats in [0, 1] or uint8.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from codeword import catalog
from codeword.errors import CodewordError, FormatError, NotFitted, ShapeError, Unsupported
from codeword.io import canonical, objects
from codeword.io.canonical import LIMITS, Limits
from codeword.io.tensors import read_tensors, write_tensors
from codeword.nets.dynamic import PositionalDecoder, TwoGridEncoder
from codeword.nets.pixel_losses import ImageLoss
from codeword.nets.router import Routed, budget_loss, make_router
from codeword.parts import training
from codeword.quantizer import Codes, Quantized, Quantizer, Report
from codeword.tokenizers.dynamic_codes import adaptive_bits, joined, pack, repeated, taken, unpack
from codeword.tokenizers.tokens import Layout, Tokens

KIND = "dynamic_tokenizer"
MAX_SIDE, MAX_WIDTH = 1 << 12, 4096
START_IMAGES = 512
"""Images that ``fit`` starts router and quantizer on."""
_CONFIG = {"attention": bool, "blocks": int, "budget": float, "channels": int, "fraction": float, "multipliers": list, "router": str,
           "seed": int, "size": int, "width": int}


class DynamicReconstruction(NamedTuple):
    """``values`` (b, channels, size, size), not clipped; ``quantized``: over (b, h w + 4 h w) places, masked; ``loss``: all that the model
    asks for beside the reconstruction; ``gates`` (b, h, w); ``stats``: detached, with "fine" the share of fine cells, "tokens" an image."""

    values: Tensor
    quantized: Quantized
    loss: Tensor
    gates: Tensor
    stats: dict[str, Tensor]


class DynamicTokenizer(nn.Module):
    """quantizer: any without side information, or a spec string (then ``dim`` wide); router: "entropy", "features" (learned) or
    "random"; fraction: share of fine cells it aims at; budget: weight of its loss; size: of the square images; width, multipliers, blocks,
    attention: of the networks, 2^(len(multipliers) - 1) pixels a side for a coarse token; seed: of the random router."""

    def __init__(self, *, quantizer: Quantizer | str, router: str = "entropy", fraction: float = 0.5, budget: float = 10.0,
                 channels: int = 3, size: int = 32, dim: int = 32, width: int = 32, multipliers: list[int] | tuple[int, ...] = (1, 2, 2, 2),
                 blocks: int = 1, attention: bool = False, seed: int = 0) -> None:
        super().__init__()
        multipliers = list(multipliers)
        if channels not in (1, 3) or not 1 <= size <= MAX_SIDE or not 2 <= len(multipliers) <= 8 or size % 2 ** (len(multipliers) - 1) \
                or not 0 <= budget < math.inf or not all(1 <= n <= MAX_WIDTH for n in (width, *multipliers)) or not 1 <= blocks <= 64:
            raise CodewordError(f"a dynamic tokenizer got channels={channels}, size={size}, multipliers={multipliers}, width={width}, "
                                f"blocks={blocks}, budget={budget}; 1 or 3 channels, 2..8 multipliers, 1..64 blocks, and a size that their "
                                "halvings divide, are needed")
        made = catalog.make(quantizer, dim) if isinstance(quantizer, str) else quantizer
        if made.side_count:
            raise Unsupported(f"{made.name} keeps {made.side_count} floats beside its indices; tokens are indices alone: "
                              "take another quantizer")
        self.channels, self.size, self.fraction, self.budget, self.seed = channels, size, float(fraction), float(budget), seed
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
    def start(self, images: Tensor) -> Report:
        """Fit the router's threshold, where it has one, and the quantizer on what the encoder says about ``images``."""
        x = self.pixels(images)
        self.router.fit(x)  # type: ignore[operator]
        latents, routed, _ = self._latents(x)
        if self.quantizer.learns:
            self.quantizer.fit(latents[taken(routed.gates)])
        return self.quantizer.report

    def forward(self, x: Tensor) -> DynamicReconstruction:
        """Images in [0, 1] (b, channels, size, size), b >= 0. Changes no state; in training a learned router throws dice."""
        latents, (gates, scores), grids = self._latents(x)
        quantized = self.quantizer(latents, mask=taken(gates))
        values = self.decoder(self._joined(quantized.values, gates, grids))
        loss, share = quantized.loss, gates.detach().sum() / max(1, gates.numel())
        stats = {**quantized.stats, "fine": share, "tokens": self.cells ** 2 * (1 + 3 * share)}
        if self.router.learned:
            asked = budget_loss(scores, self.fraction)
            loss, stats["budget"] = loss + self.budget * asked, asked.detach()
            stats["router"] = self.router.statistics(scores)  # type: ignore[operator]
        return DynamicReconstruction(values, quantized, loss, gates, stats)

    def update(self, out: DynamicReconstruction) -> Report:
        """Moves the threshold of a learned router and calls the quantizer's ``update``: after the optimizer's step, on every rank."""
        if self.router.learned:
            self.router.follow(out.stats["router"])  # type: ignore[operator]
        return self.quantizer.update(out.quantized)

    def fit(self, images: Tensor, *, steps: int, batch_size: int = 64, learning_rate: float = 1e-3, seed: int = 0,
            weights: Mapping[str, float] | None = None) -> list[dict[str, float]]:
        """``start``, then ``steps`` of Adam on ``images`` (n, channels, size, size); the rate rises over the first twentieth and falls by a
        cosine. ``weights``: of ``ImageLoss``, l2 by default. Returns the losses and the share of fine cells of each step."""
        if not len(images) or steps < 1 or batch_size < 1 or not 0 < learning_rate < math.inf:
            raise CodewordError(f"fit got {len(images)} images, steps={steps}, batch_size={batch_size}, learning_rate={learning_rate}; "
                                "positive numbers are needed")
        objective = ImageLoss(weights={"l2": 1.0} if weights is None else weights)
        if objective.likelihood:
            raise Unsupported("a dynamic tokenizer's decoder says pixels, no likelihood: logit_laplace needs twice its channels")
        self.train()
        objective.to(self.quantizer.device)
        history = []
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(seed)
            self.start(images[:max(1, min(len(images), START_IMAGES))])
            optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=learning_rate)
            for step, batch in enumerate(training.minibatches(len(images), batch_size, steps, seed)):
                factor = min((step + 1) / max(1.0, steps / 20), 0.5 + 0.5 * math.cos(math.pi * step / steps))
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * factor
                x = self.pixels(images[batch.to(images.device)])
                out = self(x)
                found = objective(out.values, x)
                optimizer.zero_grad()
                (found.total + out.loss).backward()
                optimizer.step()
                self.update(out)
                history.append({**{name: float(value) for name, value in found.terms.items()}, "model": float(out.loss.detach()),
                                "fine": float(out.stats["fine"])})
        self.eval()
        return history

    # ------------------------------------------------------------------ use

    @torch.no_grad()
    def encode(self, images: Tensor | np.ndarray) -> Tokens:
        """Tokens (b, n, positions), n the most that one of the images has; ``positions`` (b, n, 3), ``mask`` (b, n)."""
        x = self.pixels(images)
        latents, (gates, _), _ = self._inference(lambda: self._latents(x))
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
        if tokens.fingerprint != self.fingerprint:
            raise FormatError("fingerprint", f"these tokens were made by tokenizer {tokens.fingerprint}, not by {self.fingerprint}")
        if tokens.positions is None or tokens.mask is None:
            raise ShapeError("a dynamic tokenizer decodes tokens with positions and a mask")
        fine, indices = unpack(tokens.indices, tokens.positions, tokens.mask, self.cells)
        gates = fine.to(self.quantizer.device, torch.float32)
        keep = taken(gates)
        lengths = keep.to(torch.int32) * len(self.quantizer.levels)
        values = torch.as_tensor(self.quantizer.decode(Codes(indices.to(self.quantizer.device), lengths=lengths)))
        return self._inference(lambda: self.decoder(self._joined(values, gates, None))).float().clamp(0, 1)

    def code_bits(self, tokens: Tokens) -> dict[str, float]:
        """Bits an image, mean over ``tokens``: "tokens" at ceil(log2 level) a position; "gates": the map, one bit a cell; "gates_coded":
        the map by an adaptive binary coder that sees three neighbours, over all these images in order; "total": tokens and the cheaper
        map."""
        assert tokens.mask is not None and tokens.positions is not None
        fine, _ = unpack(tokens.indices, tokens.positions, tokens.mask, self.cells)
        count = max(1, len(fine))
        spent = float(tokens.mask.sum()) * tokens.layout.bits / count
        raw, coded = float(self.cells ** 2), adaptive_bits(fine) / count
        return {"tokens": spent, "gates": raw, "gates_coded": coded, "total": spent + min(raw, coded)}

    def pixels(self, images: Tensor | np.ndarray) -> Tensor:
        """(b, channels, size, size) images, checked, as float32 in [0, 1] on the tokenizer's device."""
        x = torch.as_tensor(images)
        if x.ndim != 4 or x.shape[1:] != (self.channels, self.size, self.size):
            raise ShapeError(f"images have shape {tuple(x.shape)}; (b, {self.channels}, {self.size}, {self.size}) is needed")
        if x.dtype == torch.uint8:
            return x.to(self.quantizer.device, torch.float32) / 255
        if not x.is_floating_point() or not bool(((x >= 0) & (x <= 1)).all()):
            raise ShapeError(f"images are {x.dtype}, or have values outside [0, 1]; uint8, or floats in [0, 1], are needed")
        return x.to(self.quantizer.device, torch.float32)

    # ------------------------------------------------------------------ identity and files

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments beside the quantizer (and ``dim``, which is its width)."""
        return {"attention": self.attention, "blocks": self.blocks, "budget": self.budget, "channels": self.channels,
                "fraction": self.fraction, "multipliers": self.multipliers, "router": self.router_kind, "seed": self.seed,
                "size": self.size, "width": self.width}

    @property
    def fingerprint(self) -> str:
        """16 hex digits over configuration, quantizer and all weights: tokens carry it."""
        state, header = self._parts()
        digests = {name: [str(t.dtype), list(t.shape), objects._digest(t)] for name, t in state.items()}
        text = canonical.encode({"config": self.config, "kind": KIND, "quantizer": header, "tensors": digests})
        return hashlib.sha256(text).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, durably and atomically. Same tokenizer, same bytes. NotFitted before ``start``, where it matters."""
        if self.router_kind == "entropy" and bool(self.router.threshold.isnan()):  # type: ignore[operator]
            raise NotFitted("an entropy router needs its threshold before it is saved; call start(images) first")
        state, header = self._parts()
        write_tensors(path, state, {"about": self.about, "config": self.config, "fingerprint": self.fingerprint, "kind": KIND,
                                    "quantizer": header})

    @classmethod
    def load(cls, path: str | Path, *, limits: Limits = LIMITS) -> Self:
        """Read a file written by ``save``, on the CPU, ready to use. Raises FormatError; never runs code from the file."""
        tensors, header = read_tensors(path, limits=limits)
        return cls.from_parts(tensors, header, str(path))

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: dict[str, Any], what: str) -> Self:
        """A tokenizer from tensors and header, believing nothing."""
        objects.check_kind(header, KIND, what)
        canonical.fields(header, f"header of {what}", {"about": dict, "config": dict, "fingerprint": str, "kind": str, "quantizer": dict})
        config = canonical.fields(header["config"], f"configuration of {what}", _CONFIG)
        own = {name.removeprefix("quantizer."): t for name, t in tensors.items() if name.startswith("quantizer.")}
        quantizer = objects.from_parts(own, header["quantizer"], f"quantizer in {what}")
        try:
            with torch.device("meta"):
                made = cls(quantizer=quantizer, **config)
        except Exception as error:  # a stranger's options: whatever the networks say to them is the file's fault
            raise FormatError("config", f"{what}: its options are refused: {str(error)[:200]}") from None
        rest = {name: t for name, t in tensors.items() if not name.startswith("quantizer.")}
        declared = {name: (t.dtype, tuple(t.shape)) for name, t in made.state_dict().items() if not name.startswith("quantizer.")}
        objects._check_declared(declared, rest, what)
        for name, tensor in rest.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise FormatError("value", f"tensor {name!r} of {what} has non-finite values")
        made.load_state_dict(rest, strict=False, assign=True)
        made._rebuild()
        made.about = header["about"]
        if not canonical.same_digest(made.fingerprint, header["fingerprint"]):
            raise FormatError("fingerprint", f"{what} does not have the fingerprint {header['fingerprint'][:16]!r} that it states")
        return made.eval()

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

    def _inference(self, call: Any) -> Any:
        """``call()`` in inference mode of all layers, which is then left as it was."""
        training = self.training
        self.eval()
        try:
            return call()
        finally:
            self.train(training)

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        own, header = objects.to_parts(self.quantizer)
        state = {name: t.detach().contiguous() for name, t in self.state_dict().items() if not name.startswith("quantizer.")}
        return {**state, **{f"quantizer.{name}": t for name, t in own.items()}}, header

    def _rebuild(self) -> None:
        self.decoder.rebuild()
        if self.router_kind == "random":
            self.router.draws = torch.zeros(2, self.cells, self.cells)
            self.router.rebuild()  # type: ignore[operator]
