"""segment_scan: top-k over codes whose dimensions are cut into segments with their own numbers of bits, in three looks.

The first needs no code: by the norm alone a row may be too far. The second reads the top bits of one segment after the other, the third
all bits of one segment after the other; a row is passed over as soon as a bound exceeds the k-th best distance. Inner products are those
of ``bit_blocks`` (the query is rounded to integers, each segment with its own step), hence exact; what follows is float32 with one
rounding an operation, in the order written.

    planes        uint8 (rows/32, sum G_s, 32)       G_s = ceil(n_s / 8) bytes a row of segment s, laid out as in ``bit_blocks``
    factors       float32 (rows/32, 1 + 2S, 32)      |y|^2 and what all rows of a list share; of each segment's top bits: add, rescale
    centers       float32 (rows/32,)                 |q - c'|^2 = base + this, for l2
    rest          uint8 (rows, sum W_s)              the lower bits of segments with more than one
    rest_factors  float32 (rows, 2R)                 of each of these R segments: add, rescale of all bits

Per row, with base = coarse + offset and, for ip, constant = add = 0,

    f_s = add_s + rescale_s * (step1_s * t1_s)       t1_s = sum_i (2 top_i - 1) z1_i           e_0 = base + constant
    h_s = add'_s + rescale'_s * (step2_s * t2_s)     t2_s = sum_i (2 u_i - (2^bits - 1)) z_i   h_s = f_s where a segment has one bit
    look 1, 2   e_s+1 = e_s + f_s       bound_s = e_s - sqrt(D * (unseen_s + v_s))             v_s+1 = v_s + noise_s * rescale_s^2
    look 3      d_s+1 = d_s + h_s       bound'_s = (d_s + r_s) - sqrt(D * w_s)                 d_0 = e_0, the distance is d_S
                r_s = f_s + r_s+1,  w_s = noise_s * rescale_s^2 + w_s+1,  r_S = w_S = 0        0 < s < S

D = max(base + centers, 0) for l2, 1 for ip. A row is passed over if one of its bounds bound_0..bound_S, bound'_1..bound'_S-1 exceeds the
k-th best distance so far (bound_s is not looked at where unseen_s is infinite). Rows are visited in order of spans, then of rows.
"""

from __future__ import annotations

import functools
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from codeword.errors import ShapeError
from codeword.ops import bit_blocks, dispatch
from codeword.ops import reference as reference_ops
from codeword.ops.bit_blocks import BLOCK, GROUP

Plan = tuple[tuple[int, int], ...]
"""(dimensions, bits) of each segment, bits 1..13."""

SCALARS = 4
"""Numbers a query has for each segment: step1, step2, noise, unseen."""


class SegmentQuery(NamedTuple):
    """Prepared queries. ``z1`` int8 (q, 8 sum G_s), as in ``bit_blocks.Query`` for each segment; ``z`` int16 (q, 32 sum ceil(n_s/32)) over
    the segments with more than one bit; ``scalars`` float32 (q, 1 + 4S): offset, then step1, step2, noise, unseen of each segment (the
    sum for it and those after it); ``norms`` float32 (q,): |q|^2."""

    z1: Tensor
    z: Tensor
    scalars: Tensor
    norms: Tensor
    l2: bool

    def select(self, i: int) -> SegmentQuery:
        """The prepared query ``i`` alone."""
        return SegmentQuery(self.z1[i:i + 1], self.z[i:i + 1], self.scalars[i:i + 1], self.norms[i:i + 1], self.l2)


class SegmentBlocks(NamedTuple):
    """The tensors above and the segments they hold."""

    planes: Tensor
    factors: Tensor
    centers: Tensor
    rest: Tensor
    rest_factors: Tensor
    plan: Plan

    def part(self, first: int, last: int) -> SegmentBlocks:
        """Blocks first..last alone."""
        rows = slice(first * BLOCK, last * BLOCK)
        return SegmentBlocks(self.planes[first:last], self.factors[first:last], self.centers[first:last], self.rest[rows],
                             self.rest_factors[rows], self.plan)


def segment_scan(blocks: SegmentBlocks, query: SegmentQuery, spans: Tensor, coarse: Tensor, k: int, allowed: Tensor | None,
                 num_threads: int) -> tuple[Tensor, Tensor]:
    """Arguments and results as ``bit_blocks.bit_scan``."""
    native = dispatch.choice("segment_scan", blocks.planes.device) == "native"
    bit_blocks.check_spans("segment_scan", len(blocks.planes) * BLOCK, len(query.z1), spans, coarse, k, allowed, native)
    if any(not (length >= 1 and 1 <= bits <= 13) for length, bits in blocks.plan):
        raise ShapeError(f"segment_scan got the segments {blocks.plan}; at least one dimension and 1..13 bits are allowed")
    if native:
        return _native(blocks, query, spans, coarse, k, allowed, num_threads)
    return reference(blocks, query, spans, coarse, k, allowed)


def prepare(z: Tensor, centred: Tensor, towards: Tensor, norms: Tensor, plan: Plan, constants: Tensor, l2: bool) -> SegmentQuery:
    """``z`` (q, sum n_s) what the segments are multiplied with, of ``centred`` (q, dim) by orthonormal rows. ``constants`` float64 (3, S):
    the least share of |centred|^2 that a segment is taken to have (l2), noise and unseen of a segment for a share of 1; for ip the share
    is |z_s|^2 / 4 itself. Exactly ``prepare_reference``."""
    if dispatch.choice("segment_query", z.device) != "native":
        return prepare_reference(z, centred, towards, norms, plan, constants, l2)
    module = dispatch.native()
    assert module is not None
    z1 = torch.empty(len(z), sum(8 * -(-length // 8) for length, _ in plan), dtype=torch.int8)
    wide = torch.empty(len(z), sum(GROUP * -(-length // GROUP) for length, bits in plan if bits > 1), dtype=torch.int16)
    scalars = torch.empty(len(z), 1 + SCALARS * len(plan))
    module.segment_query(z.numpy(), centred.contiguous().numpy(), towards.contiguous().numpy(),
                         torch.tensor(plan, dtype=torch.int64).numpy(), constants.contiguous().numpy(), l2,
                         z1.numpy(), wide.numpy(), scalars.numpy(), dispatch.num_threads())
    return SegmentQuery(z1, wide, scalars, norms, l2)


def prepare_reference(z: Tensor, centred: Tensor, towards: Tensor, norms: Tensor, plan: Plan, constants: Tensor, l2: bool) -> SegmentQuery:
    parts = z.split([length for length, _ in plan], dim=1)
    squares = torch.stack([reference_ops.exact_distances(part, torch.zeros_like(part)) for part in parts], dim=1)
    floors, noise, unseen = constants
    if l2:
        lengths = reference_ops.exact_distances(centred, torch.zeros_like(centred))
        shares = torch.maximum(squares / torch.maximum(lengths, total(squares)).clamp(min=1e-300).unsqueeze(1), floors)
    else:
        shares = squares / 4
    spread = torch.where(unseen < torch.inf, unseen * shares, torch.inf)
    z1, wide, numbers = [], [], [towards.double() * (-2.0 if l2 else -1.0)]
    for s, (part, (_, bits)) in enumerate(zip(parts, plan, strict=True)):
        one, values, step1, step2 = bit_blocks.rounded(part.contiguous(), bits)
        z1.append(one)
        wide.append(values)
        weight = 0.5 if l2 else 0.25
        numbers += [step1 * weight, step2 * weight, noise[s] * shares[:, s], total(spread[:, s:])]
    scalars = torch.stack([number.float() for number in numbers], dim=1)
    return SegmentQuery(torch.cat(z1, dim=1), torch.cat(wide, dim=1), scalars, norms, l2)


def total(x: Tensor) -> Tensor:
    """Sum over the last axis in order."""
    return functools.reduce(torch.add, x.unbind(-1))


def _native(blocks: SegmentBlocks, query: SegmentQuery, spans: Tensor, coarse: Tensor, k: int, allowed: Tensor | None,
            num_threads: int) -> tuple[Tensor, Tensor]:
    module = dispatch.native()
    assert module is not None
    distances = torch.empty(len(spans), k, dtype=torch.float32)
    found = torch.empty(len(spans), k, dtype=torch.int64)
    module.segment_scan(
        blocks.planes.numpy(), blocks.factors.numpy(), blocks.centers.numpy(), blocks.rest.numpy(), blocks.rest_factors.numpy(),
        torch.tensor(blocks.plan, dtype=torch.int64).numpy(), query.z1.numpy(), query.z.numpy(), query.scalars.numpy(), query.l2,
        spans.contiguous().numpy(), coarse.float().contiguous().numpy(),
        None if allowed is None else allowed.contiguous().view(torch.uint8).numpy(), distances.numpy(), found.numpy(), num_threads)
    return distances, found


# ---------------------------------------------------------------------- the definition


def reference(blocks: SegmentBlocks, query: SegmentQuery, spans: Tensor, coarse: Tensor, k: int,
              allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    def estimates(first: int, last: int, i: int, offset: float) -> tuple[Tensor, Tensor]:
        return looks(blocks.part(first, last), query.select(i), torch.tensor([offset], dtype=torch.float32))

    return bit_blocks.visit(estimates, spans, coarse, k, allowed)


def looks(blocks: SegmentBlocks, query: SegmentQuery, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """(distance, the largest of the row's bounds), each (q, rows); coarse (q,)."""
    count = len(blocks.plan)
    scalars = query.scalars[:, 1:].unflatten(1, (count, SCALARS)).unsqueeze(3)  # (q, S, 4, 1)
    factors = blocks.factors.transpose(0, 1).flatten(1)  # (1 + 2S, rows)
    base = (coarse + query.scalars[:, 0]).unsqueeze(1)
    start = (base + factors[0] if query.l2 else base.expand(-1, factors.shape[1]))
    spread = (base + blocks.centers).clamp(min=0).repeat_interleave(BLOCK, 1) if query.l2 else torch.ones_like(start)
    first, full, noise = [], [], []
    for s, (one, all_bits) in enumerate(_products(blocks, query)):
        step1, step2, quiet = scalars[:, s, 0], scalars[:, s, 1], scalars[:, s, 2]
        add, rescale = factors[1 + 2 * s], factors[2 + 2 * s]
        part = rescale * (step1 * one)
        first.append(add + part if query.l2 else part)
        noise.append(quiet * (rescale * rescale))
        full.append(first[-1])
        if all_bits is not None:
            add, rescale = blocks.rest_factors[:, 2 * rest_place(blocks.plan, s):][:, :2].mT
            part = rescale * (step2 * all_bits)
            full[-1] = add + part if query.l2 else part
    unseen = [*scalars[:, :, 3].unbind(1), torch.zeros_like(scalars[:, 0, 3])]
    estimates, seen = list(accumulate(first, initial=start)), list(accumulate(noise, initial=torch.zeros_like(start)))
    bounds = [torch.where(u < torch.inf, e - bit_blocks.root(spread * (u + v)), -torch.inf)
              for e, u, v in zip(estimates, unseen, seen, strict=True)]
    known = list(accumulate(full, initial=start))
    left, loud = torch.zeros_like(start), torch.zeros_like(start)
    for s in range(count - 1, 0, -1):
        left, loud = first[s] + left, noise[s] + loud
        bounds.append((known[s] + left) - bit_blocks.root(spread * loud))
    return known[-1], torch.stack(bounds).amax(0)


def _products(blocks: SegmentBlocks, query: SegmentQuery) -> list[tuple[Tensor, Tensor | None]]:
    """Of each segment t1 and t2 (None where it has one bit), float32 (q, rows)."""
    top, out, i = bit_blocks.unpack_top(blocks.planes), [], 0
    for (_, bits), (a, b), (v, w) in _places(blocks.plan):
        signs = top[:, a:b]
        one = bit_blocks.exact(query.z1[:, a:b], 2 * signs.double() - 1)
        if bits == 1:
            out.append((one, None))
            continue
        codes = bit_blocks.unpack_rest(blocks.rest[:, v:w], bits)
        codes[:, :b - a] |= signs.to(torch.int32) << (bits - 1)
        points = codes.double() * 2 - (2**bits - 1)
        out.append((one, bit_blocks.exact(query.z[:, i:i + codes.shape[1]], points)))
        i += codes.shape[1]
    return out


def layout(values: list[Tensor], plan: Plan) -> tuple[Tensor, Tensor]:
    """planes and rest of the segments' codes (rows, n_s), rows a multiple of BLOCK."""
    parts = list(zip(values, plan, strict=True))
    planes = torch.cat([bit_blocks.pack_top(codes >> (bits - 1)) for codes, (_, bits) in parts], dim=1)
    return planes, torch.cat([bit_blocks.pack_rest(codes & ((1 << (bits - 1)) - 1), bits) for codes, (_, bits) in parts], dim=1)


def codes_of(planes: Tensor, rest: Tensor | None, plan: Plan) -> list[Tensor]:
    """Inverse of ``layout`` for rows taken out of it: planes (rows, sum G_s) and rest, if
    there is one; int32 (rows, n_s) of each segment."""
    bits = ((planes.unsqueeze(2) >> torch.arange(8, dtype=torch.uint8, device=planes.device)) & 1).flatten(1).to(torch.int32)
    out = []
    for (length, width), (a, _), (v, w) in _places(plan):
        codes = bits[:, a:a + length] << (width - 1)
        out.append(codes if rest is None or width == 1 else codes | bit_blocks.unpack_rest(rest[:, v:w], width)[:, :length])
    return out


def _places(plan: Plan) -> list[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]:
    """Each segment, its columns in the bits of the planes, and in rest."""
    eights = pairwise(accumulate((8 * -(-length // 8) for length, _ in plan), initial=0))
    return list(zip(plan, eights, pairwise(accumulate((bit_blocks.rest_bytes(*part) for part in plan), initial=0)), strict=True))


def rest_place(plan: Plan, s: int) -> int:
    """How many segments before ``s`` have more than one bit."""
    return sum(bits > 1 for _, bits in plan[:s])


def example(generator: torch.Generator) -> tuple[SegmentBlocks, SegmentQuery, Tensor, Tensor, int, None]:
    """Arguments of a small ``reference`` call, for the self check."""
    plan, rows = ((40, 5), (21, 2), (9, 1)), 64
    values = [torch.randint(0, 1 << bits, (rows, length), generator=generator) for length, bits in plan]
    planes, rest = layout(values, plan)
    blocks = SegmentBlocks(planes, torch.rand(rows // BLOCK, 7, BLOCK, generator=generator), torch.ones(rows // BLOCK), rest,
                           torch.rand(rows, 4, generator=generator), plan)
    z1 = torch.randint(-31, 32, (2, 80), generator=generator, dtype=torch.int8)
    z = torch.randint(-999, 1000, (2, 96), generator=generator, dtype=torch.int16)
    scalars = torch.tensor([[0.5, 0.02, 0.01, 0.1, 0.3, 0.02, 0.01, 0.1, 0.2, 0.01, 0.0, 0.1, 0.1]] * 2)
    return blocks, SegmentQuery(z1, z, scalars, torch.ones(2), True), torch.tensor([[[0, 64]], [[32, 50]]]), torch.zeros(2, 1), 7, None
