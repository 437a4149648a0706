"""Hard look-up forward, soft gradients backward, without anything of size rows x codewords (index backpropagation: Shi et al. 2024;
with noise, straight-through Gumbel: Jang, Gu, Poole 2017; Maddison, Mnih, Teh 2017).

    p = softmax_k(l_k / T + g_k),   l_k = -|x - c_k|^2 or <x, c_k>,   g_k: Gumbel noise or 0
    y = (onehot(i) + p - sg p) C = c_i                      i: the nearest codeword, or with noise argmax_k(l_k / T + g_k), a draw from
                                                            softmax(l / T)

Backward, with the gradient G of y and u_k = <G, c_k>:

    dl_k = p_k (u_k - sum_j p_j u_j) / T
    dx   = sum_k dl_k 2 c_k                dc_k = dl_k 2 (x - c_k) + [k = i] G             (inner products: c_k, and x for 2 (x - c_k))

Written out, p and its gradient take 8 N K bytes: 2 GiB at N = K = 16,384. Here both are computed again in blocks of at most
``BLOCK_VALUES`` entries, once to sum them and once to use them, in memory O(N + K d + BLOCK_VALUES). Noise is drawn again, too: that of a
block is seeded by the block, so the sampler and the backward pass see the same. Squared distances are taken from the codebook's mean on:
they do not change, and nothing cancels where data lie far from the origin.

Cost: three products of N x K x d in the backward pass, five where one row block meets several codeword blocks; one in ``sample``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError
from codeword.ops import dispatch

BLOCK_VALUES = 1 << 20
"""Scores held at once: a few tensors of 4 MiB."""
BLOCK_ROWS = 64
"""Rows of a block at least."""
KINDS = ("l2", "ip")


def sample(rows: Tensor, codebook: Tensor, seed: Tensor, *, temperature: float = 1.0, kind: str = "l2") -> Tensor:
    """int64 (n,): a codeword of ``codebook`` (K, d) drawn for each of ``rows`` (n, d) from softmax(l / temperature). ``seed``: an int64
    scalar tensor that decides the noise. No gradient."""
    _check(temperature, kind)
    return dispatch.run(_sample, rows.detach(), codebook.detach(), seed, temperature, kind)


def lookup(rows: Tensor, codebook: Tensor, indices: Tensor, *, temperature: float = 1.0, kind: str = "l2",
           seed: Tensor | None = None) -> Tensor:
    """codebook[indices] (n, d), whose gradients reach rows (n, d) and all of ``codebook`` (K, d) through p. ``seed``: that of
    ``sample``, for the same noise; None: without noise."""
    _check(temperature, kind)
    return dispatch.run(_lookup, rows, codebook, indices, seed, temperature, kind)


def _check(temperature: float, kind: str) -> None:
    if not temperature > 0 or kind not in KINDS:
        raise CodewordError(f"soft look-up got temperature={temperature} and kind={kind!r}; a positive one and 'l2' or 'ip' are needed")


@torch.library.custom_op("codeword::soft_sample", mutates_args=())
def _sample(rows: Tensor, codebook: Tensor, seed: Tensor, temperature: float, kind: str) -> Tensor:
    rows, codebook = _centred(rows, codebook, kind)
    found = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for part, pieces in _blocks(len(rows), len(codebook)):
        best = rows.new_full((len(rows[part]),), -torch.inf)
        for piece in pieces:
            top, where = _scores(rows[part], codebook[piece], seed, part, piece, temperature, kind).max(dim=1)
            found[part] = torch.where(top > best, where + piece.start, found[part])
            best = torch.maximum(best, top)
    return found


@_sample.register_fake
def _(rows: Tensor, codebook: Tensor, seed: Tensor, temperature: float, kind: str) -> Tensor:
    return rows.new_empty(rows.shape[0], dtype=torch.int64)


@torch.library.custom_op("codeword::soft_lookup", mutates_args=())
def _lookup(rows: Tensor, codebook: Tensor, indices: Tensor, seed: Tensor | None, temperature: float, kind: str) -> Tensor:
    return torch.nn.functional.embedding(indices, codebook) + (rows - rows)  # NaN stays NaN


@_lookup.register_fake
def _(rows: Tensor, codebook: Tensor, indices: Tensor, seed: Tensor | None, temperature: float, kind: str) -> Tensor:
    return torch.empty_like(rows)


@torch.library.custom_op("codeword::soft_lookup_backward", mutates_args=())
def _backward(grad: Tensor, rows: Tensor, codebook: Tensor, indices: Tensor, seed: Tensor | None, temperature: float,
              kind: str) -> tuple[Tensor, Tensor]:
    rows, codebook = _centred(rows, codebook, kind)
    own, books = torch.zeros_like(rows), ops.segment_sum(grad, indices, len(codebook))[0].to(codebook.dtype)
    mass = torch.zeros_like(codebook[:, 0])  # sum of dl over rows
    for part, pieces in _blocks(len(rows), len(codebook)):
        x, g = rows[part], grad[part]
        terms: tuple[Tensor, Tensor] | None = None
        top, total, mean = x.new_full((len(x), 1), -torch.inf), x.new_zeros(len(x), 1), x.new_zeros(len(x), 1)
        for piece in pieces:
            scores, ups = _scores(x, codebook[piece], seed, part, piece, temperature, kind), g @ codebook[piece].mT
            peak = torch.maximum(top, scores.amax(dim=1, keepdim=True))
            scale, weight = torch.exp(top - peak), torch.exp(scores - peak)
            total, mean = total * scale + weight.sum(1, keepdim=True), mean * scale + (weight * ups).sum(1, keepdim=True)
            top, terms = peak, (weight, ups) if len(pieces) == 1 else None
        mean = mean / total
        for piece in pieces:
            if terms is None:
                weight = torch.exp(_scores(x, codebook[piece], seed, part, piece, temperature, kind) - top)
                ups = g @ codebook[piece].mT
            else:
                weight, ups = terms
            slope = weight.mul_(ups.sub_(mean)).div_(total * temperature)
            own[part] += slope @ codebook[piece]
            books[piece].addmm_(slope.mT, x, alpha=2.0 if kind == "l2" else 1.0)
            mass[piece] += slope.sum(0)
    if kind == "l2":
        own *= 2
        books -= 2 * mass.unsqueeze(1) * codebook
    return own, books


@_backward.register_fake
def _(grad: Tensor, rows: Tensor, codebook: Tensor, indices: Tensor, seed: Tensor | None, temperature: float,
      kind: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(codebook)


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    rows, codebook, indices, seed, temperature, kind = inputs
    ctx.save_for_backward(rows, codebook, indices, seed)
    ctx.temperature, ctx.kind = temperature, kind  # type: ignore[attr-defined]


def _differentiate(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, codebook, indices, seed = ctx.saved_tensors  # type: ignore[attr-defined]
    found = dispatch.run(_backward, grad.contiguous(), rows, codebook, indices, seed, ctx.temperature, ctx.kind)  # type: ignore[attr-defined]
    return *found, None, None, None, None


_lookup.register_autograd(_differentiate, setup_context=_setup)


def _centred(rows: Tensor, codebook: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    if kind == "ip":
        return rows, codebook
    center = codebook.mean(0)
    return rows - center, codebook - center


def _blocks(rows: int, size: int) -> Iterator[tuple[slice, list[slice]]]:
    """Row blocks, each with all its codeword blocks."""
    height = min(rows, max(BLOCK_ROWS, BLOCK_VALUES // size))
    width = max(1, BLOCK_VALUES // max(1, height))
    pieces = [slice(start, min(size, start + width)) for start in range(0, size, width)]
    for start in range(0, rows, max(1, height)):
        yield slice(start, min(rows, start + height)), pieces


def _scores(x: Tensor, codebook: Tensor, seed: Tensor | None, part: slice, piece: slice, temperature: float, kind: str) -> Tensor:
    """l / T + g, up to what a row's scores share, of one block."""
    if kind == "l2":
        scores = torch.addmm(codebook.square().sum(1), x, codebook.mT, beta=-1 / temperature, alpha=2 / temperature)
    else:
        scores = (x @ codebook.mT).div_(temperature)
    if seed is None:
        return scores
    generator = torch.Generator(device=x.device)
    generator.manual_seed((int(seed) + part.start * 0x9E3779B97F4A7C15 + piece.start * 0xC2B2AE3D27D4EB4F) % (1 << 63))
    noise = torch.empty_like(scores).exponential_(generator=generator)
    return scores.sub_(noise.log_())  # -log of a standard exponential is a standard Gumbel
