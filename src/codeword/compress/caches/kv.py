"""An append-only cache of attention keys and values as codes (the layout of KIVI, Liu et al. 2024, over any Quantizer).

The newest tokens stay in full precision; once ``window + page`` of them have gathered, the oldest ``page`` become one immutable page of
packed codes. A page is never decoded and encoded again, so errors do not grow as decoding goes on, and the state depends on the
tokens alone: one at a time or in chunks gives the same pages, bit for bit.

    scores = q K^' / sqrt(D),   out = softmax(scores) V^        over pages and window

``attend`` walks page by page with a running maximum m, normaliser l and sum a (online softmax, Milakov and Gimelshein 2018):

    m' = max(m, max s),   l' = e^(m-m') l + sum e^(s-m'),   a' = e^(m-m') a + e^(s-m') V^

so one decoded page is all that exists beside the codes. What an error in a key costs is (k - k^)' E[q q'] (k - k^): ``query_moment``
hands that form to a key quantizer that takes a metric. Bits: packed indices and side floats a page (each padded to bytes once a
page), and the window at its own precision; the two codebooks are shared by all caches and counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, NotFitted, ShapeError, Unsupported
from codeword.parts import arrays
from codeword.parts.arguments import require_input_space
from codeword.quantizer import Codes, Quantizer, Report


class KVCache:
    """keys, values: fitted quantizers of width head_dim; window: newest tokens kept in full precision; page: tokens coded together;
    query_moment: E[q q'] (head_dim, head_dim), where ``keys`` takes a metric. Raises Unsupported where decode leaves the input's space."""

    def __init__(self, keys: Quantizer, values: Quantizer, *, window: int = 64, page: int = 64, query_moment: Tensor | None = None) -> None:
        for quantizer in (keys, values):
            require_input_space(quantizer, "keys and values")
            if not quantizer.fitted:
                raise NotFitted(f"a cache needs a fitted {quantizer.name}; call fit on keys or values of calibration text first")
        if keys.dim != values.dim:
            raise CodewordError(f"keys have dim={keys.dim} and values dim={values.dim}; both must be the head's width")
        if window < 0 or page < 1:
            raise CodewordError(f"a cache got window={window} and page={page}; window >= 0 and page >= 1 are allowed")
        if query_moment is not None and not keys.takes_metric:
            raise Unsupported(f"{keys.name} minimises plain L2 only; leave query_moment out, or use a quantizer that takes a metric")
        self.keys, self.values, self.window, self.page, self.query_moment = keys, values, window, page, query_moment
        self._pages: list[_Page] = []
        self._recent: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        """Tokens held."""
        return len(self._pages) * self.page + (0 if self._recent is None else self._recent[0].shape[2])

    @torch.no_grad()
    def append(self, k: Tensor, v: Tensor) -> None:
        """Add keys and values (batch, heads, n, head_dim), n >= 0. Raises ShapeError on other shapes than before, NaN or infinity;
        the cache is then unchanged."""
        self._check(k, v)
        past = (k[:, :, :0], v[:, :, :0]) if self._recent is None else self._recent
        recent = (torch.cat((past[0], k), 2), torch.cat((past[1], v), 2))
        pages = []
        while recent[0].shape[2] >= self.window + self.page:
            pages.append(_Page(self._encode(self.keys, recent[0][:, :, :self.page], self.query_moment),
                               self._encode(self.values, recent[1][:, :, :self.page], None)))
            recent = (recent[0][:, :, self.page:], recent[1][:, :, self.page:])
        self._recent = (recent[0].clone(), recent[1].clone()) if pages else recent  # a slice would keep the coded tokens alive
        self._pages += pages

    @torch.no_grad()
    def attend(self, q: Tensor, *, causal: bool = True, scale: float | None = None) -> Tensor:
        """Attention output (batch, q_heads, n, head_dim) of queries q, in q's dtype; q_heads a multiple of the cache's heads (grouped
        queries). ``causal``: the queries are those of the newest n tokens. ``scale``: 1 / sqrt(head_dim) where None."""
        batch, heads, n, dim = self._check_queries(q, causal)
        rows = q.float().reshape(batch, heads, -1, n, dim) * (1 / math.sqrt(dim) if scale is None else scale)
        position = torch.arange(len(self) - n, len(self), device=q.device).unsqueeze(1)
        top = torch.full((*rows.shape[:-1], 1), -math.inf, device=q.device)
        total, out = torch.zeros_like(top), torch.zeros_like(rows)
        start = 0
        for k, v in self._blocks():
            scores = rows @ k.unsqueeze(2).mT
            if causal:
                scores = scores.masked_fill(torch.arange(start, start + k.shape[2], device=q.device) > position, -math.inf)
            higher = torch.maximum(top, scores.amax(-1, keepdim=True))  # finite from the first block on: every query sees token 0
            weights, fade = torch.exp(scores - higher), torch.exp(top - higher)
            total = fade * total + weights.sum(-1, keepdim=True)
            out = fade * out + weights @ v.unsqueeze(2)
            top, start = higher, start + k.shape[2]
        return (out / total).reshape(q.shape).to(q.dtype)

    @torch.no_grad()
    def decode(self) -> tuple[Tensor, Tensor]:
        """All keys and values (batch, heads, tokens, head_dim) as attention sees them, float32; for tests and inspection."""
        if self._recent is None:
            raise ShapeError("this cache is empty; append keys and values first")
        blocks = list(self._blocks(empty=True))
        return torch.cat([k for k, _ in blocks], 2), torch.cat([v for _, v in blocks], 2)

    @property
    def bytes(self) -> int:
        """Bytes of codes, side floats and window."""
        return sum(page.bytes for page in self._pages) + sum(t.numel() * t.element_size() for t in self._recent or ())

    @property
    def bits(self) -> float:
        """Stored bits a number of keys and values, window included, codebooks not (they are ``shared_bytes``)."""
        return 8 * self.bytes / self._numbers(len(self)) if len(self) else 0.0

    @property
    def shared_bytes(self) -> int:
        """Bytes of the two quantizers, which all caches of a model may share."""
        return sum(q.shared_bytes for q in {id(q): q for q in (self.keys, self.values)}.values())

    def report(self) -> Report:
        """tokens, coded tokens, bytes, bits a number: over everything and over the coded pages alone."""
        coded = len(self._pages) * self.page
        pages = sum(page.bytes for page in self._pages)
        return Report(tokens=len(self), coded=coded, bytes=self.bytes, bits=self.bits, shared_bytes=self.shared_bytes,
                      coded_bits=8 * pages / self._numbers(coded) if coded else 0.0)

    # ------------------------------------------------------------------

    def _check(self, k: Tensor, v: Tensor) -> None:
        for name, x, quantizer in (("keys", k, self.keys), ("values", v, self.values)):
            if x.ndim != 4 or not x.is_floating_point():
                raise ShapeError(f"append got {name} {tuple(x.shape)} of {x.dtype}; floats (batch, heads, n, {quantizer.dim}) are needed")
            arrays.check_rows(x, quantizer.dim, f"append of {name}")
            if self._recent is not None and (x.shape[:2] != self._recent[0].shape[:2] or x.dtype != self._recent[0].dtype):
                raise ShapeError(f"append got {name} {tuple(x.shape)} of {x.dtype}; this cache holds batch and heads "
                                 f"{tuple(self._recent[0].shape[:2])} of {self._recent[0].dtype}")
            arrays.check_finite(x.float(), f"append of {name}")
        if k.shape != v.shape or k.dtype != v.dtype:
            raise ShapeError(f"append got keys {tuple(k.shape)} of {k.dtype} and values {tuple(v.shape)} of {v.dtype}; they must agree")

    def _check_queries(self, q: Tensor, causal: bool) -> tuple[int, int, int, int]:
        if self._recent is None or len(self) == 0:
            raise ShapeError("attend needs at least one token; append keys and values first")
        batch, heads = self._recent[0].shape[:2]
        if q.ndim != 4 or q.shape[0] != batch or q.shape[1] % heads or q.shape[3] != self.keys.dim:
            raise ShapeError(f"attend got queries {tuple(q.shape)}; ({batch}, a multiple of {heads}, n, {self.keys.dim}) is needed")
        if causal and q.shape[2] > len(self):
            raise ShapeError(f"attend got {q.shape[2]} causal queries for {len(self)} tokens; queries are those of the newest tokens")
        return batch, heads, q.shape[2], q.shape[3]

    def _numbers(self, tokens: int) -> int:
        assert self._recent is not None
        batch, heads = self._recent[0].shape[:2]
        return 2 * batch * heads * tokens * self.keys.dim

    @staticmethod
    def _encode(quantizer: Quantizer, x: Tensor, metric: Tensor | None) -> _Coded:
        codes = quantizer.encode(x, metric=metric)
        indices = torch.as_tensor(codes.indices)
        bits = ops.pack(indices.reshape(-1, indices.shape[-1]).to(torch.int64), quantizer.widths)
        return _Coded(bits, None if codes.side is None else torch.as_tensor(codes.side).reshape(-1, quantizer.side_count))

    def _decode(self, quantizer: Quantizer, coded: _Coded) -> Tensor:
        assert self._recent is not None
        batch, heads = self._recent[0].shape[:2]
        indices = ops.unpack(coded.bits, quantizer.widths, batch * heads * self.page)
        return torch.as_tensor(quantizer.decode(Codes(indices, coded.side))).reshape(batch, heads, self.page, quantizer.dim)

    def _blocks(self, empty: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values page by page, then the window."""
        assert self._recent is not None
        for page in self._pages:
            yield self._decode(self.keys, page.keys), self._decode(self.values, page.values)
        if empty or self._recent[0].shape[2]:
            yield self._recent[0].float(), self._recent[1].float()


class _Coded(NamedTuple):
    """One bit string (batch, heads, page tokens in that order) and side floats of the rows."""

    bits: Tensor
    side: Tensor | None


class _Page(NamedTuple):
    keys: _Coded
    values: _Coded

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for coded in self for t in coded if t is not None)
