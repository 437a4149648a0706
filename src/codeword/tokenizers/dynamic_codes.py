"""Codes of variable length on two grids: which places have a token, sequences and back, what the map of it costs (see ``dynamic.py``).

    pack     coarse tokens in raster order of the h x w cells, then fine tokens in raster order of the 2h x 2w grid, each with its position
             (grid 0 or 1, row, column); a batch is padded to its longest code, with a mask
    unpack   the inverse, whatever the order of the tokens: every cell is covered exactly once or it refuses

So positions carry the gate map and nothing else: h w bits an image, or what ``adaptive_bits`` says, however long positions are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from codeword.errors import ShapeError
from codeword.tokenizers.tokens import Tokens


def singles(tokens: Tokens) -> list[Tokens]:
    """Each image's tokens (n_i, positions) without padding, mask and batch axis."""
    if tokens.mask is None or tokens.positions is None or tokens.mask.ndim != 2:
        raise ShapeError("singles needs a batch of tokens with positions and a mask")
    return [tokens._replace(indices=indices[:n], positions=positions[:n], mask=None)
            for indices, positions, n in zip(tokens.indices, tokens.positions, tokens.mask.sum(1).tolist())]


def joined(items: Sequence[Tokens]) -> Tokens:
    """Inverse of ``singles``: a padded batch of the items of one tokenizer."""
    if not items or any(item.positions is None or item.layout != items[0].layout or item.fingerprint != items[0].fingerprint
                        or item.indices.ndim != 2 for item in items):
        raise ShapeError("joined needs at least one item, each of the same tokenizer and layout, with positions and no batch axis")
    longest = max(len(item.indices) for item in items)
    indices = items[0].indices.new_zeros(len(items), longest, items[0].indices.shape[1])
    positions = torch.zeros(len(items), longest, 3, dtype=torch.int32, device=indices.device)
    mask = torch.zeros(len(items), longest, dtype=torch.bool, device=indices.device)
    for i, item in enumerate(items):
        n = len(item.indices)
        assert item.positions is not None
        indices[i, :n], positions[i, :n] = item.indices, item.positions
        mask[i, :n] = True if item.mask is None else item.mask
    return items[0]._replace(indices=indices, positions=positions, mask=mask)


def repeated(x: Tensor) -> Tensor:
    """Each place of (b, c, h, w) four times: (b, c, 2h, 2w)."""
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def taken(gates: Tensor) -> Tensor:
    """bool (b, h w + 4 h w): which places of the coarse grid, then of the fine one, have a token."""
    fine = gates > 0
    return torch.cat((~fine.flatten(1), repeated(fine.unsqueeze(1)).flatten(1)), 1)


def pack(fine: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gates (b, h, w) bool and indices (b, h w + 4 h w, positions) of both grids -> indices (b, n, positions), positions (b, n, 3) int32 as
    (grid, row, column), mask (b, n); n the longest code, shorter ones are filled with zeros."""
    b, h, w = fine.shape
    keep = taken(fine)
    if indices.ndim != 3 or indices.shape[:2] != keep.shape:
        raise ShapeError(f"pack got indices {tuple(indices.shape)} for gates {tuple(fine.shape)}; ({b}, {5 * h * w}, positions) is needed")
    lengths = keep.sum(1)
    longest = int(lengths.max()) if b else 0
    order = torch.argsort(~keep, dim=1, stable=True)[:, :longest]                       # kept places first, in their order
    mask = torch.arange(longest, device=fine.device) < lengths.unsqueeze(1)
    packed = torch.where(mask.unsqueeze(2), indices.long().gather(1, order.unsqueeze(2).expand(-1, -1, indices.shape[2])), 0)
    place = torch.where(order < h * w, order, order - h * w)
    side = torch.where(order < h * w, w, 2 * w)
    positions = torch.stack(((order >= h * w).long(), place // side, place % side), 2) * mask.unsqueeze(2)
    return packed.to(indices.dtype), positions.to(torch.int32), mask


def unpack(indices: Tensor, positions: Tensor, mask: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Inverse of ``pack`` on ``cells`` x ``cells`` cells, in whatever order the tokens come: gates (b, cells, cells) bool and indices
    (b, 5 cells^2, positions), zero where there is no token. ShapeError unless every cell has one coarse or all four fine tokens, once."""
    b, n = mask.shape if mask.ndim == 2 else (0, 0)
    if mask.ndim != 2 or indices.ndim != 3 or indices.shape[:2] != (b, n) or positions.shape != (b, n, 3):
        raise ShapeError(f"got indices {tuple(indices.shape)}, positions {tuple(positions.shape)}, mask {tuple(mask.shape)}; "
                         "(b, n, positions), (b, n, 3), (b, n) are needed")
    keep = mask.to(torch.bool)
    grid, row, column = (part.squeeze(2) for part in positions.long().split(1, 2))
    side = torch.where(grid == 0, cells, 2 * cells)
    if bool((((grid < 0) | (grid > 1) | (row < 0) | (row >= side) | (column < 0) | (column >= side)) & keep).any()):
        raise ShapeError(f"a token lies outside the grids of {cells} x {cells} and {2 * cells} x {2 * cells} places")
    place = torch.where(grid == 0, row * cells + column, cells * cells + row * side + column)
    images = torch.arange(b, device=mask.device).unsqueeze(1).expand(-1, n)
    counts = torch.zeros(b, 5 * cells * cells, dtype=torch.int64, device=mask.device)
    counts.index_put_((images[keep], place[keep]), torch.ones((), dtype=torch.int64, device=mask.device), accumulate=True)
    fine = counts[:, :cells * cells].reshape(b, cells, cells) == 0
    if bool((counts != taken(fine).long()).any()):
        at = (counts != taken(fine).long()).nonzero()[0]
        raise ShapeError(f"image {int(at[0])} has a cell without exactly one coarse or four fine tokens (place {int(at[1])} of both grids)")
    dense = torch.zeros(b, 5 * cells * cells, indices.shape[2], dtype=torch.int64, device=mask.device)
    dense[images[keep], place[keep]] = indices.long()[keep]
    return fine, dense.to(indices.dtype)


def adaptive_bits(fine: Tensor) -> float:
    """Bits of gate maps (b, h, w) bool by an adaptive binary coder (Krichevsky, Trofimov 1981) with one estimate for each state of the
    neighbours left, above and above left (coarse outside). Nothing is sent beside them: the estimates start at 1/2 and follow."""
    if not fine.numel():
        return 0.0
    padded = torch.nn.functional.pad(fine.long().cpu(), (1, 0, 1, 0))
    context = padded[:, 1:, :-1] + 2 * padded[:, :-1, 1:] + 4 * padded[:, :-1, :-1]
    counts = torch.zeros(8, 2, dtype=torch.float64)
    counts.index_put_((context.flatten(), fine.long().cpu().flatten()), torch.ones((), dtype=torch.float64), accumulate=True)
    # The product of (n_s + 1/2) / (n + 1) over a sequence depends on its counts only.
    nats = torch.lgamma(counts.sum(1) + 1) - torch.lgamma(counts + 0.5).sum(1) + math.log(math.pi)
    return float(nats.sum() / math.log(2))
