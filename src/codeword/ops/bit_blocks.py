"""bit_scan: top-k over blocks of sign-and-magnitude codes, one bit a dimension first, the remaining bits where it matters.

The query is rounded to integers z before the scan, hence every inner product below is an exact integer: one value on every machine,
in any order, with any instruction set. What follows is float32 with one rounding an operation, in the order written.

    planes        uint8 (rows/32, G, 32)   byte [b, g, j]: bit i is the top bit of dimension 8g+i of row 32b+j; G = ceil(dim / 8)
    factors       float32 (rows/32, 3, 32) of the top bits: add, rescale, error
    centers       float32 (rows/32,)       |q-c'|^2 = base + this, for l2 bounds (c' the point the codes are relative to)
    rest          uint8 (rows, W)          the lower bits e = bits-1: groups of 32 dimensions, 4e bytes each (layout: ``pack_rest``)
    rest_factors  float32 (rows, 3)        of all bits: add, rescale, error

Per row, with ``Query``'s fields,

    t1 = sum_i (2 top_i - 1) z1_i        estimate = base + (add * w + rescale * (step1 * t1))       base = coarse + offset
    bound = estimate - error * g         g = slack * sqrt(max(base + centers, 0)) for l2, else slack
    t2 = sum_i (2 u_i - (2^bits - 1)) z_i  distance = base + (add' * w + rescale' * (step2 * t2))     w = 1 for l2, 0 for ip

Rows are visited in order of spans, then of rows. With one bit the estimate is the distance. With more, a row whose bound exceeds the
k-th best distance so far is passed over; the others get their distance. Kept: the k least by (distance, row).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from codeword.errors import ShapeError
from codeword.ops import dispatch, functions

BLOCK = 32
GROUP = 32


class Query(NamedTuple):
    """Prepared queries. ``z1`` int8 (q, 8G): sums of |z1| over four neighbours are at most 127, so that a table of their 16 partial
    sums fits bytes. ``z`` int16 (q, 32 ceil(dim/32)) (width 0 where bits = 1). ``scalars`` float32 (q, 4): step1, step2, offset,
    slack. ``norms`` float32 (q,): |q|^2. ``l2`` decides ``w`` and ``g``."""

    z1: Tensor
    z: Tensor
    scalars: Tensor
    norms: Tensor
    l2: bool

    def select(self, i: int) -> Query:
        """The prepared query ``i`` alone."""
        return Query(self.z1[i:i + 1], self.z[i:i + 1], self.scalars[i:i + 1], self.norms[i:i + 1], self.l2)


class Blocks(NamedTuple):
    """The tensors above, and how many bits a dimension they hold."""

    planes: Tensor
    factors: Tensor
    centers: Tensor
    rest: Tensor
    rest_factors: Tensor
    bits: int

    def part(self, first: int, last: int) -> Blocks:
        """Blocks first..last alone."""
        rows = slice(first * BLOCK, last * BLOCK)
        return Blocks(self.planes[first:last], self.factors[first:last], self.centers[first:last], self.rest[rows],
                      self.rest_factors[rows], self.bits)


def bit_scan(blocks: Blocks, query: Query, spans: Tensor, coarse: Tensor, k: int, allowed: Tensor | None,
             num_threads: int) -> tuple[Tensor, Tensor]:
    """Distances float32 (q, k) ascending, padded with +inf, and rows int64 (q, k), padded with -1. ``spans`` int64 (q, p, 2) row
    ranges that start at multiples of 32, ``coarse`` float32 (q, p), ``allowed`` bool (rows,) or None."""
    native = dispatch.choice("bit_scan", blocks.planes.device) == "native"
    check_spans("bit_scan", len(blocks.planes) * BLOCK, len(query.z1), spans, coarse, k, allowed, native)
    if native:
        return _native(blocks, query, spans, coarse, k, allowed, num_threads)
    return reference(blocks, query, spans, coarse, k, allowed)


def prepare(queries: Tensor, center: Tensor, signs: Tensor, bits: int, slack: float, l2: bool) -> Query:
    """Queries (q, n) float32 for rows y = P (x - center), P the rotation of ``signs``, with the bound's ``slack``; exactly
    ``prepare_reference``."""
    queries = queries.detach().float().contiguous()
    if dispatch.choice("bit_query", queries.device) != "native":
        return prepare_reference(queries, center, signs, bits, slack, l2)
    module = dispatch.native()
    assert module is not None
    count, n = queries.shape
    z1 = torch.empty(count, -(-n // 8) * 8, dtype=torch.int8)
    z = torch.empty(count, -(-n // GROUP) * GROUP if bits > 1 else 0, dtype=torch.int16)
    scalars, norms = torch.empty(count, 4), torch.empty(count)
    module.bit_query(queries.numpy(), center.detach().numpy(), signs.detach().numpy(), bits, slack, l2, z1.numpy(), z.numpy(),
                     scalars.numpy(), norms.numpy(), dispatch.num_threads())
    return Query(z1, z, scalars, norms, l2)


def prepare_reference(queries: Tensor, center: Tensor, signs: Tensor, bits: int, slack: float, l2: bool) -> Query:
    towards = functions.project(queries, center.unsqueeze(0))[:, 0]
    rotated = functions.rotate(queries - center if l2 else queries, signs)
    z1, z, step1, step2 = rounded(rotated, bits)
    norms = functions.nearest(queries, torch.zeros(1, queries.shape[1], device=queries.device)).distances
    slacks = torch.full_like(norms, slack) if l2 else slack / 2 * root(norms)
    weight = 0.5 if l2 else 0.25
    scalars = torch.stack((step1 * weight, step2 * weight, towards * (-2.0 if l2 else -1.0), slacks), dim=1)
    return Query(z1, z, scalars, norms, l2)


def rounded(rows: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (q, n) float32 as integers: ``z1`` int8 (q, 8 ceil(n/8)), ``z`` int16 (q, 32 ceil(n/32)) (width 0 where bits = 1), and their
    steps (q,). Half-way cases go to even."""
    n = rows.shape[1]
    eights = torch.nn.functional.pad(rows, (0, -n % 8))
    fours = eights.abs().unflatten(1, (-1, 4))
    step1 = ((fours[..., 0] + fours[..., 1]) + (fours[..., 2] + fours[..., 3])).amax(1) / 125
    z1 = (eights / step1.clamp(min=1e-38).unsqueeze(1)).round().to(torch.int8)
    if bits == 1:
        return z1, z1.new_zeros(len(rows), 0, dtype=torch.int16), step1, torch.zeros_like(step1)
    wide = torch.nn.functional.pad(rows, (0, -n % GROUP))
    # Eight lanes of int32 must hold their share of the products.
    largest = min(32767, (2**34 - 1) // ((2**bits - 1) * wide.shape[1]))
    step2 = wide.abs().amax(1) / largest
    z = (wide / step2.clamp(min=1e-38).unsqueeze(1)).round().to(torch.int16)
    return z1, z, step1, step2


def check_spans(op: str, rows: int, queries: int, spans: Tensor, coarse: Tensor, k: int, allowed: Tensor | None, native: bool) -> None:
    """ShapeError where the arguments of a scan of ``rows`` packed rows do not fit. A kernel looks at the spans itself."""
    if spans.ndim != 3 or spans.shape[2] != 2 or coarse.shape != spans.shape[:2] or len(spans) != queries or k < 1:
        raise ShapeError(f"{op} got spans {tuple(spans.shape)}, coarse {tuple(coarse.shape)}, {queries} queries and k={k}")
    if not native:
        start, stop = spans[..., 0], spans[..., 1]
        full = start < stop
        if bool((full & ((start < 0) | (stop > rows) | (start % BLOCK != 0))).any()):
            raise ShapeError(f"{op} got a span outside 0..{rows} or one that does not start at a multiple of {BLOCK}")
    if allowed is not None and allowed.shape != (rows,):
        raise ShapeError(f"allowed has shape {tuple(allowed.shape)}; ({rows},) is needed")


def _native(blocks: Blocks, query: Query, spans: Tensor, coarse: Tensor, k: int, allowed: Tensor | None,
            num_threads: int) -> tuple[Tensor, Tensor]:
    module = dispatch.native()
    assert module is not None
    distances = torch.empty(len(spans), k, dtype=torch.float32)
    found = torch.empty(len(spans), k, dtype=torch.int64)
    module.bit_scan(
        blocks.planes.numpy(), blocks.factors.numpy(), blocks.centers.numpy(), blocks.rest.numpy(), blocks.rest_factors.numpy(),
        blocks.bits, query.z1.numpy(), query.z.numpy(), query.scalars.numpy(), query.l2, spans.contiguous().numpy(),
        coarse.float().contiguous().numpy(), None if allowed is None else allowed.contiguous().view(torch.uint8).numpy(),
        distances.numpy(), found.numpy(), num_threads)
    return distances, found


# ---------------------------------------------------------------------- the definition


def reference(blocks: Blocks, query: Query, spans: Tensor, coarse: Tensor, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    def estimates(first: int, last: int, i: int, offset: float) -> tuple[Tensor, Tensor]:
        return _estimates(blocks.part(first, last), query.select(i), offset)

    return visit(estimates, spans, coarse, k, allowed)


def visit(estimates: Callable[[int, int, int, float], tuple[Tensor, Tensor]], spans: Tensor, coarse: Tensor, k: int,
          allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """One span at a time, the rows whose bound was within the k-th distance before it one by one. ``estimates``: distances and bounds,
    each (1, rows), of blocks first..last for query i and its coarse distance."""
    distances = torch.full((len(spans), k), torch.inf)
    found = torch.full((len(spans), k), -1, dtype=torch.int64)
    for i in range(len(spans)):
        best: list[tuple[float, int]] = []
        for (start, stop), offset in zip(spans[i].tolist(), coarse[i].tolist(), strict=True):
            if start >= stop:
                continue
            distance, bound = (part[0, :stop - start] for part in estimates(start // BLOCK, -(-stop // BLOCK), i, offset))
            worst = best[k - 1][0] if len(best) >= k else torch.inf
            near = bound <= worst
            if allowed is not None:
                near &= allowed[start:stop]
            index = near.nonzero().squeeze(1)
            for row, low, value in zip((index + start).tolist(), bound[index].tolist(), distance[index].tolist(), strict=True):
                if value < torch.inf and (len(best) < k or (low <= best[k - 1][0] and (value, row) < best[k - 1])):
                    best.append((value, row))
                    best.sort()
                    del best[k:]
        for place, (value, row) in enumerate(best):
            distances[i, place], found[i, place] = value, row
    return distances, found


def _estimates(blocks: Blocks, query: Query, coarse: float) -> tuple[Tensor, Tensor]:
    """(distance, what pruning compares with the k-th distance), each (q, rows)."""
    base = torch.tensor(coarse, dtype=torch.float32) + query.scalars[:, 2:3]
    estimate, error = top_estimate(blocks, query)
    estimate = base + estimate
    if blocks.bits == 1:
        return estimate, estimate
    return base + rest_estimate(blocks, query), estimate - error * spread(blocks, query, base)


def spread(blocks: Blocks, query: Query, base: Tensor) -> Tensor:
    """g of the bound, (q, rows)."""
    slack = query.scalars[:, 3:4]
    if not query.l2:
        return slack.expand(len(slack), len(blocks.centers) * BLOCK)
    return (slack * root((base + blocks.centers).clamp(min=0))).repeat_interleave(BLOCK, dim=1)


def top_estimate(blocks: Blocks, query: Query) -> tuple[Tensor, Tensor]:
    """The estimate of one bit without base (q, rows), and the rows' errors (rows,)."""
    bits = unpack_top(blocks.planes).double()
    t = exact(query.z1, 2 * bits - 1)
    add, rescale, error = blocks.factors.transpose(0, 1).flatten(1)
    part = rescale * (query.scalars[:, 0:1] * t)
    return (add + part if query.l2 else part), error


def rest_estimate(blocks: Blocks, query: Query) -> Tensor:
    """The estimate of all bits without base (q, rows)."""
    codes = unpack_codes(blocks)
    width = query.z.shape[1]
    centred = torch.nn.functional.pad(codes, (0, width - codes.shape[1])).double() * 2 - (2**blocks.bits - 1)
    t = exact(query.z, centred)
    add, rescale = blocks.rest_factors[:, 0], blocks.rest_factors[:, 1]
    part = rescale * (query.scalars[:, 1:2] * t)
    return add + part if query.l2 else part


def exact(z: Tensor, points: Tensor) -> Tensor:
    """Integer inner products (q, rows), exact in float64, rounded once to float32."""
    return (z.double() @ points.mT).float()


def root(x: Tensor) -> Tensor:
    """Square root of float32 x, rounded once. torch's own is off by one unit now and then, where it calls a vector library; in float64
    that is too little to matter."""
    return x.double().sqrt().float()


def example(generator: torch.Generator) -> tuple[Blocks, Query, Tensor, Tensor, int, None]:
    """Arguments of a small ``reference`` call, for the self check."""
    dim, bits, rows = 100, 5, 64
    codes = torch.randint(0, 1 << bits, (rows, dim), generator=generator)
    numbers = torch.rand(rows // BLOCK, 3, BLOCK, generator=generator)
    blocks = Blocks(pack_top(codes >> (bits - 1)), numbers, torch.ones(rows // BLOCK), pack_rest(codes & ((1 << (bits - 1)) - 1), bits),
                    numbers.transpose(1, 2).reshape(rows, 3).contiguous(), bits)
    z1 = torch.randint(-31, 32, (2, 104), generator=generator, dtype=torch.int8)
    z = torch.randint(-999, 1000, (2, 128), generator=generator, dtype=torch.int16)
    query = Query(z1, z, torch.tensor([[0.02, 0.01, 0.5, 1.0]] * 2), torch.ones(2), True)
    return blocks, query, torch.tensor([[[0, 64]], [[32, 50]]]), torch.zeros(2, 1), 7, None


# ---------------------------------------------------------------------- layout


def pack_top(bits: Tensor) -> Tensor:
    """planes of bits (rows, dim) 0/1, rows a multiple of 32."""
    rows, dim = bits.shape
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -dim % 8)).reshape(rows // BLOCK, BLOCK, -(-dim // 8), 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    return (padded * weights).sum(3, dtype=torch.uint8).transpose(1, 2).contiguous()


def unpack_top(planes: Tensor) -> Tensor:
    """uint8 (rows, 8G)."""
    bits = (planes.transpose(1, 2).unsqueeze(3) >> torch.arange(8, dtype=torch.uint8, device=planes.device)) & 1
    return bits.flatten(2).flatten(0, 1)


def rest_bytes(dim: int, bits: int) -> int:
    """W of the layout."""
    return -(-dim // GROUP) * 4 * (bits - 1)


def pack_rest(values: Tensor, bits: int) -> Tensor:
    """Lower bits (rows, dim) below 2^(bits-1) in fields of 8, 4, 2, 1 bits, the widest lowest in the value. A field of f bits of a
    group of 32 dimensions is 4f bytes: byte j holds dimensions j, j+4f, j+8f, ... from its lowest bits up; f = 1 is a bit string."""
    rows, dim = values.shape
    groups = torch.nn.functional.pad(values.to(torch.int32), (0, -dim % GROUP)).reshape(rows, -(-dim // GROUP), GROUP)
    parts, shift = [], 0
    for f in _fields(bits - 1):
        field = (groups >> shift) & ((1 << f) - 1)
        lanes = field.unflatten(2, (4, 8)) if f == 1 else field.unflatten(2, (8 // f, 4 * f)).transpose(2, 3)
        parts.append((lanes << (f * torch.arange(8 // f, device=values.device))).sum(3).to(torch.uint8))
        shift += f
    return torch.cat(parts, dim=2).flatten(1) if parts else groups.new_zeros(rows, 0, dtype=torch.uint8)


def unpack_rest(rest: Tensor, bits: int) -> Tensor:
    """int32 (rows, 32 groups)."""
    groups = rest.to(torch.int32).unflatten(1, (rest.shape[1] // (4 * (bits - 1)), 4 * (bits - 1)))
    out = torch.zeros(len(rest), groups.shape[1], GROUP, dtype=torch.int32, device=rest.device)
    shift = at = 0
    for f in _fields(bits - 1):
        field = (groups[:, :, at:at + 4 * f].unsqueeze(3) >> (f * torch.arange(8 // f, device=rest.device))) & ((1 << f) - 1)
        out |= (field if f == 1 else field.transpose(2, 3)).flatten(2) << shift
        shift, at = shift + f, at + 4 * f
    return out.flatten(1)


def unpack_codes(blocks: Blocks) -> Tensor:
    """int32 (rows, 8G) codes of all bits."""
    top = unpack_top(blocks.planes).to(torch.int32)
    if blocks.bits == 1:
        return top
    return (top << (blocks.bits - 1)) | unpack_rest(blocks.rest, blocks.bits)[:, :top.shape[1]]


def _fields(bits: int) -> list[int]:
    return [f for f in (8, 4, 2, 1) if bits & f]
