"""Rotate, then quantize (the random rotation of RaBitQ, Gao and Long 2024; QuIP# and QuaRot call it incoherence processing).

A seeded orthonormal rotation R spreads every vector's energy evenly over its entries, so that a quantizer which treats all
dimensions alike loses nothing on data whose dimensions differ. Lengths and angles are kept, hence so is the squared error.

    y = R x,   codes = encode(y),   x^ = R' decode(codes)

R is four rounds of random signs, Hadamard transform and Kac step (``ops.rotate``): any width, O(d log d), derived from the seed and
therefore not stored. A quadratic form travels with it: x' M x = y' (R M R') y. All distances are kept, so where the inner quantizer
can be scanned, so can this one: its scan, with rotated queries.
Cost: one rotation each way. Bits: those of the inner quantizer. Departure: none; a learned rotation (OPQ) would be another class.
"""

from __future__ import annotations

from typing import Self, cast

import torch
from torch import Tensor

from codeword import catalog, ops
from codeword.errors import CodewordError
from codeword.parts import arrays, random
from codeword.parts.combinator import Combinator, stats_of
from codeword.quantizer import Codes, EntropyCoded, Packed, Quantizer, Query, Scannable


class Rotated(Combinator):
    """quantizer: what codes the rotated vectors; seed: of the rotation."""

    def __init__(self, *, quantizer: Quantizer, seed: int = 0) -> None:
        super().__init__([quantizer])
        self.seed = seed
        self.dim = quantizer.dim
        self.takes_metric = quantizer.takes_metric
        self.signs: Tensor
        self.rebuild()
        if isinstance(quantizer, Scannable):
            self.pack, self.prepare = self._pack, self._prepare
            self.unpack, self.take, self.lay, self.check = quantizer.unpack, quantizer.take, quantizer.lay, quantizer.check
            self.scan, self.search_spans = quantizer.scan, quantizer.search_spans
        if isinstance(quantizer, EntropyCoded):
            self.code_length, self.compress, self.expand = quantizer.code_length, quantizer.compress, quantizer.expand

    @classmethod
    def wrap(cls, inner: tuple[str, ...], dim: int, *, seed: int = 0) -> Self:
        """``rotated(pq:bits=2):seed=1``"""
        if len(inner) != 1:
            raise CodewordError(f"rotated takes one inner quantizer, got {len(inner)}")
        return cls(quantizer=catalog.make(inner[0], dim), seed=seed)

    @property
    def quantizer(self) -> Quantizer:
        return self.inner[0]

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        self._fit_part(0, ops.rotate(rows, self.signs), weights)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor | None]:
        form = None if metric is None else self._turned_form(metric)
        return self._join([self.quantizer._encode(ops.rotate(rows, self.signs), form)])

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return ops.rotate(self.quantizer._decode(*self._cut(indices, side)[0]), self.signs, inverse=True)

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor, dict[str, Tensor]]:
        out = self.quantizer(ops.rotate(rows, self.signs), mask=keep)
        values = ops.rotate(out.values, self.signs, inverse=True)
        error = arrays.masked_mean((values - rows).detach().square().sum(-1), keep)
        return values, *self._join([self._rows_of(out.codes)]), out.loss, {"error": error, **stats_of([out])}

    def rebuild(self) -> None:
        """The signs of the rotation, from the seed."""
        signs = torch.from_numpy(random.signs(self.seed, 4 * self.dim, stream="rotation")).reshape(4, self.dim)
        self.register_buffer("signs", signs, persistent=False)

    # ------------------------------------------------------------------ Scannable, where the inner quantizer is

    def _pack(self, codes: Codes, given: Tensor | None = None) -> Packed:
        return cast(Scannable, self.quantizer).pack(codes, None if given is None else ops.rotate(given, self.signs))

    def _prepare(self, queries: Tensor, metric: str) -> Query:
        return cast(Scannable, self.quantizer).prepare(ops.rotate(queries, self.signs), metric)

    # ------------------------------------------------------------------ helpers

    def _turned_form(self, metric: Tensor) -> Tensor:
        """R M R': rows times R', then the same from the other side; symmetric again after rounding."""
        half = ops.rotate(metric.float(), self.signs).mT.contiguous()
        turned = ops.rotate(half, self.signs).double()
        return (turned + turned.mT) / 2
