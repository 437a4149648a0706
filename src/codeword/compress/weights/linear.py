"""A linear layer whose weight is codes: y = W^ x + b, W^ = scale * decode(codes), in the stored order of columns.

The state is what a file would hold: one bit string of packed indices, side floats, scales, the permutation, the bias and the
quantizer. W^ exists only inside ``forward`` (decode, then the product), bit for bit the matrix that the compressor measured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from codeword import ops
from codeword.errors import CodewordError
from codeword.parts import arrays
from codeword.quantizer import Codes, Quantizer


class QuantizedLinear(nn.Module):
    """in_features, out_features; quantizer: fitted; scales: how many, 1 or out_features; permuted: columns are stored in another order;
    bias: there is one."""

    def __init__(self, *, in_features: int, out_features: int, quantizer: Quantizer, scales: int = 1, permuted: bool = False,
                 bias: bool = False) -> None:
        super().__init__()
        if min(in_features, out_features) < 1 or scales not in (1, out_features):
            raise CodewordError(f"QuantizedLinear got {out_features} x {in_features} with {scales} scales; positive sizes and 1 or "
                                f"{out_features} scales are allowed")
        self.in_features, self.out_features, self.quantizer = in_features, out_features, quantizer
        self.groups = -(-in_features // quantizer.dim)
        n = self.groups * out_features
        self.codes: Tensor
        self.side: Tensor | None
        self.scales: Tensor
        self.permutation: Tensor | None
        self.bias: Tensor | None
        self.register_buffer("codes", torch.zeros(ops.packed_bytes(n, quantizer.widths), dtype=torch.uint8))
        self.register_buffer("side", torch.zeros(n, quantizer.side_count, dtype=quantizer.side_dtype) if quantizer.side_count else None)
        self.register_buffer("scales", torch.ones(scales, 1, dtype=torch.bfloat16))
        order = torch.arange(in_features, dtype=torch.int16 if in_features <= 1 << 15 else torch.int32)
        self.register_buffer("permutation", order if permuted else None)
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    def store(self, indices: Tensor, side: Tensor | None, scales: Tensor, permutation: Tensor | None, bias: Tensor | None) -> None:
        """Take codes indices (out, groups, positions), side (out, groups, side_count), scales (1 or out, 1), permutation (in,)."""
        self.codes.copy_(ops.pack(indices.reshape(-1, indices.shape[-1]).to(torch.int64), self.quantizer.widths))
        for mine, given in ((self.side, side), (self.scales, scales), (self.permutation, permutation), (self.bias, bias)):
            assert (mine is None) == (given is None)
            if mine is not None and given is not None:
                mine.copy_(given.reshape(mine.shape))

    @property
    def weight(self) -> Tensor:
        """W^ float32 (out, in), decoded anew at each look."""
        n = self.groups * self.out_features
        indices = ops.unpack(self.codes, self.quantizer.widths, n)
        values = torch.as_tensor(self.quantizer.decode(Codes(indices, self.side)))
        values = values.reshape(self.out_features, -1)[:, :self.in_features] * self.scales.float()
        if self.permutation is None:
            return values
        weight = torch.empty_like(values)
        weight[:, self.permutation.to(torch.int64)] = values
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out) in the dtype of ``x``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype), bias)

    def bit_report(self) -> dict[str, Any]:
        """``bits_per_weight``, all but the bias counted, and ``bits``, its parts; layers may share the quantizer's."""
        weights = self.in_features * self.out_features
        parts = {"indices": self.codes, "side": self.side, "scales": self.scales, "permutation": self.permutation}
        bits = {name: 8 * t.numel() * t.element_size() / weights for name, t in parts.items() if t is not None}
        bits["shared"] = 8 * self.quantizer.shared_bytes / weights
        return {"bits_per_weight": sum(bits.values()), "bits": bits}

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.bit_report()['bits_per_weight']:.3f} bits a weight"

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedLinear:
        # Scales, side floats and the bias keep their dtype, as in every quantizer: .half() must not change W^.
        return super()._apply(arrays.keep_dtype(fn), recurse)
