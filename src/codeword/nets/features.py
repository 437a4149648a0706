"""The small feature network that is trained for this library: ``features-cifar10``, a residual classifier of 0.2 million parameters.

    x -> (x - mean) / std -> relu(conv) -> block (32, full size) -> mean 2 x 2 -> block (64) -> mean 2 x 2 -> block (96)
    block   relu(skip(x) + conv(relu(conv(x))))      3 x 3 convolutions; skip 1 x 1 where the width changes

``tools/train_features.py`` trains it on CIFAR-10, folds its normalizations away and stores it as float16 (bundled/README.md: accuracy,
data, command). Its three maps are what the perceptual loss compares; the mean of the last over its places (96 numbers an image) is what
the reconstruction Frechet distance compares. It stands in for VGG and Inception where those cannot be had; numbers from it are always
named after it and cannot be set beside published LPIPS or FID. It is fully convolutional and takes images of sides of at least 4,
but has seen 32 x 32 colour images (one in five made grey) only. Grey images enter with their channel three times. In [0, 1].

Cost: 42 million multiply-adds a 32 x 32 image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeword.errors import FormatError, ShapeError, Unsupported

FOLDER = Path(__file__).parent / "bundled"
WIDTHS = (32, 64, 96)
CLASSES = 10


class FeatureNet(nn.Module):
    """The frozen network: no parameters, only buffers, none of which a checkpoint keeps. ``load`` makes the one that is bundled."""

    def __init__(self, tensors: Mapping[str, Tensor], facts: dict[str, Any] | None = None) -> None:
        super().__init__()
        expected = shapes()
        if set(tensors) != set(expected):
            wrong = sorted(set(tensors) ^ set(expected))
            raise FormatError("missing-key" if wrong[0] in expected else "unknown-key",
                              f"a feature network has tensors too few or too many: {', '.join(wrong[:4])}")
        for name, shape in expected.items():
            value = tensors[name]
            if tuple(value.shape) != shape or not value.is_floating_point() or not bool(torch.isfinite(value.float()).all()):
                raise FormatError("shape", f"tensor {name!r} of a feature network is {value.dtype} {tuple(value.shape)}; "
                                           f"finite floats {shape} are needed")
            self.register_buffer(name.replace(".", "_"), value.detach().float().clone(), persistent=False)
        self.facts = facts or {}

    @classmethod
    def load(cls, source: str | Path = "features-cifar10") -> FeatureNet:
        """The bundled network of that name, or one from a file that the training script wrote. Unsupported or FormatError."""
        from safetensors import SafetensorError, safe_open
        path = FOLDER / f"{source}.safetensors" if isinstance(source, str) and "." not in source else Path(source)
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in FOLDER.glob("*.safetensors"))) or "none"
            raise Unsupported(f"there is no feature network {str(source)!r}; bundled are: {names}")
        try:
            with safe_open(str(path), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                facts = json.loads((file.metadata() or {}).get("features", "{}"))
        except (SafetensorError, ValueError) as error:
            raise FormatError("header", f"{path} cannot be read: {str(error)[:200]}") from None
        return cls(tensors, facts)

    @property
    def dim(self) -> int:
        """Width of ``pooled``."""
        return WIDTHS[-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(b, 1 or 3, H, W) in [0, 1] -> maps (b, 32, H, W), (b, 64, H/2, W/2), (b, 96, H/4, W/4), sides rounded down."""
        if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < 4:
            raise ShapeError(f"a feature network got {tuple(images.shape)}; (b, 1 or 3, H, W) with sides of at least 4 is needed")
        with torch.autocast(images.device.type, enabled=False):
            x = (images.float().expand(-1, 3, -1, -1) - self._get("mean").view(1, 3, 1, 1)) / self._get("std").view(1, 3, 1, 1)
            x = F.relu(self._conv(x, "stem"))
            maps = []
            for i in range(len(WIDTHS)):
                x = F.avg_pool2d(x, 2) if i else x
                y = self._conv(F.relu(self._conv(x, f"blocks_{i}_first")), f"blocks_{i}_second")
                x = F.relu(y + (self._conv(x, f"blocks_{i}_skip") if i else x))
                maps.append(x)
        return maps

    def pooled(self, images: Tensor) -> Tensor:
        """(b, 96): the last map's mean over its places."""
        return self(images)[-1].mean((2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """(b, 10): of the classes it was trained on."""
        return F.linear(self.pooled(images), self._get("head_weight"), self._get("head_bias"))

    def _conv(self, x: Tensor, name: str) -> Tensor:
        weight = self._get(f"{name}_weight")
        return F.conv2d(x, weight, self._get(f"{name}_bias"), padding=weight.shape[-1] // 2)

    def _get(self, name: str) -> Tensor:
        return self.get_buffer(name)


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the stored tensors."""
    out: dict[str, tuple[int, ...]] = {"mean": (3,), "std": (3,), "head.weight": (CLASSES, WIDTHS[-1]), "head.bias": (CLASSES,)}

    def conv(name: str, inputs: int, outputs: int, size: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = (outputs, inputs, size, size), (outputs,)

    conv("stem", 3, WIDTHS[0], 3)
    for i, (inputs, outputs) in enumerate(zip((WIDTHS[0], *WIDTHS[:-1]), WIDTHS)):
        conv(f"blocks.{i}.first", inputs, outputs, 3)
        conv(f"blocks.{i}.second", outputs, outputs, 3)
        if inputs != outputs:
            conv(f"blocks.{i}.skip", inputs, outputs, 1)
    return out
