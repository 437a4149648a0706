"""What RaBitQ and CAQ share, which differ only in how they find a code: vectors rotated at random and coded as points of a midpoint grid
with two floats, their decoding, and a scan that estimates distances without table or decoding.

    r = P(x - center)          P: FHT-Kac rotation from the seed (``ops.rotate``), any width, no padding
    x_ = u - (2^B - 1)/2       u in 0..2^B-1 per dimension; top bit = [r_i > 0]
    decode   center + scale P^-1 x_,   scale = <r, x_>/|x_|^2                      (least squares)
    <r, s>  ~  kappa <x_, s>,  kappa = |r|^2/<r, x_>    unbiased; sigma = |r||s| sqrt((1/cos^2 - 1)/(d - 1)), cos = cos(x_, r)

With c the list's centroid, m the center, c' = c + m and q~ = P(q - m),

    |q-o|^2 ~ |q-c|^2 - 2<q,m>  +  2<c,m> + |m|^2 + |r|^2 + 2 kappa <x_,Pc>  -  2 kappa <x_,q~>      error: slack * 2 sigma, s = q-c'
     -<q,o> ~  -<q,c> -  <q,m>                                               -    kappa <x_,Pq>      error: slack * sigma,   s = q

and the top bits alone estimate the same with x1_ = sign grid in place of x_, about the refined value: rows whose bound says they
cannot enter the top k are passed over (``ops.bit_scan``). slack is the z-score of a Gaussian error: 1.9 leaves 2.9 % of pairs below
their lower bound, 3.0 leaves 0.13 %. The query is rounded to integers (8-bit tables for the top bits, 16-bit values for the rest), far
below the code's own error, which makes every inner product exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, Unsupported
from codeword.ops import bit_blocks
from codeword.ops.bit_blocks import Blocks, Query
from codeword.ops.searcher import Bits, Recipe
from codeword.parts import arrays, random, scan
from codeword.parts.rows import power
from codeword.quantizer import BLOCK, Codes, Packed, Quantizer

LARGEST = torch.finfo(torch.float32).max


class RotatedGrid(Quantizer):
    """Base of RaBitQ and CAQ, which add ``_encode``. Works without data; ``fit`` sets ``center`` to the mean of its rows (of residuals,
    where lists have centroids), which costs nothing and helps where the mean is far from zero. Differences from it, norms and decoded
    values beyond float32 saturate."""

    learns = False
    side_count = 2
    center: Tensor
    signs: Tensor

    def __init__(self, dim: int, code_bits: int, slack: float, seed: int) -> None:
        super().__init__()
        if dim < 1:
            raise CodewordError(f"{self.name} got dim={dim}; at least 1 is needed")
        if isinstance(code_bits, bool) or code_bits not in range(1, 10):
            raise CodewordError(f"{self.name} got code_bits={code_bits!r}; whole numbers 1..9 are allowed")
        if not 0 <= slack < math.inf:
            raise CodewordError(f"{self.name} got slack={slack}; a finite number >= 0 is needed")
        self.dim, self.code_bits, self.slack, self.seed = dim, int(code_bits), slack, seed
        self.levels = (1 << self.code_bits,) * dim
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("signs", torch.from_numpy(random.signs(seed, 4 * dim, stream="rabitq")).reshape(4, dim), persistent=False)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        sums, counts = ops.segment_sum(rows, torch.zeros(len(rows), dtype=torch.int64, device=rows.device), 1, weights)
        self.center = (sums[0] / counts[0]).float()

    def _rotated(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """r / 2^exponent and the exponent (n, 1): scaled by a power of two, exactly, so that tiny and huge rows neither vanish nor overflow
        inside the rotation."""
        residual = (rows - self.center).clamp(-LARGEST, LARGEST)
        exponent = torch.frexp(residual.abs().amax(1, keepdim=True)).exponent
        return ops.rotate((residual.double() * power(-exponent)).float(), self.signs), exponent

    def _side(self, scale: Tensor, norm: Tensor, exponent: Tensor) -> Tensor:
        return (torch.stack((scale, norm), dim=1) * power(exponent)).clamp(max=LARGEST).float()

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        assert side is not None
        points = indices.float() - (2**self.code_bits - 1) / 2
        values = self.center + side[:, :1].float() * ops.rotate(points, self.signs, inverse=True)
        return values.clamp(-LARGEST, LARGEST)

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
        shift = 2 * ops.project(point, self.center.unsqueeze(0)).double()[:, 0] + row_norm(self.center.unsqueeze(0)).square()
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
            raise Unsupported(f"{self.name}.prepare got metric={metric!r}; 'l2' and 'ip' are known (cosine: l2 of normalised vectors)")
        return bit_blocks.prepare(queries, self.center, self.signs, self.code_bits, self.slack, metric == "l2")

    def recipe(self, metric: str) -> Recipe:
        """``prepare`` for a search in one native call."""
        return Bits(self.center, self.signs, self.code_bits, float(self.slack))

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


def row_norm(rows: Tensor) -> Tensor:
    """float64 (n,), summed in a fixed order."""
    return _dot(rows, rows).sqrt()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """float64 (n,) inner products of rows; the second half of the terms is added to the first until one is left."""
    terms = a.double() * b.double()
    width = terms.shape[1]
    while width > 1:
        half = (width + 1) // 2
        terms[:, :width - half] += terms[:, half:width]
        width = half
    return terms[:, 0]
