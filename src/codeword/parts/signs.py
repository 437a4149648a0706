"""Bits of a vector as tokens: the codes of quantizers that keep a sign a dimension.

Consecutive bits form a token; the first of them is its least significant bit, or with ``order`` "high" its most significant one. Sizes
differ by at most one, larger tokens first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from codeword.errors import CodewordError, Unsupported

WIDEST = 32
"""Bits of a token, at most."""
USUAL = 18
"""Bits of a token that is not asked for, at most: an alphabet that a generator can still have a softmax over."""
MOST_DIMS = 1 << 16
ORDERS = ("low", "high")


def sizes(name: str, dim: int, num_codebooks: int | None) -> tuple[int, ...]:
    """Bits of each token of ``dim`` bits; None: the fewest tokens of at most ``USUAL`` bits."""
    if not 1 <= dim <= MOST_DIMS:
        raise CodewordError(f"{name} got dim={dim}; 1..{MOST_DIMS} are allowed")
    count = math.ceil(dim / USUAL) if num_codebooks is None else num_codebooks
    if not math.ceil(dim / WIDEST) <= count <= dim:
        raise CodewordError(f"{name} got num_codebooks={num_codebooks} for dim={dim}; tokens of 1..{WIDEST} bits, so "
                            f"{math.ceil(dim / WIDEST)}..{dim}, are allowed")
    small, larger = divmod(dim, count)
    return (small + 1,) * larger + (small,) * (count - larger)


def check_rate(name: str, bits: float) -> None:
    """Unsupported for any rate but one bit a dimension."""
    if bits != 1:
        raise Unsupported(f"{name} keeps one sign, 1 bit, a dimension; for bits={bits:g} use projected({name}:bits=1):width=...")


def tokens(bits: Tensor, sizes: tuple[int, ...], order: str = "low") -> Tensor:
    """bool (n, d) -> int64 (n, tokens)."""
    if len(set(sizes)) == 1:
        return _number(bits.unflatten(1, (len(sizes), sizes[0])), order)
    return torch.cat([_number(part.unsqueeze(1), order) for part in bits.split(list(sizes), dim=1)], dim=1)


def bits(tokens: Tensor, sizes: tuple[int, ...], order: str = "low") -> Tensor:
    """Inverse: int64 (n, tokens) -> int64 (n, d) of 0 and 1."""
    widest = torch.arange(max(sizes), device=tokens.device)
    spread = (tokens.unsqueeze(2) >> widest) & 1
    if len(set(sizes)) == 1:
        return (spread if order == "low" else spread.flip(2)).flatten(1)
    parts = [spread[:, t, :size] for t, size in enumerate(sizes)]
    return torch.cat(parts if order == "low" else [part.flip(1) for part in parts], dim=1)


def _number(digits: Tensor, order: str) -> Tensor:
    places = torch.arange(digits.shape[2], device=digits.device)
    return (digits.to(torch.int64) << (places if order == "low" else places.flip(0))).sum(2)
