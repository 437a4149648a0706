"""Group-residual vector quantization (Yang et al.: HiFi-Codec: Group-residual Vector Quantization for High Fidelity Audio Codec, 2023).

The channels are cut into G groups of equal width and each group is coded residually in L layers: G L codebooks, as many as G L plain
residual stages have, but the information of a layer is spread over its G tokens instead of packed into the first one.

    r_0 = x,   i_{l,g} = argmin_k |r_{l-1}^g - c^{l,g}_k|^2,   r_l = r_{l-1} - [c^{l,1} ... c^{l,G}],   x^ = sum_l [c^{l,1} ... c^{l,G}]
    loss = sum_l mean |sg(r_{l-1}) - q_l|^2 + beta mean |r_{l-1} - sg(q_l)|^2              (first term where it learns by gradient)

The code lists layers first: (l1,g1) (l1,g2) ... (l2,g1) ...; ``truncate`` keeps whole layers, and any prefix decodes. G = 1 is ``RVQ``
with beam 1, L = 1 is product quantization, both bit for bit.

Departures: codebooks start by k-means (there U(+-1/K), which dies on little data); the loss is a sum over layers as in ``RVQ``, not a
mean; the next layer sees q_l detached and the sum is passed straight through once. The encoder's gradient from the decoder is the
identity as there, but there the straight-through residual also stops the commitment terms of all layers but the first; here they live.
``learning="ema"``: codebooks follow averages, and rarely chosen codewords are revived, by the rules of ``parts/upkeep``.

Cost: L K d multiply-adds a vector, that of L plain stages. Bits: G L ceil(log2 K) a vector; L K d floats shared.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor

from codeword.errors import CodewordError, Unsupported
from codeword.parts import stages
from codeword.parts.prefixes import truncated
from codeword.quantizer import Codes


class GroupRVQ(stages.Layered):
    """dim: a multiple of groups; groups: G; layers: L; codebook_size: codewords of each of the G L codebooks; learning: "gradient" or "ema"
    in a network; commitment: beta; revival: codewords below this fraction of their expected hits are moved onto data (0: never; None:
    0.05 with averages, else 0); estimator: how gradients pass (those of a pair in ``parts/gradients``); iterations: of k-means; seed:
    codebook number p starts from ``random.part_seed(seed, p)``."""

    def __init__(self, *, dim: int, groups: int = 2, layers: int = 2, codebook_size: int = 1024, learning: str = "gradient",
                 commitment: float = 0.25, revival: float | None = None, estimator: str = "straight_through", iterations: int = 25,
                 seed: int = 0) -> None:
        super().__init__()
        if groups < 1 or layers < 1 or dim % groups:
            raise CodewordError(f"group_rvq got dim={dim}, groups={groups} and layers={layers}; groups that divide dim, and at least one "
                                "layer, are needed")
        stages.check_arguments("group_rvq", dim, groups * layers, codebook_size, iterations, learning, commitment, estimator)
        self.dim, self.groups, self.layers, self.codebook_size, self.learning = dim, groups, layers, codebook_size, learning
        self.commitment, self.revival, self.estimator, self.iterations, self.seed = commitment, revival, estimator, iterations, seed
        self._build(((dim // groups,) * groups,) * layers, codebook_size, revival)

    @classmethod
    def for_bits(cls, dim: int, bits: float, *, groups: int = 2, **options: Any) -> Self:
        """``groups`` groups; indices of 10 bits where those fill whole layers, else of the next of 8, 9, 7, 6, ... bits; rather two layers
        or more than one."""
        if groups > 0 and dim % groups == 0:
            found = stages.whole_layers(bits * dim, groups, 2) or stages.whole_layers(bits * dim, groups, 1)
            if found is not None:
                return cls(dim=dim, groups=groups, layers=found[0], codebook_size=found[1], **options)
        raise Unsupported(f"group_rvq has no whole layers of {groups} indices of 1..12 bits with exactly {bits:g} bits a dimension at "
                          f"dim={dim}")

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        return self._pass(rows, keep, None, self.estimator)

    def truncate(self, codes: Codes, bits: float) -> Codes:
        """The longest prefix of whole layers within ``bits`` a dimension; what is cut off becomes zero. The code keeps its shape: a file
        stores the zeros too, and ``bits`` counts them. Unsupported where not even the first layer fits."""
        return truncated(self, codes, bits, range(self.groups, len(self.levels) + 1, self.groups), "layer")
