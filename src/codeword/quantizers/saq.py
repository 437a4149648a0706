"""SAQ (Li et al.: SAQ: Pushing the Limits of Vector Quantization through Code Adjustment and Dimension Segmentation, SIGMOD 2026).

After PCA the variance of most data falls steeply, so bits belong to the first axes. A dynamic program (``parts.bit_plan``) cuts the axes
into segments with their own numbers of bits, the last perhaps with none; each segment is rotated at random within itself, so that its
entries look alike, and coded on a grid that coordinate sweeps fit to the vector (``ops.adjust_code``).

    y = A (x - mean)                A: PCA axes, each segment's rotated at random: one (dim, dim) matrix
    x_ = u - (2^b - 1)/2            u in 0..2^b-1 for each dimension of a segment with b bits
    decode   mean + A' (scale_s x_)                 scale_s = <y_s, x_>/|x_|^2      (least squares, before rounding)
    <y_s, z> ~ kappa_s <x_, z>,     kappa_s = gain_s scale_s,  gain_s = E|y_s|^2 / E[scale_s <x_, y_s>] over the fitted rows
    |x - q|^2 ~ |x - mean|^2 + |q - mean|^2 - 2 sum_s kappa_s <x_, z_s>,    z = A (q - mean)
    |x - mean|^2 = residual |residual| + sum_s scale_s^2 |x_|^2

Side information is float16: ``residual`` and one scale for each coded segment, in units (powers of two) learned from the fitted rows.
That is exact enough at any rate because codes are chosen again for the rounded scale, and the residual is small where the rate is high.
``bits`` counts all of it. Cost: (coded dims) * dim multiply-adds and O(rounds * coded dims); shared: the (dim, dim) matrix.

A search (``ops.segment_scan``, factors in ``parts.segment_search``) passes over rows by their length alone, by top bits, then by all bits
of one segment after the other. Its bounds suppose errors of 1.9 standard deviations, and ``deviations`` for segments not yet read: rows
near a query are far from random to it, so that the paper's 4 loses many of them (``results/segment_scan.csv``). Hence None by default.

Departures. The paper stores two float32 a segment. It multiplies the rotations and the PCA one after the other. It makes kappa exact for
every vector; here gain_s is its average, whose spread is far below the code's own error and which spares a float. Error model and
granularity are those measured to be better (``parts.bit_plan``). A row more than 65,000 times as large as the fitted ones saturates.
"""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.ops import segment_blocks
from codeword.ops.searcher import Recipe, Segments
from codeword.ops.segment_blocks import SegmentBlocks, SegmentQuery
from codeword.parts import arrays, random, scan, segment_search
from codeword.parts.bit_plan import MAX_BITS, Plan, bit_plan, block_edges, flat_plan, plan_bits
from codeword.parts.pca import PCA, pca
from codeword.parts.rows import dot, power
from codeword.quantizer import BLOCK, Codes, Packed, Quantizer

LARGEST = torch.finfo(torch.float32).max
LARGEST_HALF = 65504.0
SIDE_BITS = 16
SLACK = 1.9
GAIN_VALUES = 1 << 22
"""Numbers that gains and units are measured on, at most."""


class Segment(NamedTuple):
    """One coded segment of n rows: its place in ``Codes.indices`` and in y, and what a scan needs of each row."""

    start: int
    stop: int
    bits: int
    indices: Tensor
    """int64 (n, stop - start)"""
    scale: Tensor
    """float64 (n,): scale_s x_ is the segment's least-squares value"""
    rescale: Tensor
    """float64 (n,): kappa_s"""
    norm: Tensor
    """float64 (n,): |y_s|, from the code and its mean cosine"""


class SAQ(Quantizer):
    """dim; rate: stored bits a dimension, side information included, fractions too; granularity: segments are multiples of it long;
    rounds: sweeps over the coordinates; seed: of the rotations; deviations: how many standard deviations a search allows what it has not
    read of a row, None: any. ``plan``: (dimensions, bits) of each segment, decided by ``fit``."""

    later_arguments: ClassVar[dict[str, Any]] = {"deviations": None}

    side_dtype = torch.float16

    def __init__(self, *, dim: int, rate: float = 4.0, granularity: int = 32, rounds: int = 6, seed: int = 0,
                 deviations: float | None = None) -> None:
        super().__init__()
        if dim < 1 or granularity < 1 or not 0 <= rounds <= 64:
            raise CodewordError(f"saq got dim={dim}, granularity={granularity}, rounds={rounds}; dim and granularity of at least 1 and "
                                "rounds 0..64 are needed")
        least = (block_edges(dim, granularity)[1] + 2 * SIDE_BITS) / dim
        if not least <= rate <= least + 16:
            raise CodewordError(f"saq got rate={rate}; {least:.4g} (one segment of one bit and the side information) to "
                                f"{least + 16:.4g} are allowed at dim={dim} and granularity={granularity}")
        self.dim, self.rate, self.granularity, self.rounds, self.seed = dim, rate, granularity, rounds, seed
        if deviations is not None and not 0 < deviations < math.inf:
            raise CodewordError(f"saq got deviations={deviations}; a positive number or None is needed")
        self.deviations = deviations
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("axes", torch.zeros(dim, dim))
        self.register_buffer("variances", torch.zeros(dim))
        self._set_plan(flat_plan(dim, self._budget, granularity=granularity, overhead=SIDE_BITS))

    mean: Tensor
    axes: Tensor
    variances: Tensor
    """Of the data along each principal axis, before the rotations; falling."""
    gains: Tensor
    units: Tensor

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, granularity: int | None = None, rounds: int = 6, seed: int = 0,
                 deviations: float | None = None) -> Self:
        """``bits`` in all; narrow vectors get the finest granularity of 32, 16, 8, 4, 2, 1 that their bits pay for."""
        room = math.floor(bits * dim + 1e-9) - 2 * SIDE_BITS
        if room < 1:
            raise Unsupported(f"saq stores at least 33 bits a vector; bits={bits} at dim={dim} are {bits * dim:g}")
        if bits > 16:
            raise Unsupported(f"saq stores at most 16 bits a dimension; got bits={bits}")
        if granularity is None:
            granularity = next(size for size in (32, 16, 8, 4, 2, 1) if size == 1 or 2 * min(size, dim) <= room)
        return cls(dim=dim, rate=bits, granularity=granularity, rounds=rounds, seed=seed, deviations=deviations)

    @property
    def _budget(self) -> int:
        """Bits a vector for segments."""
        return math.floor(self.rate * self.dim + 1e-9) - SIDE_BITS

    def _set_plan(self, plan: Plan) -> None:
        """What follows from a plan, with room for what fitting measures."""
        self.plan = plan
        self.coded = tuple((length, bits) for length, bits in plan if bits)
        self.levels = tuple(1 << bits for length, bits in self.coded for _ in range(length))
        self.side_count = 1 + len(self.coded)
        self.register_buffer("gains", torch.ones(len(self.coded)))
        self.register_buffer("units", torch.ones(self.side_count))

    # ------------------------------------------------------------------ the contract

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        found = pca(rows, None, weights)
        plan = bit_plan(found.variances.cpu().numpy(), self._budget, granularity=self.granularity, overhead=SIDE_BITS)
        self._learn(rows, weights, found, plan)

    def _learn(self, rows: Tensor, weights: Tensor | None, found: PCA, plan: Plan) -> None:
        """Everything else, once axes and plan are known."""
        self._set_plan(plan)
        self.gains, self.units = self.gains.to(rows.device), self.units.to(rows.device)
        axes, start = [], 0
        for length, bits in self.plan:
            part = found.axes[start:start + length]
            if bits:
                signs = torch.from_numpy(random.signs(self.seed, 4 * length, stream=f"saq {start}")).reshape(4, length).to(rows.device)
                part = ops.rotate(part.mT, signs).mT
            axes.append(part)
            start += length
        self.mean, self.axes, self.variances = found.mean, torch.cat(axes).contiguous(), found.variances.float()
        keep = arrays.sample_indices(len(rows), max(1, GAIN_VALUES // self.dim), seed=self.seed)
        chosen = slice(None) if keep is None else torch.from_numpy(keep).to(rows.device)
        self._measure(rows[chosen], None if weights is None else weights[chosen])

    def _measure(self, rows: Tensor, weights: Tensor | None) -> None:
        """Units: powers of two near the root mean square of each side float. Gains: what makes the estimates right on average."""
        share = torch.ones(len(rows), dtype=torch.float64, device=rows.device) if weights is None else weights.double()
        y, total, size = self._coordinates(rows)
        _, sums = self._adjust(y, self.rounds)
        scale = 2 * sums[..., 0] / sums[..., 1] * size.unsqueeze(1)
        residual = (total - _in_order(scale.square() * sums[..., 1] / 4)).abs()
        square = torch.cat((residual.unsqueeze(1), scale.square()), dim=1)
        mean = torch.stack([dot(share, column) for column in square.T]) / dot(share, torch.ones_like(share))
        self.units = power((torch.frexp(mean.sqrt()).exponent - 1).clamp(-126, 126)).float()
        _, steps, sums, _ = self._assign(y, total, size)
        energy, overlap = sums[..., 2] * size.unsqueeze(1).square(), steps * size.unsqueeze(1).square() * sums[..., 0] / 2
        ratio = [dot(share, e) / dot(share, o).clamp(min=1e-300) for e, o in zip(energy.T, overlap.T, strict=True)]
        gains = torch.stack(ratio)
        self.gains = torch.where((gains > 0.5) & (gains < 4), gains, 1.0).float()  # a constant segment has none

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor]:
        indices, _, _, side = self._assign(*self._coordinates(rows))
        return indices, side.float()  # that autocast can join

    def _assign(self, y: Tensor, total: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Indices; the rounded scales in y's own size (n, segments), the sums of ``ops.adjust_code`` for them; side."""
        _, sums = self._adjust(y, self.rounds)
        units = self.units.double()
        half = (2 * sums[..., 0] / sums[..., 1] * size.unsqueeze(1) / units[1:]).clamp(max=LARGEST_HALF).to(torch.float16)
        steps = half.double() * units[1:] / size.unsqueeze(1)
        indices, sums = self._adjust(y, 0, steps)
        left = total - _in_order(steps.square() * sums[..., 1] / 4 * size.unsqueeze(1).square())
        residual = left.sign() * left.abs().sqrt() / units[0]
        side = torch.cat((residual.clamp(-LARGEST_HALF, LARGEST_HALF).to(torch.float16).unsqueeze(1), half), dim=1)
        return indices, steps, sums, side

    def _coordinates(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y / size of the coded segments, float32; |row - mean|^2 and size float64 (n,). size is a power of two that brings y near 1, so
        that tiny and huge rows neither vanish nor overflow."""
        centred = (rows - self.mean).clamp(-LARGEST, LARGEST)
        size = power(torch.frexp(centred.abs().amax(1)).exponent)
        scaled = (centred.double() / size.unsqueeze(1)).float()
        return ops.project(scaled, self.axes[:len(self.levels)]), dot(scaled, scaled) * size.square(), size

    def _adjust(self, y: Tensor, rounds: int, steps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lengths, bits = [length for length, _ in self.coded], [bits for _, bits in self.coded]
        return ops.adjust_code(y, lengths, bits, rounds, steps)

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        assert side is not None
        scales = side[:, 1:].float() * self.units[1:]
        values = torch.cat([self._points(indices, i).float() * scales[:, i:i + 1] for i in range(len(self.coded))], dim=1)
        return (ops.project(values, self.axes[:len(self.levels)].mT) + self.mean).clamp(-LARGEST, LARGEST)

    def _points(self, indices: Tensor, i: int) -> Tensor:
        """x_ of segment i, float64."""
        start, stop = self._bounds[i]
        return indices[:, start:stop].double() - ((1 << self.coded[i][1]) - 1) / 2

    @property
    def _bounds(self) -> list[tuple[int, int]]:
        return list(pairwise(accumulate((length for length, _ in self.coded), initial=0)))

    # ------------------------------------------------------------------ for a scan

    def segments(self, codes: Codes) -> list[Segment]:
        """The coded segments of ``codes`` (n, positions)."""
        indices, side, _ = self._check_codes(codes)
        assert side is not None
        out = []
        for i, ((start, stop), (_, bits)) in enumerate(zip(self._bounds, self.coded, strict=True)):
            scale = side[:, 1 + i].double() * float(self.units[1 + i])
            length = self._points(indices, i).square().sum(1).sqrt() * scale
            gain = float(self.gains[i])
            out.append(Segment(start, stop, bits, indices[:, start:stop], scale, scale * gain, length * math.sqrt(gain)))
        return out

    def square_norms(self, codes: Codes) -> Tensor:
        """float64 (n,): |x - mean|^2 of the rows that ``codes`` were made of."""
        _, side, _ = self._check_codes(codes)
        assert side is not None
        residual = side[:, 0].double() * float(self.units[0])
        coded = [segment.scale.square() * (segment.indices.double() - ((1 << segment.bits) - 1) / 2).square().sum(1)
                 for segment in self.segments(codes)]
        return (residual * residual.abs() + _in_order(torch.stack(coded, dim=1))).clamp(min=0)

    def coordinates(self, queries: Tensor) -> Tensor:
        """A (q - mean), float32 (n, coded dimensions): what the segments' points are multiplied with."""
        return ops.project((queries.float() - self.mean).clamp(-LARGEST, LARGEST), self.axes[:len(self.levels)])

    # ------------------------------------------------------------------ Scannable

    def pack(self, codes: Codes, given: Tensor | None = None) -> Packed:
        """Planes, lower bits and factors of ``codes`` (rows, positions) relative to ``given`` (rows, dim), one point a block of 32 rows."""
        self._require_fitted("pack")
        assert codes.side is not None
        point = torch.zeros(1, self.dim) if given is None else arrays.as_tensor(given).float()
        point = point.to(self.device).expand(len(codes.indices), self.dim)
        step = BLOCK * max(1, arrays.block_rows(self.dim) // (4 * BLOCK))
        parts = [self._pack_some(Codes(codes.indices[i:i + step], codes.side[i:i + step]), point[i:i + step])
                 for i in range(0, max(1, len(codes.indices)), step)]
        tensors = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        return Packed(tensors, len(tensors["planes"]) * BLOCK)

    def _pack_some(self, codes: Codes, point: Tensor) -> dict[str, Tensor]:
        fill = (0, 0, 0, -len(codes.indices) % BLOCK)
        point = torch.nn.functional.pad(point, fill)
        indices, side = (torch.nn.functional.pad(arrays.as_tensor(part), fill) for part in codes[:2])
        padded = Codes(indices, side)
        turned = ops.project(point, self.axes[:len(self.levels)])
        shift = 2 * ops.project(point, self.mean.unsqueeze(0)).double()[:, 0] + dot(self.mean, self.mean)
        first, full = [(shift + self.square_norms(padded)).unsqueeze(0)], []
        segments = self.segments(padded)
        for part in segments:
            top, whole = segment_search.row_factors(part.indices, part.bits, part.rescale, turned[:, part.start:part.stop])
            first.append(top)
            full += [whole] if part.bits > 1 else []
        planes, rest = segment_blocks.layout([part.indices for part in segments], self.coded)
        factors = torch.cat(first).float().reshape(-1, len(planes), BLOCK).transpose(0, 1).contiguous()
        out = {"planes": planes, "factors": factors, "centers": shift.reshape(-1, BLOCK).amax(1).float()}
        return out | ({"rest": rest, "rest_factors": torch.cat(full).T.float().contiguous()} if full else {})

    def unpack(self, packed: Packed, rows: Tensor) -> Codes:
        """Codes of the chosen rows: scales exactly, the residual from the factors."""
        part = self.take(packed, rows)
        values = segment_blocks.codes_of(part["planes"], part.get("rest"), self.coded)
        scales, place = [], 0
        for i, (_, bits) in enumerate(self.coded):
            rescale = part["factors"][:, 2 + 2 * i] if bits == 1 else part["rest_factors"][:, 2 * place + 1]
            place += bits > 1
            scales.append(rescale.double() / -2 / float(self.gains[i]) / float(self.units[1 + i]))
        side = torch.stack([torch.zeros_like(scales[0]), *scales], dim=1).clamp(0, LARGEST_HALF).to(torch.float16)
        codes = Codes(torch.cat(values, dim=1).to(self.index_dtype), side)
        left = part["factors"][:, 0].double() - part["centers"].double() - self.square_norms(codes)
        side[:, 0] = (left.sign() * left.abs().sqrt() / float(self.units[0])).clamp(-LARGEST_HALF, LARGEST_HALF).to(torch.float16)
        return codes

    def take(self, packed: Packed, rows: Tensor) -> dict[str, Tensor]:
        return scan.take(packed, rows)

    def lay(self, rows: dict[str, Tensor]) -> Packed:
        return scan.lay(rows, blocks=("planes", "factors", "centers"))

    def check(self, packed: Packed) -> None:
        for name in packed.tensors.keys() - {"planes", "rest"}:  # any bits are a code
            arrays.check_finite(packed.tensors[name], f"{self.name}.{name}")

    def prepare(self, queries: Tensor, metric: str) -> SegmentQuery:
        """Rotated ``queries`` (q, dim) rounded to integers; ``metric`` "l2" or "ip"."""
        self._require_fitted("prepare")
        if metric not in ("l2", "ip"):
            raise Unsupported(f"saq.prepare got metric={metric!r}; 'l2' and 'ip' are known (cosine: l2 of normalised vectors)")
        l2 = metric == "l2"
        queries = queries.float().contiguous()
        centred = (queries - self.mean).clamp(-LARGEST, LARGEST) if l2 else queries
        z = ops.project(centred, self.axes[:len(self.levels)])
        towards = ops.project(queries, self.mean.unsqueeze(0))[:, 0]
        norms = ops.nearest(queries, torch.zeros(1, self.dim, device=queries.device)).distances
        return segment_blocks.prepare(z, centred, towards, norms, self.coded, self._constants(), l2)

    def _constants(self) -> Tensor:
        sums = self.variances.double().cumsum(0)[[stop - 1 for _, stop in self._bounds]]
        return segment_search.constants_of(self.coded, torch.diff(sums, prepend=sums.new_zeros(1)), SLACK, self.deviations)

    def recipe(self, metric: str) -> Recipe:
        """``prepare`` for a search in one native call."""
        self._require_fitted("recipe")
        return Segments(self.mean, self.axes[:len(self.levels)], self.coded, self._constants())

    def scan(self, packed: Packed, query: SegmentQuery, start: int, stop: int, coarse: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows start..stop for all queries: (distance, the least that may be let pass for it), each (q, stop - start), without coarse.
        ``coarse`` (q,) is what the caller will add; the bound for l2 depends on it (|q|^2 where it is None, as in flat search)."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        coarse = coarse.float() if coarse is not None else query.norms if query.l2 else torch.zeros_like(query.norms)
        distance, bound = segment_blocks.looks(self._blocks(packed).part(first, last), query, coarse)
        part = slice(start - first * BLOCK, stop - first * BLOCK)
        return distance[:, part] - coarse.unsqueeze(1), bound[:, part] - coarse.unsqueeze(1)

    def search_spans(self, packed: Packed, query: SegmentQuery, spans: Tensor, coarse: Tensor, k: int,
                     allowed: Tensor | None, num_threads: int) -> tuple[Tensor, Tensor]:
        return segment_blocks.segment_scan(self._blocks(packed), query, spans, coarse, k, allowed, num_threads)

    def _blocks(self, packed: Packed) -> SegmentBlocks:
        t, none = packed.tensors, torch.zeros(packed.rows, 0)
        return SegmentBlocks(t["planes"], t["factors"], t["centers"], t.get("rest", none.to(torch.uint8)),
                             t.get("rest_factors", none), self.coded)

    # ------------------------------------------------------------------ files

    @property
    def structure(self) -> dict[str, Any]:
        return {"fitted": self.fitted, "plan": [list(segment) for segment in self.plan]}

    def restore(self, structure: dict[str, Any]) -> None:
        super().restore(structure)
        plan = structure.get("plan")
        if not (isinstance(plan, list) and 1 <= len(plan) <= self.dim and all(_is_segment(s) for s in plan)
                and sum(length for length, _ in plan) == self.dim and all(a[1] >= b[1] for a, b in pairwise(plan))
                and sum(bits == 0 for _, bits in plan) <= 1 and plan[0][1] > 0 and plan_bits(plan, SIDE_BITS) <= self._budget):
            raise FormatError("config", f"saq needs a 'plan' of [dimensions, bits] that add up to {self.dim} dimensions, bits falling "
                                        f"within 0..{MAX_BITS} and rate, got {str(plan)[:80]}")
        self._set_plan(tuple((length, bits) for length, bits in plan))

    def check_state(self) -> None:
        super().check_state()
        if not (bool((self.units > 0).all()) and bool((self.gains > 0).all()) and bool((self.variances >= 0).all())):
            raise FormatError("value", "saq has a unit or gain that is not positive or a variance below zero")


def _is_segment(value: Any) -> bool:
    return (isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
            and value[0] >= 1 and 0 <= value[1] <= MAX_BITS)


def _in_order(parts: Tensor) -> Tensor:
    """Sums (n,) of the columns of (n, segments), one after the other: alike for one row and for many."""
    total = torch.zeros_like(parts[:, 0])
    for part in parts.unbind(1):
        total = total + part
    return total
