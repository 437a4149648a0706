"""Small pieces around an explicit codebook: assignment under a quadratic form, and how evenly the codewords are used."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import Unsupported
from codeword.parts import arrays

LARGEST_DIAL = 16
"""Most bits of one index that a dial chooses by itself; larger codebooks are asked for by their size."""
COUNTED = 1 << 20
"""Alphabets larger than this are not counted in ``usage``: the histogram would cost more than the quantizer."""


def size_for_bits(name: str, dim: int, bits: float) -> int:
    """2^(bits dim) codewords; Unsupported where that is no whole number of bits or more than a codebook holds."""
    total = bits * dim
    if not math.isclose(total, round(total), abs_tol=1e-9) or not 1 <= total <= LARGEST_DIAL:
        raise Unsupported(f"{name} has one index of whole bits a vector, at most {LARGEST_DIAL}; bits={bits:g} at dim={dim} asks for "
                          f"{total:g}: {_advice(name, dim, bits)}")
    return 1 << round(total)


def _advice(name: str, dim: int, bits: float) -> str:
    """A spec that stores ``bits`` a dimension: equal slices with an index each, of 8 bits or as near to it as dim allows."""
    for index in sorted(range(1, LARGEST_DIAL + 1), key=lambda index: (abs(index - 8), index)):
        groups = bits * dim / index
        if groups >= 1 and math.isclose(groups, round(groups), abs_tol=1e-9) and dim % round(groups) == 0:
            return f"product({name}:bits={bits:g}):groups={round(groups)} cuts the vector into narrower slices"
    return f"no equal slices have whole bits either; name a size instead, e.g. {name}:codebook_size=256"


def center(codebook: Tensor) -> Tensor:
    """float32 (d,): the mean codeword, added in order."""
    label = torch.zeros(len(codebook), dtype=torch.int64, device=codebook.device)
    return (ops.segment_sum(codebook, label, 1)[0][0] / len(codebook)).float()


def assign(rows: Tensor, codebook: Tensor, metric: Tensor | None = None) -> Tensor:
    """int64 (n,): the codeword c that minimises |x - c|^2, or (x - c)' metric (x - c)."""
    if metric is not None:
        root = arrays.metric_root(metric)
        rows, codebook = ops.project(rows, root), ops.project(codebook, root)
    return ops.nearest(rows, codebook).indices


def histogram(indices: Tensor, size: int, keep: Tensor | None) -> Tensor:
    """float64 (size,): how often each index occurs in the kept rows of (n, positions) or (n,)."""
    ones = torch.ones(indices.shape, dtype=torch.float64, device=indices.device)
    if keep is not None:
        ones = ones * keep.reshape(-1, *[1] * (indices.ndim - 1))
    return torch.zeros(size, dtype=torch.float64, device=indices.device).index_add_(0, indices.reshape(-1), ones.reshape(-1))


def usage(indices: Tensor, size: int, keep: Tensor | None) -> dict[str, Tensor]:
    """Share of the alphabet that this batch used, and the perplexity exp(entropy) of its distribution. Both are bounded by the
    number of tokens in the batch: compare them between batches of one size, or count over a data set."""
    return usage_of(histogram(indices, size, keep)) if size <= COUNTED else {}


def usage_of(counts: Tensor) -> dict[str, Tensor]:
    """``usage`` from a histogram."""
    p = counts / counts.sum().clamp(min=1)
    return {"usage": (counts > 0).double().mean().float(), "perplexity": torch.exp(torch.special.entr(p).sum()).float()}
