"""The second moment of a layer's inputs, and the triangular factor that error feedback reads.

Rounding W (out, in) to W^ costs a linear layer, on inputs x, the proxy loss

    E |(W - W^) x|^2 = tr((W - W^) H (W - W^)'),    H = E[x x'] = (1/T) sum_t x_t x_t'

so H says which errors matter. GPTQ (Frantar et al. 2023, arXiv 2210.17323), and every method built on it, completes the square:
with H = R R', R upper triangular, and D = W - W^, the loss is |D R|^2 = sum_b |sum_{a<=b} D_a R_ab|^2 over blocks b of columns, so
a later block can answer every earlier error. R is one Cholesky factorisation read backwards (J the exchange matrix, J H J = L L',
R = J L J). The literature's U, H^-1 = U'U, is R^-1: nothing here needs an inverse of H.

H is kept in float64 (a half-precision or TF32 sum is not positive definite). Where it is singular the diagonal is damped by
lambda * mean(diag H); the steps of this ladder are in the returned report, never silent:

    lambda, 2 lambda, 4 lambda, ... < 1  ->  a floor of 1e-6 max|H|, x10, ... <= max|H|  ->  R = I, which is plain rounding

Departures: lambda doubles instead of growing by 0.0025 (a dozen factorisations at worst, not four hundred); an input that is always
zero keeps H_jj = 0 and gets its weight from the damping (others set H_jj = 1, more than a live input may have); the mean runs over
live inputs only. Cost: T in^2 to gather, in^3 / 3 to factor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from codeword.errors import CodewordError, ShapeError
from codeword.parts import arrays
from codeword.parts.threads import one_thread
from codeword.quantizer import Array, Report

BLOCK_ROWS = 4096
LEAST = 1e-4
"""First damping tried where a caller asked for less and it failed."""


class Hessian:
    """Running sums over activations x (..., dim): ``update`` with each batch, ``merge`` what other workers gathered."""

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise CodewordError(f"Hessian got dim={dim}; at least 1 is needed")
        self.dim = dim
        self.rows = 0
        self._products = torch.zeros(dim, dim, dtype=torch.float64)
        self._sum = torch.zeros(dim, dtype=torch.float64)

    def update(self, x: Array, *, mask: Array | None = None) -> None:
        """Add the rows of ``x`` (..., dim); rows where ``mask`` (...) is False, e.g. padding, do not count.
        Raises ShapeError on another width or on NaN and infinity, and then nothing has been added."""
        n = arrays.check_rows(x, self.dim, "Hessian.update")
        keep = None if mask is None else arrays.as_tensor(mask).to(torch.bool).reshape(-1)
        if keep is not None and len(keep) != n:
            raise ShapeError(f"mask has {len(keep)} values for {n} rows")
        rows = arrays.as_tensor(x).detach().reshape(-1, self.dim).cpu()
        rows = rows if keep is None else rows[keep.cpu()]
        arrays.check_finite(rows.float(), "Hessian.update")
        for block in rows.split(BLOCK_ROWS):
            wide = block.double()
            self._products.addmm_(wide.mT, wide)
            self._sum += wide.sum(0)
        self.rows += len(rows)

    def merge(self, other: Hessian) -> None:
        """Add what ``other`` has gathered."""
        if other.dim != self.dim:
            raise ShapeError(f"Hessian of dim={self.dim} cannot take one of dim={other.dim}")
        self._products += other._products
        self._sum += other._sum
        self.rows += other.rows

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[Hessian]:
        """Gather the input of every call of ``module`` inside the ``with``: run the calibration data through the network there."""
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.update(inputs[0])
        handle = module.register_forward_pre_hook(hook)
        try:
            yield self
        finally:
            handle.remove()

    @property
    def value(self) -> Tensor:
        """H float64 (dim, dim), exactly symmetric. Raises CodewordError before the first row."""
        if self.rows == 0:
            raise CodewordError("this Hessian has seen no rows; update it with calibration activations first")
        return (self._products + self._products.mT) / (2 * self.rows)

    @property
    def mean(self) -> Tensor:
        """Mean activation float64 (dim,)."""
        return self._sum / max(1, self.rows)


class Factor(NamedTuple):
    """``upper`` R float64 (n, n), upper triangular, with H + damping = R R'; ``report`` says how it was reached."""

    upper: Tensor
    report: Report


@one_thread()
def factor(hessian: Array, *, damping: float = 0.01) -> Factor:
    """The factor R of ``hessian`` (n, n), by the ladder described above, the same on any number of threads. ``damping`` lambda in
    [0, 1), relative to mean(diag H)."""
    h = check_hessian(hessian)
    if not 0 <= damping < 1:
        raise CodewordError(f"factor got damping={damping}; 0 <= damping < 1 is allowed")
    diagonal = h.diagonal()
    live = diagonal > 0
    report = Report(damping=damping)
    if not bool(live.all()):
        report["dead_inputs"] = int((~live).sum())
    mean = float(diagonal[live].mean()) if bool(live.any()) else 1.0
    amount, tries = damping, 0
    while amount < 1:
        if (upper := _factor(h, amount * mean)) is not None:
            return Factor(upper, _note(report, tries, damping=amount))
        amount, tries = max(2 * amount, LEAST), tries + 1
    largest = float(h.abs().max()) or 1.0
    floor = 1e-6
    while floor <= 1:
        if (upper := _factor(h, mean + floor * largest)) is not None:
            return Factor(upper, _note(report, tries, damping=1.0, floor=floor * largest))
        floor, tries = floor * 10, tries + 1
    return Factor(torch.eye(len(h), dtype=torch.float64), _note(report, tries, factor="identity: no error feedback"))


def check_hessian(hessian: Array) -> Tensor:
    """``hessian`` as a symmetric float64 matrix on the CPU; ShapeError where it is not square, finite, symmetric, with diagonal >= 0."""
    h = arrays.as_tensor(hessian).detach().to("cpu", torch.float64)
    if h.ndim != 2 or h.shape[0] != h.shape[1] or h.shape[0] == 0:
        raise ShapeError(f"a Hessian has shape {tuple(h.shape)}; a square matrix is needed")
    if not bool(torch.isfinite(h).all()):
        raise ShapeError("a Hessian has NaN or infinite entries; check the calibration activations")
    if float((h - h.mT).abs().max()) > 1e-6 * float(h.abs().max()) or float(h.diagonal().min()) < 0:
        raise ShapeError("a Hessian must be symmetric with a non-negative diagonal")
    return (h + h.mT) / 2


def proxy_loss(weight: Array, quantized: Array, hessian: Array) -> float:
    """tr((W - W^) H (W - W^)') / tr(W H W') for W (out, in): the share of the layer's output power that rounding destroys."""
    w, q = arrays.as_tensor(weight).detach().cpu().double(), arrays.as_tensor(quantized).detach().cpu().double()
    h = check_hessian(hessian)
    if w.shape != q.shape or w.ndim != 2 or w.shape[1] != len(h):
        raise ShapeError(f"proxy_loss got W {tuple(w.shape)}, W^ {tuple(q.shape)} and H {tuple(h.shape)}; "
                         "(out, in) twice and (in, in) are needed")
    power = float(((w @ h) * w).sum())
    lost = float((((w - q) @ h) * (w - q)).sum())
    return lost / power if power > 0 else (0.0 if lost <= 0 else float("inf"))


def _factor(h: Tensor, extra: float) -> Tensor | None:
    damped = h + extra * torch.eye(len(h), dtype=torch.float64)
    lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if int(info) or not bool(torch.isfinite(lower).all()):
        return None
    return lower.flip(0, 1)


def _note(report: Report, tries: int, **facts: float | str) -> Report:
    return Report(report, **facts, **({"failed_factorisations": tries} if tries else {}))
