"""Layers of codebooks, each coding what the layers before it left over, where a layer may cut the vector into spans of channels.

    r_0 = x,   r_l = r_{l-1} - q_l,   q_l = [c^{l,1}_{i_1} ... c^{l,G}_{i_G}],   i_g = argmin_k |r_{l-1}^g - c^{l,g}_k|^2,   x^ = sum_l q_l

One loop for group-residual (every layer is cut alike), masked-channel residual (the first layer only) and plain residual codes (none).
``codebooks`` is (L, K, d): a layer's codebooks stand side by side, ``widths[l]`` columns each, so that a codeword has no entries outside
of its span and no codebook can leak into another's channels. A code has a position for each codebook, layer after layer.

A prefix of a code is a coarser code, cut at any position: what is missing is zero. The next layer sees r_l with q_l detached, so every
layer's commitment term reaches the encoder, and an output passed straight through once, on the sum, gives it its decoder's gradient once.
A row may leave out its last layers in training: they are missing from its value, losses and averages, and its indices there are 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from codeword import ops
from codeword.errors import CodewordError, FormatError
from codeword.parts import arrays, gradients, losses, random
from codeword.parts.kmeans import kmeans
from codeword.parts.upkeep import Upkeep
from codeword.quantizer import Quantized, Quantizer, Report

Widths = Sequence[Sequence[int]]
"""Columns of each codebook of each layer; each layer's sum to d."""
MOST_POSITIONS = 1 << 10


def check_arguments(name: str, dim: int, positions: int, codebook_size: int, iterations: int, learning: str,
                    commitment: float, estimator: str) -> None:
    """CodewordError where there would be no such codebooks."""
    if not 1 <= positions <= MOST_POSITIONS:
        raise CodewordError(f"{name} got {positions} codebooks; 1..{MOST_POSITIONS} codebooks are allowed")
    if dim < 1 or not 2 <= codebook_size <= 1 << 16 or iterations < 1:
        raise CodewordError(f"{name} got dim={dim}, codebook_size={codebook_size} and iterations={iterations}; at least 1, 2..65536 and at "
                            "least 1 are allowed")
    if learning not in ("gradient", "ema") or not commitment >= 0:
        raise CodewordError(f"{name} got learning={learning!r}, commitment={commitment}; 'gradient' or 'ema', and at least 0, are allowed")
    gradients.check(name, estimator, gradients.PAIRS)


def learn(codebooks: Tensor, widths: Widths, rows: Tensor, *, iterations: int, seed: int, weights: Tensor | None) -> int:
    """k-means of every span of every layer of what the layers before leave of ``rows`` (n, d), written into ``codebooks``; position p
    starts from ``random.part_seed(seed, p)``. Returns the number of repaired clusters."""
    repaired, position = 0, 0
    for book, cuts in zip(codebooks, widths, strict=True):
        for part, own in zip(rows.split(list(cuts), dim=1), book.split(list(cuts), dim=1), strict=True):
            result = kmeans(part.contiguous(), len(book), iterations=iterations, seed=random.part_seed(seed, position), weights=weights,
                            start="cooled")
            own.copy_(result.centroids)
            repaired, position = repaired + result.repaired, position + 1
        rows = rows - _values(book, cuts, _nearest(book, cuts, rows))
    return repaired


def encode(codebooks: Tensor, widths: Widths, rows: Tensor) -> Tensor:
    """int64 (n, positions)."""
    found = []
    for book, cuts in zip(codebooks, widths, strict=True):
        found.append(_nearest(book, cuts, rows))
        rows = rows - _values(book, cuts, found[-1])
    return torch.cat(found, dim=1)


def decode(codebooks: Tensor, widths: Widths, indices: Tensor, lengths: Tensor | None = None) -> Tensor:
    """float32 (n, d): the sum of the layers, or of the first ``lengths`` (n,) positions."""
    total, start = None, 0
    for book, cuts in zip(codebooks, widths, strict=True):
        own = indices[:, start:start + len(cuts)]
        values = _values(book, cuts, own)
        if lengths is not None:
            position = torch.repeat_interleave(torch.arange(start, start + len(cuts), device=lengths.device),
                                               torch.tensor(list(cuts), device=lengths.device))
            values = torch.where(lengths.unsqueeze(1) > position, values, 0.0)
        total, start = values if total is None else total + values, start + len(cuts)
    assert total is not None
    return total


class Passed(NamedTuple):
    """``indices`` int64 (n, positions); ``values`` (n, d), differentiable in the codebooks; ``pull`` and ``commit``: the sums over layers
    of the codebook and the commitment term; ``error`` (n,): squared; ``stats`` of position p as ``codebooks.p.name``."""

    indices: Tensor
    values: Tensor
    pull: Tensor
    commit: Tensor
    error: Tensor
    stats: dict[str, Tensor]


def quantize(codebooks: Tensor, widths: Widths, upkeep: Sequence[Upkeep], rows: Tensor, keep: Tensor | None,
             used: Tensor | None = None) -> Passed:
    """One training pass. ``keep`` (n,) bool marks the rows that count; ``used`` (n,) integers: layers each row uses. Layers that are left
    out are computed all the same, so that no rank and no graph differs."""
    left, total, found, each = rows, torch.zeros_like(rows), [], []
    pull, commit = rows.new_zeros(()), rows.new_zeros(())
    for layer, (book, cuts) in enumerate(zip(codebooks, widths, strict=True)):
        active = None if used is None else used > layer
        counted = keep if active is None else active if keep is None else keep & active
        index = _nearest(book.detach(), cuts, left.detach())
        chosen = _values(book, cuts, index)
        more = losses.both_terms(left, chosen, keep) if active is None else losses.both_terms(left, chosen, keep, active)
        for i, part in enumerate(left.detach().split(list(cuts), dim=1)):
            each.append(upkeep[len(each)].statistics(part, index[:, i], counted))
        if active is not None:
            chosen, index = torch.where(active.unsqueeze(1), chosen, 0.0), torch.where(active.unsqueeze(1), index, 0)
        commit, pull, total, left = commit + more[0], pull + more[1], total + chosen, left - chosen.detach()
        found.append(index)
    stats = {f"codebooks.{p}.{key}": value for p, own in enumerate(each) for key, value in own.items()}
    return Passed(torch.cat(found, dim=1), total, pull, commit, left.detach().square().sum(-1), stats)


class Layered(Quantizer):
    """Base of quantizers that are such layers: what they share around ``quantize``. A subclass sets its arguments and calls ``_build``."""

    codebooks: nn.Parameter
    learning: str
    iterations: int
    seed: int
    DECAY = 0.99
    """Of the averages."""

    def _build(self, widths: Widths, codebook_size: int, revival: float | None) -> None:
        """Codebooks and their upkeep; ``revival`` None: 0.05 with averages, else 0."""
        averages = self.learning == "ema"
        share = (0.05 if averages else 0.0) if revival is None else revival
        self.cuts = tuple(map(tuple, widths))
        self.levels = (codebook_size,) * sum(map(len, widths))
        self.codebooks = nn.Parameter(torch.zeros(len(self.cuts), codebook_size, self.dim), requires_grad=not averages)
        self.upkeep = nn.ModuleList(Upkeep(codebook_size, width, averages=averages, decay=self.DECAY, revival=share)
                                    for layer in self.cuts for width in layer)

    @torch.no_grad()
    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        repaired = learn(self.codebooks, self.cuts, rows, iterations=self.iterations, seed=self.seed, weights=weights)
        for own, keeper in zip(self._books, self._keepers, strict=True):
            keeper.start(own)
        if repaired:
            self.report = Report(self.report, repaired_codewords=repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return encode(self.codebooks.detach(), self.cuts, rows), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return decode(self.codebooks.detach(), self.cuts, indices)

    def _decode_some(self, indices: Tensor, side: Tensor | None, lengths: Tensor | None) -> Tensor:
        return decode(self.codebooks.detach(), self.cuts, indices, lengths)

    def _pass(self, rows: Tensor, keep: Tensor | None, used: Tensor | None,
              estimator: str) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        """``_forward`` where row n uses its first ``used[n]`` layers, all where None."""
        out = quantize(self.codebooks, self.cuts, self._keepers, rows, keep, used)
        loss = self.commitment * out.commit
        if self.learning == "gradient" and gradients.needs_codebook_term(estimator):
            loss = loss + out.pull
        stats = {"codebook": out.pull.detach(), "commitment": out.commit.detach(), "error": arrays.masked_mean(out.error, keep)} | out.stats
        return gradients.passed(estimator, rows, out.values, training=self.training), out.indices, None, loss, stats

    def update(self, out: Quantized) -> Report:
        reports = {}
        for p, (own, keeper) in enumerate(zip(self._books, self._keepers, strict=True)):
            prefix = f"codebooks.{p}."
            stats = {key[len(prefix):]: value for key, value in out.stats.items() if key.startswith(prefix)}
            reports[f"codebooks.{p}"] = keeper.step(own, stats)
        return Report({key: report for key, report in reports.items() if report})

    @property
    def shared_bytes(self) -> int:
        """The codebooks alone: averages are saved for going on with training, but no reader of codes needs them."""
        return self.codebooks.numel() * self.codebooks.element_size()

    def check_state(self) -> None:
        super().check_state()
        if not all(keeper.plausible() for keeper in self._keepers):
            raise FormatError("value", f"{self.name} has a negative count among its averages")

    @property
    def _books(self) -> list[Tensor]:
        """Views (K, width) by position."""
        return [own for book, cuts in zip(self.codebooks.detach(), self.cuts, strict=True) for own in book.split(list(cuts), dim=1)]

    @property
    def _keepers(self) -> list[Upkeep]:
        return list(self.upkeep)  # type: ignore[arg-type]


def whole_layers(total: float, per_layer: int, least: int) -> tuple[int, int] | None:
    """(layers, codebook size) for ``total`` bits with ``per_layer`` indices a layer of 10, 8, 9, 7, 6, ... bits, whichever fits first, and
    at least ``least`` layers."""
    for width in (10, 8, 9, 7, 6, 5, 4, 11, 12, 3, 2, 1):
        layers = total / (per_layer * width)
        if math.isclose(layers, round(layers), abs_tol=1e-9) and round(layers) >= least:
            return round(layers), 1 << width
    return None


def _nearest(book: Tensor, cuts: Sequence[int], rows: Tensor) -> Tensor:
    """int64 (n, codebooks of the layer)."""
    parts = zip(rows.split(list(cuts), dim=1), book.split(list(cuts), dim=1), strict=True)
    return torch.stack([ops.nearest(part, own).indices for part, own in parts], dim=1)


def _values(book: Tensor, cuts: Sequence[int], indices: Tensor) -> Tensor:
    """(n, d), differentiable in the book."""
    return torch.cat([ops.gather(own, indices[:, i]) for i, own in enumerate(book.split(list(cuts), dim=1))], dim=1)
