"""Codes whose prefix is a coarser code, cut to a budget of bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from codeword.errors import Unsupported
from codeword.parts import arrays
from codeword.quantizer import Codes, Quantizer


def truncated(quantizer: Quantizer, codes: Codes, bits: float, ends: Sequence[int], first: str) -> Codes:
    """``codes`` cut at the last of ``ends`` (positions, ascending) within ``bits`` a dimension, zeros beyond, lengths as they then are.
    Unsupported, naming what stands ``first``, where not even that fits. For codes without side floats."""
    costs = [sum(quantizer.widths[:end]) for end in ends]
    fits = [end for end, cost in zip(ends, costs, strict=True) if cost <= bits * quantizer.dim + 1e-9]
    if not fits:
        raise Unsupported(f"{quantizer.name} cannot truncate to {bits} bits a dimension; its first {first} takes "
                          f"{costs[0] / quantizer.dim:g}")
    indices, _, lengths = quantizer._check_codes(codes)
    room = torch.full(indices.shape[:-1], fits[-1], device=indices.device) if lengths is None else lengths.clamp(max=fits[-1])
    valid = torch.arange(indices.shape[-1], device=indices.device) < fits[-1]
    return arrays.like_codes(Codes((indices * valid).to(quantizer.index_dtype), None, room.to(torch.int32)), codes.indices)
