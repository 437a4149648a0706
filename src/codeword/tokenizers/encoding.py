"""From images to token shards and back, a segment at a time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from codeword.data.images import Images, centre, scale
from codeword.errors import FormatError
from codeword.io import jobs
from codeword.tokenizers.dynamic_codes import joined, singles
from codeword.tokenizers.frame import TrainedTokenizer, to_bytes
from codeword.tokenizers.shards import TokenShards, TokenWriter
from codeword.tokenizers.tokens import Tokens

BATCH_PIXELS = 1 << 18
"""Pixels encoded or decoded at once, one image at least."""


def encode(tokenizer: TrainedTokenizer, images: Images, writer: TokenWriter, *, size: int | None, step: int = 512, skip_bad: bool = False,
           advance: Callable[[int], Any] = lambda n: None) -> bool:
    """Write tokens of ``images`` from ``writer.consumed`` on, ``step`` images a segment; ``size`` None: whole images. True where a signal
    ended it early; what is written stays. Raises FormatError naming an image that cannot be decoded, unless ``skip_bad``."""
    with jobs.graceful() as stop:
        while writer.consumed < len(images):
            if stop:
                writer.close()
                return True
            rows = range(writer.consumed, min(len(images), writer.consumed + step))
            pictures, kept, bad = _decoded(images, rows, size, skip_bad)
            tokens = _tokens(tokenizer, pictures)
            labels = None if images.labels is None else images.labels[kept].tolist()
            writer.write(tokens, rows.stop, names=[images.names[row] for row in kept] if images.named else None, labels=labels, skipped=bad)
            advance(len(rows))
        writer.finish()
    writer.close()
    return False


def decode(tokenizer: TrainedTokenizer, shards: TokenShards, rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(item, uint8 (height, width, channels)) of ``rows``, those of one layout together."""
    for layout, run in groupby(rows, key=lambda row: shards[row].layout):
        group = list(run)
        each = _at_once(math.prod(layout.grid) * tokenizer.factor**2 if layout.grid else tokenizer.size**2)
        for start in range(0, len(group), each):
            part = group[start:start + each]
            tokens = shards.batch(part) if layout.grid else joined([shards[row] for row in part])
            values = to_bytes(tokenizer.decode(tokens)).cpu().permute(0, 2, 3, 1)
            yield from zip(part, values.contiguous().numpy())


def estimate(tokenizer: TrainedTokenizer, images: Images, size: int | None) -> dict[str, Any]:
    """Time from a few images, bytes and memory from their shapes."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), 32)).astype(int)).tolist()
    began = time.perf_counter()
    pictures, _, _ = _decoded(images, rows, size, True)
    tokens = _tokens(tokenizer, pictures)
    seconds = (time.perf_counter() - began) / max(1, len(pictures)) * len(images)
    places = round(sum(len(item.indices) for item in tokens) / max(1, len(tokens)) * len(images))
    largest = max((picture.size for picture in pictures), default=0)
    return {"images": len(images), "tokens": places, "seconds": seconds,
            "bytes": places * len(tokenizer.quantizer.levels) * tokenizer.quantizer.index_dtype.itemsize,
            "memory_bytes": 512 * largest + 4 * 64 * max(largest, 3 * BATCH_PIXELS)}


def picture_name(item: int, name: str | None) -> str:
    """A file name for item ``item``: its number, and the plain letters of what it was called."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePosixPath(name).stem if name else "").strip("-.")[:80]
    return f"{item:06d}{'-' + stem if stem else ''}.png"


def _decoded(images: Images, rows: Sequence[int], size: int | None, skip_bad: bool) -> tuple[list[np.ndarray], list[int], list[str]]:
    pictures: list[np.ndarray] = []
    kept: list[int] = []
    bad: list[str] = []
    for row in rows:
        try:
            image = images[row]
        except FormatError as error:
            if not skip_bad:
                raise
            bad.append(str(error))
            continue
        pictures.append(image if size is None else centre(scale(image, size), size, size))
        kept.append(row)
    return pictures, kept, bad


def _tokens(tokenizer: TrainedTokenizer, pictures: Sequence[np.ndarray]) -> list[Tokens]:
    """One ``Tokens`` a picture; neighbours of one shape are encoded together."""
    out: list[Tokens] = []
    for shape, run in groupby(pictures, key=lambda picture: picture.shape):
        group = list(run)
        each = _at_once(shape[0] * shape[1])
        for start in range(0, len(group), each):
            found = tokenizer.encode(torch.from_numpy(np.stack(group[start:start + each])).permute(0, 3, 1, 2))
            out += [found._replace(indices=indices) for indices in found.indices] if found.mask is None else singles(found)
    return out


def _at_once(pixels: int) -> int:
    return max(1, BATCH_PIXELS // max(1, pixels))
