"""Residual quantization: each stage codes what the stages before it left over (Barnes, Rizvi, Nasrabadi 1996; multi-stage VQ of Juang
and Gray 1982; in networks SoundStream, Zeghidour et al. 2021).

    r_0 = x,   codes_s = encode_s(r_{s-1}),   r_s = r_{s-1} - decode_s(codes_s),   x^ = sum_s decode_s(codes_s)

Greedy: stage s never looks ahead. ``fit`` fits stage s on the residuals that the fitted stages before it leave.
A prefix of the stages is a coarser code, so one code serves many rates: ``truncate`` keeps as many whole stages as a bit budget
allows. ``lengths`` of a code count positions, as everywhere, and must end where a stage ends; decoding sums the stages inside.

Gradient: straight-through once, on the sum, so an encoder before it receives exactly the gradient of its decoder. Written stage by
stage, as it often is, the factor is the number of stages. Stages with a gradient estimator of their own are therefore refused: their
codewords would wait for a gradient that does not come (``RVQ`` has estimators). The loss is the sum of the stages' losses.

With ``dropout``, in training, that share of the items along the first axis of x uses only its first n stages, n drawn from 1..S; deeper
stages are missing from values, losses and statistics, and ``lengths`` of the codes say so.
Cost and bits: the sums of the stages'.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from codeword import catalog
from codeword.errors import CodewordError, Unsupported
from codeword.parts import arrays
from codeword.parts.combinator import Combinator, copies, stats_of
from codeword.parts.gradients import drawn_lengths, straight_through
from codeword.quantizer import Codes, Quantized, Quantizer


class Residual(Combinator):
    """quantizers: the stages in order, all of one width; dropout: share of the items that use fewer stages in training."""

    later_arguments: ClassVar[dict[str, Any]] = {"dropout": 0.0}

    def __init__(self, *, quantizers: Sequence[Quantizer], dropout: float = 0.0) -> None:
        super().__init__(quantizers)
        if len({part.dim for part in self.inner}) != 1:
            raise CodewordError(f"residual got stages of widths {[part.dim for part in self.inner]}; one width is needed")
        if not 0 <= dropout <= 1:
            raise CodewordError(f"residual got dropout={dropout}; a share of 0..1 is allowed")
        others = {getattr(part, "estimator", None) for part in self.parts.modules()} - {None, "straight_through"}
        if others:
            raise CodewordError(f"residual got a stage with estimator={others.pop()!r}; it passes the gradient once, on the sum, by "
                                "straight_through (rvq takes other estimators)")
        self.dim, self.dropout = self.inner[0].dim, dropout
        self.takes_metric = all(part.takes_metric for part in self.inner)

    @classmethod
    def wrap(cls, inner: tuple[str, ...], dim: int, *, stages: int | None = None, dropout: float = 0.0) -> Self:
        """``residual(vq:codebook_size=256):stages=4`` or ``residual(vq:codebook_size=256;pvq:bits=1)``"""
        count = stages if stages is not None else len(inner)
        if len(inner) not in (1, count) or count < 1:
            raise CodewordError(f"residual got {len(inner)} inner quantizers and stages={stages}; one spec, or one a stage, is needed")
        return cls(quantizers=copies(inner[0], dim, count) if len(inner) == 1 else [catalog.make(spec, dim) for spec in inner],
                   dropout=dropout)

    @property
    def quantizers(self) -> list[Quantizer]:
        return self.inner

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        for i, part in enumerate(self.inner):
            self._fit_part(i, rows, weights)
            if i + 1 < len(self.inner):
                rows = rows - torch.as_tensor(part.decode(part.encode(rows)))

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor | None]:
        found = []
        for part in self.inner:
            index, side = part._encode(rows, metric)
            side = None if side is None else side.to(part.side_dtype)
            found.append((index, side))
            rows = rows - part._decode(index.to(torch.int64), side)
        return self._join(found)

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return self._summed(indices, side, None)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Quantized:
        """As every quantizer's; in training ``dropout`` decides how many stages each item uses."""
        if not (self.training and self.dropout > 0 and isinstance(x, Tensor) and x.ndim):
            return super().forward(x, mask=mask)
        used = drawn_lengths(x, len(self.inner), self.dropout)
        lengths = torch.tensor([0, *self._ends], dtype=torch.int32, device=x.device)[used.to(torch.int64)]
        return self._forward_with(x, mask, lambda rows, keep: self._stages(rows, keep, used.reshape(-1)), lengths)

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor, dict[str, Tensor]]:
        return self._stages(rows, keep, None)

    def _stages(self, rows: Tensor, keep: Tensor | None,
                used: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor, dict[str, Tensor]]:
        """``_forward`` where row n takes part in the first ``used[n]`` stages, in all where None."""
        outs, left, total, loss = [], rows, None, rows.new_zeros(())
        for s, part in enumerate(self.inner):
            active = keep if used is None else used > s if keep is None else keep & (used > s)
            out = part(left, mask=active)
            values = out.values.detach()
            left = left - values
            total = values if total is None else total + values
            # A stage's loss is a mean over the rows that reach it; all losses count per kept row.
            loss = loss + (out.loss if used is None or active is None else out.loss * self._share(active, keep))
            outs.append(out)
        assert total is not None
        error = arrays.masked_mean((total - rows.detach()).square().sum(-1), keep)
        indices, side = self._join([self._rows_of(out.codes) for out in outs])
        if used is not None:
            reached = [(used > s).unsqueeze(1) for s in range(len(self.inner))]
            indices, side = self._join([(torch.where(mark, index, 0), None if extra is None else torch.where(mark, extra, 0.0))
                                        for mark, (index, extra) in zip(reached, self._cut(indices, side), strict=True)])
        return straight_through(rows, total), indices, side, loss, {"error": error, **stats_of(outs)}

    @staticmethod
    def _share(active: Tensor, keep: Tensor | None) -> Tensor:
        return active.sum() / (max(1, len(active)) if keep is None else keep.sum().clamp(min=1))

    # ------------------------------------------------------------------ Progressive

    def truncate(self, codes: Codes, bits: float) -> Codes:
        """The longest prefix of whole stages whose own ``nominal_bits`` are within ``bits``; what is cut off becomes zero. The code
        keeps its shape: a file stores the zeros too, and ``bits`` counts them. Unsupported where not even the first stage fits."""
        fits = [end for end, cost in zip(self._ends, self._costs, strict=True) if cost <= bits * self.dim + 1e-9]
        if not fits:
            raise Unsupported(f"residual cannot truncate to {bits} bits a dimension; its first stage takes {self._costs[0] / self.dim:g}")
        end, stage = fits[-1], len(fits)
        indices, side, lengths = self._check_codes(codes)
        room = torch.full(indices.shape[:-1], end, device=indices.device) if lengths is None else lengths.clamp(max=end)
        valid = torch.arange(indices.shape[-1], device=indices.device) < end
        kept_side = torch.arange(self.side_count, device=indices.device) < sum(part.side_count for part in self.inner[:stage])
        cut = Codes((indices * valid).to(self.index_dtype), None if side is None else side * kept_side, room.to(torch.int32))
        return arrays.like_codes(cut, codes.indices)

    # ------------------------------------------------------------------ helpers

    @property
    def _ends(self) -> list[int]:
        """Positions up to and including each stage."""
        return list(accumulate(len(part.levels) for part in self.inner))

    @property
    def _costs(self) -> list[float]:
        """Bits a vector up to and including each stage."""
        return list(accumulate(sum(part.widths) + 8 * part.side_count * self.side_dtype.itemsize for part in self.inner))

    def _decode_some(self, indices: Tensor, side: Tensor | None, lengths: Tensor | None) -> Tensor:
        if lengths is not None:
            whole = torch.tensor([0, *self._ends], device=lengths.device)
            if not bool(torch.isin(lengths, whole).all()):
                raise Unsupported(f"residual decodes whole stages only; lengths must be among {whole.tolist()}")
        return self._summed(indices, side, lengths)

    def _summed(self, indices: Tensor, side: Tensor | None, lengths: Tensor | None) -> Tensor:
        total = None
        for part, codes, end in zip(self.inner, self._cut(indices, side), self._ends, strict=True):
            values = part._decode(*codes)
            if lengths is not None:
                values = torch.where((lengths >= end).unsqueeze(1), values, 0.0)
            total = values if total is None else total + values
        assert total is not None
        return total
