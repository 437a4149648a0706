"""ProjectedVQ: the codebook of VQGAN-LC (Zhu et al.: Scaling the Codebook Size of VQGAN to 100,000 with a Utilization Rate of 99%,
NeurIPS 2024).

The codebook is a frozen set of features B of a pre-trained vision model, spread as images are, and a trained linear map carries all of
it into the quantizer's own, low-dimensional space. Every codeword moves at every step, so none is left behind however large K is.

    B^ = B P' + b,   i = argmin_k |x - b^_k|^2,   x^ = b^_i
    loss = pull |sg(x) - b^_i|^2 + commitment |x - sg(b^_i)|^2     (means over all elements; trains P, b; 0.33 and 1 in the paper)

``use_features`` installs B (K, D) of any width D; ``cluster_features`` makes it from more features, class by class as the paper does.
It is kept in units of mean 0 and mean squared length 1, an affine change that P and b take up. Where none was installed, ``fit``
takes the centres of k-means of its own rows, of width D = dim.
``fit`` runs Adam on the pull term in units where the data are standardised alike, and folds the units into P and b. Start: the identity
for own centres, so the codewords begin as k-means; for installed features W with entries N(0, 1/dim), the paper's, or the identity
where D = dim, then P = S_x^1/2 S_W^-1/2 W: the codewords have the mean and the covariance S_x of the data, and cover them (S_W: covariance
of B W'; directions without variance stay so). The paper starts from W itself.
``bake`` drops B and P and leaves an ordinary ``VQ`` with the same codes and values, bit for bit.

Cost: K D dim multiply-adds for B^ whenever P has changed, then those of VQ. Bits: ceil(log2 K) a vector.
The paper's code scales this loss by 0.1 against reconstruction: that is the caller's weight.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from codeword import ops
from codeword.errors import CodewordError, FormatError, ShapeError
from codeword.parts import arrays, gradients, random
from codeword.parts.baking import plain_vq
from codeword.parts.codebook import assign, size_for_bits, usage
from codeword.parts.gradients import passed
from codeword.parts.kept import Kept
from codeword.parts.kmeans import kmeans
from codeword.parts.losses import both_terms, codebook_term
from codeword.parts.moments import fold, standardised
from codeword.parts.pca import pca
from codeword.parts.threads import one_thread
from codeword.parts.training import minimise
from codeword.quantizer import Array, Quantizer

WIDEST = 1 << 16


class ProjectedVQ(Quantizer):
    """dim, codebook_size; pull, commitment: weights of the two terms, for the codewords and for an encoder; steps, batch_size,
    learning_rate: of ``fit``; seed; estimator: one of ``gradients.PAIRS``."""

    takes_metric = True

    def __init__(self, *, dim: int, codebook_size: int, pull: float = 0.33, commitment: float = 1.0, steps: int = 500,
                 batch_size: int = 1024, learning_rate: float = 3e-3, seed: int = 0, estimator: str = "straight_through") -> None:
        super().__init__()
        if dim < 1 or not 1 <= codebook_size <= 1 << 24:
            raise CodewordError(f"projected_vq got dim={dim} and codebook_size={codebook_size}; dim >= 1 and 1..2^24 codewords are allowed")
        if not pull > 0 or not commitment >= 0 or steps < 0 or batch_size < 1 or not learning_rate > 0:
            raise CodewordError(f"projected_vq got pull={pull}, commitment={commitment}, steps={steps}, batch_size={batch_size} and "
                                f"learning_rate={learning_rate}; commitment and steps >= 0, batch_size >= 1, pull and rate > 0 are allowed")
        gradients.check("projected_vq", estimator, gradients.PAIRS)
        self.dim, self.codebook_size, self.pull, self.commitment = dim, codebook_size, pull, commitment
        self.steps, self.batch_size, self.learning_rate, self.seed = steps, batch_size, learning_rate, seed
        self.estimator = estimator
        self.levels = (codebook_size,)
        self.bias = nn.Parameter(torch.zeros(dim))
        self._allocate(dim, given=False)
        self._kept = Kept()

    features: Tensor
    weight: nn.Parameter

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """2^(bits dim) codewords, up to 16 bits a vector."""
        return cls(dim=dim, codebook_size=size_for_bits("projected_vq", dim, bits), **options)

    def use_features(self, features: Array) -> Self:
        """Install frozen features (codebook_size, any width), numpy or torch; ``fit`` comes next, and before any optimizer is built:
        P becomes a new parameter. Raises ShapeError for other shapes or values, and where all features are equal."""
        rows = _feature_rows(features, f"{self.name}.use_features")
        if len(rows) != self.codebook_size or rows.shape[1] > WIDEST:
            raise ShapeError(f"{self.name}.use_features got {tuple(rows.shape)}; ({self.codebook_size}, 1..{WIDEST}) is needed")
        scaled, _, length = standardised(rows, None, self.name)
        if length == 0:
            raise ShapeError(f"{self.name}.use_features got {len(rows)} features that are all equal; different ones are needed")
        self._allocate(rows.shape[1], given=True)
        self.features.copy_(scaled)
        self.fitted = False
        return self

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        scaled, mean, length = standardised(rows, weights, self.name)
        if not self.given:
            self.features.copy_(kmeans(scaled, self.codebook_size, seed=self.seed, weights=weights, start="cooled").centroids)
        self._start(scaled, weights)
        minimise(lambda batch: codebook_term(batch, self._nearest(batch)[1], None), [self.weight, self.bias], scaled, steps=self.steps,
                 batch_size=self.batch_size, learning_rate=self.learning_rate, seed=self.seed, weights=weights)
        fold(self.weight, self.bias, mean, length)

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, None]:
        return assign(rows, self._codebook(), metric).unsqueeze(1), None

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        return self._codebook()[indices[:, 0]]

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, dict[str, Tensor]]:
        indices, chosen = self._nearest(rows)
        commit, pull = both_terms(rows, chosen, keep)
        loss = self.commitment * commit + (self.pull * pull if gradients.needs_codebook_term(self.estimator) else 0.0)
        stats = {"codebook": pull.detach(), "commitment": commit.detach(), "error": commit.detach() * self.dim,
                 **usage(indices, self.codebook_size, keep)}
        return passed(self.estimator, rows, chosen, training=self.training), indices.unsqueeze(1), None, loss, stats

    # ------------------------------------------------------------------ beyond the contract

    def effective(self) -> Tensor:
        """The codebook in use, B P' + b, float32 (codebook_size, dim), differentiable in P and b."""
        return self._image(self.features)

    @torch.no_grad()
    def bake(self) -> Quantizer:
        """A ``VQ`` whose codebook is ``effective()``: same codes, same values; neither features nor map to ship."""
        self._require_fitted("bake")
        return plain_vq(self._codebook(), commitment=self.commitment, seed=self.seed)

    @property
    def structure(self) -> dict[str, Any]:
        return {"feature_dim": self.features.shape[1], "fitted": self.fitted, "given": self.given}

    def restore(self, structure: dict[str, Any]) -> None:
        width, given = structure.get("feature_dim"), structure.get("given")
        if type(width) is not int or not 1 <= width <= WIDEST or not isinstance(given, bool) or (not given and width != self.dim):
            raise FormatError("config", f"structure of projected_vq needs 'given' and 'feature_dim' 1..{WIDEST} (dim={self.dim} where no "
                                        f"features were given), got {given!r} and {width!r}")
        super().restore(structure)
        self._allocate(width, given)

    # ------------------------------------------------------------------ helpers

    def _allocate(self, width: int, given: bool) -> None:
        self.given = given
        self.register_buffer("features", torch.zeros(self.codebook_size, width, device=self.bias.device))
        self.weight = nn.Parameter(torch.zeros(self.dim, width, device=self.bias.device))

    @torch.no_grad()
    def _start(self, scaled: Tensor, weights: Tensor | None) -> None:
        self.bias.zero_()
        width = self.features.shape[1]
        first = torch.eye(self.dim, device=self.device)
        if width != self.dim:
            drawn = random.normal(self.seed, self.dim * width, stream="projected_vq weight") * np.float32(1 / math.sqrt(self.dim))
            first = torch.from_numpy(drawn).reshape(self.dim, width).to(self.device)
        if not self.given:
            self.weight.copy_(first)
            return
        data, image = pca(scaled, weights=weights), pca(ops.project(self.features, first))
        with one_thread():
            spread = _power(data.axes, data.variances, 0.5) @ _power(image.axes, image.variances, -0.5)
            self.weight.copy_((spread @ first.double()).float())

    def _nearest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (n,) and codewords (n, dim). The same values and gradients either way: through the whole of B^, or through the winners
        alone where they are fewer."""
        codebook = self.effective()
        indices = ops.nearest(rows, codebook).indices
        whole = torch.compiler.is_compiling() or rows.shape[0] >= self.codebook_size
        return indices, ops.gather(codebook, indices) if whole else self._image(self.features[indices])

    def _image(self, features: Tensor) -> Tensor:
        return ops.project(features, self.weight) + self.bias

    def _codebook(self) -> Tensor:
        return self._kept((self.features, self.weight, self.bias), self.effective)


def cluster_features(features: Array, codebook_size: int, labels: Array | None = None, *, iterations: int = 25, seed: int = 0) -> Tensor:
    """Centres float32 (codebook_size, D) of features (n, D): k-means of all of them, or, with integer ``labels`` (n,), of each class
    apart, in ascending order of the labels, codebook_size shared out equally (the first classes take what is left over). A class with
    fewer distinct features than its share repeats them. Raises ShapeError for bad shapes and values."""
    rows = _feature_rows(features, "cluster_features")
    if codebook_size < 1:
        raise CodewordError(f"cluster_features got codebook_size={codebook_size}; at least 1 is needed")
    if labels is None:
        return kmeans(rows, codebook_size, iterations=iterations, seed=seed, start="cooled").centroids
    classes = arrays.as_tensor(labels).detach().to(rows.device)
    if classes.shape != rows.shape[:1] or classes.is_floating_point():
        raise ShapeError(f"cluster_features got labels {classes.dtype} {tuple(classes.shape)}; integers ({len(rows)},) are needed")
    names = torch.unique(classes)
    if codebook_size < len(names):
        raise CodewordError(f"cluster_features got codebook_size={codebook_size} for {len(names)} classes; at least one centre a class "
                            "is needed")
    share, over = divmod(codebook_size, len(names))
    return torch.cat([kmeans(rows[classes == name], share + (i < over), iterations=iterations, seed=seed, start="cooled").centroids
                      for i, name in enumerate(names)])


def _feature_rows(features: Array, what: str) -> Tensor:
    """float32 (n >= 1, D >= 1), finite."""
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) != 2 or 0 in shape:
        raise ShapeError(f"{what} got {type(features).__name__} of shape {shape}; features (n >= 1, width >= 1) are needed")
    arrays.check_rows(features, shape[1], what)
    rows = arrays.take_rows(features, shape[1], None)
    arrays.check_finite(rows, what)
    return rows


def _power(axes: Tensor, variances: Tensor, exponent: float) -> Tensor:
    """float64 (d, d): the symmetric matrix of these axes and variances to a power; directions of (almost) no variance become zero."""
    alive = variances > 1e-9 * variances.max()
    scale = torch.where(alive, variances, 1.0) ** exponent * alive
    wide = axes.double()
    return wide.mT * scale @ wide
