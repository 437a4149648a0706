"""How gradients pass a choice that has none.

A codeword c is chosen for a row x, forward gives c, and backward somebody must say what x and c have to do with it. g: the gradient of
the output. Every estimator is one function; all but the last two need nothing but the pair (x, c):

                      output with gradients                          x receives                c receives
    straight_through  x + sg(c - x)                                  g                         0
    rotation          R x, R: x onto c by turning and scaling        R' g                      0
    nsvq              x + |x - c| sg(v / |v|), v ~ N(0, I)           g + (x-c)/|x-c| (v^, g)   -(x-c)/|x-c| (v^, g)
    diveq             the same with v = c - x + N(0, 1e-6 I)
    diveq_detached    the same with v = c - x                        g without its part        its part along c - x
                                                                     along c - x
    ibq               (onehot + p - sg p) C, p = softmax of -|x - c_k|^2 / temperature         all codewords, through p; the chosen
    gumbel            the same, but onehot is drawn from p in training                         one also directly          (``soft``)

Bengio, Leonard, Courville 2013 (straight_through); Fifty et al., ICLR 2025 (rotation); Vali, Backstrom 2022 (nsvq); Vali et al., ICLR
2026 (diveq); Shi et al. 2024 (ibq: index backpropagation, there with inner products as logits); Jang, Gu, Poole 2017 (gumbel).

In eval mode, and in training too except for nsvq and diveq, the value is c bit for bit: what has gradients is added minus itself, which
is exactly zero. Noise is drawn in training mode only, from torch's own generator as dropout does.

All but the first two lead the gradient of the task to codewords; of these, only index backpropagation is published with a codebook term
in the loss as well (``needs_codebook_term``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError
from codeword.parts import soft

DIVEQ_NOISE = 1e-3
"""Standard deviation of the noise on the direction (the official code's; its name there says variance)."""
_SMALL = 1e-6
"""Rotation is undefined where x and c point into opposite directions, or one has none: below this such rows pass straight through."""


def straight_through(x: Tensor, values: Tensor) -> Tensor:
    """``values`` forward, identity to ``x`` backward (Bengio et al. 2013). Adds x - sg(x), which is exactly zero, so the
    result is bit-equal to ``values`` (x + sg(values - x), as usually written, is not)."""
    return values.detach() + (x - x.detach())


def rotation(x: Tensor, chosen: Tensor) -> Tensor:
    """The turn and scaling R that take x (n, d) to c, held fixed. With x^, c^ the directions and w = norm(x^ + c^),

        R z = |c|/|x| (z - 2 w (w, z) + 2 c^ (x^, z)),   R' g = |c|/|x| (g - 2 w (w, g) + 2 x^ (c^, g))"""
    return _Rotation.apply(x, chosen.detach())  # type: ignore[return-value]


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, chosen: Tensor) -> Tensor:
        return chosen + (x - x)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        x, chosen = ctx.saved_tensors  # type: ignore[attr-defined]
        long, wide = (torch.linalg.vector_norm(side, dim=-1, keepdim=True) for side in (x, chosen))
        usable = (long > 0) & (wide > 0)
        long, wide = torch.where(usable, long, 1.0), torch.where(usable, wide, 1.0)
        middle = (x / long).addcmul_(chosen, 1 / wide).square_().sum(-1, keepdim=True)  # |x^ + c^|^2
        usable = usable & (middle >= _SMALL**2)
        along_u, along_v = ((side * grad).sum(-1, keepdim=True) / size for side, size in ((x, long), (chosen, wide)))
        fold = 2 * (along_u + along_v) / torch.where(usable, middle, 1.0)
        scale = torch.where(usable, wide / long, 1.0)
        to_x, to_chosen = (torch.where(usable, scale * part, 0.0) for part in ((2 * along_v - fold) / long, -fold / wide))
        return (grad * scale).addcmul_(x, to_x).addcmul_(chosen, to_chosen), None


def nsvq(x: Tensor, chosen: Tensor, *, training: bool) -> Tensor:
    """x plus noise of random direction as long as the error; training forward is not c. In eval mode as ``diveq_detached``."""
    return _along(x, chosen, torch.randn_like(x)) if training else diveq_detached(x, chosen)


def diveq(x: Tensor, chosen: Tensor, *, training: bool) -> Tensor:
    """x plus its error turned a little; training forward is nearly c."""
    if not training:
        return diveq_detached(x, chosen)
    return _along(x, chosen, (chosen - x).detach() + DIVEQ_NOISE * torch.randn_like(x))


def diveq_detached(x: Tensor, chosen: Tensor) -> Tensor:
    """x plus its error, whose direction is held fixed: forward is c."""
    return _as(chosen.detach(), _along(x, chosen, (chosen - x).detach()))


def _along(x: Tensor, chosen: Tensor, direction: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    return x + torch.linalg.vector_norm(chosen - x, dim=-1, keepdim=True) * (direction / torch.where(length > 0, length, 1.0))


def _as(values: Tensor, path: Tensor) -> Tensor:
    """``values`` forward, the gradients of ``path`` backward; rows with NaN stay NaN."""
    return values + (path - path.detach())


_PAIRS: dict[str, Callable[[Tensor, Tensor, bool], Tensor]] = {
    "straight_through": lambda x, chosen, training: straight_through(x, chosen),
    "rotation": lambda x, chosen, training: rotation(x, chosen),
    "nsvq": lambda x, chosen, training: nsvq(x, chosen, training=training),
    "diveq": lambda x, chosen, training: diveq(x, chosen, training=training),
    "diveq_detached": lambda x, chosen, training: diveq_detached(x, chosen),
}
PAIRS = tuple(_PAIRS)
"""Estimators that need the row and its codeword only: for any quantizer, a sum of codebooks or a lattice."""
SCORES = ("ibq", "gumbel")
"""Estimators that need an explicit codebook."""
ESTIMATORS = PAIRS + SCORES


def check(name: str, estimator: str, known: tuple[str, ...] = ESTIMATORS) -> None:
    """CodewordError where quantizer ``name`` got an ``estimator`` that is not among ``known``."""
    if estimator not in known:
        raise CodewordError(f"{name} got estimator={estimator!r}; {', '.join(known)} are known here")


def needs_codebook_term(estimator: str) -> bool:
    """Whether codewords that follow a gradient need a loss of their own: those that the gradient of the task does not reach, and those of
    index backpropagation, whose paper has it too."""
    return estimator in ("straight_through", "rotation", "ibq")


def passed(estimator: str, rows: Tensor, chosen: Tensor, *, training: bool) -> Tensor:
    """``chosen`` (n, d), for ``rows`` (n, d), with the gradients of one of ``PAIRS``; float32 and differentiable where they should be."""
    check("passed", estimator, PAIRS)
    return _PAIRS[estimator](rows, chosen, training)


class Chosen(NamedTuple):
    """``indices`` int64 (n,); ``codewords`` (n, d), differentiable in the codebook, for losses; ``values`` (n, d), for what follows."""

    indices: Tensor
    codewords: Tensor
    values: Tensor


def choose(estimator: str, rows: Tensor, codebook: Tensor, *, training: bool, temperature: float = 1.0) -> Chosen:
    """The nearest codeword in ``codebook`` (K, d) of each of ``rows`` (n, d), with the gradients of any of ``ESTIMATORS``; "gumbel" in
    training draws it instead. ``temperature``, in units of squared distance, is that of p where there is one."""
    check("choose", estimator)
    if estimator == "gumbel" and training:
        seed = torch.randint(1 << 62, ())
        indices = soft.sample(rows, codebook, seed, temperature=temperature)
        values = soft.lookup(rows, codebook, indices, temperature=temperature, seed=seed)
        return Chosen(indices, ops.gather(codebook, indices), values)
    indices = ops.nearest(rows, codebook).indices
    codewords = ops.gather(codebook, indices)
    if estimator in SCORES:
        return Chosen(indices, codewords, soft.lookup(rows, codebook, indices, temperature=temperature))
    return Chosen(indices, codewords, passed(estimator, rows, codewords, training=training))


def drawn_lengths(x: Tensor, stages: int, dropout: float) -> Tensor:
    """int32 (...) for x (..., d): how many stages each row uses, the same for all rows of an item along the first axis. A share ``dropout``
    of the items draws from 1..stages, the others use all; from torch's own generator."""
    items = x.shape[0] if x.ndim > 1 else 1
    fewer = torch.rand(items, device=x.device) < dropout
    used = torch.where(fewer, torch.randint(1, stages + 1, (items,), device=x.device), stages).to(torch.int32)
    return used.reshape(items, *[1] * (x.ndim - 2)).expand(x.shape[:-1]) if x.ndim > 1 else used.reshape(())
