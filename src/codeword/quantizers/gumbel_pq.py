"""Probabilistic multi-codebook quantization (Zhu, Song, Gao, Zheng, Shen: Unified Multivariate Gaussian Mixture for Efficient Neural Image
Compression, CVPR 2022; the quantizer of McQuic, as its code of version 0.1.40 has it).

A latent vector is taken as a draw from Gaussian mixtures, one for each slice, whose means are the codewords. Training draws a codeword
from the posterior instead of taking the nearest, so that every codeword gets gradient and nobody is left behind; afterwards the nearest is
taken. With M slices, K codewords each, D_k = |x^m - c^m_k|^2 and a learnable temperature T_m of each codebook:

    training   i_m ~ softmax_k(-D_k T_m / sqrt(K)), drawn with Gumbel noise g:  i_m = argmax_k(-D_k T_m / sqrt(K) + g_k)
               value c^m_{i_m}, gradients of (onehot(i) + p - sg p) C, p = softmax(-D T / sqrt(K) + g): to x, T and all codewords
    otherwise  i_m = argmin_k D_k                                            (T > 0: the most probable one)
    frequency  f_k <- decay f_k + (1 - decay) share of x^m nearest to c^m_k                                     (in ``update``)

Every ``revive_every`` updates a codeword with f_k < revival / K becomes a copy of another one, drawn in proportion to f, plus a little
noise, and shares its frequency; at most half of a codebook at a time. The gradient separates copies.

Departures: T_m = exp(theta_m) keeps T positive (there a maximum with 1e-6); ``fit`` starts codebooks by k-means and T_m at the
mixture's own posterior, T_m / sqrt(K) = 1 / (2 s^2) with s^2 the squared error of an entry (there random codebooks and 1); donors go by
frequency (there uniformly, dead ones among them). There is no loss term, as there, unless a commitment is asked for.

Cost: K d multiply-adds a vector, thrice in training and again in backward, in blocks (``parts/soft``): no table of rows times codewords.
Bits: M ceil(log2 K) a vector; K d floats shared.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from codeword import ops
from codeword.errors import CodewordError, FormatError
from codeword.parts import arrays, losses, random, slices, soft
from codeword.parts.codebook import histogram, usage_of
from codeword.parts.upkeep import all_sum
from codeword.quantizer import Quantized, Quantizer, Report

COPY_NOISE = 1e-3
"""Of a copied codeword, in standard deviations of its codebook's entries."""


class GumbelPQ(Quantizer):
    """dim; num_codebooks: slices M, a divisor of dim; codebook_size: codewords K a slice; commitment: beta; decay: of the frequencies;
    revival: codewords below this fraction of 1/K are replaced (0: never); revive_every: updates between looking for them; iterations: of
    k-means; seed."""

    def __init__(self, *, dim: int, num_codebooks: int, codebook_size: int = 256, commitment: float = 0.0, decay: float = 0.9,
                 revival: float = 0.01, revive_every: int = 100, iterations: int = 25, seed: int = 0) -> None:
        super().__init__()
        slices.check_shape("gumbel_pq", dim, num_codebooks, codebook_size, iterations)
        if not 0 <= decay < 1 or not 0 <= revival < 1 or not commitment >= 0 or revive_every < 1:
            raise CodewordError(f"gumbel_pq got decay={decay}, revival={revival}, commitment={commitment} and revive_every={revive_every}; "
                                "both first in 0..1, 1 excluded, at least 0 and at least 1 are needed")
        self.dim, self.num_codebooks, self.codebook_size, self.commitment = dim, num_codebooks, codebook_size, commitment
        self.decay, self.revival, self.revive_every, self.iterations, self.seed = decay, revival, revive_every, iterations, seed
        self.levels = (codebook_size,) * num_codebooks
        self.codebooks = nn.Parameter(torch.zeros(num_codebooks, codebook_size, dim // num_codebooks))
        self.upkeep = _Training(num_codebooks, codebook_size)

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """256 codewords a slice where the slice width fits (dim / M = 8 / bits), else the next of 7, 6, 5, 4, 3, 9, ... bits that does."""
        books, size = slices.split_bits("gumbel_pq", dim, bits)
        return cls(dim=dim, num_codebooks=books, codebook_size=size, **options)

    @torch.no_grad()
    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        found = slices.learn(rows, self.num_codebooks, self.codebook_size, iterations=self.iterations, seed=self.seed, weights=weights)
        self.codebooks.copy_(found.codebooks)
        self.upkeep.start()
        for m, part in enumerate(self._slices(rows)):
            distance = ops.nearest(part, self.codebooks[m]).distances.double().cpu().numpy()
            mass = np.ones(len(rows)) if weights is None else weights.double().cpu().numpy()
            variance = float(np.add.reduce(distance * mass) / np.add.reduce(mass)) / part.shape[1]
            self.upkeep.log_temperature[m] = math.log(math.sqrt(self.codebook_size) / 2) - math.log(variance) if variance > 0 else 0.0
        if found.repaired:
            self.report = Report(self.report, repaired_codewords=found.repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return slices.assign(rows, self.codebooks.detach()), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return slices.values(self.codebooks.detach(), indices)

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        indices, values, counts, stats = [], [], [], {}
        scales = torch.exp(self.upkeep.log_temperature / 2) * self.codebook_size**-0.25
        for m, part in enumerate(self._slices(rows)):
            nearest = ops.nearest(part, self.codebooks[m]).indices
            index, value = self._drawn(part, self.codebooks[m], scales[m], nearest)
            count = histogram(nearest, self.codebook_size, keep)
            stats |= {f"codebooks.{m}.{key}": one for key, one in usage_of(count).items()}
            indices.append(index)
            values.append(value)
            counts.append(count)
        value = torch.cat(values, dim=1) + (rows.detach() - rows.detach())  # NaN stays NaN
        commit = losses.commitment_term(rows, value, keep)
        error = arrays.masked_mean((value - rows).detach().square().sum(-1), keep)
        stats |= {"commitment": commit.detach(), "error": error, "counts": torch.stack(counts)}
        return value, torch.stack(indices, dim=1), None, self.commitment * commit, stats

    def update(self, out: Quantized) -> Report:
        """Move frequencies and, every ``revive_every`` calls, replace dead codewords. Collective."""
        if not self.upkeep.count(all_sum(out.stats["counts"]), self.decay) or int(self.upkeep.updates) % self.revive_every:
            return Report()
        revived = {f"codebooks.{m}": dead for m in range(self.num_codebooks) if (dead := self._revive(m))}
        return Report(revived=revived) if revived else Report()

    @property
    def temperatures(self) -> Tensor:
        """T (M,)."""
        return torch.exp(self.upkeep.log_temperature.detach())

    @property
    def shared_bytes(self) -> int:
        """The codebooks alone: temperatures and frequencies are saved for going on with training, but no reader of codes needs them."""
        return self.codebooks.numel() * self.codebooks.element_size()

    def check_state(self) -> None:
        super().check_state()
        if bool((self.upkeep.frequencies < 0).any()) or int(self.upkeep.updates) < 0:
            raise FormatError("value", "gumbel_pq has a negative frequency or number of updates")

    # ------------------------------------------------------------------ helpers

    def _slices(self, rows: Tensor) -> list[Tensor]:
        return [part.contiguous() for part in rows.split(self.dim // self.num_codebooks, dim=1)]

    def _drawn(self, part: Tensor, book: Tensor, scale: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
        """Indices and values of one slice. With s^2 = T / sqrt(K) the logits are -|s x - s c|^2, so that T's gradient is that of s."""
        near, far, seed = scale * part, scale * book, None
        if self.training:
            seed = torch.randint(1 << 62, ())
            nearest = soft.sample(near, far, seed)
        path = soft.lookup(near, far, nearest, seed=seed) / scale
        return nearest, ops.gather(book.detach(), nearest) + (path - path.detach())

    @torch.no_grad()
    def _revive(self, m: int) -> list[int]:
        book, frequencies = self.codebooks[m], self.upkeep.frequencies[m]
        dead = (frequencies < self.revival / self.codebook_size).nonzero().squeeze(1)[:self.codebook_size // 2]
        if not len(dead):
            return []
        stream = f"donors {m} {int(self.upkeep.updates)}"
        alive = frequencies.clone()
        alive[dead] = 0
        ends = np.cumsum(alive.cpu().numpy())
        drawn = np.searchsorted(ends, random.uniform(self.seed, len(dead), stream=stream) * ends[-1], side="right")
        donors = torch.from_numpy(np.minimum(drawn, int(alive.nonzero().max()))).to(book.device)
        noise = torch.from_numpy(random.normal(self.seed, len(dead) * book.shape[1], stream=stream)).reshape(len(dead), -1).to(book.device)
        spread = float(book.double().std(correction=0))
        book[dead] = book[donors] + COPY_NOISE * spread * noise
        share = alive / (1 + torch.bincount(donors, minlength=len(book)))
        frequencies.copy_(share.index_add(0, dead, share[donors] + frequencies[dead]))
        return dead.tolist()


class _Training(nn.Module):
    """What only training reads: ``log_temperature`` theta (M,), ``frequencies`` f (M, K) float64 and the number of ``updates``."""

    def __init__(self, num_codebooks: int, codebook_size: int) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.zeros(num_codebooks))
        self.frequencies: Tensor
        self.updates: Tensor
        self.register_buffer("frequencies", torch.zeros(num_codebooks, codebook_size, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def start(self) -> None:
        self.frequencies.fill_(1 / self.frequencies.shape[1])
        self.updates.zero_()

    @torch.no_grad()
    def count(self, counts: Tensor, decay: float) -> bool:
        """Move the frequencies by ``counts`` (M, K); False where there are none."""
        total = counts[0].sum()
        if float(total) == 0:
            return False
        self.frequencies.mul_(decay).add_(counts / total, alpha=1 - decay)
        self.updates += 1
        return True
