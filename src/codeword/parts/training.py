"""Minibatch Adam on a quantizer's own loss: what ``fit`` means where no closed form exists.

Deterministic given the seed: rows come in seeded order from ``parts/random``, and gradients are accumulated and applied on one
thread, since a parallel sum would change with the number of threads (the searches inside the loss are exact and use them all).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from codeword.parts import random
from codeword.parts.threads import one_thread


def minimise(loss: Callable[[Tensor], Tensor], parameters: Sequence[nn.Parameter], rows: Tensor, *, steps: int, batch_size: int,
             learning_rate: float, seed: int, weights: Tensor | None = None, schedule: Callable[[float], float] | None = None,
             betas: tuple[float, float] = (0.9, 0.999), clip: float | None = None) -> list[float]:
    """``steps`` of Adam (Kingma and Ba 2015) on ``loss(batch)`` over float32 rows (n, dim). ``schedule(share of steps done)`` scales the
    rate (None: a linear fall to zero); ``clip`` bounds the norm of the whole gradient. Row weights act through the sampling. Returns
    the loss of every step."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=betas)
    schedule = schedule or linear_fall
    history = []
    with torch.enable_grad():
        for step, batch in enumerate(minibatches(len(rows), batch_size, steps, seed, weights)):
            optimizer.param_groups[0]["lr"] = learning_rate * schedule(step / steps)
            optimizer.zero_grad()
            value = loss(rows[batch.to(rows.device)])
            with one_thread():
                value.backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(parameters, clip)
                optimizer.step()
            history.append(float(value.detach()))
    optimizer.zero_grad()
    return history


def linear_fall(done: float) -> float:
    """From 1 to 0 as the share ``done`` of all steps grows from 0 to 1."""
    return 1 - done


def warm_hold_fall(warm: float, hold: float, *, first: float = 0.005, last: float = 0.01) -> Callable[[float], float]:
    """A rise from ``first`` to 1 over the share ``warm`` of all steps, 1 for the share ``hold`` of the rest, then a fall to ``last``;
    all linear (FVQ's schedule)."""
    def factor(done: float) -> float:
        if done < warm:
            return first + (1 - first) * done / warm
        rest = (done - warm) / (1 - warm)
        return 1.0 if rest <= hold else 1 - (1 - last) * (rest - hold) / (1 - hold)
    return factor


def minibatches(n: int, size: int, steps: int, seed: int, weights: Tensor | None = None) -> Iterator[Tensor]:
    """int64 row numbers for each step: passes in their own seeded order, of whole batches, so that each pass leaves out the n mod size
    rows at the end of its order, other rows every time. With weights, seeded draws with replacement in proportion to them."""
    size = min(size, n)
    if weights is not None:
        ends = np.cumsum(weights.double().cpu().numpy())
        for step in range(steps):
            drawn = np.searchsorted(ends, random.uniform(seed, size, stream=f"minibatch {step}") * ends[-1], side="right")
            yield torch.from_numpy(np.minimum(drawn, n - 1))
        return
    a_pass = n // size
    order = np.empty(0, dtype=np.int64)
    for step in range(steps):
        if step % a_pass == 0:
            order = random.permutation(seed, n, stream=f"minibatch pass {step // a_pass}")
        start = step % a_pass * size
        yield torch.from_numpy(order[start:start + size])
