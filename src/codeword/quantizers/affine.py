"""Affine: trained maps into a quantizer's own space and back, the ``project_in`` and ``project_out`` of tokenizers.

    y = A x + a,   codes = encode(y),   v = decode(codes),   x^ = B v + b

In a network A, a, B, b follow the gradient: that of a decoder reaches B and b directly, A and a through the quantizer's own estimator; the
loss is the quantizer's, in its space. This is the low-dimensional look-up of ViT-VQGAN (Yu et al. 2022) and what most tokenizers put
around FSQ or signs. ``Projected`` ties the way back to the way in and is fitted only; here both are free.

``fit`` takes for A the leading principal axes of the data, each brought to variance 1 where the quantizer cannot adapt (a lattice), and
directions from the seed beyond as many as there are; then it fits the quantizer, and B and b by least squares of x on v.

Cost: 2 dim width multiply-adds. Bits: the quantizer's. The decision is exact: A goes through ``ops.project``.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from codeword import catalog, ops
from codeword.errors import CodewordError
from codeword.parts import arrays, random
from codeword.parts.combinator import Combinator, stats_of
from codeword.parts.pca import pca
from codeword.parts.threads import one_thread
from codeword.quantizer import EntropyCoded, Quantizer

FITTED_VALUES = 1 << 24
"""Numbers that B and b are fitted to, at most."""
RIDGE = 1e-9
"""Of the mean variance of v, added to each: directions in which v does not vary get a B of 0."""
WIDEST = 1 << 16


class Affine(Combinator):
    """quantizer: what codes y; dim: width of x; seed: of directions beyond the principal axes."""

    def __init__(self, *, quantizer: Quantizer, dim: int, seed: int = 0) -> None:
        super().__init__([quantizer])
        width = quantizer.dim
        if not 1 <= dim <= WIDEST or dim * width > 1 << 28:
            raise CodewordError(f"affine got dim={dim} around a quantizer of dim={width}; 1..{WIDEST} and a product of at most 2^28 are "
                                "allowed")
        self.dim, self.seed = dim, seed
        self.learns, self.fitted = True, False
        if isinstance(quantizer, EntropyCoded):
            self.code_length, self.compress, self.expand = quantizer.code_length, quantizer.compress, quantizer.expand
        self.weight_in, self.bias_in = nn.Parameter(torch.zeros(width, dim)), nn.Parameter(torch.zeros(width))
        self.weight_out, self.bias_out = nn.Parameter(torch.zeros(dim, width)), nn.Parameter(torch.zeros(dim))

    @classmethod
    def wrap(cls, inner: tuple[str, ...], dim: int, *, width: int | None = None, seed: int = 0) -> Self:
        """``affine(fsq:grid=8x5x5x5):width=4``"""
        if len(inner) != 1:
            raise CodewordError(f"affine takes one inner quantizer, got {len(inner)}")
        return cls(quantizer=catalog.make(inner[0], width or dim), dim=dim, seed=seed)

    @property
    def quantizer(self) -> Quantizer:
        return self.inner[0]

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        self._start(rows, weights)
        y = self._inward(rows).detach()
        self._fit_part(0, y, weights)
        keep = arrays.sample_indices(len(rows), max(1, FITTED_VALUES // max(self.dim, y.shape[1])), seed=0)
        if keep is not None:
            chosen = torch.from_numpy(keep).to(rows.device)
            rows, y, weights = rows[chosen], y[chosen], None if weights is None else weights[chosen]
        v = torch.as_tensor(self.quantizer.decode(self.quantizer.encode(y)))
        matrix, base = _line(v.double(), rows.double(), weights)
        with torch.no_grad():
            self.weight_out.copy_(matrix)
            self.bias_out.copy_(base)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self._join([self.quantizer._encode(self._inward(rows).detach(), None)])

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return self._outward(self.quantizer._decode(*self._cut(indices, side)[0])).detach()

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor, dict[str, Tensor]]:
        out = self.quantizer(self._inward(rows), mask=keep)
        values = self._outward(out.values)
        error = arrays.masked_mean((values - rows).detach().square().sum(-1), keep)
        return values, *self._join([self._rows_of(out.codes)]), out.loss, {"error": error, **stats_of([out])}

    # ------------------------------------------------------------------ helpers

    def _inward(self, rows: Tensor) -> Tensor:
        return ops.project(rows, self.weight_in) + self.bias_in

    def _outward(self, values: Tensor) -> Tensor:
        return ops.project(values, self.weight_out) + self.bias_out

    @torch.no_grad()
    def _start(self, rows: Tensor, weights: Tensor | None) -> None:
        """A and a."""
        width = self.quantizer.dim
        found = pca(rows, min(width, self.dim), weights)
        axes, spread = found.axes.double(), found.variances.sqrt()
        if width > self.dim:
            more = random.normal(self.seed, (width - self.dim) * self.dim, stream="affine axes").reshape(-1, self.dim) / math.sqrt(self.dim)
            extra = torch.from_numpy(more).to(axes)
            axes, spread = torch.cat((axes, extra)), torch.cat((spread, (extra.square() @ spread.square()).sqrt()))
        if not self.quantizer.learns:
            axes = axes / torch.where(spread > 1e-36, spread, 1.0).unsqueeze(1)  # below that a direction counts as constant
        with one_thread():
            shift = -(axes @ found.mean.double())
        self.weight_in.copy_(axes)
        self.bias_in.copy_(shift)


def _line(v: Tensor, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """B (dim, width) and b (dim,) of the least-squares x ~ B v + b; float64 on one thread, the same whatever the number of threads."""
    share = torch.full((len(v), 1), 1 / len(v), dtype=torch.float64, device=v.device)
    if weights is not None:
        share = (weights.double() / weights.double().sum()).unsqueeze(1)
    with one_thread():
        mean_v, mean_x = (v * share).sum(0), (x * share).sum(0)
        v, x = v - mean_v, x - mean_x
        weighted = (v * share).mT
        gram = weighted @ v
        level = gram.diagonal().mean()
        gram.diagonal().add_(RIDGE * level if float(level) > 0 else 1.0)
        matrix = torch.linalg.solve(gram, weighted @ x).mT
        return matrix, mean_x - matrix @ mean_v
