"""How good a tokenizer is on images it has not seen. Decoded pixels are rounded to uint8 first: what a user gets.

    error        mean squared error of pixels in [0, 1];  psnr = mean over images of 10 log10(1 / error of the image)
    ssim         structural similarity; ms_ssim over ``ms_ssim_scales`` scales; frechet: over ``features`` (report/images.py)
    usage        share of codewords chosen at least once over all images, mean over the positions of a code
    perplexity   exp of the entropy of the choices: as many equally likely codewords would carry the same information
    bits         a pixel: tokens an image times bits a token, over its pixels; ``entropy_bits`` with an ideal code for the frequencies
    tokens       an image, on average; where that varies, ``fine``: share of fine cells, ``tokens_least``, ``tokens_most``, and the map
                 of fine cells counts in ``bits``, one bit a cell (alone: ``gate_bits``), in ``entropy_bits`` as an adaptive coder has it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codeword.data.images import Images, centre, scale
from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.nets.features import FeatureNet
from codeword.report import images as measures
from codeword.report.usage import UsageMeter
from codeword.tokenizers.dynamic import DynamicTokenizer
from codeword.tokenizers.dynamic_codes import adaptive_bits
from codeword.tokenizers.frame import TrainedTokenizer, to_bytes
from codeword.tokenizers.recorder import usage_statistics

BATCH = 64


class Line(NamedTuple):
    """One number of an evaluation: its key, how people read it, what it means."""

    key: str
    title: str
    form: str
    meaning: str
    scale: float = 1.0

    def name(self, numbers: dict[str, Any]) -> str:
        """The title; MS-SSIM's says over how many scales it is, since another number of them is another measure."""
        return f"{self.title}, {numbers['ms_ssim_scales']} of 5 scales" if self.key == "ms_ssim" else self.title

    def show(self, numbers: dict[str, Any]) -> str:
        return self.form.format(self.scale * numbers[self.key])


MEANING = (
    Line("images", "images", "{:,.0f}", "held-out images that were encoded and decoded"),
    Line("psnr", "PSNR", "{:.2f} dB", "peak signal over error, mean over images; higher is better, about 30 dB looks clean"),
    Line("ssim", "SSIM", "{:.4f}", "structural similarity, 1 is equal"),
    Line("ms_ssim", "MS-SSIM", "{:.4f}", "the same over several halvings, as many as these images have room for (five need sides of 176)"),
    Line("frechet", "Frechet distance", "{:.2f}",
         "between features-cifar10 of originals and reconstructions (a small network of this library: no published FID is comparable), "
         "0 is equal; few images raise it"),
    Line("usage", "codewords in use", "{:.1f} %", "chosen at least once over all these images", 100.0),
    Line("perplexity", "perplexity", "{:,.0f}", "so many equally likely codewords would carry the same information"),
    Line("tokens", "tokens an image", "{:.1f}", "on average"),
    Line("tokens_least", "least tokens", "{:,.0f}", "of the easiest image"),
    Line("tokens_most", "most tokens", "{:,.0f}", "of the hardest image"),
    Line("fine", "fine cells", "{:.1f} %", "share of the cells that have four fine tokens instead of one", 100.0),
    Line("bits", "bits a pixel", "{:.3f}", "as stored in a packed string: tokens times bits of a token, over pixels; with the map of "
                                           "fine cells, where there is one"),
    Line("gate_bits", "of that, the map", "{:.3f}", "which cells are fine: one bit a cell, over pixels"),
    Line("entropy_bits", "entropy, bits a pixel", "{:.3f}", "with an ideal code for the codewords' frequencies, and an adaptive "
         "one for the map of fine cells, where there is one"),
)


class Look(NamedTuple):
    """``numbers`` by the keys of MEANING and "error"; ``meter`` hits of every codeword; the first originals and reconstructions, uint8
    (n, height, width, channels), and where tokens are dynamic which of their cells are fine, bool (n, cells, cells); ``bad`` images that
    could not be read."""

    numbers: dict[str, Any]
    meter: UsageMeter
    originals: np.ndarray
    reconstructions: np.ndarray
    bad: list[str]
    fine: np.ndarray | None = None


def batches(images: Images, *, size: int, most: int | None = None, bad: list[str] | None = None) -> Iterator[Tensor]:
    """uint8 (b, channels, size, size) of centre crops, in order; unreadable images go to ``bad``, or are an error."""
    crops: list[np.ndarray] = []
    for i in range(min(len(images), most or len(images))):
        try:
            crops.append(centre(scale(images[i], size), size, size))
        except FormatError as error:
            if bad is None:
                raise
            bad.append(str(error))
        if len(crops) == BATCH:
            yield torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
            crops = []
    if crops:
        yield torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


@torch.no_grad()
def evaluate(tokenizer: TrainedTokenizer, images: Images, *, size: int, most: int | None = None, skip_bad: bool = False, keep: int = 16,
             thorough: bool = True, advance: Callable[[int], Any] = lambda n: None) -> Look:
    """Reconstruct centre crops of ``size`` and measure. ``thorough`` False: errors and usage only, as while training."""
    levels = tokenizer.quantizer.levels
    meter = UsageMeter(levels)
    errors: list[Tensor] = []
    kept: list[tuple[Tensor, Tensor]] = []
    bad: list[str] = []
    further = _Further() if thorough else None
    lengths, maps = [torch.empty(0, dtype=torch.int64)], []
    for batch in batches(images, size=size, most=most, bad=bad if skip_bad else None):
        tokens = tokenizer.encode(batch)
        values = to_bytes(tokenizer.decode(tokens)).cpu()
        mask = torch.ones(tokens.indices.shape[:2], dtype=torch.bool) if tokens.mask is None else tokens.mask.cpu()
        meter.add(tokens.indices, mask=mask)
        lengths.append(mask.sum(1))
        if isinstance(tokenizer, DynamicTokenizer):
            maps.append(tokenizer.gates(tokens).cpu())
        errors.append((values.float() - batch.float()).div(255).square().mean((1, 2, 3)).double())
        if sum(len(pair[0]) for pair in kept) < keep:
            kept.append((batch, values))
        if further is not None:
            further.take(batch, values)
        advance(len(batch))
    if not errors:
        raise CodewordError(f"none of the images of {images.source} could be read: {bad[0] if bad else 'there are none'}")
    each = torch.cat(errors)
    numbers = {"images": len(each), "error": float(each.mean()), "psnr": float((-10 * torch.log10(each.clamp(min=1e-10))).mean()),
               **(further.numbers() if further else {}), **usage_statistics(meter),
               **_spent(torch.cat(lengths), torch.cat(maps) if maps else None, tokenizer, meter, size * size)}
    first, second = (torch.cat(part)[:keep].permute(0, 2, 3, 1).contiguous().numpy() for part in zip(*kept))
    return Look(numbers, meter, first, second, bad, torch.cat(maps)[:keep].numpy() if maps else None)


def _spent(lengths: Tensor, fine: Tensor | None, tokenizer: TrainedTokenizer, meter: UsageMeter, pixels: int) -> dict[str, float]:
    """Tokens an image and bits a pixel, of codes of these lengths and maps of fine cells."""
    tokens = float(lengths.double().mean())
    found = {"tokens": tokens, "bits": tokens * sum(tokenizer.quantizer.widths) / pixels,
             "entropy_bits": tokens * sum(meter.entropy) / pixels}
    if fine is not None:
        cells = fine[0].numel()
        found["bits"] += cells / pixels
        found["entropy_bits"] += min(cells, adaptive_bits(fine) / len(fine)) / pixels
        found |= {"gate_bits": cells / pixels, "fine": float(fine.double().mean()), "tokens_least": float(lengths.min()),
                  "tokens_most": float(lengths.max())}
    return found


class _Further:
    """Similarities, and the distance of features, which need all images."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.images, self.scales = 0, 0
        self.network: FeatureNet | None = None
        try:
            self.network = FeatureNet.load()
            self.originals, self.values = (measures.Moments(self.network.dim) for _ in range(2))
        except Unsupported as error:
            self.left_out = str(error)

    def take(self, originals: Tensor, values: Tensor) -> None:
        x, y = originals.float() / 255, values.float() / 255
        self.images += len(x)
        self.scales = measures.most_scales(*x.shape[2:])
        if self.scales:
            self._add("ssim", measures.ssim(x, y))
            self._add("ms_ssim", measures.ms_ssim(x, y, scales=self.scales))
        if self.network is not None and min(x.shape[2:]) >= 4:
            self.originals.add(self.network.pooled(x))
            self.values.add(self.network.pooled(y))

    def numbers(self) -> dict[str, Any]:
        found: dict[str, Any] = {key: total / self.images for key, total in self.sums.items()}
        found["ms_ssim_scales"] = self.scales
        if self.network is None:
            return {**found, "frechet": None, "frechet_left_out": self.left_out}
        found["frechet"] = measures.frechet_distance(self.originals, self.values) if self.originals.count > 1 else None
        return {**found, "features": "features-cifar10"}

    def _add(self, key: str, values: Tensor) -> None:
        self.sums[key] = self.sums.get(key, 0.0) + float(values.sum())
