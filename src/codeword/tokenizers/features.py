"""Frozen features for the codebook of VQGAN-LC (Zhu et al. 2024): what a trained network sees in many patches of images, clustered.

    f = PATCHES x PATCHES means of the last map of ``features-cifar10`` (96 wide), 16 vectors an image, as published
    B = k-means of all f, codebook_size / classes centres of each class where the images have labels, as published

The network (``nets/features.py``) is the small one of this library and stands in for CLIP's image tower, which the paper uses. B goes
into a ``ProjectedVQ`` by ``use_features`` (``codeword tokenizer train --features``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from codeword.data.images import Images
from codeword.errors import CodewordError
from codeword.nets.features import FeatureNet
from codeword.parts import random
from codeword.quantizers.projected_vq import cluster_features
from codeword.tokenizers.evaluate import BATCH, batches
from codeword.tokenizers.frame import from_bytes

PATCHES = 4
"""Patches a side of an image."""
ROWS = 32
"""Patches a centre, from as many images as that takes."""
LEAST = 4096
"""So many images are seen in any case, where there are."""


def codebook_features(images: Images, codebook_size: int, *, size: int, by_class: bool = True, iterations: int = 25, seed: int = 0,
                      advance: Callable[[int], Any] = lambda n: None) -> Tensor:
    """float32 (codebook_size, 96): centres of the patches of ``chosen`` images, cropped to squares of ``size``; ``by_class``: of each class
    apart, where labels are known. Raises CodewordError for more centres than patches, FormatError for an image that cannot be read."""
    seen = images.take(chosen(images, codebook_size, seed))
    if size < 4:
        raise CodewordError(f"features are taken of images of side {size}; at least 4 is needed")
    if len(seen) * PATCHES**2 < codebook_size:
        raise CodewordError(f"{len(seen)} images have {len(seen) * PATCHES**2} patches; {codebook_size} centres need as many at least")
    rows = patches(seen, size, advance)
    labels = None if seen.labels is None or not by_class else np.repeat(seen.labels, PATCHES**2)
    return cluster_features(rows, codebook_size, labels, iterations=iterations, seed=seed)


def chosen(images: Images, codebook_size: int, seed: int) -> np.ndarray:
    """Numbers of the images that ``codebook_size`` centres are made of, ascending."""
    count = min(len(images), max(LEAST, -(-ROWS * codebook_size // PATCHES**2)))
    return np.sort(random.choice(seed, len(images), count, stream="feature images"))


@torch.no_grad()
def patches(images: Images, size: int, advance: Callable[[int], Any] = lambda n: None) -> Tensor:
    """float32 (images x 16, 96): the patches of one image after those of another."""
    network = FeatureNet.load()
    found = []
    for batch in batches(images, size=size):
        means = F.adaptive_avg_pool2d(network(from_bytes(batch))[-1], PATCHES)
        found.append(means.permute(0, 2, 3, 1).reshape(-1, network.dim))
        advance(min(BATCH, len(batch)))
    return torch.cat(found)
