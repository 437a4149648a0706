"""Product codes under a quadratic form r' M r of the error, by coordinate descent over slices.

With the other slices fixed, the best codeword of slice m is a nearest one again: under the block M_mm, to the slice moved by what the
other errors r_l ask of it,

    i_m = argmin_c (t - c)' M_mm (t - c),   t = x^m + M_mm^-1 sum over l /= m of M_ml r_l

It starts from the codes that are best under the blocks alone, which is all where M is block-diagonal, and stops when a sweep changes
nothing or after ``SWEEPS``. A slice changes only where the form falls, so the form never rises. All products go through ``ops.project``,
so codes depend on neither batch nor threads. Cost: a sweep d^2 + K d multiply-adds a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codeword import ops
from codeword.parts import arrays, slices
from codeword.parts import rows as row_sums
from codeword.parts.threads import one_thread

SWEEPS = 10


def assign(rows: Tensor, codebooks: Tensor, metric: Tensor) -> Tensor:
    """int64 (n, M): codes of float32 rows (n, d) for ``metric`` float64 (d, d), symmetric positive definite."""
    arrays.metric_root(metric)  # refuses what is not positive definite
    blocks = [slice(start, start + codebooks.shape[2]) for start in range(0, rows.shape[1], codebooks.shape[2])]
    roots = [arrays.metric_root(metric[own, own]) for own in blocks]
    turned = [ops.project(book, root) for book, root in zip(codebooks, roots, strict=True)]
    codes = torch.stack([ops.nearest(ops.project(rows[:, own], root), book).indices
                         for own, root, book in zip(blocks, roots, turned, strict=True)], dim=1)
    left = rows - slices.values(codebooks, codes)
    for _ in range(SWEEPS):
        changed = False
        for m, own in enumerate(blocks):
            block, cross = metric[own, own].float(), metric[own].float().clone()
            cross[:, own] = 0
            pull = ops.project(left, cross)
            with one_thread():
                inverse = torch.linalg.inv(metric[own, own]).float()
            index = ops.nearest(ops.project(rows[:, own] + ops.project(pull, inverse), roots[m]), turned[m]).indices
            new = rows[:, own] - codebooks[m][index]
            better = (index != codes[:, m]) & (_share(new, block, pull) < _share(left[:, own], block, pull))
            if bool(better.any()):
                changed = True
                codes[:, m] = torch.where(better, index, codes[:, m])
                left[:, own] = torch.where(better.unsqueeze(1), new, left[:, own])
        if not changed:
            break
    return codes


def _share(error: Tensor, block: Tensor, pull: Tensor) -> Tensor:
    """What a slice's error adds to the form, given the other slices': float64 (n,)."""
    return row_sums.dot(error, ops.project(error, block)) + 2 * row_sums.dot(error, pull)
