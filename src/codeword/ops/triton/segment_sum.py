"""``segment_sum`` on a GPU: float64 sums of the rows of each label, rows added in their order, so bit-equal to the CPU's.

Rows are sorted by label, stably, and a program adds the rows of one label and 32 columns one after the other. No atomics. The time of
a label grows with its rows (about 10 ns a row where one label has them all); for the codebooks of a network, where most labels have
tens of rows, the sum runs at the speed of memory.
"""

# Kernels are a language of their own, launches take options of the compiler: neither has types that pyright could know.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from codeword.ops.triton.nearest import device_of

COLUMNS = 32


@triton.jit(do_not_specialize=["d"])
def segment_kernel(x, weights, order, starts, sums, counts, out, d, WEIGHTED: tl.constexpr, ADD: tl.constexpr, COLUMNS: tl.constexpr):
    """One label, some columns. ADD: on top of sums and counts (float64); else out (float32) gets the sum."""
    label = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < d
    begin, end = tl.load(starts + label), tl.load(starts + label + 1)
    total = tl.load(sums + label * d + columns, mask=mask, other=0.0) if ADD else tl.zeros((COLUMNS,), tl.float64)
    mass = tl.load(counts + label) if ADD else tl.zeros((), tl.float64)
    for i in tl.range(begin, end, loop_unroll_factor=8):
        row = tl.load(order + i)
        value = tl.load(x + row * d + columns, mask=mask, other=0.0).to(tl.float64)
        if WEIGHTED:
            weight = tl.load(weights + row).to(tl.float64)
            total += value * weight
            mass += weight
        else:
            total += value
    if ADD:
        tl.store(sums + label * d + columns, total, mask=mask)
        if tl.program_id(1) == 0:
            tl.store(counts + label, mass if WEIGHTED else mass + (end - begin).to(tl.float64))
    else:
        tl.store(out + label * d + columns, total.to(tl.float32), mask=mask)


def segment_add(sums: Tensor, counts: Tensor, x: Tensor, labels: Tensor, weights: Tensor | None) -> None:
    """Adds the rows of contiguous float32 x (n, d) by int64 label to float64 sums (k, d) and counts (k,), in their order. Labels must be in
    range."""
    _launch(x, labels, len(counts), weights, sums, counts, None)


def gathered(grad: Tensor, indices: Tensor, k: int) -> Tensor:
    """Gradient (k, d) float32 of ``codebook[indices]`` from that of its rows, contiguous float32 (n, d): the sum rounded once."""
    out = grad.new_empty(k, grad.shape[1])
    _launch(grad, indices, k, None, None, None, out)
    return out


def _launch(x: Tensor, labels: Tensor, k: int, weights: Tensor | None, sums: Tensor | None, counts: Tensor | None,
            out: Tensor | None) -> None:
    n, d = x.shape
    if k == 0 or (n == 0 and out is None):
        return
    with device_of(x):
        kept, order = torch.sort(labels, stable=True)
        starts = torch.searchsorted(kept, torch.arange(k + 1, device=x.device, dtype=torch.int64))
        nothing = x
        segment_kernel[(k, max(1, triton.cdiv(d, COLUMNS)))](
            x, nothing if weights is None else weights, order, starts, nothing if sums is None else sums,
            nothing if counts is None else counts, nothing if out is None else out, d, WEIGHTED=weights is not None, ADD=out is None,
            COLUMNS=COLUMNS, num_warps=1)
