"""Explicit codebooks of vector-quantize-pytorch: one, one for each head, or one for each residual stage.

Their averages come along where they made the codewords: ``cluster_size`` n and ``embed_avg`` m, of which the codeword is m over the
smoothed n, are the counts and sums of ``parts.upkeep``, in tokens too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codeword.compat.parts import Reader, Wanted, around
from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.quantizer import Quantizer
from codeword.quantizers.cosine_vq import CosineVQ
from codeword.quantizers.product import Product
from codeword.quantizers.residual import Residual
from codeword.quantizers.rvq import RVQ
from codeword.quantizers.vq import VQ


def vq(read: Reader, wanted: Wanted) -> Quantizer:
    """A VectorQuantize."""
    cosine, learning = wanted("cosine", False), wanted("learning", None)
    books, counts, sums = _codebook(read, "_codebook.")
    learning = learning or _learned(books, counts, sums, cosine)
    heads, width = books.shape[0], books.shape[2]
    projected = read.projection()
    asked = wanted("heads", None)
    if heads == 1:
        fits = projected is not None and len(projected.weight_in) % width == 0
        heads = len(projected.weight_in) // width if projected is not None and fits else asked or 1
    if asked not in (None, heads) or heads < 1:
        raise CodewordError(f"heads={asked} was given, but the codebook and projections are those of {heads}")
    made = [_book(book, cosine, learning, wanted, None if counts is None or sums is None else (counts[h], sums[h]))
            for h, book in enumerate(books)]
    if heads > 1:
        inner: Quantizer = Product(quantizers=made[0], groups=heads) if len(made) == 1 else Product(quantizers=made)
    else:
        inner = made[0]
    return around(inner, projected, None, read)


def residual_vq(read: Reader, wanted: Wanted) -> Quantizer:
    """A ResidualVQ."""
    cosine, learning = wanted("cosine", False), wanted("learning", None)
    projected = read.projection()
    stages = []
    while f"layers.{len(stages)}._codebook.embed" in read.state:
        books, counts, sums = _codebook(read, f"layers.{len(stages)}._codebook.")
        learning = learning or _learned(books, counts, sums, cosine)
        if len(books) != 1:
            raise Unsupported(f"{read.what} has {len(books)} codebooks in stage {len(stages)}; one a stage is read")
        stages.append((books[0], None if counts is None or sums is None else (counts[0], sums[0])))
    if not stages:
        raise FormatError("missing-key", f"{read.what} has no layers.0._codebook.embed; a ResidualVQ has")
    if len({book.shape[1] for book, _ in stages}) != 1:
        raise FormatError("shape", f"{read.what} has stages of widths {[book.shape[1] for book, _ in stages]}; one width is needed")
    first = stages[0][0]
    if len(stages) > 1 and all(book.shape == first.shape and torch.equal(book, first) for book, _ in stages):
        read.notes.append("all stages hold the same codebook, as when it is shared there; here each has its own: training may part them")
    if cosine or len({len(book) for book, _ in stages}) > 1 or not 2 <= len(first) <= 1 << 16 or len(stages) > 64:
        inner: Quantizer = Residual(quantizers=[_book(book, cosine, learning, wanted, averages) for book, averages in stages])
    else:
        inner = _rvq(stages, learning, wanted)
    return around(inner, projected, None, read)


def _rvq(stages: list, learning: str, wanted: Wanted) -> RVQ:
    books = torch.stack([book for book, _ in stages])
    rvq = RVQ(dim=books.shape[2], num_codebooks=len(books), codebook_size=books.shape[1], beam=1, learning=learning,
              commitment=wanted("commitment", 1.0), decay=wanted("decay", 0.8))
    with torch.no_grad():
        rvq.codebooks.copy_(books)
        rvq.upkeep.start(books)
        if learning == "ema" and all(averages is not None for _, averages in stages):
            rvq.upkeep.counts.copy_(torch.stack([counts for _, (counts, _) in stages]))
            rvq.upkeep.sums.copy_(torch.stack([sums for _, (_, sums) in stages]))
            rvq.upkeep.updates.fill_(1)
    return rvq


def _codebook(read: Reader, under: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Codewords (heads, K, d), and their averages' counts (heads, K) and sums."""
    if any(name.startswith(under + "vq_bridge.") for name in read.state):
        raise Unsupported(f"{read.what} has a codebook made by a bridge; load its output as a plain codebook")
    if under + "codebook_mean" in read.state:
        raise Unsupported(f"{read.what} has an affine codebook, whose forward pass moves it in eval mode too; load a plain codebook")
    books = read.tensor(under + "embed", 3)
    started = read.state.pop(under + "initted", None)
    if started is not None and not bool(started.all()):
        raise Unsupported(f"{read.what} has a codebook that waits for its k-means start; train it first")
    counts, sums = read.state.pop(under + "cluster_size", None), read.state.pop(under + "embed_avg", None)
    if counts is None or sums is None:
        return books, None, None
    if counts.shape != books.shape[:2] or sums.shape != books.shape or bool((counts < 0).any()):
        raise FormatError("shape", f"{read.what} has averages of shape {tuple(counts.shape)} and {tuple(sums.shape)} for a codebook "
                          f"{tuple(books.shape)}")
    return books, counts, sums


def _learned(books: Tensor, counts: Tensor | None, sums: Tensor | None, cosine: bool) -> str:
    """"ema" where most codewords are what their averages make of them, else "gradient"."""
    if counts is None or sums is None:
        return "gradient"
    made = sums / counts.unsqueeze(2).clamp(min=1e-5)
    made = nn.functional.normalize(made, dim=2) if cosine else made
    gap, length = (made - books).norm(dim=2), books.norm(dim=2)
    return "ema" if float((gap <= 0.01 * length + 1e-6).float().mean()) > 0.5 else "gradient"


def _book(book: Tensor, cosine: bool, learning: str, wanted: Wanted, averages: tuple[Tensor, Tensor] | None) -> Quantizer:
    """One codebook (K, d)."""
    kind = CosineVQ if cosine else VQ
    if cosine and not bool(torch.isclose(book.norm(dim=1), torch.ones(len(book)), atol=1e-3).all()):
        raise Unsupported("a codebook of cosine similarity has codewords that are not of length 1, as theirs are; is cosine right?")
    made = kind(dim=book.shape[1], codebook_size=len(book), learning=learning, commitment=wanted("commitment", 1.0),
                decay=wanted("decay", 0.8))
    with torch.no_grad():
        made.codebook.copy_(book)
        made.upkeep.start(book)
        if learning == "ema" and averages is not None:
            made.upkeep.counts.copy_(averages[0])
            made.upkeep.sums.copy_(averages[1])
            made.upkeep.updates.fill_(1)  # these are counts of tokens, not the shares of a first start
    return made
