"""How a codebook follows its data inside a network: moving averages and the revival of codewords nobody chooses.

Razavi, van den Oord, Vinyals 2019 for the averages. With g the decay, e = 1e-5, count_k and sum_k over the tokens of all ranks:

    n_k <- g n_k + (1 - g) count_k,   m_k <- g m_k + (1 - g) sum_k,   c_k <- (m_k + e c_k) / (n_k + e)

The usual Laplace smoothing divides m_k by (n_k + e) N / (N + K e), which draws a rarely chosen codeword to the origin; here the e
pseudo-tokens lie on the codeword itself, so it stays where it is. After ``fit`` every codeword starts with an equal share 1/K; the
first update scales the shares to its own number of tokens, so no batch size has to be known.

A codeword is dead where n_k < revival * sum(n) / K, a fraction of its expected hits whatever the batch size. It is moved onto a row
of the batch and gets an equal share of the average again (n_k and m_k alike), hence the same time to prove itself as at the start.

All of it happens in ``step``, never in a forward pass; the collectives run on every rank, in one order, whatever its batch was, and
all ranks then do the same arithmetic on the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from codeword.errors import CodewordError
from codeword.parts.codebook import histogram, usage_of
from codeword.quantizer import Quantized, Report

SMOOTHING = 1e-5
CANDIDATES = 128
"""Rows a rank offers for revival at each step, at most."""
_GOLDEN = 0.6180339887498949


class Upkeep(nn.Module):
    """State of the averages, none where neither they nor revival are wanted: ``counts`` n (K,) and, where the codebook follows
    them, ``sums`` m (K, d), both float64; ``updates``, how many there were."""

    def __init__(self, codebook_size: int, dim: int, *, averages: bool, decay: float, revival: float) -> None:
        super().__init__()
        if not 0 <= decay < 1 or not 0 <= revival < 1:
            raise CodewordError(f"decay={decay} and revival={revival}; both must be at least 0 and below 1")
        self.codebook_size, self.dim, self.averages, self.decay, self.revival = codebook_size, dim, averages, decay, revival
        self.counts: Tensor
        self.sums: Tensor
        self.updates: Tensor
        self.active = averages or revival > 0
        if self.active:
            self.register_buffer("counts", torch.zeros(codebook_size, dtype=torch.float64))
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        if averages:
            self.register_buffer("sums", torch.zeros(codebook_size, dim, dtype=torch.float64))

    @torch.no_grad()
    def start(self, codebook: Tensor) -> None:
        """Equal shares of a freshly fitted codebook."""
        if not self.active:
            return
        self.counts.fill_(1 / self.codebook_size)
        self.updates.zero_()
        if self.averages:
            self.sums.copy_(codebook.double() / self.codebook_size)

    @torch.no_grad()
    def statistics(self, rows: Tensor, indices: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
        """What ``step`` needs to know of a batch (n, d) and its indices (n,), plus usage and perplexity. Pure."""
        rows = rows.detach()
        counts = histogram(indices, self.codebook_size, keep)
        stats = usage_of(counts)
        if self.active:
            stats["counts"] = counts
        if self.averages:
            weighted = rows.double() if keep is None else rows.double() * keep.unsqueeze(1)
            stats["sums"] = torch.zeros_like(self.sums).index_add_(0, indices, weighted)
        if self.revival:
            stats["candidates"], stats["candidate_valid"] = self._candidates(rows, keep)
        return stats

    @torch.no_grad()
    def step(self, codebook: Tensor, stats: dict[str, Tensor]) -> Report:
        """Move ``codebook`` (K, d) in place by the statistics of one batch (of all ranks). Collective."""
        if not self.active:
            return Report()
        counts = all_sum(stats["counts"])
        sums = all_sum(stats["sums"]) if self.averages else None
        offered = all_rows(stats["candidates"], stats["candidate_valid"]) if self.revival else None
        # From here on every rank holds the same numbers.
        tokens = counts.sum()
        if float(tokens) == 0:
            return Report()
        if sums is not None and not bool(torch.isfinite(sums).all()):
            raise CodewordError("update got rows with NaN or infinity; mask them in forward or leave such a batch out")
        share = float(tokens) if int(self.updates) == 0 else 1.0
        self.updates += 1
        self.counts.mul_(share * self.decay).add_(counts, alpha=1 - self.decay)
        if sums is not None:
            self.sums.mul_(share * self.decay).add_(sums, alpha=1 - self.decay)
            smoothed = (self.sums + SMOOTHING * codebook.double()) / (self.counts + SMOOTHING).unsqueeze(1)
            codebook.copy_(smoothed.to(codebook.dtype))
        return self._revive(codebook, offered) if offered is not None else Report()

    def plausible(self) -> bool:
        """Whether the state is one that updates can reach."""
        return not self.active or (bool((self.counts >= 0).all()) and int(self.updates) >= 0)

    def _revive(self, codebook: Tensor, offered: Tensor) -> Report:
        expected = float(self.counts.sum()) / self.codebook_size
        dead = (self.counts < self.revival * expected).nonzero().squeeze(1)[:len(offered)]
        if not len(dead):
            return Report()
        codebook[dead] = offered[:len(dead)].to(codebook.dtype)
        self.counts[dead] = expected
        if self.averages:
            self.sums[dead] = codebook[dead].double() * expected
        return Report(revived=dead.tolist())

    def _candidates(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Evenly spaced kept rows, shifted from update to update so that no place in the batch is preferred: (R, d) and whether each
        is usable (distinct, finite). R does not depend on the batch, so that ranks can exchange them."""
        size = min(self.codebook_size, CANDIDATES)
        if len(rows) == 0:
            return rows.new_zeros(size, self.dim), torch.zeros(size, dtype=torch.bool, device=rows.device)
        order = torch.arange(len(rows), device=rows.device) if keep is None else torch.argsort(~keep, stable=True)
        kept = self.updates.new_tensor(len(rows)) if keep is None else keep.sum()
        shift = (self.updates.double() * _GOLDEN) % 1
        places = ((torch.arange(size, device=rows.device) + shift) / size * kept).to(torch.int64).clamp(max=len(rows) - 1)
        chosen = rows[order[places]]
        fresh = torch.cat((places.new_ones(1, dtype=torch.bool), places[1:] != places[:-1]))
        valid = fresh & (kept > 0) & torch.isfinite(chosen).all(1)
        return torch.where(valid.unsqueeze(1), chosen, 0.0), valid


def all_sum(values: Tensor) -> Tensor:
    """The sum over all ranks; ``values`` itself in a single process."""
    if not _many():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def all_rows(rows: Tensor, valid: Tensor) -> Tensor:
    """The valid rows of all ranks (same shape on each), every rank's first before any rank's second."""
    if _many():
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        marks = [torch.empty_like(valid, dtype=torch.uint8) for _ in gathered]
        dist.all_gather(gathered, rows.contiguous())
        dist.all_gather(marks, valid.to(torch.uint8))
        rows, valid = torch.stack(gathered, dim=1).flatten(0, 1), torch.stack(marks, dim=1).flatten().to(torch.bool)
    return rows[valid]


def _many() -> bool:
    return dist.is_available() and dist.is_initialized()


def accumulated(outs: Sequence[Quantized]) -> Quantized:
    """One output standing for several micro-batches: pass it to ``update`` once per optimizer step. Counts and sums are added, the
    offered rows taken from each in turn, other statistics averaged; values, codes and loss are the last batch's."""
    def combined(key: str, values: list[Tensor]) -> Tensor:
        kind = key.rpartition(".")[2]
        stacked = torch.stack(values)
        if kind in ("counts", "sums"):
            return stacked.sum(0)
        if kind in ("candidates", "candidate_valid"):
            places = torch.arange(stacked.shape[1], device=stacked.device)
            return stacked[places % len(values), places]
        return stacked.mean(0)

    return outs[-1]._replace(stats={key: combined(key, [out.stats[key] for out in outs]) for key in outs[-1].stats})
