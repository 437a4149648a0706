"""Bits of a vector as tokens: the codes of quantizers that keep a sign a dimension.

Consecutive bits form a token; the first of them is its least significant bit, or with ``order`` "high" its most significant one. Sizes
differ by at most one, larger tokens first.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from codeword.errors import CodewordError, Unsupported

WIDEST = 32
"""Bits of a token, at most."""
USUAL = 18
"""Bits of a token that is not asked for, at most: an alphabet that a generator can still have a softmax over."""
EXACT = 24
"""Bits whose sums float32 holds exactly in any order."""
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
    runs = _runs(sizes)
    parts = bits.split([size * count for size, count in runs], dim=1)
    return _joined([_number(part.unflatten(1, (count, size)), order) for part, (size, count) in zip(parts, runs, strict=True)])


def bits(tokens: Tensor, sizes: tuple[int, ...], order: str = "low") -> Tensor:
    """Inverse: int64 (n, tokens) -> bool (n, d)."""
    runs = _runs(sizes)
    parts = tokens.split([count for _, count in runs], dim=1)
    return _joined([((part.unsqueeze(2) & _places(size, order, part.device)) != 0).flatten(1)
                    for part, (size, _) in zip(parts, runs, strict=True)])


def corners(bits: Tensor, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """+value where a bit is set, -value where it is not."""
    return bits.to(dtype).mul_(2).sub_(1).mul_(value)


def _runs(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """(size, how many tokens) of neighbours of one size: at most two, whatever the number of tokens."""
    return [(size, len(list(group))) for size, group in itertools.groupby(sizes)]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _number(digits: Tensor, order: str) -> Tensor:
    places = _places(digits.shape[2], order, digits.device)
    if len(places) <= EXACT:
        return (digits * places.to(torch.float32)).sum(2).to(torch.int64)  # a quarter of the time of integers
    return (digits * places).sum(2)


def _places(count: int, order: str, device: torch.device) -> Tensor:
    """int64 (count,): what each bit of a token is worth."""
    places = 1 << torch.arange(count, device=device)
    return places if order == "low" else places.flip(0)
