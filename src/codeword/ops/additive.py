"""additive_search: codes whose sum of codewords is nearest to a row, by beam search over tables of inner products.

With codebooks c^1 .. c^M and half the squared error |x - sum_m c^m_{i_m}|^2 / 2 up to |x|^2 / 2,

    cost(i) = sum_m ( term^m[i_m] + sum_{l<m} <c^l_{i_l}, c^m_{i_m}> ),      term^m[k] = |c^m_k|^2 / 2 - <x, c^m_k>

A state is a code and its cost. One step rewrites position m of every state: with l over the other positions that are filled, ascending,

    sum_h[k]  = term^m[k] + <c^{l1}_{i_l1}, c^m_k> + <c^{l2}_{i_l2}, c^m_k> + ...      float32, added in this order
    cost      = (cost_h - sum_h[i_m]) + sum_h[k]                                      float64; i_m only where m was filled before

and the ``beam`` least children stay, the lower (h, k) first among equals. States that differ at m alone have the same children, so
only the first of them has any. The first sweep over empty positions is the classic beam search of residual quantization; a sweep over
filled ones with beam 1 is iterated conditional modes; with more it also passes through worse codes to better ones.

No sum depends on its surroundings, so neither does a code: not on batch, threads or instruction set. Entries must be finite.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from codeword.errors import ShapeError
from codeword.ops import dispatch

WIDTH = 16
"""Codewords are padded to a multiple of it, terms with infinity."""
MOST_CODEBOOKS = 64


class States(NamedTuple):
    """``codes`` int32 (n, states, M) and ``costs`` float64 (n, states), ascending. Where a row has fewer states than asked for the
    rest repeats its first at cost infinity."""

    codes: Tensor
    costs: Tensor


def empty_states(n: int, codebooks: int, device: torch.device | str = "cpu") -> States:
    """The start of a search with nothing filled."""
    return States(torch.zeros(n, 1, codebooks, dtype=torch.int32, device=device), torch.zeros(n, 1, dtype=torch.float64, device=device))


def additive_search(terms: Tensor, gram: Tensor, start: States, *, filled: int, beam: int, sweeps: int = 1) -> States:
    """``terms`` float32 (n, P, W) of the last P of M codebooks, ``gram`` float32 (P, M, K, W) with <c^l_i, c^m_k> at [m, l, i, k]; W is K
    padded to a multiple of 16, terms with +infinity. ``start``: at most ``beam`` states a row, their first ``filled`` positions filled:
    M - P or all. ``sweeps`` times over the P positions in order. No gradient."""
    n, positions, width = terms.shape if terms.ndim == 3 else (0, 0, 0)
    codebooks, size = gram.shape[1:3] if gram.ndim == 4 else (0, 0)
    if gram.shape != (positions, codebooks, size, width) or width % WIDTH or not 1 <= size <= width or \
            not 1 <= positions <= codebooks <= MOST_CODEBOOKS:
        raise ShapeError(f"additive_search got terms {tuple(terms.shape)} and gram {tuple(gram.shape)}; (n, P, W) and (P, M, K, W) with "
                         f"W a multiple of {WIDTH}, K <= W and P <= M <= {MOST_CODEBOOKS} are needed")
    states = start.codes.shape[1] if start.codes.ndim == 3 else 0
    if start.codes.shape != (n, states, codebooks) or start.costs.shape != (n, states) or not 1 <= states <= beam:
        raise ShapeError(f"additive_search got a start of {tuple(start.codes.shape)} and {tuple(start.costs.shape)}; (n, 1..{beam}, "
                         f"{codebooks}) and its costs are needed")
    if filled not in (codebooks - positions, codebooks) or sweeps < 1:
        raise ShapeError(f"additive_search got filled={filled} and sweeps={sweeps}; {codebooks - positions} or {codebooks}, "
                         "and at least 1, are needed")
    return States(*dispatch.run(_additive_search, terms.detach().contiguous(), gram.detach().contiguous(), start.codes, start.costs,
                                filled, beam, sweeps))


@torch.library.custom_op("codeword::additive_search", mutates_args=())
def _additive_search(terms: Tensor, gram: Tensor, codes: Tensor, costs: Tensor, filled: int, beam: int,
                     sweeps: int) -> tuple[Tensor, Tensor]:
    if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < gram.shape[2]):
        raise ShapeError(f"additive_search got codes {int(codes.min())}..{int(codes.max())}; 0..{gram.shape[2] - 1} are allowed")
    if dispatch.choice("additive_search", terms.device) == "native":
        module = dispatch.native()
        assert module is not None
        states = codes.shape[1]
        out = torch.zeros(len(codes), beam, codes.shape[2], dtype=torch.int32)
        out_costs = torch.full((len(codes), beam), torch.inf, dtype=torch.float64)
        out[:, :states], out_costs[:, :states] = codes, costs
        module.additive_search(terms.numpy(), gram.numpy(), out.numpy(), out_costs.numpy(), states, filled, sweeps, dispatch.num_threads())
        return out, out_costs
    return reference(terms, gram, codes, costs, filled, beam, sweeps)


@_additive_search.register_fake
def _(terms: Tensor, gram: Tensor, codes: Tensor, costs: Tensor, filled: int, beam: int, sweeps: int) -> tuple[Tensor, Tensor]:
    return codes.new_empty(codes.shape[0], beam, codes.shape[2]), costs.new_empty(costs.shape[0], beam)


def reference(terms: Tensor, gram: Tensor, codes: Tensor, costs: Tensor, filled: int, beam: int, sweeps: int) -> tuple[Tensor, Tensor]:
    """The definition, for blocks of rows at a time."""
    n, (positions, codebooks, size, _) = len(terms), gram.shape
    out = codes.new_zeros(n, beam, codebooks)
    out_costs = costs.new_full((n, beam), torch.inf)
    block = max(1, (1 << 20) // (beam * size))
    for at in range(0, n, block):
        part = slice(at, at + block)
        state, cost = codes[part].to(torch.int64), costs[part]
        for step in range(sweeps * positions):
            p, again = step % positions, step >= positions
            m = codebooks - positions + p
            known = again or m < filled
            others = [other for other in range(codebooks if known else m) if other != m]
            state, cost = _step(terms[part, p, :size], gram[p, ..., :size], state, cost, m, others, known, beam)
        out[part], out_costs[part] = state[:, :1].to(out.dtype), torch.inf
        out[part, :state.shape[1]], out_costs[part, :state.shape[1]] = state.to(out.dtype), cost
    return out, out_costs


def _step(term: Tensor, gram: Tensor, codes: Tensor, costs: Tensor, m: int, others: list[int], known: bool,
          beam: int) -> tuple[Tensor, Tensor]:
    """term (n, K), gram (M, K, K), codes (n, S, M), costs (n, S) -> the best children."""
    n, states, codebooks = codes.shape
    size = term.shape[1]
    sums = term.unsqueeze(1).expand(n, states, size)
    for other in others:
        sums = sums + gram[other][codes[:, :, other]]
    base = costs
    if known:
        base = costs - sums.gather(2, codes[:, :, m:m + 1]).squeeze(2).double()
        rest = codes.clone()
        rest[:, :, m] = 0
        same = (rest.unsqueeze(1) == rest.unsqueeze(2)).all(3) & torch.isfinite(costs).unsqueeze(1)  # (n, h, earlier)
        seen = torch.tril(same, diagonal=-1).any(2)
        base = torch.where(seen, torch.inf, base)
    children = (base.unsqueeze(2) + sums.double()).flatten(1)
    order = torch.argsort(children, dim=1, stable=True)[:, :beam]
    costs = children.gather(1, order)
    parent, code = order // size, order % size
    codes = codes.gather(1, parent.unsqueeze(2).expand(-1, -1, codebooks)).clone()
    codes[:, :, m] = code
    missing = ~torch.isfinite(costs)
    return torch.where(missing.unsqueeze(2), codes[:, :1], codes), costs
