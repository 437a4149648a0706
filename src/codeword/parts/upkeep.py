"""How a codebook follows its data inside a network: moving averages and the revival of codewords nobody chooses.

Razavi, van den Oord, Vinyals 2019 for the averages. With g the decay, e = 1e-5, count_k and sum_k over the tokens of all ranks:

    n_k <- g n_k + (1 - g) count_k,   m_k <- g m_k + (1 - g) sum_k,   c_k <- (m_k + e c_k) / (n_k + e)

The usual Laplace smoothing divides m_k by (n_k + e) N / (N + K e), which draws a rarely chosen codeword to the origin; here the e
pseudo-tokens lie on the codeword itself, so it stays where it is. After ``fit`` every codeword starts with an equal share 1/K; the
first update scales the shares to its own number of tokens, so no batch size has to be known.

A codeword is dead where n_k < revival * sum(n) / K, a fraction of its expected hits whatever the batch size. It is moved onto a row
of the batch and gets an equal share of the average again (n_k and m_k alike), hence the same time to prove itself as at the start.

The moments that an optimizer keeps of a revived codeword which also follows a gradient are the optimizer's, and stay: where they matter
let the averages move the codebook.

All of it happens in ``step``, never in a forward pass; the collectives run on every rank, in one order, whatever its batch was, and
all ranks then do the same arithmetic on the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from codeword import ops
from codeword.errors import CodewordError
from codeword.parts.codebook import histogram, usage_of
from codeword.quantizer import Quantized, Report

SMOOTHING = 1e-5
CANDIDATES = 128
"""Rows a rank offers for revival at each step, at most."""
_GOLDEN = 0.6180339887498949


class Upkeep(nn.Module):
    """State of the averages, none where neither they nor revival are wanted: ``counts`` n (K,) and, where the codebook follows
    them, ``sums`` m (K, d), both float64; ``updates``, how many there were. With ``num_codebooks`` M there is a state for each of them,
    (M, K), (M, K, d) and (M,), and all of them take one collective each."""

    def __init__(self, codebook_size: int, dim: int, *, averages: bool, decay: float, revival: float,
                 num_codebooks: int | None = None) -> None:
        super().__init__()
        if not 0 <= decay < 1 or not 0 <= revival < 1:
            raise CodewordError(f"decay={decay} and revival={revival}; both must be at least 0 and below 1")
        self.codebook_size, self.dim, self.averages, self.decay, self.revival = codebook_size, dim, averages, decay, revival
        self.lead = () if num_codebooks is None else (num_codebooks,)
        self.counts: Tensor
        self.sums: Tensor
        self.updates: Tensor
        self.active = averages or revival > 0
        if self.active:
            self.register_buffer("counts", torch.zeros(*self.lead, codebook_size, dtype=torch.float64))
            self.register_buffer("updates", torch.zeros(self.lead, dtype=torch.int64))
        if averages:
            self.register_buffer("sums", torch.zeros(*self.lead, codebook_size, dim, dtype=torch.float64))

    @torch.no_grad()
    def start(self, codebook: Tensor) -> None:
        """Equal shares of a freshly fitted codebook (K, d), or of M of them (M, K, d)."""
        if not self.active:
            return
        self.counts.fill_(1 / self.codebook_size)
        self.updates.zero_()
        if self.averages:
            self.sums.copy_(codebook.double() / self.codebook_size)

    @torch.no_grad()
    def statistics(self, rows: Tensor, indices: Tensor, keep: Tensor | None, book: int = 0) -> dict[str, Tensor]:
        """What ``step`` needs to know of a batch (n, d) and its indices (n,), plus usage and perplexity: of one codebook, the statistics of
        several are ``stacked``. Pure."""
        rows = rows.detach()
        if self.averages:
            weights = None if keep is None else keep.float()
            sums, counts = ops.segment_sum(rows, indices, self.codebook_size, weights)
        else:
            sums, counts = None, histogram(indices, self.codebook_size, keep)
        stats = usage_of(counts)
        if self.active:
            stats["counts"] = counts
        if sums is not None:
            stats["sums"] = sums
        if self.revival:
            stats["candidates"], stats["candidate_valid"] = self._candidates(rows, keep, self.updates.reshape(-1)[book])
        return stats

    @torch.no_grad()
    def step(self, codebook: Tensor, stats: dict[str, Tensor]) -> Report:
        """Move ``codebook`` (K, d) or (M, K, d) in place by the statistics of one batch (of all ranks). Collective. A codebook that no row
        reached stays as it is."""
        if not self.active:
            return Report()
        counts = all_sum(stats["counts"]).reshape(-1, self.codebook_size)
        sums = all_sum(stats["sums"]).reshape(-1, self.codebook_size, self.dim) if self.averages else None
        offered = all_rows(stats["candidates"], stats["candidate_valid"]) if self.revival else None
        # From here on every rank holds the same numbers.
        if sums is not None and not bool(torch.isfinite(sums).all()):
            raise CodewordError("update got rows with NaN or infinity; mask them in forward or leave such a batch out")
        books, revived = codebook.detach().reshape(-1, self.codebook_size, self.dim), {}
        for m, tokens in enumerate(counts.sum(1).tolist()):
            if tokens == 0:
                continue
            self._average(m, books[m], tokens, counts[m], None if sums is None else sums[m])
            if offered is not None:
                moved = self._revive(m, books[m], offered[m])
                revived |= {m: moved} if moved else {}
        if not revived:
            return Report()
        return Report(revived={f"codebooks.{m}": moved for m, moved in revived.items()} if self.lead else revived[0])

    def plausible(self) -> bool:
        """Whether the state is one that updates can reach."""
        return not self.active or (bool((self.counts >= 0).all()) and bool((self.updates >= 0).all()))

    def _state(self, m: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Views of counts (K,), updates () and sums (K, d) of codebook m."""
        sums = self.sums.view(-1, self.codebook_size, self.dim)[m] if self.averages else None
        return self.counts.view(-1, self.codebook_size)[m], self.updates.view(-1)[m], sums

    def _average(self, m: int, book: Tensor, tokens: float, counts: Tensor, sums: Tensor | None) -> None:
        own_counts, updates, own_sums = self._state(m)
        share = tokens if int(updates) == 0 else 1.0
        updates += 1
        own_counts.mul_(share * self.decay).add_(counts, alpha=1 - self.decay)
        if own_sums is not None and sums is not None:
            own_sums.mul_(share * self.decay).add_(sums, alpha=1 - self.decay)
            smoothed = book.double().mul_(SMOOTHING).add_(own_sums).div_((own_counts + SMOOTHING).unsqueeze(1))
            book.copy_(smoothed)

    def _revive(self, m: int, book: Tensor, offered: Tensor) -> list[int]:
        counts, _, sums = self._state(m)
        expected = float(counts.sum()) / self.codebook_size
        dead = (counts < self.revival * expected).nonzero().squeeze(1)[:len(offered)]
        if len(dead):
            book[dead] = offered[:len(dead)].to(book.dtype)
            counts[dead] = expected
            if sums is not None:
                sums[dead] = book[dead].double() * expected
        return dead.tolist()

    def _candidates(self, rows: Tensor, keep: Tensor | None, updates: Tensor) -> tuple[Tensor, Tensor]:
        """Evenly spaced kept rows, shifted from update to update so that no place in the batch is preferred: (R, d) and whether each
        is usable (distinct, finite). R does not depend on the batch, so that ranks can exchange them."""
        size, n = min(self.codebook_size, CANDIDATES), rows.shape[0]
        if n == 0:
            return rows.new_zeros(size, self.dim), torch.zeros(size, dtype=torch.bool, device=rows.device)
        kept = n if keep is None else keep.sum()
        shift = (updates.double() * _GOLDEN) % 1
        places = ((torch.arange(size, device=rows.device) + shift) / size * kept).to(torch.int64).clamp(max=n - 1)
        chosen = rows[places] if keep is None else rows[torch.argsort(~keep, stable=True)[places]]
        fresh = torch.cat((places.new_ones(1, dtype=torch.bool), places[1:] != places[:-1]))
        valid = fresh & torch.isfinite(chosen).all(1)
        if keep is not None:
            valid = valid & keep.any()
        return torch.where(valid.unsqueeze(1), chosen, 0.0), valid


COLLECTED = ("counts", "sums", "candidates", "candidate_valid")
"""Statistics that ``step`` reads."""


def stacked(each: Sequence[dict[str, Tensor]], prefix: str) -> dict[str, Tensor]:
    """Statistics of several codebooks as one dictionary: what ``step`` reads stacked, (M, ...), the rest as ``prefix.m.name``."""
    found = {f"{prefix}.{m}.{key}": value for m, stats in enumerate(each) for key, value in stats.items() if key not in COLLECTED}
    return found | {key: torch.stack([stats[key] for stats in each]) for key in COLLECTED if key in each[0]}


def all_sum(values: Tensor) -> Tensor:
    """The sum over all ranks; ``values`` itself in a single process."""
    if not _many():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def all_rows(rows: Tensor, valid: Tensor) -> list[Tensor]:
    """The valid rows of all ranks (same shape on each), every rank's first before any rank's second: for rows (R, d) and valid (R,) a list
    of one, for (M, R, d) and (M, R) one for each codebook."""
    rows, valid = rows.reshape(-1, *rows.shape[-2:]), valid.reshape(-1, valid.shape[-1])
    if _many():
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        marks = [torch.empty_like(valid, dtype=torch.uint8) for _ in gathered]
        dist.all_gather(gathered, rows.contiguous())
        dist.all_gather(marks, valid.to(torch.uint8))
        rows, valid = torch.stack(gathered, dim=2).flatten(1, 2), torch.stack(marks, dim=2).flatten(1).to(torch.bool)
    return [own[mark] for own, mark in zip(rows, valid, strict=True)]


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
            axis = -2 if kind == "candidates" else -1
            places = torch.arange(values[0].shape[axis], device=stacked.device)
            return stacked.movedim(axis, 1)[places % len(values), places].movedim(0, axis)
        return stacked.mean(0)

    return outs[-1]._replace(stats={key: combined(key, [out.stats[key] for out in outs]) for key in outs[-1].stats})
