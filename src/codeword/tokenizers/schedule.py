"""Learning rate over a training run: warm-up, a plateau, annealing. (VQBridge, 2026, credits half of its gain to the last part: the
encoder's drift dies out, and the codewords catch up with it.)

    warm-up     linear from 0.005 to 1 over ``warmup`` steps, a tenth of the run at most
    plateau     1 until ``hold`` of the remaining steps is over
    annealing   linear or cosine down to ``floor``; "constant" has none
"""

from __future__ import annotations

import math

SHAPES = ("linear", "cosine", "constant")


def rate(step: int, total: int, *, shape: str = "linear", warmup: int = 100, hold: float = 0.3, floor: float = 0.01) -> float:
    """Factor of the peak rate at ``step`` 0 .. total - 1. Warm-up takes at most a tenth of the run."""
    warmup = min(warmup, total // 10)
    if step < warmup:
        return 0.005 + 0.995 * step / warmup
    if shape == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    fall = min(1.0, max(0.0, (done - hold) / (1 - hold)))
    return floor + (1 - floor) * (1 - fall if shape == "linear" else (1 + math.cos(math.pi * fall)) / 2)
