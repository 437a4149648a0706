"""Projected: maps linearly into a quantizer's own space and back, so that it can stand where decode must live in the input's space.

FSQ codes in [-1, 1]^d, sign quantizers on a sphere: their decode cannot be compared with the input. With mu the data's mean, V the
identity ("scale") or the leading principal axes ("pca"), and per-coordinate s, t, a, b:

    y = V (x - mu),   z = s y + t,   codes = encode(z),   v = decode(codes),   x^ = V' (a v + b) + mu

a and b are the least-squares line of y on v. s and t are searched per coordinate, on a fixed grid around 1 / std(y) and 0, for the
least error that this line leaves (for FSQ the coordinates do not meet, so the search is exact on its grid; where they do, a common
choice is kept if it serves better). A quantizer that learns adapts to y by itself: it is fitted on y with s = 1, t = 0.

Cost: two multiply-adds an entry, plus V's dim * width with "pca". Bits: the inner quantizer's. The decision is exact: V goes through
``ops.project``, all else is elementwise. What is fitted is summed on one thread, the same whatever the number of threads.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from codeword import catalog, ops
from codeword.errors import CodewordError
from codeword.parts import arrays
from codeword.parts.combinator import Combinator, stats_of
from codeword.parts.moments import moments
from codeword.parts.pca import pca
from codeword.parts.threads import one_thread
from codeword.quantizer import EntropyCoded, Quantizer

SEARCH_VALUES = 1 << 18
"""Numbers that the search for s and t looks at, at most."""
LINE_VALUES = 1 << 24
"""Numbers that a and b are fitted to, at most."""


class Projected(Combinator):
    """quantizer: what codes z; dim: width of the input; map: "scale" (quantizer.dim == dim) or "pca" (quantizer.dim <= dim)."""

    def __init__(self, *, quantizer: Quantizer, dim: int, map: str = "scale") -> None:
        super().__init__([quantizer])
        if map not in ("scale", "pca") or not 1 <= quantizer.dim <= dim or (map == "scale" and quantizer.dim != dim):
            raise CodewordError(f"projected got map={map!r}, dim={dim} and a quantizer of dim={quantizer.dim}; "
                                "'scale' with equal widths or 'pca' with a quantizer at most as wide are allowed")
        self.dim, self.map = dim, map
        self.learns, self.fitted = True, False
        if isinstance(quantizer, EntropyCoded):
            self.code_length, self.compress, self.expand = quantizer.code_length, quantizer.compress, quantizer.expand
        width = quantizer.dim
        self.register_buffer("mean", torch.zeros(dim))
        for name, value in (("scale", 1.0), ("shift", 0.0), ("gain", 1.0), ("base", 0.0)):
            self.register_buffer(name, torch.full((width,), value))
        if map == "pca":
            self.register_buffer("axes", torch.eye(width, dim))

    mean: Tensor
    scale: Tensor
    shift: Tensor
    gain: Tensor
    base: Tensor
    axes: Tensor

    @classmethod
    def wrap(cls, inner: tuple[str, ...], dim: int, *, map: str = "scale", width: int | None = None) -> Self:
        """``projected(fsq:bits=2)``; ``projected(fsq:bits=4):map=pca,width=64``"""
        if len(inner) != 1:
            raise CodewordError(f"projected takes one inner quantizer, got {len(inner)}")
        return cls(quantizer=catalog.make(inner[0], width or dim), dim=dim, map=map)

    @property
    def quantizer(self) -> Quantizer:
        return self.inner[0]

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        if self.map == "pca":
            found = pca(rows, self.quantizer.dim, weights)
            self.mean.copy_(found.mean)
            self.axes.copy_(found.axes)
        else:
            self.mean.copy_(moments(rows, weights)[0])
        y = self._coordinates(rows)
        self.scale.fill_(1.0)
        self.shift.zero_()
        if self.quantizer.learns:
            self._fit_part(0, y, weights)
        else:
            self._search(*_sample(y, weights, SEARCH_VALUES))
        gain, base, _ = self._line(*_sample(y, weights, LINE_VALUES), self.scale, self.shift)
        self.gain.copy_(gain)
        self.base.copy_(base)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self._join([self.quantizer._encode(self._coordinates(rows) * self.scale + self.shift, None)])

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return self._back(self.quantizer._decode(*self._cut(indices, side)[0]))

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor, dict[str, Tensor]]:
        out = self.quantizer(self._coordinates(rows) * self.scale + self.shift, mask=keep)
        values = self._back(out.values)
        error = arrays.masked_mean((values - rows).detach().square().sum(-1), keep)
        return values, *self._join([self._rows_of(out.codes)]), out.loss, {"error": error, **stats_of([out])}

    # ------------------------------------------------------------------ helpers

    def _coordinates(self, rows: Tensor) -> Tensor:
        centred = rows - self.mean
        return ops.project(centred, self.axes) if self.map == "pca" else centred

    def _back(self, values: Tensor) -> Tensor:
        y = values * self.gain + self.base
        return (ops.project(y, self.axes.mT) if self.map == "pca" else y) + self.mean

    def _search(self, y: Tensor, weights: Tensor | None) -> None:
        """Scale, shift, then both again on finer grids; each coordinate takes its own best."""
        deviation = moments(y, weights)[1].sqrt().float()
        self.scale.copy_(1 / torch.where(deviation > 1e-36, deviation, 1.0))  # below that a coordinate counts as constant
        for ratio, lowest, highest, width in ((2.0**0.25, -10, 6, 0.05), (2.0**0.0625, -4, 4, 0.01)):
            scales = [self.scale * ratio**i for i in range(lowest, highest + 1)]
            self.scale.copy_(self._best(y, weights, [(scale, self.shift) for scale in scales])[0])
            shifts = [self.shift + width * i for i in range(lowest, -lowest + 1)]
            self.shift.copy_(self._best(y, weights, [(self.scale, shift) for shift in shifts])[1])

    def _best(self, y: Tensor, weights: Tensor | None, options: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The (scale, shift) of least error, coordinate by coordinate unless one common option is better as a whole."""
        errors = torch.stack([self._line(y, weights, *option)[2] for option in options])
        choice = errors.argmin(0)
        columns = torch.arange(y.shape[1], device=y.device)
        mixed = torch.stack([s for s, _ in options])[choice, columns], torch.stack([t for _, t in options])[choice, columns]
        common = options[int(errors.sum(1).argmin())]
        return mixed if float(self._line(y, weights, *mixed)[2].sum()) <= float(errors.sum(1).min()) else common

    def _line(self, y: Tensor, weights: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, b of the least-squares line of y on the decoded values v, and the variance it leaves, per coordinate."""
        v = torch.as_tensor(self.quantizer.decode(self.quantizer.encode(y * scale + shift)))
        share = torch.full((len(y),), 1 / len(y), dtype=torch.float64) if weights is None else weights.double() / weights.double().sum()
        share = share.to(y.device).unsqueeze(1)
        with one_thread():
            y, v = y.double(), v.double()
            mean_y, mean_v = (y * share).sum(0), (v * share).sum(0)
            y, v = y - mean_y, v - mean_v
            weighted = v * share
            var_v, covariance, var_y = (v * weighted).sum(0), (y * weighted).sum(0), (y * y * share).sum(0)
        gain = torch.where(var_v > 1e-12 * mean_v.square(), covariance / var_v.clamp(min=1e-300), 0.0)
        return gain.float(), (mean_y - gain * mean_v).float(), var_y - gain * covariance


def _sample(y: Tensor, weights: Tensor | None, values: int) -> tuple[Tensor, Tensor | None]:
    """The same rows every time, so many that they hold at most ``values`` numbers."""
    keep = arrays.sample_indices(len(y), max(1, values // y.shape[1]), seed=0)
    if keep is None:
        return y, weights
    chosen = torch.from_numpy(keep).to(y.device)
    return y[chosen], None if weights is None else weights[chosen]

