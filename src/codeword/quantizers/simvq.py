"""SimVQ (Zhu, Li, Xu, Li, Wang, Xu, Wang: Addressing Representation Collapse in VQ Models with One Linear Layer, ICCV 2025).

In a codebook trained by gradient only the chosen rows move; the others are left behind by the data and die. SimVQ freezes a random
codebook C, entries N(0, 1/d), and learns one linear map applied to all of it, so that every codeword moves at every step:

    C^ = C W' + b,   i = argmin_k |x - c^_k|^2,   x^ = c^_i = W c_i + b
    loss = |sg(x) - c^_i|^2 + beta |x - sg(c^_i)|^2                                      (means over all elements; trains W, b)
    one SGD step on one token, winner j:   move of c^_k = -(2 eta / (N d)) (<c_k, c_j> + 1) (c^_j - x)

``fit`` runs Adam on this loss over seeded minibatches, in units where the data have mean 0 and mean squared length 1 (that of the
frozen codewords), and folds the units into W and b: data of any offset and scale train alike. W starts as the paper's linear layer
does, U(+-1/sqrt(d)); b starts at the data's mean instead of at random, one departure.
In a network ``estimator`` says how the gradient passes the choice (``parts/gradients``); its authors use straight_through, and users report
commitment losses that explode with rotation. ``fit`` always minimises the loss above.
``bake`` drops C and W and leaves an ordinary ``VQ`` with the same codes and values, bit for bit.
Cost: K d^2 multiply-adds for C^ whenever W has changed, then those of VQ. Bits: ceil(log2 K) a vector.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from codeword import ops
from codeword.errors import CodewordError
from codeword.parts import gradients, losses, random
from codeword.parts.baking import plain_vq
from codeword.parts.codebook import assign, size_for_bits, usage
from codeword.parts.kept import Kept
from codeword.parts.moments import fold, standardised
from codeword.parts.training import minimise
from codeword.quantizer import Quantizer


class SimVQ(Quantizer):
    """dim, codebook_size; commitment: beta; steps, batch_size, learning_rate: of ``fit``; seed: of the frozen codebook and all else;
    estimator: one of ``gradients.ESTIMATORS``; temperature: of its p, in squared distance, where it has one."""

    takes_metric = True
    later_arguments: ClassVar[dict[str, Any]] = {"estimator": "straight_through", "temperature": 1.0}

    def __init__(self, *, dim: int, codebook_size: int, commitment: float = 0.25, steps: int = 500, batch_size: int = 1024,
                 learning_rate: float = 3e-3, seed: int = 0, estimator: str = "straight_through", temperature: float = 1.0) -> None:
        super().__init__()
        if dim < 1 or not 1 <= codebook_size <= 1 << 24:
            raise CodewordError(f"simvq got dim={dim} and codebook_size={codebook_size}; dim >= 1 and 1..2^24 codewords are allowed")
        if steps < 0 or batch_size < 1 or not learning_rate > 0 or not commitment >= 0:
            raise CodewordError(f"simvq got steps={steps}, batch_size={batch_size}, learning_rate={learning_rate} and "
                                f"commitment={commitment}; steps and commitment >= 0, batch_size >= 1 and a positive rate are allowed")
        gradients.check("simvq", estimator)
        if not temperature > 0:
            raise CodewordError(f"simvq got temperature={temperature}; a positive one is needed")
        self.dim, self.codebook_size, self.commitment = dim, codebook_size, commitment
        self.estimator, self.temperature = estimator, temperature
        self.steps, self.batch_size, self.learning_rate, self.seed = steps, batch_size, learning_rate, seed
        self.levels = (codebook_size,)
        self.basis: Tensor
        self.register_buffer("basis", torch.zeros(codebook_size, dim))
        self.weight = nn.Parameter(torch.zeros(dim, dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self._kept = Kept()

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """2^(bits dim) codewords, up to 16 bits a vector."""
        return cls(dim=dim, codebook_size=size_for_bits("simvq", dim, bits), **options)

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        scaled, mean, length = standardised(rows, weights, self.name)
        self._start()
        minimise(self._fitting_loss, [self.weight, self.bias], scaled, steps=self.steps,
                 batch_size=self.batch_size, learning_rate=self.learning_rate, seed=self.seed, weights=weights)
        fold(self.weight, self.bias, mean, length)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return assign(rows, self._codebook(), metric).unsqueeze(1), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return self._codebook()[indices[:, 0]]

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        indices, chosen, values = self._choose(rows, self.estimator)
        commit, pull = losses.both_terms(rows, chosen, keep)
        loss = self.commitment * commit + (pull if gradients.needs_codebook_term(self.estimator) else 0.0)
        stats = {"codebook": pull.detach(), "commitment": commit.detach(), "error": commit.detach() * self.dim,
                 **usage(indices, self.codebook_size, keep)}
        return values, indices.unsqueeze(1), None, loss, stats

    # ------------------------------------------------------------------ beyond the contract

    def effective(self) -> Tensor:
        """The codebook in use, C W' + b, float32 (codebook_size, dim), differentiable in W and b."""
        return self._image(self.basis)

    @torch.no_grad()
    def bake(self) -> Quantizer:
        """A ``VQ`` whose codebook is ``effective()``: same codes, same values, fewer tensors to ship."""
        self._require_fitted("bake")
        return plain_vq(self.effective(), commitment=self.commitment, seed=self.seed)

    # ------------------------------------------------------------------ helpers

    @torch.no_grad()
    def _start(self) -> None:
        """C, W and b of an unseen quantizer, from the seed."""
        bound = 1 / math.sqrt(self.dim)
        basis = random.normal(self.seed, self.codebook_size * self.dim, stream="simvq basis") * np.float32(bound)
        self.basis.copy_(torch.from_numpy(basis).reshape(self.codebook_size, self.dim))
        start = (random.uniform(self.seed, self.dim * self.dim, stream="simvq weight") * 2 - 1) * bound
        self.weight.copy_(torch.from_numpy(start).reshape(self.dim, self.dim))
        self.bias.zero_()

    def _choose(self, rows: Tensor, estimator: str) -> gradients.Chosen:
        codebook = self.effective()
        if estimator in gradients.SCORES:
            return gradients.choose(estimator, rows, codebook, training=self.training, temperature=self.temperature)
        indices = ops.nearest(rows, codebook).indices
        # The same values and gradients either way: through the whole of C^, or through the winners alone where they are fewer. A graph
        # that is compiled or exported is for any number of rows.
        whole = torch.compiler.is_compiling() or rows.shape[0] >= self.codebook_size
        chosen = ops.gather(codebook, indices) if whole else self._image(self.basis[indices])
        return gradients.Chosen(indices, chosen, gradients.passed(estimator, rows, chosen, training=self.training))

    def _fitting_loss(self, rows: Tensor) -> Tensor:
        commit, pull = losses.both_terms(rows, self._choose(rows, "straight_through").codewords, None)
        return pull + self.commitment * commit

    def _image(self, codewords: Tensor) -> Tensor:
        return ops.project(codewords, self.weight) + self.bias

    def _codebook(self) -> Tensor:
        """``effective()`` without gradient."""
        return self._kept((self.weight, self.bias, self.basis), self.effective)
