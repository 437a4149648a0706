"""Product of quantizers: each slice of a vector is coded on its own (Jegou et al. 2011 for VQ slices; groups of FSQ or VQ elsewhere).

    x = [x^1 ... x^M],   codes = [codes^1 ... codes^M],   x^ = [x^^1 ... x^^M]

The slices follow each other in the order of ``quantizers`` and are as wide as these. Give a list for one quantizer a slice, or a
single quantizer and ``groups`` for one that all slices share (it is then fitted on the slices of all rows together).
``Product`` of VQs with the seeds ``random.part_seed(s, m)``, which ``product(vq:seed=s):groups=M`` makes, is ``PQ`` seeded s, codeword for
codeword.
The loss is the parts' losses weighted by their share of the width, so it stays a mean over elements whatever the split.
Cost and bits: the sums of the parts'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from codeword import catalog
from codeword.errors import CodewordError
from codeword.parts import arrays
from codeword.parts.combinator import Combinator, copies, stats_of
from codeword.quantizer import Quantizer


class Product(Combinator):
    """quantizers: one a slice, or a single one shared by ``groups`` slices."""

    def __init__(self, *, quantizers: Sequence[Quantizer] | Quantizer, groups: int | None = None) -> None:
        shared = isinstance(quantizers, Quantizer)
        if shared != (groups is not None) or (groups is not None and not 1 <= groups <= 1 << 16):
            raise CodewordError(f"product got groups={groups}; 1..65536 slices are needed with one shared quantizer and only then")
        super().__init__([quantizers] if isinstance(quantizers, Quantizer) else quantizers, repeats=groups or 1)
        self.groups = groups
        self.dim = sum(part.dim for part in self.inner) * self.repeats

    @classmethod
    def wrap(cls, inner: tuple[str, ...], dim: int, *, groups: int | None = None, shared: bool = False) -> Self:
        """``product(simvq:codebook_size=256):groups=48`` (one a slice, or all slices share one with ``shared=true``), or
        ``product(vq:codebook_size=16;fsq:bits=2)``: slices of equal width, a spec each."""
        count = groups if groups is not None else len(inner)
        if len(inner) not in (1, count) or not 1 <= count <= dim or dim % count:
            raise CodewordError(f"product got {len(inner)} inner quantizers and groups={groups} for dim={dim}; "
                                "one spec and a divisor of dim, or one spec for each of equal slices, is needed")
        if shared:
            return cls(quantizers=catalog.make(inner[0], dim // count), groups=count)
        if len(inner) == 1:
            return cls(quantizers=copies(inner[0], dim // count, count))
        return cls(quantizers=[catalog.make(spec, dim // count) for spec in inner])

    @property
    def quantizers(self) -> list[Quantizer] | Quantizer:
        return self.inner if self.groups is None else self.inner[0]

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        repeated = None if weights is None else weights.repeat_interleave(self.repeats)
        for i, part in enumerate(self._slices(rows)):
            self._fit_part(i, part, repeated)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor | None]:
        found = [part._encode(own, None) for part, own in zip(self.inner, self._slices(rows), strict=True)]
        return self._gather(*self._join(found))

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        found = [part._decode(*codes) for part, codes in zip(self.inner, self._cut(*self._scatter(indices, side)), strict=True)]
        return torch.cat(found, dim=1).reshape(indices.shape[0], self.dim)

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor, dict[str, Tensor]]:
        mask = None if keep is None else keep.repeat_interleave(self.repeats)
        outs = [part(own, mask=mask) for part, own in zip(self.inner, self._slices(rows), strict=True)]
        values = torch.cat([out.values for out in outs], dim=1).reshape(rows.shape[0], self.dim)
        indices, side = self._gather(*self._join([self._rows_of(out.codes) for out in outs]))
        shares = [part.dim * self.repeats / self.dim for part in self.inner]
        loss = sum((out.loss * share for out, share in zip(outs, shares, strict=True)), rows.new_zeros(()))
        error = arrays.masked_mean((values - rows).detach().square().sum(-1), keep)
        return values, indices, side, loss, {"error": error, **stats_of(outs)}

    # A shared quantizer sees the slices of a row as ``groups`` rows; otherwise repeats is 1 and these only cut the width.

    def _slices(self, rows: Tensor) -> list[Tensor]:
        tall = rows.reshape(rows.shape[0] * self.repeats, self.dim // self.repeats)
        return [part.contiguous() for part in tall.split([part.dim for part in self.inner], dim=1)]

    def _gather(self, indices: Tensor, side: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rows = indices.shape[0] // self.repeats
        return indices.reshape(rows, len(self.levels)), None if side is None else side.reshape(rows, self.side_count)

    def _scatter(self, indices: Tensor, side: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rows = indices.shape[0] * self.repeats
        width, floats = len(self.levels) // self.repeats, self.side_count // self.repeats
        return indices.reshape(rows, width), None if side is None else side.reshape(rows, floats)
