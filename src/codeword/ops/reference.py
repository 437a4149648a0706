"""The definition of every op in plain torch. Slow where it must be; runs on any device; all else is checked against it.

Exactness rests on two facts. A product of two float32 values is exact in float64, so fused and separate multiply-add agree.
And a sum has one value once its order is fixed: 8 interleaved lanes for distances (``exact_distances``), ascending for
projections, a butterfly for Hadamard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LANES = 8
UNIT = 2.0**-24
"""Unit roundoff of float32."""


def exact_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared L2 over the last axis in float64: lane l sums the squares at l, l+8, l+16, ...; lanes are then added as
    ((0+4)+(2+6)) + ((1+5)+(3+7)). Broadcasts; (..., d) -> (...)."""
    difference = x.double() - y.double()
    squares = torch.nn.functional.pad(difference * difference, (0, -difference.shape[-1] % LANES))
    chunks = squares.unflatten(-1, (-1, LANES))
    if chunks.shape[-2] == 0:  # vectors of width 0
        return squares.new_zeros(squares.shape[:-1])
    lanes = chunks[..., 0, :]
    for i in range(1, chunks.shape[-2]):
        lanes = lanes + chunks[..., i, :]
    fours = lanes[..., :4] + lanes[..., 4:]
    return (fours[..., 0] + fours[..., 2]) + (fours[..., 1] + fours[..., 3])


def nearest(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Screen with a float32 matrix product, then score exactly every codeword inside the screen's error bound."""
    n, d = x.shape
    k = len(codebook)
    indices = torch.zeros(n, dtype=torch.int64, device=x.device)
    if codebook.isnan().any():
        return indices, torch.full((n,), math.nan, device=x.device)
    best = torch.full((n,), math.inf, dtype=torch.float64, device=x.device)
    half = codebook.double().square().sum(1).div(2)
    largest = float(half.max().mul(2).sqrt())
    # gamma_{d+4} of any summation order; a caller may have allowed products of rounded factors (TF32, bfloat16) for all of torch.
    rounding = (d + 4) * UNIT
    gamma = 1.01 * rounding / (1 - rounding) if rounding < 0.25 else math.inf
    factors = {"highest": 0.0, "high": 2.02 * 2.0**-11, "medium": 2.02 * 2.0**-8}[torch.get_float32_matmul_precision()]
    step = max(1, (1 << 22) // k)
    for start in range(0, n, step):
        block = x[start:start + step]
        with torch.autocast(x.device.type, enabled=False):
            score = half.float() - block @ codebook.mT
        # |error| <= gamma (|x| |c| + |c|^2 / 2), plus underflow, plus what the float64 definition itself may be off.
        norm = block.double().norm(dim=1)
        bound = (gamma + factors) * (norm * largest + largest**2 / 2) + (d + 4) * 1e-37 + (d + 64) * 2.0**-54 * (norm + largest)**2
        limit = score.double().min(1).values + 2 * bound
        # Overflow in the screen makes scores or limits non-finite: then every codeword is a candidate.
        unsure = ~(torch.isfinite(limit) & torch.isfinite(score).all(1)) & torch.isfinite(block).all(1)
        candidates = (score.double() <= limit.unsqueeze(1)) | unsure.unsqueeze(1)
        row, code = candidates.nonzero(as_tuple=True)
        for part in range(0, len(row), max(1, (1 << 22) // max(1, d))):
            r, c = row[part:part + max(1, (1 << 22) // max(1, d))], code[part:part + max(1, (1 << 22) // max(1, d))]
            _keep_best(best, indices, start + r, c, exact_distances(x[start + r], codebook[c]))
    best = torch.where(torch.isfinite(x).all(1), best, math.nan)
    return indices, best.float()


def _keep_best(best: Tensor, indices: Tensor, row: Tensor, code: Tensor, distance: Tensor) -> None:
    """Lower best[row] to the least distance seen, with the lowest code among equals."""
    improved = best.scatter_reduce(0, row, distance, "amin")
    # A strictly better distance forgets the old index; an equal one keeps the lower, which came first.
    none = torch.iinfo(torch.int64).max
    kept = torch.where(improved < best, none, torch.where(torch.isinf(best), none, indices))
    winners = distance == improved[row]
    kept = kept.scatter_reduce(0, row[winners], code[winners], "amin")
    indices.copy_(torch.where(kept == none, indices, kept))
    best.copy_(improved)


def project(x: Tensor, matrix: Tensor) -> Tensor:
    n, d = x.shape
    columns = matrix.double().mT.contiguous()
    out = torch.empty(n, len(matrix), dtype=torch.float32, device=x.device)
    step = max(1, (1 << 18) // max(1, len(matrix)))
    for start in range(0, n, step):
        block = x[start:start + step].double()
        total = torch.zeros(len(block), len(matrix), dtype=torch.float64, device=x.device)
        for j in range(d):
            total.addcmul_(block[:, j:j + 1], columns[j])
        out[start:start + step] = total.float()
    return out


def hadamard(x: Tensor) -> Tensor:
    """Butterflies of stride 1, 2, 4, ... as (a + b, a - b) in float32, then one product with float32(1 / sqrt(n))."""
    n = x.shape[-1]
    y = x
    stride = 1
    while stride < n:
        pairs = y.unflatten(-1, (-1, 2, stride))
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = torch.stack((a + b, a - b), dim=-2).flatten(-3)
        stride *= 2
    return y * torch.tensor(1 / math.sqrt(n), dtype=torch.float32, device=x.device)


def rotate(x: Tensor, signs: Tensor, inverse: bool = False) -> Tensor:
    """Round r: signs, Hadamard on the first (r even) or last (r odd) 2^k entries, Kac step on both halves scaled by sqrt(1/2).
    Where the width is a power of two the Hadamard already covers it and the Kac step is left out."""
    n = x.shape[-1]
    size = 1 << (n.bit_length() - 1)
    scale = torch.tensor(math.sqrt(0.5), dtype=torch.float32, device=x.device)

    def mix(y: Tensor, first: bool) -> Tensor:
        if size == n:
            return hadamard(y)
        head, tail = (y[..., :size], y[..., size:]) if first else (y[..., n - size:], y[..., :n - size])
        head = hadamard(head)
        return torch.cat((head, tail) if first else (tail, head), dim=-1)

    def kac(y: Tensor) -> Tensor:
        if size == n:
            return y
        half = n // 2  # the middle entry of an odd width sits this step out
        a, middle, b = y[..., :half], y[..., half:n - half], y[..., n - half:]
        return torch.cat(((a + b) * scale, middle, (a - b) * scale), dim=-1)

    if inverse:
        for r in (3, 2, 1, 0):
            x = mix(kac(x), r % 2 == 0) * signs[r]
        return x
    for r in range(4):
        x = kac(mix(x * signs[r], r % 2 == 0))
    return x


def segment_sum(x: Tensor, labels: Tensor, segments: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    sums = torch.zeros(segments, x.shape[1], dtype=torch.float64, device=x.device)
    counts = torch.zeros(segments, dtype=torch.float64, device=x.device)
    segment_add(sums, counts, x, labels, weights)
    return sums, counts


def segment_add(sums: Tensor, counts: Tensor, x: Tensor, labels: Tensor, weights: Tensor | None) -> None:
    step = max(1, (1 << 22) // max(1, x.shape[1]))
    for start in range(0, len(x), step):
        rows, part = x[start:start + step].double(), labels[start:start + step]
        ones = torch.ones(len(part), dtype=torch.float64, device=x.device)
        if weights is not None:
            ones = weights[start:start + step].double()
            rows = rows * ones.unsqueeze(1)
        if x.is_cuda:  # where index_add_ adds by atomics, in any order, this sorts first
            sums.index_put_((part,), rows, accumulate=True)
            counts.index_put_((part,), ones, accumulate=True)
        else:
            sums.index_add_(0, part, rows)
            counts.index_add_(0, part, ones)


def pack(indices: Tensor, widths: Sequence[int]) -> Tensor:
    planes = [(indices[:, p:p + 1] >> torch.arange(w, device=indices.device)) & 1 for p, w in enumerate(widths)]
    stream = torch.cat(planes, dim=1).to(torch.uint8).reshape(-1) if planes else indices.new_zeros(0, dtype=torch.uint8)
    stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8)).reshape(-1, 8)
    return (stream << torch.arange(8, dtype=torch.uint8, device=indices.device)).sum(1, dtype=torch.uint8)


def unpack(data: Tensor, widths: Sequence[int], rows: int) -> Tensor:
    stream = ((data.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=data.device)) & 1).reshape(-1)
    table = stream[:rows * sum(widths)].reshape(rows, sum(widths)).to(torch.int64)
    out = torch.zeros(rows, len(widths), dtype=torch.int64, device=data.device)
    offset = 0
    for p, w in enumerate(widths):
        out[:, p] = (table[:, offset:offset + w] << torch.arange(w, device=data.device)).sum(1)
        offset += w
    return out
