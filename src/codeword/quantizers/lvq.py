"""Locally-adaptive vector quantization (Aguerrebere, Bhati, Hildebrand, Tepper, Willke: Similarity Search in the Blink of an Eye with
Compressed Indices, VLDB 2023).

Every vector has its own uniform grid between its least and its greatest entry, so the code follows each vector's range and needs no
table: decoding is one multiply-add an entry, at random access. A second level codes what the first leaves in the same way, and the two
form one integer, so that the first level alone is a coarser code of the same vector.

    y = (x - mean) / unit                      mean of the fitted rows; unit: a power of two
    bias = fp16(min y),   scale = fp16((max y - min y) / (2^B - 1))
    p = clamp(round((y - bias) / scale), 0, 2^B - 1)                                y^ = bias + scale p
    r = clamp(round((y - y^ + scale/2) / step), 0, 2^R - 1),  step = scale / (2^R - 1)
    y^ = bias - scale/2 + step (p (2^R - 1) + r)                                    both levels

The rounded bias and scale are the ones that encode, so decoding never drifts. A vector whose scale would be subnormal in float16 is
constant for this code: it keeps that scale, the smallest. Cost: O(d). Bits: B + R + 32/dim; a mean and a unit are shared.

A scan works on the integers: with code = p (2^R - 1) + r, <q, x^> = unit (step <q, code> + (bias - scale/2) sum_i q_i) + <q, mean>.

The grid's step follows the range, not the spread: one large entry coarsens all others, and nothing is rotated, so at 4 bits and below
RaBitQ's or SAQ's error is smaller. Departure: ``unit``, a power of two that puts the median row at 2^8, in the middle of float16's
range, so that codes do not depend on the scale of the data; rows beyond 2^8 times the median saturate.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.parts import arrays, scan
from codeword.parts.rows import dot
from codeword.quantizer import BLOCK, Codes, Packed, Quantizer

SMALLEST = 2.0**-14
"""Smallest normal float16."""
HALF_MAX = 65504.0
LARGEST = torch.finfo(torch.float32).max
_SCANNED = 4096
"""Rows whose codes are read at once."""


class LVQ(Quantizer):
    """dim; code_bits: B of the first level, 1..8; residual_bits: R of the second, 0 (none) to 8; both without the 32 bits of side
    information a vector, which ``bits`` counts."""

    side_count = 2
    side_dtype = torch.float16

    def __init__(self, *, dim: int, code_bits: int = 4, residual_bits: int = 0) -> None:
        super().__init__()
        if dim < 1:
            raise CodewordError(f"lvq got dim={dim}; at least 1 is needed")
        if not 1 <= code_bits <= 8 or not 0 <= residual_bits <= 8:
            raise CodewordError(f"lvq got code_bits={code_bits} and residual_bits={residual_bits}; 1..8 and 0..8 are allowed")
        self.dim, self.code_bits, self.residual_bits = dim, code_bits, residual_bits
        self.levels = (1 << code_bits,) * dim + ((1 << residual_bits,) * dim if residual_bits else ())
        self.center: Tensor
        self.unit: Tensor
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("unit", torch.ones(()))

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, residual_bits: int = 0) -> Self:
        """The largest B + R whose stored bits B + R + 32/dim exceed ``bits`` by no more than a quarter, as for RaBitQ: from width 128
        on the dial is B + R and the two floats come on top. Above 8 bits a second level takes what the first cannot.
        Unsupported where no B + R comes within a bit."""
        side = 32 / dim
        total = min(math.floor(bits + 0.25 - side + 1e-9), 16)
        rest = max(residual_bits, total - 8)
        if total - rest < 1 or bits - total - side >= 1:
            raise Unsupported(f"lvq stores {1 + rest + side:.3g} to {16 + side:.3g} bits a dimension at dim={dim}; "
                              f"bits={bits} is not near any")
        return cls(dim=dim, code_bits=total - rest, residual_bits=rest)

    # ------------------------------------------------------------------ the contract

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        sums, counts = ops.segment_sum(rows, torch.zeros(len(rows), dtype=torch.int64, device=rows.device), 1, weights)
        self.center.copy_((sums[0] / counts[0]).float())
        largest = (rows - self.center).clamp(-LARGEST, LARGEST).abs().amax(1)
        middle = largest[largest > 0].median() if bool((largest > 0).any()) else largest.new_ones(())
        self.unit.copy_(2.0 ** (torch.frexp(middle).exponent.double() - 8).clamp(-126, 120))

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor]:
        y = (rows - self.center).clamp(-LARGEST, LARGEST).double() / self.unit.double()
        low, high = y.amin(1, keepdim=True), y.amax(1, keepdim=True)
        cells = (1 << self.code_bits) - 1
        bias = low.clamp(-HALF_MAX, HALF_MAX).half()
        scale = ((high - low) / cells).clamp(max=HALF_MAX).half()
        scale = scale.clamp(min=SMALLEST)
        side = torch.cat((bias.float(), scale.float()), dim=1)
        first = ((y - bias.double()) / scale.double()).round().clamp(0, cells)
        if not self.residual_bits:
            return first.to(torch.int64), side
        left, cells = y - (bias.double() + scale.double() * first), (1 << self.residual_bits) - 1
        second = ((left + scale.double() / 2) * (cells / scale.double())).round().clamp(0, cells)
        return torch.cat((first, second), dim=1).to(torch.int64), side

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        assert side is not None
        bias, scale = side.double().split(1, dim=1)
        if not self.residual_bits:
            return self._back(bias + scale * indices)
        cells = (1 << self.residual_bits) - 1
        first, second = indices.split(self.dim, dim=1)
        return self._back((bias - scale / 2) + (scale / cells) * (first * cells + second))

    def check_state(self) -> None:
        super().check_state()
        if not bool(self.unit > 0) or float(torch.frexp(self.unit).mantissa) != 0.5:
            raise FormatError("value", f"unit of lvq is {float(self.unit)}; a power of two is needed")

    # ------------------------------------------------------------------ Progressive

    def truncate(self, codes: Codes, bits: float) -> Codes:
        """Both levels where their stored bits are within ``bits``, else the first alone; what is cut off becomes zero and ``lengths``
        says so. The code keeps its shape: a file stores the zeros too, and ``bits`` counts them."""
        indices, side, lengths = self._check_codes(codes)
        least = self.nominal_bits - self.residual_bits
        if bits < least - 1e-9:
            raise Unsupported(f"lvq cannot truncate to {bits} bits a dimension; its first level takes {least:.4g}")
        if bits >= self.nominal_bits - 1e-9:
            return codes
        kept = torch.arange(len(self.levels), device=indices.device) < self.dim
        room = torch.full(indices.shape[:-1], self.dim, device=indices.device) if lengths is None else lengths.clamp(max=self.dim)
        return arrays.like_codes(Codes((indices * kept).to(self.index_dtype), side, room.to(torch.int32)), codes.indices)

    # ------------------------------------------------------------------ Scannable

    def pack(self, codes: Codes, given: Tensor | None = None) -> Packed:
        """``fields``: p 2^R + r in 4, 8 or 16 bits, two fields of 4 a byte (first the lower); ``factors`` float32 (rows, 2): scale and
        bias times unit; ``row_terms``: |x^|^2 + 2<c, x^>, c = given (0 where None)."""
        indices, side, _ = self._check_codes(codes)
        assert side is not None
        rows = -(-len(indices) // BLOCK) * BLOCK
        pad = (0, 0, 0, rows - len(indices))
        values = indices[:, :self.dim]
        if self.residual_bits:
            values = (values << self.residual_bits) | indices[:, self.dim:]
        if self._field == 4:
            pairs = torch.nn.functional.pad(values, (0, self.dim % 2)).unflatten(1, (-1, 2))
            values = pairs[..., 0] | (pairs[..., 1] << 4)
        row_terms = torch.zeros(len(indices))
        for start in range(0, len(indices), _SCANNED):
            part = slice(start, start + _SCANNED)
            decoded = self._decode(indices[part], side[part])
            row_terms[part] = dot(decoded, decoded if given is None else decoded + 2 * arrays.as_tensor(given)[part].double()).float()
        factors = (side.double().flip(1) * self.unit.double()).float()
        fields = torch.nn.functional.pad(values, pad).to(torch.uint16 if self._field == 16 else torch.uint8)
        return Packed({"fields": fields, "factors": torch.nn.functional.pad(factors, pad),
                       "row_terms": torch.nn.functional.pad(row_terms, pad[2:])}, rows)

    def unpack(self, packed: Packed, rows: Tensor) -> Codes:
        """Codes of the chosen rows, exactly."""
        values = self._values(packed.tensors["fields"][rows])
        if self.residual_bits:
            values = torch.cat((values >> self.residual_bits, values & ((1 << self.residual_bits) - 1)), dim=1)
        side = (packed.tensors["factors"][rows].double() / self.unit.double()).flip(1)
        return Codes(values.to(self.index_dtype), side.clamp(-HALF_MAX, HALF_MAX).to(self.side_dtype))

    def take(self, packed: Packed, rows: Tensor) -> dict[str, Tensor]:
        return scan.take(packed, rows)

    def lay(self, rows: dict[str, Tensor]) -> Packed:
        return scan.lay(rows)

    def check(self, packed: Packed) -> None:
        for name in ("factors", "row_terms"):
            arrays.check_finite(packed.tensors[name], f"{self.name}.{name}")
        for start in range(0, packed.rows, _SCANNED):
            values = self._values(packed.tensors["fields"][start:start + _SCANNED])
            arrays.check_indices(values, (1 << (self.code_bits + self.residual_bits),) * self.dim, self.name)

    def prepare(self, queries: Tensor, metric: str) -> LVQQuery:
        """The queries, their sums, and their products with the mean."""
        if metric not in ("l2", "ip"):
            raise Unsupported(f"lvq.prepare got metric={metric!r}; 'l2' and 'ip' are known (cosine: l2 of normalised vectors)")
        queries = queries.float().contiguous()
        sides = ops.project(queries, torch.stack((torch.ones_like(self.center), self.center)))
        return LVQQuery(queries, sides[:, :1], sides[:, 1:], metric)

    def scan(self, packed: Packed, query: LVQQuery, start: int, stop: int) -> tuple[Tensor, Tensor]:
        values = self._values(packed.tensors["fields"][start:stop])
        scale, bias = packed.tensors["factors"][start:stop].double().unbind(1)
        if self.residual_bits:
            values = values - (values >> self.residual_bits)  # p 2^R + r - p
            bias, scale = bias - scale / 2, scale / ((1 << self.residual_bits) - 1)
        product = scale * ops.project(query.queries, values.float()).double() + (bias * query.sums.double() + query.towards.double())
        if query.metric == "l2":
            product = 2 * product - packed.tensors["row_terms"][start:stop].double()
        distance = (-product).clamp(-LARGEST, LARGEST).float()
        return distance, distance

    def search_spans(self, packed: Packed, query: LVQQuery, spans: Tensor, coarse: Tensor, k: int,
                     allowed: Tensor | None, num_threads: int) -> tuple[Tensor, Tensor]:
        return scan.top_k_groups(self, packed, query, spans, coarse, k, allowed, _SCANNED)

    # ------------------------------------------------------------------ helpers

    @property
    def _field(self) -> int:
        """Bits of a field in the scan's layout."""
        return next(width for width in (4, 8, 16) if self.code_bits + self.residual_bits <= width)

    def _values(self, fields: Tensor) -> Tensor:
        """int32 (n, dim) p 2^R + r."""
        values = fields.to(torch.int32)
        if self._field == 4:
            values = torch.stack((values & 15, values >> 4), dim=2).flatten(1)[:, :self.dim]
        return values

    def _decode_some(self, indices: Tensor, side: Tensor | None, lengths: Tensor | None) -> Tensor:
        if lengths is None or not self.residual_bits:
            return super()._decode_some(indices, side, lengths)
        assert side is not None
        if not bool(torch.isin(lengths, torch.tensor([0, self.dim, 2 * self.dim], device=lengths.device)).all()):
            raise Unsupported(f"lvq decodes whole levels only; lengths must be among {[0, self.dim, 2 * self.dim]}")
        bias, scale = side.double().split(1, dim=1)
        coarse = self._back(bias + scale * indices[:, :self.dim])
        values = torch.where((lengths == self.dim).unsqueeze(1), coarse, self._decode(indices, side))
        return values * (lengths > 0).unsqueeze(1)

    def _back(self, y: Tensor) -> Tensor:
        """float32 values of float64 ``y`` in units about the center."""
        return (y * self.unit.double() + self.center.double()).clamp(-LARGEST, LARGEST).float()


class LVQQuery(NamedTuple):
    """Prepared queries (q, dim), their entries' sums and products with the mean (q, 1)."""

    queries: Tensor
    sums: Tensor
    towards: Tensor
    metric: str

    def select(self, i: int) -> LVQQuery:
        """The prepared query ``i`` alone."""
        return self.take(torch.tensor([i]))

    def take(self, who: Tensor) -> LVQQuery:
        """The prepared queries ``who`` (n,)."""
        return LVQQuery(self.queries[who], self.sums[who], self.towards[who], self.metric)
