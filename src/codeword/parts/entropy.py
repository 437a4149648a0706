"""Entropy losses of codes: each token should be certain of its code, all tokens together should use every code.

With p_n the distribution of token n over the codes and means over the tokens n (Jansen et al. 2020; Yu et al. 2024 for sign codes):

    sample = mean_n H(p_n),   batch = H(mean_n p_n),   loss = sample - gamma batch                                     (all in nats)

Over a codebook, p_nk ~ exp(-|x_n - c_k|^2 / tau). Written out this keeps several N x K tables; here blocks of rows are computed, and
computed again in the backward pass, so that no table outlives its block. With l = -|x - c|^2 / tau and w_n = 1/N (0 for masked rows)

    d sample / d l_nk = -w_n p_nk (log p_nk + H(p_n)),   d batch / d l_nk = -w_n p_nk (log pbar_k - sum_j p_nj log pbar_j)

Over sign codes, c in {-s, s}^d, the same p is a product: bit i is + with probability sigma(l_i), l_i = 4 s x_i / tau, independently.
So the sample entropy is exactly the sum of d binary entropies, and there is no table of 2^d codes. Only the batch entropy needs the
joint distribution of its bits: bits are taken in groups, the joint of each group is exact, and the sum over groups bounds the
joint entropy of all bits from above (with equality where groups are independent). A group of g bits costs one product of N x 2^(g/2)
matrices, since the joint distribution of two halves is the mean outer product of theirs.

The batch is what one process sees: nothing here is collective. Products are torch's own, whose last bit may change with the number
of threads: ``fit`` must call these within ``one_thread``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from codeword.errors import CodewordError, ShapeError
from codeword.ops import dispatch
from codeword.parts import arrays

BLOCK_ENTRIES = 1 << 21
"""Probabilities held at once, 8 MiB of float32; up to five such blocks are alive."""
MOST_GROUPED = 18
"""Bits of a group, at most: 2^18 means."""


def difference(sample: Tensor, batch: Tensor, gamma: float = 1.0) -> Tensor:
    """sample - gamma batch: what is minimised."""
    return sample - gamma * batch


# ---------------------------------------------------------------------- over a codebook


def codebook_entropies(rows: Tensor, codebook: Tensor, temperature: float, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(sample, batch) of rows (n, d) over codewords (k, d), scalars, differentiable once in both; tau = ``temperature`` > 0 in squared
    units of the rows; ``keep`` (n,) bool marks the rows that count. No kept rows: both are 0."""
    if rows.ndim != 2 or codebook.ndim != 2 or rows.shape[1] != codebook.shape[1] or len(codebook) == 0:
        raise ShapeError(f"codebook_entropies got rows {tuple(rows.shape)} and codebook {tuple(codebook.shape)}; (n, d) and (k >= 1, d) "
                         "are needed")
    if not temperature > 0:
        raise CodewordError(f"codebook_entropies got temperature={temperature}; a positive one is needed")
    sample, batch, _ = dispatch.run(_entropies, rows, codebook, _shares(rows, keep), float(temperature))
    return sample, batch


@torch.library.custom_op("codeword::affinity_entropies", mutates_args=())
def _entropies(rows: Tensor, codebook: Tensor, shares: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """sample, batch and the mean distribution (k,), summed over blocks in float64. One opaque op: a compiler need not unroll blocks."""
    rows, codebook = _centred(rows.detach(), codebook.detach())
    mean = torch.zeros(len(codebook), dtype=torch.float64, device=rows.device)
    sample = torch.zeros((), dtype=torch.float64, device=rows.device)
    half = codebook.square().sum(1) / 2
    for part in _blocks(len(rows), len(codebook)):
        logs = _log_affinity(rows[part], codebook, half, temperature)
        p = logs.exp()
        mean += shares[part] @ p
        sample -= shares[part] @ logs.mul_(p).sum(1)
    return sample.to(rows.dtype), _entropy(mean).to(rows.dtype), mean.to(rows.dtype)


@_entropies.register_fake
def _(rows: Tensor, codebook: Tensor, shares: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    return rows.new_empty(()), rows.new_empty(()), rows.new_empty(len(codebook))


@torch.library.custom_op("codeword::affinity_entropies_backward", mutates_args=())
def _entropies_backward(rows: Tensor, codebook: Tensor, shares: Tensor, mean: Tensor, sample_grad: Tensor, batch_grad: Tensor,
                        temperature: float) -> tuple[Tensor, Tensor]:
    """Gradients of rows and codebook: with g_nk = dL / d l_nk, whose rows sum to 0, dx_n = 2/tau sum_k g_nk c_k and
    dc_k = 2/tau (sum_n g_nk x_n - c_k sum_n g_nk)."""
    rows, codebook = _centred(rows, codebook)
    rows_grad, pulls = torch.empty_like(rows), torch.zeros_like(codebook)
    totals = torch.zeros_like(mean)
    half = codebook.square().sum(1) / 2
    log_mean = batch_grad * _log(mean)
    for part in _blocks(len(rows), len(codebook)):
        logs = _log_affinity(rows[part], codebook, half, temperature)
        p = logs.exp()
        inner = logs.mul_(sample_grad).add_(log_mean).neg_()            # dL / d p_nk over w_n, up to a constant of the row
        inner.sub_((p * inner).sum(1, keepdim=True)).mul_(p).mul_(shares[part].unsqueeze(1))
        rows_grad[part] = inner @ codebook
        pulls.addmm_(inner.mT, rows[part])
        totals += inner.sum(0)
    pulls.sub_(codebook * totals.unsqueeze(1))
    return rows_grad.mul_(2 / temperature), pulls.mul_(2 / temperature)


@_entropies_backward.register_fake
def _(rows: Tensor, codebook: Tensor, shares: Tensor, mean: Tensor, sample_grad: Tensor, batch_grad: Tensor,
      temperature: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(codebook)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], output[2])
    ctx.temperature = inputs[3]


def _backward(ctx: Any, sample_grad: Tensor, batch_grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return *dispatch.run(_entropies_backward, *ctx.saved_tensors, sample_grad, batch_grad, ctx.temperature), None, None


_entropies.register_autograd(_backward, setup_context=_setup)


def _centred(rows: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Both less the codebook's mean, which no distance sees: the squares below would cancel where data lie far from the origin."""
    center = codebook.mean(0)
    return (rows - center).contiguous(), (codebook - center).contiguous()


def _log_affinity(rows: Tensor, codebook: Tensor, half: Tensor, temperature: float) -> Tensor:
    """log p (b, k): |x|^2 is the same for all codewords of a row and drops out."""
    return torch.log_softmax((rows @ codebook.mT).sub_(half).mul_(2 / temperature), dim=1)


def _blocks(rows: int, size: int) -> list[slice]:
    step = max(1, BLOCK_ENTRIES // size)
    return [slice(start, start + step) for start in range(0, rows, step)]


# ---------------------------------------------------------------------- over sign codes


def bit_entropy(logits: Tensor) -> Tensor:
    """Elementwise entropy of a bit that is + with probability sigma(l): log(1 + e^-a) + a sigma(-a) with a = |l|. Both terms are
    positive: nothing cancels however certain the bit is. Its derivative is -l sigma(l) sigma(-l)."""
    a = logits.abs()
    return torch.nn.functional.softplus(-a) + a * torch.sigmoid(-a)


def sign_entropies(logits: Tensor, keep: Tensor | None = None, *, group: int = 1) -> tuple[Tensor, Tensor]:
    """(sample, batch) of log-odds (n, d), one a bit, scalars, differentiable. ``sample`` is exact; ``batch`` is the sum of the exact joint
    entropies of every ``group`` consecutive bits (the last group may be smaller): 1 takes each bit alone (BSQ), d the joint
    distribution of all. ``keep`` (n,) bool marks the rows that count. No kept rows: both are 0."""
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ShapeError(f"sign_entropies got logits {tuple(logits.shape)}; (n, d >= 1) are needed")
    if not 1 <= group <= MOST_GROUPED:
        raise CodewordError(f"sign_entropies got group={group}; 1..{MOST_GROUPED} bits are allowed")
    sample = arrays.masked_mean(bit_entropy(logits).sum(1), keep)
    shares, width = _shares(logits, keep), logits.shape[1]
    whole = width - width % group
    batch = logits.new_zeros(())
    if whole:
        batch = batch + _entropy(_joint_means(logits[:, :whole].unflatten(1, (-1, group)), shares))
    if whole < width:
        batch = batch + _entropy(_joint_means(logits[:, whole:].unsqueeze(1), shares))
    return sample, batch


def _joint_means(logits: Tensor, shares: Tensor) -> Tensor:
    """Mean joint distribution (groups, 2^g) of log-odds (n, groups, g)."""
    groups = logits.transpose(0, 1)
    half = groups.shape[2] // 2
    left, right = _joint(groups[..., :half]), _joint(groups[..., half:])
    return ((left * shares.unsqueeze(1)).mT @ right).flatten(1)


def _joint(logits: Tensor) -> Tensor:
    """Joint distribution (groups, n, 2^g) of independent bits, log-odds (groups, n, g); no bits: one outcome."""
    plus, minus = torch.sigmoid(logits), torch.sigmoid(-logits)
    p = logits.new_ones(*logits.shape[:2], 1)
    for i in range(logits.shape[2]):
        p = torch.cat((p * minus[..., i:i + 1], p * plus[..., i:i + 1]), dim=2)
    return p


# ---------------------------------------------------------------------- shared


def _shares(rows: Tensor, keep: Tensor | None) -> Tensor:
    """w_n (n,): 1 over the number of kept rows, 0 for the others."""
    if keep is None:
        return rows.new_full((len(rows),), 1 / max(1, len(rows)))
    kept = keep.to(rows.dtype)
    return kept / kept.sum().clamp(min=1)


def _entropy(p: Tensor) -> Tensor:
    """-sum p log p. A p that underflowed to 0 counts as the smallest float in the logarithm, so that its gradient is finite."""
    return -(p * _log(p)).sum()


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(torch.float32).tiny).log()
