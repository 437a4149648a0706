"""Orthonormal matrices: random ones, the one that best carries one cloud of points onto another, and forms seen through them.

All are computed in float64 on one thread and rounded once, so they do not depend on the number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codeword.parts import random
from codeword.parts.threads import one_thread


def random_rotation(dim: int, seed: int) -> Tensor:
    """float32 (dim, dim), uniform over orthonormal matrices: QR of normal values, signed so that R's diagonal is positive."""
    values = torch.from_numpy(random.normal(seed, dim * dim, stream="orthogonal")).double().reshape(dim, dim)
    with one_thread():
        q, r = torch.linalg.qr(values)
    return (q * torch.sign(torch.diagonal(r))).float()


def procrustes(moment: Tensor) -> Tensor:
    """The orthonormal R float32 (d, d) that minimises sum |R x - y|^2, given moment = sum y x' (Schoenemann 1966): its polar factor."""
    with one_thread():
        u, _, v = torch.linalg.svd(moment.double())
        return (u @ v).float()


def turned_form(metric: Tensor, rotation: Tensor) -> Tensor:
    """R M R' float64: the quadratic form M of x as one of y = R x; symmetric again after rounding."""
    with one_thread():
        turned = rotation.double() @ metric.double() @ rotation.double().mT
    return (turned + turned.mT) / 2
