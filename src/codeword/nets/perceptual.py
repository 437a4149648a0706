"""Perceptual distance between images: how far apart a network's features of them are (Zhang et al. 2018, LPIPS).

    d(x, y) = sum over maps l of  mean over places of  | f_l(x)/|f_l(x)| - f_l(y)/|f_l(y)| |^2 / 2       f_l / |f_l|: unit over channels

so each map's share lies in 0..1 (features are not negative): one minus the mean cosine. LPIPS learns a weight a channel from people's
judgements and uses VGG or AlexNet; here channels weigh the same and the network is the small one of ``nets/features.py``. The distance
is therefore named after its network, ``features-cifar10``, and is a loss, not a published measure. ``lpips-vgg`` and ``lpips-alex``
are the real ones, for those who have the package ``lpips`` (it downloads its own weights).

Both take images in [0, 1], grey or colour, and give one number an image. The network is frozen: gradients reach images only, its
tensors are neither parameters nor part of a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from codeword.errors import CodewordError, ShapeError, Unsupported
from codeword.nets.features import FeatureNet

NAMES = ("features-cifar10", "lpips-vgg", "lpips-alex")


def perceptual(name: str = "features-cifar10") -> nn.Module:
    """The distance of that name: a module (x, y) -> (b,). CodewordError for another name, Unsupported where it is not installed."""
    if name not in NAMES:
        raise CodewordError(f"unknown perceptual network {name!r}; {', '.join(NAMES)} are known")
    return LPIPS(name.removeprefix("lpips-")) if name.startswith("lpips-") else FeatureDistance(FeatureNet.load(name))


class FeatureDistance(nn.Module):
    """d over the maps of a ``FeatureNet``."""

    def __init__(self, network: FeatureNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(b, c, H, W) twice, same shape -> (b,)."""
        if x.shape != y.shape:
            raise ShapeError(f"a perceptual distance got {tuple(x.shape)} and {tuple(y.shape)}; equal shapes are needed")
        # In one batch where both need a gradient or neither does; the target usually needs none, and then half the work is saved.
        if x.requires_grad == y.requires_grad:
            pairs = [both.chunk(2) if len(x) else (both, both) for both in self.network(torch.cat((x, y)))]
        else:
            pairs = list(zip(self.network(x), self._fixed(y) if x.requires_grad else self.network(y)))
        return sum((_distance(a, b) for a, b in pairs), start=x.new_zeros(len(x), dtype=torch.float32))

    def _fixed(self, y: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return self.network(y)


class LPIPS(nn.Module):
    """The package lpips as it is, on images in [0, 1]."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        try:
            import lpips  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise Unsupported(f"the perceptual network 'lpips-{backbone}' needs the package lpips: pip install lpips; "
                              "'features-cifar10' is bundled") from None
        network: Any = lpips.LPIPS(net=backbone, verbose=False)
        self._held = [network.eval().requires_grad_(False)]  # in a list: no part of this module's parameters and checkpoints

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self._held[0] = self._held[0].to(x.device)
        return self._held[0](2 * x.expand(-1, 3, -1, -1) - 1, 2 * y.expand(-1, 3, -1, -1) - 1).reshape(len(x))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """(b,): 1 - cosine over channels, meaned over places. Where both maps are zero there is no difference; where one is, it is 1/2."""
    a, b = (t / (t.square().sum(1, keepdim=True) + 1e-8).sqrt() for t in (a, b))
    return 0.5 * (a - b).square().sum(1).mean((1, 2))
