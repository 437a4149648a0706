"""A quantizer that calls its own ``update``: for loops that only know ``forward``, ``backward`` and ``step``.

    vq = AutoUpdate(codeword.VQ(dim=64, codebook_size=1024, learning="ema").fit(start))
    out = vq(x)                    # first applies the update that the previous training output asks for, then quantizes

``forward`` of a quantizer is pure, and ``update`` is called after backward, on every rank. This wrapper keeps the statistics of the last
training output and applies them at the start of the next training forward: by then backward is over. So it is one step late, which
moving averages do not notice. What is still waiting when training ends is applied by leaving training mode, or by ``flush``.

What it cannot know, and ``update`` called by hand can:

    gradient accumulation    every micro-batch counts as a step. By hand: ``update(accumulated(outs))`` once a step.
    several ranks            all ranks must call forward, eval and flush equally often, with an empty batch if need be.
    checkpointing            inside ``torch.utils.checkpoint`` forward runs twice, the second time within backward: keep it outside.
    torch.compile            breaks the graph here: compile what is before and after it, or call ``update`` by hand.
    saving                   the state of the quantizer lacks what is still waiting: flush first.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from codeword.errors import CodewordError
from codeword.quantizer import Quantized, Quantizer, Report


class AutoUpdate(nn.Module):
    """quantizer: any Quantizer, combinators too. ``report``: what the last update changed."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        if not isinstance(quantizer, Quantizer):
            raise CodewordError(f"AutoUpdate got {type(quantizer).__name__}; a Quantizer is needed")
        self.quantizer = quantizer
        self.report = Report()
        self._waiting: Quantized | None = None

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Quantized:
        """``quantizer(x, mask=mask)``, in training mode after the update that the previous call left. Raises what these raise."""
        if not self.training:
            return self.quantizer(x, mask=mask)
        self.flush()
        out = self.quantizer(x, mask=mask)
        self._waiting = out._replace(values=out.values.new_empty(0), loss=out.loss.detach())  # no graph, no activations
        return out

    def flush(self) -> Report:
        """Apply the update that is waiting, if any, and return what it changed. Collective."""
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self.report = self.quantizer.update(waiting)
            return self.report
        return Report()

    def train(self, mode: bool = True) -> Self:
        if not mode:
            self.flush()
        return super().train(mode)
