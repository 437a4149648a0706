"""Loss terms of learned codebooks. Each is a mean over all elements of the kept rows, so weights mean the same at any width.

    commitment              |x - sg(c)|^2                                   pulls the data (an encoder's output) to the chosen codewords
    codebook                |sg(x) - c|^2                                   pulls the chosen codewords to the data

and, as ``penalties`` of a quantizer with an explicit codebook, weighted by what a user writes ("orthogonality:0.1+diversity:0.01"):

    orthogonality           |C^ C^'|^2 / K^2 - 1/K                          0 where all directions c^_k are orthogonal (Shin et al. 2023)
    active_orthogonality    the same over the A codewords in use            A for K
    diversity               log K - H(mean_n p_n)                           0 where the batch uses all codewords alike
    uniform                 log K - mean_n H(p_n)                           KL(p || uniform), as with the Gumbel estimator
    entropy                 mean_n H(p_n) - H(mean_n p_n)                   sure of each row, and all codewords in use (Yu et al. 2024)

p = softmax_k(-|x - c_k|^2 / temperature). The squared Frobenius norm is taken of the d x d matrix C^' C^, which has the same one, and the
entropies in blocks (``parts/entropy``), so that nothing here is of size K x K or N x K. Means are those of a rank's own batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from codeword.errors import CodewordError
from codeword.parts import arrays, entropy
from codeword.parts.codebook import histogram

OF_THE_CODEBOOK = ("orthogonality", "active_orthogonality")
OF_THE_ROWS = ("diversity", "uniform", "entropy")
PENALTIES = OF_THE_CODEBOOK + OF_THE_ROWS


def codebook_term(rows: Tensor, chosen: Tensor, keep: Tensor | None) -> Tensor:
    """|sg(x) - c|^2 of (n, d)."""
    return arrays.masked_mean((chosen - rows.detach()).square().mean(-1), keep)


def commitment_term(rows: Tensor, chosen: Tensor, keep: Tensor | None) -> Tensor:
    """|x - sg(c)|^2 of (n, d)."""
    return arrays.masked_mean((rows - chosen.detach()).square().mean(-1), keep)


def both_terms(rows: Tensor, chosen: Tensor, keep: Tensor | None, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(commitment, codebook): one number with two gradients, for half the passes over (n, d) that the two functions take. Of the kept rows
    only the ``active`` ones (n,) count, those that use a stage; the mean is still that of all kept ones."""
    weight = None
    if keep is not None or active is not None:
        count = len(rows) if keep is None else keep.sum().clamp(min=1)
        counted = keep if active is None else active if keep is None else keep & active
        assert counted is not None
        weight = counted.to(rows.dtype) / count
    return _Both.apply(rows, chosen, weight)  # type: ignore[return-value]


class _Both(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, chosen: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        difference = rows - chosen
        if weight is None:
            value = difference.square_().sum() / max(1, difference.numel())
        else:
            value = (difference.square_().mean(-1) * weight).sum()
        return value, value.clone()

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, chosen, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        slope = rows - chosen
        if weight is not None:
            slope.mul_(weight.unsqueeze(-1))
        scale = 2 / max(1, rows.numel() if weight is None else rows.shape[-1])
        need_rows, need_chosen, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        to_chosen = slope * (grads[1] * -scale) if need_chosen else None
        return slope.mul_(grads[0] * scale) if need_rows else None, to_chosen, None


def orthogonality(codebook: Tensor, used: Tensor | None = None) -> Tensor:
    """|C^ C^'|^2 / A^2 - 1/A of the codewords (K, d) that ``used`` (K,) marks, all where None; codewords of zero have no direction and
    count as orthogonal to all."""
    unit = torch.nn.functional.normalize(codebook, dim=1)
    if used is not None:
        unit = unit * used.to(unit.dtype).unsqueeze(1)
    count = float(len(codebook)) if used is None else used.sum().clamp(min=1)
    return (unit.mT @ unit).square().sum() / count**2 - unit.square().sum() / count**2


def parse(name: str, text: str | None) -> dict[str, float]:
    """Weights by term of "orthogonality:0.1+diversity:0.01", none of None; CodewordError where a term is unknown, twice there or
    without a positive weight."""
    found: dict[str, float] = {}
    for item in () if text is None else text.split("+"):
        term, _, weight = item.partition(":")
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if term not in PENALTIES or term in found or not 0 < value < math.inf:
            raise CodewordError(f"{name} got penalties={text!r}; terms once each with a positive weight, such as 'diversity:0.01+"
                                f"orthogonality:0.1', are allowed, of {', '.join(PENALTIES)}")
        found[term] = value
    return found


def penalties(weights: Mapping[str, float], rows: Tensor, codebook: Tensor, indices: Tensor, keep: Tensor | None,
              temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the terms in ``weights`` and each term by name, detached. rows (n, d), codebook (K, d), indices (n,)."""
    size = len(codebook)
    terms: dict[str, Tensor] = {}
    for term in OF_THE_CODEBOOK:
        if term in weights:
            used = histogram(indices, size, keep) > 0 if term == "active_orthogonality" else None
            terms[term] = orthogonality(codebook, used)
    if any(term in weights for term in OF_THE_ROWS):
        sure, spread = entropy.codebook_entropies(rows, codebook, temperature, keep)
        values = {"diversity": math.log(size) - spread, "uniform": math.log(size) - sure, "entropy": sure - spread}
        terms |= {term: value for term, value in values.items() if term in weights}
    total = sum((weight * terms[term] for term, weight in weights.items()), rows.new_zeros(()))
    return total, {term: value.detach() for term, value in terms.items()}
