"""Loss terms of learned codebooks. Each is a mean over all elements of the kept rows, so weights mean the same at any width."""

from __future__ import annotations

from torch import Tensor

from codeword.parts import arrays


def codebook_term(rows: Tensor, chosen: Tensor, keep: Tensor | None) -> Tensor:
    """|sg(x) - c|^2: pulls the chosen codewords to the data."""
    return arrays.masked_mean((chosen - rows.detach()).square().mean(-1), keep)


def commitment_term(rows: Tensor, chosen: Tensor, keep: Tensor | None) -> Tensor:
    """|x - sg(c)|^2: pulls the data (an encoder's output) to the chosen codewords."""
    return arrays.masked_mean((rows - chosen.detach()).square().mean(-1), keep)
