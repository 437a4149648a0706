"""FactorizedVQ: independent cosine codebooks, pushed apart (FQGAN; Bai et al.: Factorized Visual Tokenization and Generation, 2024).

Instead of one huge codebook, M small ones, each over its own slice of the vector (an encoder's own head): K^M combinations for the
price of M searches among K. Without more they learn the same things, so their choices at one place are asked to be orthogonal.

    x = [x^1 ... x^M],   q^m = CosineVQ_m(x^m) of unit length,   x^ = [q^1 ... q^M]
    loss = sum_m loss_m + disentangle * mean over pairs m < l of <q^m, q^l>^2           (loss_m with its own entropy term: ``CosineVQ``)

The paper's third term ties some codebooks to a frozen network's features: ``parts.alignment.info_nce`` between a head on
``split(out.values)[m]`` and the features; it is the caller's, since head and features are. Gradients of all terms reach the encoder
through the normalised slices.
Weights as in the paper: the M losses are added (``product`` of cosine codebooks averages them by width), entropy 0.03, disentangle 0.1.
Squared inner products compare coordinates of M spaces that nothing ties together, hence the slices are of equal width; zero does not
prove independence. The gain published over one codebook of K words is at M times the bits.

Cost: M K d / M multiply-adds a vector of width d. Bits: M ceil(log2 K) a vector.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from codeword import catalog
from codeword.errors import CodewordError, ShapeError, Unsupported
from codeword.parts import random
from codeword.parts.alignment import disentangle
from codeword.parts.codebook import LARGEST_DIAL
from codeword.parts.combinator import Combinator, stats_of

MOST_CODEBOOKS = 256


class FactorizedVQ(Combinator):
    """dim: of all slices together; num_codebooks: M, a divisor of dim; codebook_size: K of each; learning, commitment, entropy: of each;
    disentangle: weight of the pairs' term; iterations: of spherical k-means; seed: codebook m has
    ``random.part_seed(seed, m)``; estimator: of each."""

    def __init__(self, *, dim: int, num_codebooks: int = 2, codebook_size: int = 256, learning: str = "gradient", commitment: float = 0.25,
                 entropy: float = 0.03, disentangle: float = 0.1, iterations: int = 25, seed: int = 0,
                 estimator: str = "straight_through") -> None:
        if not 1 <= num_codebooks <= MOST_CODEBOOKS or dim < num_codebooks or dim % num_codebooks or not disentangle >= 0:
            raise CodewordError(f"factorized_vq got dim={dim}, num_codebooks={num_codebooks} and disentangle={disentangle}; 1.."
                                f"{MOST_CODEBOOKS} codebooks that divide dim, and a weight of at least 0, are allowed")
        part: Any = catalog.quantizer_class("cosine_vq")
        super().__init__([part(dim=dim // num_codebooks, codebook_size=codebook_size, learning=learning, commitment=commitment,
                               entropy=entropy, iterations=iterations, seed=random.part_seed(seed, m),
                               estimator=estimator) for m in range(num_codebooks)])
        self.dim, self.num_codebooks, self.codebook_size, self.learning = dim, num_codebooks, codebook_size, learning
        self.commitment, self.entropy, self.disentangle, self.iterations, self.seed = commitment, entropy, disentangle, iterations, seed
        self.estimator = estimator

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """``num_codebooks`` (default 2) codebooks of 2^(bits dim / num_codebooks) codewords, each up to 16 bits."""
        count = options.setdefault("num_codebooks", 2)
        return cls(dim=dim, codebook_size=_size(dim, bits, count), **options)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        for i, part in enumerate(self.split(rows)):
            self._fit_part(i, part.contiguous(), weights)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        found = [part._encode(own, None) for part, own in zip(self.inner, self.split(rows), strict=True)]
        return self._join(found)[0], None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return torch.cat([part._decode(*codes) for part, codes in zip(self.inner, self._cut(indices, side), strict=True)], dim=1)

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        outs = [part(own, mask=keep) for part, own in zip(self.inner, self.split(rows), strict=True)]
        indices = self._join([self._rows_of(out.codes) for out in outs])[0]
        apart = disentangle([out.values for out in outs], keep)
        loss = torch.stack([out.loss for out in outs]).sum() + self.disentangle * apart
        error = torch.stack([out.stats["error"] for out in outs]).sum()
        return torch.cat([out.values for out in outs], dim=1), indices, None, loss, {
            "error": error, "disentangle": apart.detach(), **stats_of(outs)}

    # ------------------------------------------------------------------ beyond the contract

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """The slices of (..., dim), one a codebook: of inputs, of ``values``, of what ``decode`` returned."""
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise ShapeError(f"{self.name}.split got shape {tuple(x.shape)}; (..., {self.dim}) is needed")
        return x.split(self.dim // self.num_codebooks, dim=-1)


def _size(dim: int, bits: float, count: Any) -> int:
    """Codewords of each of ``count`` codebooks for ``bits`` a dimension of all of them together."""
    each = bits * dim / count if isinstance(count, int) and count > 0 else 0.0
    if dim % max(1, int(count) if isinstance(count, int) else 1) or not 1 <= each <= LARGEST_DIAL or abs(each - round(each)) > 1e-9:
        raise Unsupported(f"factorized_vq has num_codebooks={count!r} indices of whole bits, 1..{LARGEST_DIAL} each, over equal slices; "
                          f"bits={bits:g} at dim={dim} asks for {each:g} bits an index; name other num_codebooks or a codebook_size")
    return 1 << round(each)
