"""Layers of codebooks, each coding what the layers before it left over, where a layer may cut the vector into spans of channels.

    r_0 = x,   r_l = r_{l-1} - q_l,   q_l = [c^{l,1}_{i_1} ... c^{l,G}_{i_G}],   i_g = argmin_k |r_{l-1}^g - c^{l,g}_k|^2,   x^ = sum_l q_l

One loop for group-residual (every layer is cut alike), masked-channel residual (the first layer only) and plain residual codes (none).
``codebooks`` is (L, K, d): a layer's codebooks stand side by side, ``widths[l]`` columns each, so that a codeword has no entries outside
of its span and no codebook can leak into another's channels. A code has a position for each codebook, layer after layer.

A prefix of a code is a coarser code, cut at any position: what is missing is zero. The next layer sees r_l with q_l detached, so every
layer's commitment term reaches the encoder, and an output passed straight through once, on the sum, gives it its decoder's gradient once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, Unsupported
from codeword.parts import arrays
from codeword.parts.kmeans import kmeans
from codeword.parts.losses import codebook_term, commitment_term
from codeword.parts.upkeep import Upkeep
from codeword.quantizer import Codes, Quantized, Quantizer, Report

Widths = Sequence[Sequence[int]]
"""Columns of each codebook of each layer; each layer's sum to d."""
MOST_POSITIONS = 1 << 10


def check_arguments(name: str, dim: int, positions: int, layers: int, codebook_size: int, iterations: int, learning: str,
                    commitment: float) -> None:
    """CodewordError where there would be no such codebooks."""
    if not 1 <= positions <= MOST_POSITIONS or layers < 0:
        raise CodewordError(f"{name} got {positions} codebooks in {layers} layers; 1..{MOST_POSITIONS} codebooks are allowed")
    if dim < 1 or not 2 <= codebook_size <= 1 << 16 or iterations < 1:
        raise CodewordError(f"{name} got dim={dim}, codebook_size={codebook_size} and iterations={iterations}; at least 1, 2..65536 and at "
                            "least 1 are allowed")
    if learning not in ("gradient", "ema") or not commitment >= 0:
        raise CodewordError(f"{name} got learning={learning!r}, commitment={commitment}; 'gradient' or 'ema', and at least 0, are allowed")


def learn(codebooks: Tensor, widths: Widths, rows: Tensor, *, iterations: int, seed: int, weights: Tensor | None) -> int:
    """k-means of every span of every layer of what the layers before leave of ``rows`` (n, d), written into ``codebooks``; position p
    starts from seed + p. Returns the number of repaired clusters."""
    repaired, position = 0, 0
    for book, cuts in zip(codebooks, widths, strict=True):
        for part, own in zip(rows.split(list(cuts), dim=1), book.split(list(cuts), dim=1), strict=True):
            result = kmeans(part.contiguous(), len(book), iterations=iterations, seed=seed + position, weights=weights)
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
    """``indices`` int64 (n, positions); ``values`` (n, d), detached; ``pull`` and ``commit``: the sums over layers of the codebook and
    the commitment term; ``error`` (n,): squared; ``stats`` of position p as ``codebooks.p.name``."""

    indices: Tensor
    values: Tensor
    pull: Tensor
    commit: Tensor
    error: Tensor
    stats: dict[str, Tensor]


def quantize(codebooks: Tensor, widths: Widths, upkeep: Sequence[Upkeep], rows: Tensor, keep: Tensor | None,
             used: Tensor | None = None) -> Passed:
    """One training pass. ``keep`` (n,) bool marks the rows that count; ``used`` (n,) integers: layers that take part in each row's value,
    losses and statistics. Layers that are left out are computed all the same, so that no rank and no graph differs."""
    left, total, found, stats = rows, torch.zeros_like(rows), [], {}
    pull, commit = rows.new_zeros(()), rows.new_zeros(())
    for layer, (book, cuts) in enumerate(zip(codebooks, widths, strict=True)):
        present = keep if used is None else used > layer if keep is None else keep & (used > layer)
        found.append(_nearest(book.detach(), cuts, left.detach()))
        chosen = _values(book, cuts, found[-1])
        pull, commit = pull + codebook_term(left, chosen, present), commit + commitment_term(left, chosen, present)
        first = sum(map(len, widths[:layer]))
        for i, part in enumerate(left.detach().split(list(cuts), dim=1)):
            own = upkeep[first + i].statistics(part, found[-1][:, i], present)
            stats |= {f"codebooks.{first + i}.{key}": value for key, value in own.items()}
        values = chosen.detach() if used is None else torch.where((used > layer).unsqueeze(1), chosen.detach(), 0.0)
        left, total = left - values, total + values
    return Passed(torch.cat(found, dim=1), total, pull, commit, left.detach().square().sum(-1), stats)


def summary(out: Passed, keep: Tensor | None) -> dict[str, Tensor]:
    """Statistics of a whole pass and of each codebook."""
    return {"codebook": out.pull.detach(), "commitment": out.commit.detach(), "error": arrays.masked_mean(out.error, keep), **out.stats}


def truncated(quantizer: Quantizer, codes: Codes, bits: float, ends: Sequence[int]) -> Codes:
    """``codes`` cut at the last of ``ends`` (positions, ascending) within ``bits`` a dimension, zeros beyond; Unsupported where there is
    none."""
    costs = [sum(quantizer.widths[:end]) for end in ends]
    fits = [end for end, cost in zip(ends, costs, strict=True) if cost <= bits * quantizer.dim + 1e-9]
    if not fits:
        raise Unsupported(f"{quantizer.name} cannot truncate to {bits} bits a dimension; its first {ends[0]} positions take "
                          f"{costs[0] / quantizer.dim:g}")
    indices, _, lengths = quantizer._check_codes(codes)
    room = torch.full(indices.shape[:-1], fits[-1], device=indices.device) if lengths is None else lengths.clamp(max=fits[-1])
    valid = torch.arange(indices.shape[-1], device=indices.device) < fits[-1]
    return arrays.like_codes(Codes((indices * valid).to(quantizer.index_dtype), None, room.to(torch.int32)), codes.indices)


def keepers(codebooks: Tensor, widths: Widths, *, learning: str, decay: float, revival: float | None) -> list[Upkeep]:
    """An ``Upkeep`` for each position; ``revival`` None: 0.05 with averages, else 0."""
    averages = learning == "ema"
    share = (0.05 if averages else 0.0) if revival is None else revival
    return [Upkeep(codebooks.shape[1], width, averages=averages, decay=decay, revival=share) for cuts in widths for width in cuts]


@torch.no_grad()
def start(codebooks: Tensor, widths: Widths, upkeep: Sequence[Upkeep]) -> None:
    """Equal shares for freshly fitted codebooks."""
    for own, keeper in zip(_books(codebooks, widths), upkeep, strict=True):
        keeper.start(own)


@torch.no_grad()
def step(codebooks: Tensor, widths: Widths, upkeep: Sequence[Upkeep], out: Quantized) -> Report:
    """Move all codebooks by the statistics of one batch (of all ranks). Collective."""
    reports = {}
    for p, (own, keeper) in enumerate(zip(_books(codebooks, widths), upkeep, strict=True)):
        prefix = f"codebooks.{p}."
        reports[f"codebooks.{p}"] = keeper.step(own, {key[len(prefix):]: value for key, value in out.stats.items() if key.startswith(prefix)})
    return Report({key: report for key, report in reports.items() if report})


def ends(widths: Widths) -> list[int]:
    """Positions up to and including each layer."""
    return list(accumulate(map(len, widths)))


def _books(codebooks: Tensor, widths: Widths) -> list[Tensor]:
    """Views (K, width) by position."""
    return [own for book, cuts in zip(codebooks.detach(), widths, strict=True) for own in book.split(list(cuts), dim=1)]


def _nearest(book: Tensor, cuts: Sequence[int], rows: Tensor) -> Tensor:
    """int64 (n, codebooks of the layer)."""
    parts = zip(rows.split(list(cuts), dim=1), book.split(list(cuts), dim=1), strict=True)
    return torch.stack([ops.nearest(part, own).indices for part, own in parts], dim=1)


def _values(book: Tensor, cuts: Sequence[int], indices: Tensor) -> Tensor:
    """(n, d), differentiable in the book."""
    return torch.cat([own[indices[:, i]] for i, own in enumerate(book.split(list(cuts), dim=1))], dim=1)
