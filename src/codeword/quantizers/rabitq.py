"""RaBitQ (Gao, Long: RaBitQ, SIGMOD 2024; Gao et al.: Practical and Asymptotically Optimal Quantization, SIGMOD 2025).

Rotate at random, keep of each vector the point of a midpoint grid whose direction is closest, and two floats. After a random
rotation what the code misses is orthogonal noise, so inner products with the code, rescaled, are unbiased with a known error.

    r = P(x - center)          P: FHT-Kac rotation from the seed (``ops.rotate``), any width, no padding
    x_ = u - (2^B - 1)/2       u in 0..2^B-1 per dimension; top bit = [r_i > 0]; the rest from ``ops.grid_code``: largest cosine
    decode   center + scale P^-1 x_,   scale = <r, x_>/|x_|^2                      (least squares)
    <r, s>  ~  kappa <x_, s>,  kappa = |r|^2/<r, x_>    unbiased; sigma = |r||s| sqrt((1/cos^2 - 1)/(d - 1)), cos = cos(x_, r)

``scale`` and ``|r|`` are the side information: B + 64/dim bits a dimension. Cost: O(2^B d log d) a vector, or O(d) with ``fast=True``,
which takes the best uniform step for a Gaussian (Max 1960) instead of searching and loses a little of the cosine.

A scan needs neither table nor decoding. With c the list's centroid, m the center, c' = c + m and q~ = P(q - m),

    |q-o|^2 ~ |q-c|^2 - 2<q,m>  +  2<c,m> + |m|^2 + |r|^2 + 2 kappa <x_,Pc>  -  2 kappa <x_,q~>      error: slack * 2 sigma, s = q-c'
     -<q,o> ~  -<q,c> -  <q,m>                                               -    kappa <x_,Pq>      error: slack * sigma,   s = q

and the top bits alone estimate the same with x1_ = sign grid in place of x_, about the refined value: rows whose bound says they
cannot enter the top k are passed over (``ops.bit_scan``). slack is the z-score of a Gaussian error: 1.9 leaves 2.9 % of pairs below
their lower bound, 3.0 leaves 0.13 %.

Departures from the paper and its library. No padding: the rotation takes any width. Factors come from codes, not from the vector,
so codes alone can be packed; the first bit's bound is about the refined estimate that is returned. For ip <r, c> is not kept, so its
error follows |q| instead of |q - c|: normalised vectors are better searched with l2. The query is rounded to integers (8-bit tables
for the top bits, 16-bit values for the rest), far below the code's own error, which makes every inner product exact.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, Unsupported
from codeword.ops import bit_blocks, grid
from codeword.ops.bit_blocks import Blocks, Query
from codeword.parts import arrays, random, scan
from codeword.quantizer import BLOCK, Codes, Packed, Quantizer

GAUSSIAN_STEP = (1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308, 0.0166)
"""Step of the best uniform quantizer of a unit Gaussian with 2^B levels, B = 1..9 (Max 1960)."""
LARGEST = torch.finfo(torch.float32).max


class RaBitQ(Quantizer):
    """dim; code_bits: B bits a dimension, 1..9, without the side information that ``bits`` counts; fast: constant step instead of the
    exact search; slack: of the bound, in standard deviations; seed.

    Works without data; ``fit`` sets ``center`` to the mean of its rows (of residuals, where lists have centroids), which costs
    nothing and helps where the mean is far from zero. Differences from it, norms and decoded values beyond float32 saturate.
    """

    learns = False
    side_count = 2

    def __init__(self, *, dim: int, code_bits: int = 4, fast: bool = False, slack: float = 1.9, seed: int = 0) -> None:
        super().__init__()
        if dim < 1:
            raise CodewordError(f"rabitq got dim={dim}; at least 1 is needed")
        if isinstance(code_bits, bool) or code_bits not in range(1, 10):
            raise CodewordError(f"rabitq got code_bits={code_bits!r}; whole numbers 1..9 are allowed")
        if not 0 <= slack < math.inf:
            raise CodewordError(f"rabitq got slack={slack}; a finite number >= 0 is needed")
        self.dim, self.code_bits, self.fast, self.slack, self.seed = dim, int(code_bits), fast, slack, seed
        self.levels = (1 << self.code_bits,) * dim
        self.center: Tensor
        self.signs: Tensor
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("signs", torch.from_numpy(random.signs(seed, 4 * dim, stream="rabitq")).reshape(4, dim), persistent=False)

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, fast: bool = False, slack: float = 1.9, seed: int = 0) -> Self:
        """The largest B whose stored bits B + 64/dim exceed ``bits`` by no more than a quarter. So from width 256 on the dial is B and
        the two floats come on top (4.167 bits at width 384 for bits=4: ``nominal_bits`` tells); at smaller widths, where they would
        weigh, they are paid for out of the dial. Unsupported where no B comes within a bit."""
        if not 0 < bits < math.inf:
            raise CodewordError(f"rabitq got bits={bits}; a positive number is needed")
        side = 64 / dim
        best = min(math.floor(bits + 0.25 - side + 1e-9), 9)
        if best < 1 or bits - best - side >= 1:
            raise Unsupported(f"rabitq stores {1 + side:.3g} to {9 + side:.3g} bits a dimension at dim={dim}; bits={bits} is not near any")
        return cls(dim=dim, code_bits=best, fast=fast, slack=slack, seed=seed)

    # ------------------------------------------------------------------ the contract

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        sums, counts = ops.segment_sum(rows, torch.zeros(len(rows), dtype=torch.int64, device=rows.device), 1, weights)
        self.center = (sums[0] / counts[0]).float()

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = (rows - self.center).clamp(-LARGEST, LARGEST)
        # Scaled by a power of two, exactly, so that tiny and huge rows neither vanish nor overflow inside the rotation.
        exponent = torch.frexp(residual.abs().amax(1, keepdim=True)).exponent
        rotated = ops.rotate((residual.double() * _power(-exponent)).float(), self.signs)
        magnitudes, unit = _integers(rotated.abs())
        half = 1 << (self.code_bits - 1)
        cells = self._constant_step(rotated.abs()) if self.fast else ops.grid_code(magnitudes, half).to(torch.int64)
        odd = 2 * cells + 1
        product, square = (odd * magnitudes).sum(1), odd.square().sum(1)  # integers: exact in any order
        scale = 2 * (product.double() / square.double()) * unit
        side = torch.stack((scale, _norm(rotated)), dim=1) * _power(exponent)
        return torch.where(rotated > 0, half + cells, half - 1 - cells), side.clamp(max=LARGEST).float()

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        assert side is not None
        points = indices.float() - (2**self.code_bits - 1) / 2
        values = self.center + side[:, :1].float() * ops.rotate(points, self.signs, inverse=True)
        return values.clamp(-LARGEST, LARGEST)

    def _constant_step(self, magnitudes: Tensor) -> Tensor:
        """Cells by the step that is optimal for Gaussian entries of this row's mean square, or the one that just reaches the row's
        largest entry where that is finer."""
        step = GAUSSIAN_STEP[self.code_bits - 1] * _norm(magnitudes) / math.sqrt(self.dim)
        step = torch.minimum(step, magnitudes.amax(1).double() / (1 << (self.code_bits - 1)))
        cells = (magnitudes.double() / step.clamp(min=1e-300).unsqueeze(1)).nan_to_num().floor()
        return cells.clamp(max=(1 << (self.code_bits - 1)) - 1).to(torch.int64)

    # ------------------------------------------------------------------ Scannable

    def pack(self, codes: Codes, given: Tensor | None = None) -> Packed:
        """Planes and factors of ``codes`` (rows, dim) relative to ``given`` (rows, dim), one point a block of 32 rows."""
        indices, side, _ = self._check_codes(codes)
        assert side is not None
        point = torch.zeros(1, self.dim) if given is None else arrays.as_tensor(given).float()
        point = point.to(self.device).expand(len(indices), self.dim)
        step = BLOCK * max(1, arrays.block_rows(self.dim) // (4 * BLOCK))
        parts = [self._pack_some(indices[i:i + step], side[i:i + step].double(), point[i:i + step])
                 for i in range(0, max(1, len(indices)), step)]
        tensors = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        return Packed(tensors, len(tensors["planes"]) * BLOCK)

    def unpack(self, packed: Packed, rows: Tensor) -> Codes:
        """Codes of the chosen rows; scale and norm come back from the factors, to about 1e-6."""
        part = self.take(packed, rows)
        bits = (part["planes"].unsqueeze(2) >> torch.arange(8, dtype=torch.uint8)) & 1
        indices = bits.flatten(1)[:, :self.dim].to(torch.int64) << (self.code_bits - 1)
        if self.code_bits > 1:
            indices |= bit_blocks.unpack_rest(part["rest"], self.code_bits)[:, :self.dim]
        _, rescale, error = part["rest_factors" if self.code_bits > 1 else "factors"].double().mT
        odd = 2 * indices - (2**self.code_bits - 1)
        square = odd.square().sum(1).double() / 4
        kappa, noise = -rescale / 2, error * math.sqrt(max(self.dim - 1, 1)) / 2
        norm = (kappa.square() * square - noise.square()).clamp(min=0)  # squared
        scale = torch.where(kappa > 0, norm / (kappa * square).clamp(min=1e-300), 0)
        return Codes(indices.to(self.index_dtype), torch.stack((scale, norm.sqrt()), dim=1).float())

    def take(self, packed: Packed, rows: Tensor) -> dict[str, Tensor]:
        return scan.take(packed, rows)

    def lay(self, rows: dict[str, Tensor]) -> Packed:
        return scan.lay(rows, blocks=("planes", "factors", "centers"))

    def check(self, packed: Packed) -> None:
        for name in packed.tensors.keys() - {"planes", "rest"}:  # any bits are a code
            arrays.check_finite(packed.tensors[name], f"{self.name}.{name}")

    def _pack_some(self, indices: Tensor, side: Tensor, point: Tensor) -> dict[str, Tensor]:
        fill = (0, 0, 0, -len(indices) % BLOCK)
        indices, side, point = (torch.nn.functional.pad(part, fill) for part in (indices, side, point))
        half, (scale, norm) = 1 << (self.code_bits - 1), side.mT
        odd = 2 * indices - (2 * half - 1)  # 2 x_, odd integers
        square = odd.square().sum(1).double() / 4
        # kappa = |r|^2 / <r, x_>, and <r, x_> = scale |x_|^2
        kappa = torch.where(scale > 0, norm.square() / (scale * square).clamp(min=1e-300), 0)
        shift = 2 * ops.project(point, self.center.unsqueeze(0)).double()[:, 0] + _norm(self.center.unsqueeze(0)).square()
        constant, turned = shift + norm.square(), ops.rotate(point, self.signs)
        first = full = self._factors(odd.double() / 2, kappa, norm, constant, turned)
        rest = {}
        if self.code_bits > 1:
            # The first look is about the second: its vector is kappa x_, known exactly, its noise what the signs miss of it.
            signs = torch.where(odd > 0, 0.5, -0.5).double()
            overlap = odd.abs().sum(1).double() / 4  # <signs, x_>
            first = self._factors(signs, kappa * square / overlap, kappa * square.sqrt(), constant, turned)
            rest = {"rest": bit_blocks.pack_rest(indices & (half - 1), self.code_bits), "rest_factors": full}
        return {"planes": bit_blocks.pack_top(indices >> (self.code_bits - 1)),
                "factors": first.reshape(-1, BLOCK, 3).transpose(1, 2).contiguous(),
                "centers": shift.reshape(-1, BLOCK).amax(1).float(), **rest}

    def _factors(self, points: Tensor, kappa: Tensor, length: Tensor, constant: Tensor, turned: Tensor) -> Tensor:
        """float32 (rows, 3): add, rescale, error of the estimates kappa <points, .> of a vector of the given length: kappa points is
        the vector plus noise orthogonal to it, of which a direction s sees |noise| |s| / sqrt(d - 1)."""
        noise = (kappa.square() * points.square().sum(1) - length.square()).clamp(min=0).sqrt()
        add = constant + 2 * kappa * _dot(points, turned)
        return torch.stack((add, -2 * kappa, 2 * noise / math.sqrt(max(self.dim - 1, 1))), dim=1).float()

    def prepare(self, queries: Tensor, metric: str) -> Query:
        """Rotated ``queries`` (q, dim) rounded to integers; ``metric`` "l2" or "ip"."""
        if metric not in ("l2", "ip"):
            raise Unsupported(f"rabitq.prepare got metric={metric!r}; 'l2' and 'ip' are known (cosine: l2 of normalised vectors)")
        l2 = metric == "l2"
        queries = queries.float().contiguous()
        towards = ops.project(queries, self.center.unsqueeze(0))[:, 0]
        rotated = ops.rotate(queries - self.center if l2 else queries, self.signs)
        z1, z, step1, step2 = bit_blocks.rounded(rotated, self.code_bits)
        norms = ops.nearest(queries, torch.zeros(1, self.dim, device=queries.device)).distances
        slack = torch.full_like(norms, self.slack) if l2 else self.slack / 2 * norms.sqrt()
        weight = 0.5 if l2 else 0.25
        scalars = torch.stack((step1 * weight, step2 * weight, towards * (-2.0 if l2 else -1.0), slack), dim=1)
        return Query(z1, z, scalars, norms, l2)

    def scan(self, packed: Packed, query: Query, start: int, stop: int, coarse: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows start..stop for all queries: unbiased (distance, lower bound), each (q, stop - start), without coarse. ``coarse`` (q,)
        is what the caller will add; the l2 bound depends on it (|q|^2 where it is None, as in flat search)."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        blocks = self._blocks(packed).part(first, last)
        if self.code_bits == 1:
            estimate, error = bit_blocks.top_estimate(blocks, query)
        else:
            estimate, error = bit_blocks.rest_estimate(blocks, query), blocks.rest_factors[:, 2]
        offset = query.scalars[:, 2:3]
        base = (query.norms if coarse is None else coarse.float()).unsqueeze(1) + offset
        bound = estimate - error * bit_blocks.spread(blocks, query, base)
        part = slice(start - first * BLOCK, stop - first * BLOCK)
        return offset + estimate[:, part], offset + bound[:, part]

    def search_spans(self, packed: Packed, query: Query, spans: Tensor, coarse: Tensor, k: int,
                     allowed: Tensor | None, num_threads: int) -> tuple[Tensor, Tensor]:
        return ops.bit_scan(self._blocks(packed), query, spans, coarse, k, allowed, num_threads)

    def _blocks(self, packed: Packed) -> Blocks:
        t = packed.tensors
        empty = torch.zeros(packed.rows, 0)
        return Blocks(t["planes"], t["factors"], t["centers"], t.get("rest", empty.to(torch.uint8)), t.get("rest_factors", empty),
                      self.code_bits)


def _integers(magnitudes: Tensor) -> tuple[Tensor, Tensor]:
    """int32 (n, d) with the largest of each row at 2^30, and the float64 unit (n,) they count in. NaN counts as 0."""
    unit = magnitudes.amax(1).double() / grid.TOP
    return (magnitudes.double() / unit.clamp(min=1e-300).unsqueeze(1)).nan_to_num(0, 0, 0).round().to(torch.int32), unit


def _power(exponent: Tensor) -> Tensor:
    """2^exponent in float64, from its bits: exact."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def _norm(rows: Tensor) -> Tensor:
    """float64 (n,), summed in a fixed order."""
    return _dot(rows, rows).sqrt()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """float64 (n,) inner products of rows, one sum a lane of eight, lanes in order."""
    products = torch.nn.functional.pad(a.double() * b.double(), (0, -a.shape[1] % 8)).unflatten(1, (-1, 8))
    lanes = torch.zeros_like(products[:, 0])
    for i in range(products.shape[1]):
        lanes = lanes + products[:, i]
    total = lanes[:, 0]
    for i in range(1, 8):
        total = total + lanes[:, i]
    return total
