"""Small pictures with something to see, made from a seed."""

from __future__ import annotations

import numpy as np


def pictures(count: int, side: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 (count, side, side, channels): a disc or a bar on a gradient."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    out = np.empty((count, side, side, channels))
    for i in range(count):
        angle, middle, radius = rng.uniform(0, 6.3), rng.uniform(0.2, 0.8, 2), rng.uniform(0.1, 0.3)
        ground = (np.cos(angle) * x + np.sin(angle) * y)[..., None] * rng.uniform(-0.5, 0.5, channels) + rng.uniform(0.2, 0.8, channels)
        shape = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 < radius**2 if i % 2 else abs(x - middle[0]) < radius / 2
        out[i] = np.where(shape[..., None], rng.uniform(0, 1, channels), ground)
    return np.rint(out.clip(0, 1) * 255).astype(np.uint8)
