"""Losses that tell codebooks apart, and tie some of them to features of another network (FQGAN: Bai et al. 2024).

    disentangle = mean over pairs a < b and rows of <q^a, q^b>^2         (cos^2 where the q are of unit length)
    info_nce    = mean_i -log softmax_j(cos(f_i, g_j) / temperature)_i   (van den Oord et al. 2018; g without gradient)

Both take what came out of a quantizer's forward (straight-through), so that their gradients reach the encoder. Squared inner products
compare coordinates of spaces that nothing ties together: zero does not prove independence. Without a temperature (1, the paper's)
InfoNCE is weak: its least value over B pairs is about log(1 + (B - 1) / e^2), and it depends on B.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from codeword.errors import CodewordError, ShapeError
from codeword.parts import arrays


def disentangle(outputs: Sequence[Tensor], keep: Tensor | None = None) -> Tensor:
    """Mean squared inner product of the rows of every two of ``outputs``, each (n, d); ``keep`` (n,) bool. 0 for fewer than two."""
    if any(part.ndim != 2 or part.shape != outputs[0].shape for part in outputs):
        raise ShapeError(f"disentangle got outputs of shapes {[tuple(part.shape) for part in outputs]}; (n, d) alike are needed")
    if not outputs:
        raise ShapeError("disentangle got no outputs; at least one (n, d) is needed")
    pairs = [arrays.masked_mean((a * b).sum(-1).square(), keep) for a, b in combinations(outputs, 2)]
    return torch.stack(pairs).mean() if pairs else 0.0 * outputs[0].sum()


def info_nce(features: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Cross entropy of picking target i (b, d) for feature i (b, d) among the b targets by cosine. Targets get no gradient."""
    if features.ndim != 2 or features.shape != targets.shape or not len(features):
        raise ShapeError(f"info_nce got features {tuple(features.shape)} and targets {tuple(targets.shape)}; (b >= 1, d) alike are needed")
    if not temperature > 0:
        raise CodewordError(f"info_nce got temperature={temperature}; a positive number is needed")
    with torch.autocast(features.device.type, enabled=False):
        logits = F.normalize(features.float(), dim=1) @ F.normalize(targets.detach().float(), dim=1).mT / temperature
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
