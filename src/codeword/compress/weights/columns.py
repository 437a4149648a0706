"""The column loop of GPTQ (Frantar et al. 2023, arXiv 2210.17323) as a policy over any Quantizer.

Each row of W (out, in) is cut into groups of v = ``quantizer.dim`` columns; group after group is quantized for all rows at once, and
what went wrong so far is answered by the groups still free. With H = R R' (``compress/hessian.py``) and D = W - W^:

    target_b = W_b + D_{<b} A_b,   A_b = R_{<b,b} R_bb^-1            what W_b should be, given the errors already made
    W^_b     = decode(encode(target_b, metric P_b)),   P_b = R_bb R_bb'
    loss     = tr(D H D') = sum_b |(target_b - W^_b) R_bb|^2

P_b is the right metric inside a group (the Schur complement of H on the groups still free); a quantizer that cannot honour it uses
L2, and the report says so. v = 1 is GPTQ; columns taken in reverse are LDLQ (QuIP, Chee et al. 2023), of which this is the left-looking
form: the original pushes each error onto all later columns in lazy batches, here a group fetches its whole correction in one
``ops.project``. One fixed order of accumulation then decides every code, with no batch size to choose and none to depend on.

Rows are divided by a scale (their rms, bfloat16, taken before any feedback) so that one codebook serves all of them; a common factor
per row leaves the choice in P_b unchanged, so H needs no rescaling. ``order="activation"`` takes columns by falling H_jj, so that the
most powerful inputs are rounded while everything else can still answer; the permutation is stored and counted.

Bits of a weight: packed indices and side floats of all groups (padding columns too where v does not divide ``in``), one scale of 16
bits a row or tensor, the permutation, and the quantizer's shared bytes. Cost: out * in^2 / 2 multiply-adds beside the encoding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codeword import ops
from codeword.compress.hessian import check_hessian, factor, proxy_loss
from codeword.compress.weights.linear import QuantizedLinear
from codeword.errors import CodewordError, ShapeError
from codeword.parts import arrays
from codeword.parts.arguments import require_input_space
from codeword.parts.threads import one_thread
from codeword.quantizer import Array, Quantizer, Report

SCALE_DTYPE = torch.bfloat16


class Compressed(NamedTuple):
    """``layer`` computes with codes; ``report``: proxy_loss (relative), bits_per_weight, bits (its parts), metric, damping, what
    was repaired."""

    layer: QuantizedLinear
    report: Report


def compress_linear(linear: nn.Linear, hessian: Array, quantizer: Quantizer, **options: Any) -> Compressed:
    """``quantize_weight`` for a torch Linear (or anything with ``weight`` (out, in) and ``bias``); the layer keeps the bias."""
    bias = None if linear.bias is None else linear.bias.detach().float()
    return quantize_weight(linear.weight, hessian, quantizer, bias=bias, **options)


@torch.no_grad()
def quantize_weight(weight: Array, hessian: Array | None, quantizer: Quantizer, *, bias: Tensor | None = None, scale: str = "row",
                    order: str | Tensor = "natural", damping: float = 0.01, importance: bool = False) -> Compressed:
    """Quantize ``weight`` (out, in) against ``hessian`` (in, in); ``hessian=None`` rounds to nearest without feedback.

    An unfitted ``quantizer`` is fitted here, in place, on the scaled groups (``importance``: each weighted by tr P_b); a fitted one is
    used as it is, so that layers can share one. ``scale``: "row", "tensor" or "none". ``order``: "natural", "activation" or a
    permutation of the columns (in,). Raises Unsupported where decode leaves the input's space, ShapeError on bad shapes or values.
    """
    require_input_space(quantizer, "weights")
    w = _check_weight(weight)
    rows, columns = w.shape
    h = None if hessian is None else check_hessian(hessian)
    if h is not None and len(h) != columns:
        raise ShapeError(f"weight is {rows} x {columns} and its Hessian {tuple(h.shape)}; the Hessian must be {columns} x {columns}")
    permutation = _permutation(order, columns, h)
    scales = _scales(w, scale)
    plan = _plan(w / scales.float(), h, permutation, quantizer.dim, damping)
    if not quantizer.fitted:
        quantizer.fit(_groups(plan.weight, quantizer.dim), weights=_importance(plan, rows) if importance else None)
    use_metric = quantizer.takes_metric and h is not None
    indices, side = _loop(plan, quantizer, use_metric)
    stored = None if torch.equal(permutation, torch.arange(columns)) else permutation
    layer = QuantizedLinear(in_features=columns, out_features=rows, quantizer=quantizer,
                            scales=1 if scale == "none" else len(scales), permuted=stored is not None, bias=bias is not None)
    layer.store(indices, side, scales, stored, bias)
    report = Report(plan.report, metric="schur" if use_metric else "l2")
    if h is not None:
        report["proxy_loss"] = proxy_loss(w, layer.weight, h)
    if plan.padding:
        report["padding_columns"] = plan.padding
    return Compressed(layer, Report(report, **layer.bit_report()))


class _Plan(NamedTuple):
    """Everything in the order of the loop: scaled weights padded to whole groups, R and P_b a group, padding columns, the report."""

    weight: Tensor
    upper: Tensor
    metrics: list[Tensor]
    padding: int
    report: Report


@one_thread()
def _plan(scaled: Tensor, h: Tensor | None, permutation: Tensor, dim: int, damping: float) -> _Plan:
    """Permute W and H first, then factor: the factor of a permuted matrix is not the permuted factor."""
    padding = -scaled.shape[1] % dim
    if h is None:
        upper, report = torch.eye(scaled.shape[1] + padding, dtype=torch.float64), Report(factor="identity: no Hessian")
        dead = torch.zeros(len(upper), dtype=torch.bool)
    else:
        h = nn.functional.pad(h[permutation][:, permutation], (0, padding, 0, padding))
        dead = h.diagonal() <= 0  # inputs that are always zero, and padding: their weight is free, and zero
        upper, report = factor(h, damping=damping)
        if report.get("dead_inputs") == padding:
            del report["dead_inputs"]
        elif "dead_inputs" in report:
            report["dead_inputs"] -= padding
    weight = torch.where(dead, 0.0, nn.functional.pad(scaled[:, permutation], (0, padding))).contiguous()
    blocks = [upper[i:i + dim, i:i + dim] for i in range(0, len(upper), dim)]
    return _Plan(weight, upper, [block @ block.mT for block in blocks], padding, report)


def _loop(plan: _Plan, quantizer: Quantizer, use_metric: bool) -> tuple[Tensor, Tensor | None]:
    """Codes of all groups: indices (out, groups, positions), side (out, groups, side_count) or None."""
    v, weight = quantizer.dim, plan.weight
    error = torch.zeros_like(weight)
    indices, side = [], []
    for b, metric in enumerate(plan.metrics):
        i, j = b * v, (b + 1) * v
        target = weight[:, i:j]
        if i:
            with one_thread():
                answer = torch.linalg.solve_triangular(plan.upper[i:j, i:j], plan.upper[:i, i:j], upper=True, left=False)
            target = target + ops.project(error[:, :i], answer.mT.float())
        codes = quantizer.encode(target, metric=metric if use_metric else None)
        error[:, i:j] = weight[:, i:j] - torch.as_tensor(quantizer.decode(codes))
        indices.append(torch.as_tensor(codes.indices))
        side.append(codes.side)
    return torch.stack(indices, dim=1), None if side[0] is None else torch.stack(side, dim=1)


def _check_weight(weight: Array) -> Tensor:
    w = arrays.as_tensor(weight).detach()
    if w.ndim != 2 or 0 in w.shape:
        raise ShapeError(f"weight has shape {tuple(w.shape)}; (out, in) is needed, a convolution unfolded to (out, in * kh * kw)")
    arrays.check_rows(w, w.shape[1], "quantize_weight")
    w = w.to("cpu", torch.float32)
    arrays.check_finite(w, "quantize_weight")
    return w


@one_thread()
def _scales(w: Tensor, scale: str) -> Tensor:
    """Root mean squares as stored, (out, 1) or (1, 1); 1 where all weights are zero."""
    if scale not in ("row", "tensor", "none"):
        raise CodewordError(f"scale is {scale!r}; 'row', 'tensor' or 'none' are allowed")
    if scale == "none":
        return torch.ones(1, 1, dtype=SCALE_DTYPE)
    power = w.double().square().mean(1, keepdim=True)
    rms = (power if scale == "row" else power.mean(0, keepdim=True)).sqrt().to(SCALE_DTYPE)
    return torch.where(rms > 0, rms, torch.ones((), dtype=SCALE_DTYPE))


def _permutation(order: str | Tensor, columns: int, h: Tensor | None) -> Tensor:
    natural = torch.arange(columns)
    if isinstance(order, Tensor):
        if order.shape != (columns,) or not torch.equal(order.to(torch.int64).sort().values, natural):
            raise ShapeError(f"order must be a permutation of 0..{columns - 1}")
        return order.to(torch.int64)
    if order not in ("natural", "activation"):
        raise CodewordError(f"order is {order!r}; 'natural', 'activation' or a permutation are allowed")
    if order == "natural":
        return natural
    if h is None:
        raise CodewordError("order='activation' sorts by the Hessian's diagonal; pass a Hessian")
    return torch.argsort(h.diagonal(), descending=True, stable=True)


def _groups(weight: Tensor, dim: int) -> Tensor:
    return weight.reshape(-1, dim)


def _importance(plan: _Plan, rows: int) -> Tensor:
    """tr P_b of each group, in the order of ``_groups``."""
    return torch.stack([metric.diagonal().sum() for metric in plan.metrics]).float().repeat(rows)
