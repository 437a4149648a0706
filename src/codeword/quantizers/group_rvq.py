"""Group-residual vector quantization (Yang et al.: HiFi-Codec: Group-residual Vector Quantization for High Fidelity Audio Codec, 2023).

The channels are cut into G groups of equal width and each group is coded residually in L layers: G L codebooks, as many as G L plain
residual stages have, but the information of a layer is spread over its G tokens instead of packed into the first one.

    r_0 = x,   i_{l,g} = argmin_k |r_{l-1}^g - c^{l,g}_k|^2,   r_l = r_{l-1} - [c^{l,1} ... c^{l,G}],   x^ = sum_l [c^{l,1} ... c^{l,G}]
    loss = sum_l mean |sg(r_{l-1}) - q_l|^2 + beta mean |r_{l-1} - sg(q_l)|^2                          (first term where it learns by gradient)

The code lists layers first: (l1,g1) (l1,g2) ... (l2,g1) ...; ``truncate`` keeps whole layers, and any prefix decodes. G = 1 is ``RVQ``
with beam 1, L = 1 is product quantization, both bit for bit.

Departures: codebooks start by k-means (there U(+-1/K), which dies on little data); the loss is a sum over layers as in ``RVQ``, not a
mean; the next layer sees q_l detached and the sum is passed straight through once. The encoder's gradient from the decoder is the
identity as there, but there the straight-through residual also stops the commitment terms of all layers but the first; here they live.
``learning="ema"``: codebooks follow averages, and rarely chosen codewords are revived, by the rules of ``parts/upkeep``.

Cost: L K d multiply-adds a vector, that of L plain stages. Bits: G L ceil(log2 K) a vector; L K d floats shared.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.parts import stages
from codeword.parts.gradients import straight_through
from codeword.parts.upkeep import Upkeep
from codeword.quantizer import Codes, Quantized, Quantizer, Report

INDEX_BITS = (10, 8, 9, 7, 6, 5, 4, 11, 12, 3, 2, 1)
"""Bits of an index that the dial considers, best first."""


class GroupRVQ(Quantizer):
    """dim: a multiple of groups; groups: G; layers: L; codebook_size: codewords of each of the G L codebooks; learning: "gradient" or "ema"
    in a network; commitment: beta; revival: codewords below this fraction of their expected hits are moved onto data (0: never; None:
    0.05 with averages, else 0); iterations: of k-means; seed: of codebook number p from seed + p."""

    DECAY = 0.99

    def __init__(self, *, dim: int, groups: int = 2, layers: int = 2, codebook_size: int = 1024, learning: str = "gradient",
                 commitment: float = 0.25, revival: float | None = None, iterations: int = 25, seed: int = 0) -> None:
        super().__init__()
        if groups < 1 or layers < 1 or dim % groups:
            raise CodewordError(f"group_rvq got dim={dim}, groups={groups} and layers={layers}; groups that divide dim, and at least one "
                                "layer, are needed")
        stages.check_arguments("group_rvq", dim, groups * layers, codebook_size, iterations, learning, commitment)
        self.dim, self.groups, self.layers, self.codebook_size, self.learning = dim, groups, layers, codebook_size, learning
        self.commitment, self.revival, self.iterations, self.seed = commitment, revival, iterations, seed
        self.levels = (codebook_size,) * (groups * layers)
        self.codebooks = nn.Parameter(torch.zeros(layers, codebook_size, dim), requires_grad=learning == "gradient")
        self.upkeep = nn.ModuleList(stages.keepers(self.codebooks, self._widths, learning=learning, decay=self.DECAY, revival=revival))

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, groups: int = 2, **options: Any) -> Self:
        """``groups`` groups; indices of 10 bits where those fill whole layers, else of the next of 8, 9, 7, 6, ... bits; rather two layers
        or more than one."""
        for least in (2, 1):
            for width in INDEX_BITS:
                layers = bits * dim / (groups * width) if groups > 0 else 0
                if dim % groups == 0 and layers + 1e-9 >= least and math.isclose(layers, round(layers), abs_tol=1e-9):
                    return cls(dim=dim, groups=groups, layers=round(layers), codebook_size=1 << width, **options)
        raise Unsupported(f"group_rvq has no whole layers of {groups} indices of 1..12 bits with exactly {bits:g} bits a dimension at "
                          f"dim={dim}")

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        repaired = stages.learn(self.codebooks.detach(), self._widths, rows, iterations=self.iterations, seed=self.seed, weights=weights)
        stages.start(self.codebooks, self._widths, self._keepers)
        if repaired:
            self.report = Report(self.report, repaired_codewords=repaired)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return stages.encode(self.codebooks.detach(), self._widths, rows), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return stages.decode(self.codebooks.detach(), self._widths, indices)

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        out = stages.quantize(self.codebooks, self._widths, self._keepers, rows, keep)
        loss = self.commitment * out.commit + (out.pull if self.learning == "gradient" else 0.0)
        return straight_through(rows, out.values), out.indices, None, loss, stages.summary(out, keep)

    def update(self, out: Quantized) -> Report:
        return stages.step(self.codebooks, self._widths, self._keepers, out)

    def truncate(self, codes: Codes, bits: float) -> Codes:
        """The longest prefix of whole layers within ``bits`` a dimension; what is cut off becomes zero. The code keeps its shape: a file
        stores the zeros too, and ``bits`` counts them. Unsupported where not even the first layer fits."""
        return stages.truncated(self, codes, bits, stages.ends(self._widths))

    @property
    def shared_bytes(self) -> int:
        """The codebooks alone: averages are saved for going on with training, but no reader of codes needs them."""
        return self.codebooks.numel() * self.codebooks.element_size()

    def check_state(self) -> None:
        super().check_state()
        if not all(keeper.plausible() for keeper in self._keepers):
            raise FormatError("value", f"{self.name} has a negative count among its averages")

    # ------------------------------------------------------------------ helpers

    @property
    def _widths(self) -> tuple[tuple[int, ...], ...]:
        return ((self.dim // self.groups,) * self.groups,) * self.layers

    @property
    def _keepers(self) -> list[Upkeep]:
        return list(self.upkeep)  # type: ignore[arg-type]

    def _decode_some(self, indices: Tensor, side: Tensor | None, lengths: Tensor | None) -> Tensor:
        return stages.decode(self.codebooks.detach(), self._widths, indices, lengths)
