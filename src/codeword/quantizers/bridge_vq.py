"""BridgeVQ: the codebook of FVQ (Chang et al.: Scalable Training for Vector-Quantized Networks with 100% Codebook Utilization, ICLR 2026).

In a codebook trained by gradient only the chosen rows move. Here the codebook in use, C^, is made at every step from a raw one, C, by a
small transformer over groups of p codewords (``nets.bridge``): the gradient of a few chosen rows moves all of them, and reaches groups
of C that nobody chose. Afterwards ``bake`` throws the bridge away.

    C^ = bridge(C),   i = argmin_k |x - c^_k|^2,   x^ = c^_i
    loss = |sg(x) - c^_i|^2 + beta |x - sg(c^_i)|^2                      (means over all elements; trains C and the bridge)

C starts as U(+-1/K), the bridge's last layer as N(0, spread^2 / (width dim)), which gives C^ a root mean square length of ``spread``
(in units of the data's in ``fit``). The paper's spread = 0 makes all of C^ equal: ties go to codeword 0, the first step moves slot 0 of
every group (K/p codewords) and no other, and the other slots wake one by one, when rows lie nearer to them than to any that is awake.
The default, 0.1, has them apart from the start; much more than the data's own length leaves codewords behind. Averages and revival have
no place: codewords are outputs.

``fit`` runs Adam on the loss in units where the data have mean 0 and mean squared length 1, and folds the units into the last layer:
betas 0.9 and 0.95, the norm of the gradient clipped at 1, the paper's schedule: linear warm-up over the first tenth, constant for 30 %
of the rest, then a linear fall to a hundredth. Training a network, use the same (``parts.training.warm_hold_fall``): in the paper half of
the gain is the schedule's.

In training mode C^ is float32 arithmetic as the processor does it. In eval mode, and for ``encode`` and ``decode``, it is computed
once in float64, rounded, and kept until a parameter changes: the same on any number of threads; gradients pass in both modes.
Another processor may round a last bit differently. Exchange codes through the baked ``VQ``, which is the same everywhere.

Cost: that of the bridge whenever a parameter has changed, then those of VQ. Bits: ceil(log2 K) a vector.
Departures: see ``nets.bridge``; the start of the last layer.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from codeword import ops
from codeword.errors import CodewordError
from codeword.nets.bridge import Bridge
from codeword.nets.transformer import unstarted
from codeword.parts import gradients, random
from codeword.parts.baking import plain_vq
from codeword.parts.codebook import assign, size_for_bits, usage
from codeword.parts.gradients import passed, straight_through
from codeword.parts.kept import Kept
from codeword.parts.losses import both_terms, codebook_term
from codeword.parts.moments import standardised
from codeword.parts.threads import one_thread
from codeword.parts.training import minimise, warm_hold_fall
from codeword.quantizer import Quantizer

HEADS, DEPTH, PLACES = 4, 2, 0.02
"""Of the transformer; depth 2 is the paper's best. PLACES: standard deviation that places start with."""
GROUP, TOKENS = 16, 1024
"""A group is 16 codewords, or as many as keep the number of tokens at 1024."""
WARM, HOLD = 0.1, 0.3


class BridgeVQ(Quantizer):
    """dim, codebook_size; group: p codewords a token, a divisor of codebook_size (None: 16, more above 16,384); width: of the bridge, a
    multiple of 4; spread: length that codewords start with; commitment: beta; steps, batch_size, learning_rate: of
    ``fit``; seed; estimator: one of ``gradients.PAIRS``."""

    takes_metric = True

    def __init__(self, *, dim: int, codebook_size: int, group: int | None = None, width: int = 128, spread: float = 0.1,
                 commitment: float = 0.25, steps: int = 500, batch_size: int = 1024, learning_rate: float = 1e-3, seed: int = 0,
                 estimator: str = "straight_through") -> None:
        super().__init__()
        if dim < 1 or not 1 <= codebook_size <= 1 << 24 or (group is not None and (group < 1 or codebook_size % group)):
            raise CodewordError(f"bridge_vq got dim={dim}, codebook_size={codebook_size} and group={group}; dim >= 1, 1..2^24 codewords "
                                "and a group that divides them are allowed")
        if width < HEADS or width % HEADS or not spread >= 0 or not commitment >= 0:
            raise CodewordError(f"bridge_vq got width={width}, spread={spread} and commitment={commitment}; a positive multiple of {HEADS} "
                                "and numbers of at least 0 are allowed")
        if steps < 0 or batch_size < 1 or not learning_rate > 0:
            raise CodewordError(f"bridge_vq got steps={steps}, batch_size={batch_size} and learning_rate={learning_rate}; steps >= 0, "
                                "batch_size >= 1 and a positive rate are allowed")
        gradients.check("bridge_vq", estimator, gradients.PAIRS)
        self.dim, self.codebook_size, self.group, self.width, self.spread = dim, codebook_size, group, width, spread
        self.commitment, self.steps, self.batch_size, self.learning_rate, self.seed = commitment, steps, batch_size, learning_rate, seed
        self.estimator = estimator
        self.levels = (codebook_size,)
        self.raw = nn.Parameter(torch.zeros(codebook_size, dim))
        self.bridge = unstarted(lambda: Bridge(codebook_size=codebook_size, dim=dim, group=group or _usual_group(codebook_size),
                                               width=width, heads=HEADS, depth=DEPTH))
        self._kept = Kept()

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """2^(bits dim) codewords, up to 16 bits a vector."""
        return cls(dim=dim, codebook_size=size_for_bits("bridge_vq", dim, bits), **options)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        scaled, mean, length = standardised(rows, weights, self.name)
        self._start()

        def loss(batch: Tensor) -> Tensor:
            with one_thread():
                codebook = self.effective()
            return codebook_term(batch, ops.gather(codebook, ops.nearest(batch, codebook).indices), None)

        minimise(loss, list(self.parameters()), scaled, steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate,
                 seed=self.seed, weights=weights, schedule=warm_hold_fall(WARM, HOLD), betas=(0.9, 0.95), clip=1.0)
        with torch.no_grad():
            last = self.bridge.expand
            last.weight.mul_(length)
            last.bias.copy_((last.bias.double().reshape(-1, self.dim) * length + mean).float().reshape(-1))

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return assign(rows, self._codebook(), metric).unsqueeze(1), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return self._codebook()[indices[:, 0]]

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        codebook = self.effective()
        if not self.training:  # the values of encode and decode, the gradients of the bridge
            exact = self._precise() if torch.compiler.is_compiling() else self._codebook()
            codebook = straight_through(codebook, exact)
        indices = ops.nearest(rows, codebook).indices
        chosen = ops.gather(codebook, indices)
        commit, pull = both_terms(rows, chosen, keep)
        loss = self.commitment * commit + (pull if gradients.needs_codebook_term(self.estimator) else 0.0)
        stats = {"codebook": pull.detach(), "commitment": commit.detach(), "error": commit.detach() * self.dim,
                 **usage(indices, self.codebook_size, keep)}
        return passed(self.estimator, rows, chosen, training=self.training), indices.unsqueeze(1), None, loss, stats

    # ------------------------------------------------------------------ beyond the contract

    def effective(self) -> Tensor:
        """C^ as training uses it, float32 (codebook_size, dim), differentiable in C and the bridge."""
        with torch.autocast(self.device.type, enabled=False):
            return self.bridge(self.raw)

    @torch.no_grad()
    def bake(self) -> Quantizer:
        """A ``VQ`` with the codebook of ``encode`` and ``decode``: same codes, same values, and no bridge to ship."""
        self._require_fitted("bake")
        return plain_vq(self._codebook(), commitment=self.commitment, seed=self.seed)

    # ------------------------------------------------------------------ helpers

    def _codebook(self) -> Tensor:
        """C^ of ``encode``, ``decode`` and ``bake``, without gradient."""
        def make() -> Tensor:
            with one_thread():
                return self._precise()
        return self._kept(self.parameters(), make)

    @torch.no_grad()
    def _precise(self) -> Tensor:
        wide = {name: parameter.double() for name, parameter in self.bridge.named_parameters()}
        with torch.autocast(self.device.type, enabled=False):
            return functional_call(self.bridge, wide, (self.raw.double(),)).float()

    @torch.no_grad()
    def _start(self) -> None:
        """C and the bridge of an unseen quantizer, from the seed: each tensor has a stream of its own."""
        for name, parameter in self.named_parameters():
            stream, shape = f"bridge_vq {name}", parameter.shape
            if name == "raw":
                start = (random.uniform(self.seed, parameter.numel(), stream=stream) * 2 - 1) / self.codebook_size
            elif name == "bridge.places" or name == "bridge.expand.weight":
                scale = PLACES if "places" in name else self.spread / math.sqrt(self.width * self.dim)
                start = random.normal(self.seed, parameter.numel(), stream=stream) * scale
            elif parameter.ndim == 2:  # Xavier's uniform
                start = (random.uniform(self.seed, parameter.numel(), stream=stream) * 2 - 1) * math.sqrt(6 / sum(shape))
            else:
                parameter.zero_()
                continue
            parameter.copy_(torch.from_numpy(start).reshape(shape))


def _usual_group(codebook_size: int) -> int:
    """The largest divisor of the codebook's size up to 16, or up to what keeps 1024 tokens."""
    most = max(GROUP, codebook_size // TOKENS)
    return next(group for group in range(min(most, codebook_size), 0, -1) if codebook_size % group == 0)
