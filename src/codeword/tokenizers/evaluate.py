"""How good a tokenizer is on images it has not seen.

    error        mean squared error of pixels in [0, 1];  psnr = mean over images of 10 log10(1 / error of the image)
    usage        share of codewords chosen at least once over all images, mean over the positions of a code
    perplexity   exp of the entropy of the choices: as many equally likely codewords would carry the same information
    bits/pixel   tokens an image times bits a token, over its pixels; ``entropy`` the same with an ideal code for the codewords' frequencies

Decoded pixels are rounded to uint8 first: what a user gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codeword.data.images import Images, centre, scale
from codeword.errors import FormatError
from codeword.tokenizers.image import ImageTokenizer, to_bytes, usage_of

BATCH = 64


class Look(NamedTuple):
    """Errors on some images: ``psnr`` and ``error`` means; ``counts`` hits of every codeword; first originals and reconstructions
    uint8 (n, height, width, channels)."""

    psnr: float
    error: float
    counts: Tensor
    originals: np.ndarray
    reconstructions: np.ndarray
    images: int


def batches(images: Images, *, size: int, most: int | None = None, batch: int = BATCH,
            bad: Callable[[str, str], None] | None = None) -> Iterator[tuple[list[int], Tensor]]:
    """(numbers, uint8 (b, channels, size, size)) of centre crops, in order; unreadable images go to ``bad``, or are an error."""
    numbers: list[int] = []
    crops: list[np.ndarray] = []
    for i in range(min(len(images), most or len(images))):
        try:
            crops.append(centre(scale(images[i], size), size, size))
            numbers.append(i)
        except FormatError as error:
            if bad is None:
                raise
            bad(images.names[i], str(error))
        if len(crops) == batch:
            yield numbers, torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
            numbers, crops = [], []
    if crops:
        yield numbers, torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


@torch.no_grad()
def squared_errors(tokenizer: ImageTokenizer, images: Images, *, size: int, most: int | None = None, keep: int = 16) -> Look:
    """Reconstruct centre crops and measure."""
    counts = torch.zeros(sum(tokenizer.quantizer.levels), dtype=torch.int64)
    errors: list[Tensor] = []
    kept: list[tuple[Tensor, Tensor]] = []
    for _, batch in batches(images, size=size, most=most):
        tokens = tokenizer.encode(batch)
        values = to_bytes(tokenizer.decode(tokens)).cpu()
        counts += usage_of(tokens.indices, tokenizer.quantizer.levels).cpu()
        errors.append((values.float() - batch.float()).div(255).square().mean((1, 2, 3)).double())
        if sum(len(pair[0]) for pair in kept) < keep:
            kept.append((batch, values))
    each = torch.cat(errors)
    first, second = (torch.cat(part)[:keep].permute(0, 2, 3, 1).contiguous().numpy() for part in zip(*kept))
    return Look(float((-10 * torch.log10(each.clamp(min=1e-10))).mean()), float(each.mean()), counts, first, second, len(each))


def evaluate(tokenizer: ImageTokenizer, images: Images, *, size: int, most: int | None = None) -> dict[str, Any]:
    """All numbers of the docstring as JSON."""
    raise NotImplementedError
