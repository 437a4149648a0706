"""Multi-scale residual quantization of a map (Tian et al.: Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale
Prediction, NeurIPS 2024; pyramids of residual codes: Lee et al. 2022).

A map is coded at growing resolutions with one codebook: the first tokens describe all of it, later ones what is left at finer scales. So
a generator can predict scale after scale instead of token after token. With f (h, w, channels) and r_0 = f, for every scale s:

    t = average of r_{s-1} over a grid (h_s, w_s),   i = argmin_k |t - c_k|^2 at every place,   u = c_i, bilinearly grown to (h, w)
    z_s = u + conv3x3_s(u),   r_s = r_{s-1} - z_s,   f^ = sum_s z_s
    loss = mean over s of mean |f - sg(f^_s)|^2 beta + mean |sg(f) - f^_s|^2,   f^_s = z_1 + ... + z_s

The second term trains the codebook and the convolutions, which repair what averaging and growing smear.

A vector of this quantizer is a whole map, flattened as (h, w, channels): dim = h w channels. The coarse tokens belong to the whole map,
and a row of the contract is what is coded on its own; a map passed place by place would have no rows that could be. A code lists scale
after scale, each row by row; any prefix decodes (missing tokens are zero), and ``truncate`` keeps whole scales.

``fit``: k-means on the tokens of all scales, first of the map's exact averages, then twice of the residuals that codes leave; then Adam on
the loss, in units where entries have mean square 1. Everything that decides a code goes through ``ops.nearest`` and ``ops.project``:
averages and growing are products with small matrices, the convolution is one over shifted copies.

Departures: growing is bilinear, not bicubic; every scale has a convolution of its own, starting at 0 and added to u, where the paper
shares four between ten scales and mixes half and half; the codebook starts by k-means, not at random.

Cost: sum_s h_s w_s K channels multiply-adds a map for the search, 9 channels^2 h w a scale for the convolutions.
Bits: sum_s h_s w_s ceil(log2 K) a map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from codeword import ops
from codeword.errors import CodewordError, ShapeError
from codeword.parts import arrays, gradients
from codeword.parts.codebook import usage
from codeword.parts.kmeans import kmeans
from codeword.parts.moments import moments
from codeword.parts.prefixes import truncated
from codeword.parts.training import minimise
from codeword.quantizer import Codes, Quantizer, Report

LARGEST_SIDE = 256
MOST_SCALES = 32
BATCH = 64
"""Maps of a step of ``fit``."""
ROUNDS = 2
"""k-means on residuals that codes leave."""


class MultiScale(Quantizer):
    """dim: h w channels; size: [h, w] of the map; scales: heights of the maps that are coded, ascending, the last one h (widths follow in
    proportion), e.g. [1, 2, 4, 8]; codebook_size: codewords K that all scales share; commitment: beta; steps and learning_rate of ``fit``;
    iterations: of k-means; seed."""

    def __init__(self, *, dim: int, size: Sequence[int], scales: Sequence[int], codebook_size: int, commitment: float = 0.25,
                 steps: int = 200, learning_rate: float = 3e-3, iterations: int = 10, seed: int = 0) -> None:
        super().__init__()
        if len(size) != 2 or not all(1 <= side <= LARGEST_SIDE for side in size) or dim < 1 or dim % (size[0] * size[1]):
            raise CodewordError(f"multi_scale got size={size} and dim={dim}; [h, w] of 1..{LARGEST_SIDE} with a multiple of h w numbers "
                                "a map are needed")
        if not 1 <= len(scales) <= MOST_SCALES or scales[0] < 1 or scales[-1] != size[0] or any(a >= b for a, b in pairwise(scales)):
            raise CodewordError(f"multi_scale got scales={scales} for maps of height {size[0]}; up to {MOST_SCALES} heights that ascend "
                                f"from at least 1 to {size[0]} are needed")
        if not 2 <= codebook_size <= 1 << 20 or steps < 0 or iterations < 1 or not learning_rate > 0 or not commitment >= 0:
            raise CodewordError(f"multi_scale got codebook_size={codebook_size}, steps={steps}, iterations={iterations}, learning_rate="
                                f"{learning_rate} and commitment={commitment}; 2..2^20, at least 0, at least 1, a positive rate and at "
                                "least 0 are allowed")
        self.dim, self.size, self.scales, self.codebook_size = dim, list(size), list(scales), codebook_size
        self.commitment, self.steps, self.learning_rate = commitment, steps, learning_rate
        self.iterations, self.seed = iterations, seed
        self.channels = dim // (size[0] * size[1])
        if self.channels > 4096:
            raise CodewordError(f"multi_scale got {self.channels} channels; at most 4096 are allowed")
        self.grids = [(side, max(1, round(side * size[1] / size[0]))) for side in scales]
        self.levels = (codebook_size,) * sum(h * w for h, w in self.grids)
        self.codebook = nn.Parameter(torch.zeros(codebook_size, self.channels))
        self.mix = nn.Parameter(torch.zeros(len(scales), self.channels, 9 * self.channels))
        self.rebuild()

    def rebuild(self) -> None:
        """The matrices of averaging and growing, by scale and axis; they are not stored."""
        for s, grid in enumerate(self.grids):
            for axis in (0, 1):
                shrink, grow = _averages(self.size[axis], grid[axis]), _bilinear(grid[axis], self.size[axis])
                self.register_buffer(f"shrink_{s}_{axis}", torch.tensor(shrink, dtype=torch.float32), persistent=False)
                self.register_buffer(f"grow_{s}_{axis}", torch.tensor(grow, dtype=torch.float32), persistent=False)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        mean, variance = moments(rows, weights)
        unit = math.sqrt(math.fsum((mean.square() + variance).tolist()) / self.dim)
        scaled = rows / (unit if unit > 0 else 1.0)
        if not bool(torch.isfinite(scaled).all()):
            raise ShapeError(f"multi_scale.fit got maps whose entries, about {unit:.3g}, leave the range of float32")
        with torch.no_grad():
            self.mix.zero_()
            repaired = self._start(scaled, weights)
        minimise(lambda batch: self._forward(batch, None)[3], [self.codebook, self.mix], scaled, steps=self.steps, batch_size=BATCH,
                 learning_rate=self.learning_rate, seed=self.seed, weights=weights)
        with torch.no_grad():
            self.codebook.mul_(unit)  # everything is linear in the codewords
        if repaired:
            self.report = Report(self.report, repaired_codewords=repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        with torch.no_grad():
            return torch.cat([indices for indices, _, _ in self._passes(rows)], dim=1), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return self._decode_some(indices, side, None)

    def _decode_some(self, indices: Tensor, side: Tensor | None, lengths: Tensor | None) -> Tensor:
        total, start = None, 0
        with torch.no_grad():
            for s, (h, w) in enumerate(self.grids):
                own = indices[:, start:start + h * w]
                words = self.codebook[own.reshape(-1)].reshape(own.shape[0], h * w, self.channels)
                if lengths is not None:
                    present = lengths.unsqueeze(1) > torch.arange(start, start + h * w, device=lengths.device)
                    words = torch.where(present.unsqueeze(2), words, 0.0)
                grown = self._grown(words.unflatten(1, (h, w)), s)
                total, start = grown if total is None else total + grown, start + h * w
        assert total is not None
        return total.flatten(1)

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        pull, commit, total, found, stats = rows.new_zeros(()), rows.new_zeros(()), None, [], {}
        for s, (indices, grown, _) in enumerate(self._passes(rows)):
            total = grown if total is None else total + grown
            pull = pull + arrays.masked_mean((total.flatten(1) - rows.detach()).square().mean(1), keep) / len(self.grids)
            commit = commit + arrays.masked_mean((rows - total.detach().flatten(1)).square().mean(1), keep) / len(self.grids)
            stats |= {f"scales.{s}.{key}": value for key, value in usage(indices, self.codebook_size, keep).items()}
            found.append(indices)
        assert total is not None
        values = total.flatten(1)
        error = arrays.masked_mean((values - rows).detach().square().sum(1), keep)
        stats |= {"codebook": pull.detach(), "commitment": commit.detach(), "error": error}
        return gradients.straight_through(rows, values), torch.cat(found, dim=1), None, pull + self.commitment * commit, stats

    # ------------------------------------------------------------------ Progressive

    def truncate(self, codes: Codes, bits: float) -> Codes:
        """The longest prefix of whole scales within ``bits`` a dimension; what is cut off becomes zero. The code keeps its shape: a file
        stores the zeros too, and ``bits`` counts them. Unsupported where not even the first scale fits."""
        ends = [sum(h * w for h, w in self.grids[:s + 1]) for s in range(len(self.grids))]
        return truncated(self, codes, bits, ends, "scale")

    # ------------------------------------------------------------------ helpers

    def _passes(self, rows: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of every scale: indices int64 (n, places), the grown map (n, h, w, channels), and the tokens (n places, channels) it codes."""
        left, found = rows.detach().reshape(rows.shape[0], *self.size, self.channels), []
        for s, grid in enumerate(self.grids):
            tokens = self._shrunk(left, s)
            indices = ops.nearest(tokens, self.codebook).indices
            grown = self._grown(ops.gather(self.codebook, indices).reshape(rows.shape[0], *grid, self.channels), s)
            left = left - grown.detach()
            found.append((indices.reshape(rows.shape[0], grid[0] * grid[1]), grown, tokens))
        return found

    def _shrunk(self, maps: Tensor, s: int) -> Tensor:
        """Averages (n h_s w_s, channels) of maps (n, h, w, channels)."""
        for axis in (0, 1):
            maps = _along(maps, self.get_buffer(f"shrink_{s}_{axis}"), axis + 1)
        return maps.reshape(-1, self.channels)

    def _grown(self, maps: Tensor, s: int) -> Tensor:
        """z (n, h, w, channels) of codewords (n, h_s, w_s, channels)."""
        for axis in (0, 1):
            maps = _along(maps, self.get_buffer(f"grow_{s}_{axis}"), axis + 1)
        framed = torch.nn.functional.pad(maps, (0, 0, 1, 1, 1, 1))
        h, w = self.size
        around = torch.cat([framed[:, i:i + h, j:j + w] for i in range(3) for j in range(3)], dim=3)
        return maps + ops.project(around.reshape(-1, 9 * self.channels), self.mix[s]).reshape(maps.shape)

    def _start(self, rows: Tensor, weights: Tensor | None) -> int:
        """k-means on tokens: of exact averages first, then of what codes leave. The number of repaired clusters."""
        left, tokens = rows.reshape(rows.shape[0], *self.size, self.channels), []
        for s, grid in enumerate(self.grids):
            tokens.append(self._shrunk(left, s))
            left = left - self._grown(tokens[-1].reshape(rows.shape[0], *grid, self.channels), s)
        repaired, initial = 0, None
        for _ in range(1 + ROUNDS):
            mass = None if weights is None else torch.cat([weights.repeat_interleave(h * w) for h, w in self.grids])
            result = kmeans(torch.cat(tokens), self.codebook_size, iterations=self.iterations, seed=self.seed, weights=mass,
                            initial=initial)
            self.codebook.copy_(result.centroids)
            repaired, initial = repaired + result.repaired, result.centroids
            tokens = [own for _, _, own in self._passes(rows)]
        return repaired


def _along(maps: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """``matrix`` (m, k) applied to an axis of length k."""
    last = maps.movedim(axis, -1)
    return ops.project(last.reshape(-1, matrix.shape[1]), matrix).reshape(*last.shape[:-1], len(matrix)).movedim(-1, axis)


def _averages(length: int, parts: int) -> list[list[float]]:
    """Means of ``parts`` windows [floor(i n / p), ceil((i + 1) n / p)) of n = ``length`` entries."""
    rows = []
    for i in range(parts):
        start, stop = i * length // parts, -(-(i + 1) * length // parts)
        rows.append([1 / (stop - start) if start <= j < stop else 0.0 for j in range(length)])
    return rows


def _bilinear(length: int, wide: int) -> list[list[float]]:
    """Linear interpolation of ``length`` entries at the centres of ``wide`` equal parts, constant beyond the outermost centres."""
    rows = []
    for i in range(wide):
        at = min(max((i + 0.5) * length / wide - 0.5, 0.0), length - 1.0)
        low = min(int(at), max(0, length - 2))
        row = [0.0] * length
        row[low] = 1 - (at - low)
        if length > 1:
            row[low + 1] = at - low
        rows.append(row)
    return rows
