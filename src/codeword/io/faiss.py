"""faiss index files as our own objects, without faiss: a quantizer whose ``decode`` gives what faiss's ``reconstruct`` gives, and an
index over the very codes of the file. Nothing is encoded again.

    IndexPQ, IndexIVFPQ                    PQ                        every bit of float32
    OPQ in front of them                   OPQ                       to rounding: faiss turns back in float32, we in float64
    IndexScalarQuantizer, its IVF form     ScalarQuantizer           every bit; 8bit_direct and tqmse as tables of levels
      QT_fp16, QT_bf16                     Half                      every bit
    IndexRaBitQ, its IVF form, 1 bit       PlainRaBitQ               every bit
      several bits                         PlainRaBitQ               all bits are decoded, where faiss's reconstruct looks at the first
    other linear maps, PCA, centring       Projected around these    to rounding, as OPQ

"Every bit" holds for lists that keep residuals, too: value and centroid are added once, in float32. Rows move as they are, ids and lists
with them. A linear map in front of lists is taken into their centroids (A'(c - b) for c), so that lists, queries and decoded values live
in the space of the caller's vectors. ``faiss_layout`` reads the bytes and says what is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, FormatError
from codeword.io import faiss_layout as layout
from codeword.io.faiss_layout import Found, Linear, Product, Scalar, Signs
from codeword.parts import arrays
from codeword.quantizer import Codes, Quantizer
from codeword.quantizers.half import Half
from codeword.quantizers.opq import OPQ
from codeword.quantizers.plain_rabitq import PlainRaBitQ
from codeword.quantizers.pq import PQ
from codeword.quantizers.projected import Projected
from codeword.quantizers.scalar import ScalarQuantizer
from codeword.search.index import Index

ORTHONORMAL = 4e-5
"""What A A' may miss of the identity; the same bound decides whether faiss reconstructs."""

Block = tuple[Codes, Tensor, Tensor | None]


class Imported(NamedTuple):
    """``codes`` of all rows in their order, for a file without lists; ``index`` over them; ``notes``: what differs from faiss."""

    found: Found
    quantizer: Quantizer
    codes: Codes | None
    index: Index
    notes: tuple[str, ...]


def load(path: str | Path) -> Imported:
    """The faiss index in ``path``. Raises FormatError where it is damaged, or holds something else than what is read."""
    return convert(layout.read(path), str(path))


def convert(found: Found, what: str) -> Imported:
    """As ``load``, of what ``layout.read`` found."""
    transforms = _folded(found.transforms)
    lists = found.lists
    residual = lists is not None and lists.residual
    quantizer = _wrapped(_quantizer(found, what), [_linear_part(t) for t in transforms] if residual else transforms, what)
    index = Index(dim=found.dim, metric=found.metric, quantizer=quantizer, nlist=None if lists is None else len(lists.centroids))
    if lists is not None:
        index.route(_mapped_back(lists.centroids, transforms), residual=residual)
        index.nprobe = lists.nprobe
    kept: list[Codes] = []
    try:
        for codes, ids, labels in _blocks(found, quantizer, what):
            index.add_codes(codes, ids, labels)
            if labels is None:
                kept.append(codes)
    except FormatError:
        raise
    except CodewordError as error:  # ids that stand twice, say: the file's fault
        raise FormatError("value", f"{what}: {error}") from None
    codes = None if lists is not None else _joined(kept, quantizer)
    return Imported(found, quantizer, codes, index, tuple(_notes(found, transforms)))


# ---------------------------------------------------------------------- the quantizer


def _quantizer(found: Found, what: str) -> Quantizer:
    """What made the codes, without the transforms in front."""
    coder = found.coder
    if isinstance(coder, Product):
        books, size, width = coder.centroids.shape
        made: Quantizer = _with(PQ(dim=books * width, num_codebooks=books, codebook_size=size), codebooks=coder.centroids)
    elif isinstance(coder, Scalar):
        made = _scalar(coder, _inner_dim(found))
    else:
        made = PlainRaBitQ(dim=_inner_dim(found), code_bits=coder.bits)
        made = made if coder.center is None else _with(made, center=coder.center)
    try:
        made.check_state()
    except FormatError as error:
        raise FormatError("value", f"{what}: {error}") from None
    return made


def _scalar(coder: Scalar, dim: int) -> Quantizer:
    if coder.type in ("QT_fp16", "QT_bf16"):
        return Half(dim=dim, format="float16" if coder.type == "QT_fp16" else "bfloat16")
    if coder.type.startswith("QT_8bit_direct") or coder.type.endswith("tqmse"):
        levels = coder.trained[:1 << coder.bits] if coder.type.endswith("tqmse") else np.arange(256) - 128 * coder.type.endswith("signed")
        return _with(ScalarQuantizer(dim=dim, code_bits=coder.bits, placement="lloyd", per="all"), table=levels[None])
    per = "all" if coder.type.endswith("uniform") else "dim"
    low, span = np.split(coder.trained, 2)
    return _with(ScalarQuantizer(dim=dim, code_bits=coder.bits, per=per), low=low, span=span)


def _with(quantizer: Quantizer, **state: np.ndarray) -> Quantizer:
    """``quantizer``, fitted by these tensors."""
    tensors = {name: tensor.detach() for name, tensor in (*quantizer.named_buffers(), *quantizer.named_parameters())}
    for name, values in state.items():
        tensors[name].copy_(torch.from_numpy(np.array(values, dtype=np.float32)))
    quantizer.fitted = True
    return quantizer


def _inner_dim(found: Found) -> int:
    return len(found.transforms[-1].bias) if found.transforms else found.dim


# ---------------------------------------------------------------------- transforms


def _folded(transforms: tuple[Linear, ...]) -> list[Linear]:
    """Centring is taken into the map behind it where that has no mean of its own."""
    out: list[Linear] = []
    for transform in transforms:
        if out and out[-1].matrix is None and transform.matrix is not None:
            transform = transform._replace(mean=out.pop().mean)
        out.append(transform)
    return out


def _linear_part(transform: Linear) -> Linear:
    """What a difference of two vectors passes through."""
    return transform._replace(bias=np.zeros_like(transform.bias), mean=np.zeros_like(transform.mean))


def _wrapped(quantizer: Quantizer, transforms: list[Linear], what: str) -> Quantizer:
    if len(transforms) > layout.MAX_TRANSFORMS:
        raise FormatError("limit", f"{what} has {len(transforms)} transforms; at most {layout.MAX_TRANSFORMS} are read")
    for transform in transforms:
        _check_orthonormal(transform, what)
    for transform in reversed(transforms):
        matrix, bias, mean = transform
        if matrix is None and not mean.any():
            continue
        if isinstance(quantizer, PQ) and matrix is not None and len(matrix) == len(mean) and not bias.any() and not mean.any():
            quantizer = _with(OPQ(dim=quantizer.dim, num_codebooks=quantizer.num_codebooks, codebook_size=quantizer.codebook_size),
                              codebooks=quantizer.codebooks.detach().numpy(), rotation=matrix)
            continue
        state = {"mean": mean, "shift": bias, "base": -bias} | ({} if matrix is None else {"axes": matrix})
        quantizer = _with(Projected(quantizer=quantizer, dim=len(mean), map="scale" if matrix is None else "pca"), **state)
    return quantizer


def _check_orthonormal(transform: Linear, what: str) -> None:
    if transform.matrix is None:
        return
    rows, columns = transform.matrix.shape
    if rows <= columns:
        wide = transform.matrix.astype(np.float64)
        if np.abs(wide @ wide.T - np.eye(rows)).max() <= ORTHONORMAL:
            return
    raise FormatError("kind", f"{what} has a linear map of {columns} to {rows} dimensions whose rows are not orthonormal: distances are "
                              "not those of the vectors, and faiss cannot reconstruct them; whitening and widening are not read")


def _mapped_back(centroids: np.ndarray, transforms: list[Linear]) -> Tensor:
    """float32 (nlist, dim) in the space of the caller's vectors."""
    values = centroids.astype(np.float64)
    for matrix, bias, mean in reversed(transforms):
        values = values - bias
        values = (values if matrix is None else values @ matrix.astype(np.float64)) + mean
    return torch.from_numpy(values.astype(np.float32))


# ---------------------------------------------------------------------- codes


def _blocks(found: Found, quantizer: Quantizer, what: str) -> Iterator[Block]:
    """(codes, ids, labels) of all rows, some at a time; labels None without lists."""
    step = arrays.block_rows(len(quantizer.levels))
    if found.lists is None:
        for start in range(0, found.rows, step):
            stop = min(start + step, found.rows)
            ids = np.arange(start, stop) if found.ids is None else found.ids[start:stop].astype(np.int64)
            yield _codes(found, found.codes[start:stop], quantizer, what), torch.from_numpy(ids), None
        return
    waiting: list[tuple[np.ndarray, np.ndarray, int]] = []
    count = 0
    for label, (rows, ids) in enumerate(zip(found.lists.codes, found.lists.ids, strict=True)):
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            waiting.append((rows[part], ids[part], label))
            count += len(waiting[-1][1])
            if count >= step:
                yield _list_block(found, waiting, quantizer, what)
                waiting, count = [], 0
    if waiting:
        yield _list_block(found, waiting, quantizer, what)


def _list_block(found: Found, parts: list[tuple[np.ndarray, np.ndarray, int]], quantizer: Quantizer, what: str) -> Block:
    ids = np.concatenate([ids for _, ids, _ in parts]).astype(np.int64)
    if found.ids is not None:
        if int(ids.min()) < 0 or int(ids.max()) >= len(found.ids):
            raise FormatError("value", f"{what} has a row in its lists whose number is not in the id map of {len(found.ids)}")
        ids = found.ids[ids].astype(np.int64)
    labels = np.repeat([label for _, _, label in parts], [len(ids) for _, ids, _ in parts])
    codes = _codes(found, np.concatenate([rows for rows, _, _ in parts]), quantizer, what)
    return codes, torch.from_numpy(ids), torch.from_numpy(labels)


def _codes(found: Found, rows: np.ndarray, quantizer: Quantizer, what: str) -> Codes:
    """Codes of bytes (n, code_size)."""
    data = torch.from_numpy(np.array(rows, dtype=np.uint8))
    coder, positions = found.coder, len(quantizer.levels)
    if isinstance(coder, Product):
        return Codes(_bits(data, coder.bits, positions).to(quantizer.index_dtype))
    if isinstance(coder, Signs):
        return _sign_codes(coder, data, positions, found.metric, quantizer, what)
    if coder.bits < 16:
        return Codes(_bits(data, coder.bits, positions).to(quantizer.index_dtype))
    values = data.view(torch.float16 if coder.type == "QT_fp16" else torch.bfloat16)
    if not bool(torch.isfinite(values).all()):
        raise FormatError("value", f"{what} has NaN or infinity among its 16-bit floats")
    pattern = values.view(torch.int16).to(torch.int64)
    half = quantizer.levels[0] // 2
    return Codes(torch.where(pattern < 0, pattern + (1 << 15) + half, pattern).to(quantizer.index_dtype))


def _sign_codes(coder: Signs, data: Tensor, dim: int, metric: str, quantizer: Quantizer, what: str) -> Codes:
    """Signs and, beside them, the other bits; kappa from the factors: +-1/sqrt(d) are faiss's points of one bit, and l2 has -2 kappa."""
    signs, rest = data.split([(dim + 7) // 8, data.shape[1] - (dim + 7) // 8], dim=1)
    indices = _bits(signs, 1, dim)
    if coder.bits == 1:
        kappa = 2 * (_floats(rest[:, 4:8]) * (1 / torch.tensor(float(dim)).sqrt()))
    else:
        extra, factors = rest[:, 12:-8], rest[:, -8:]
        indices = (indices.to(torch.int64) << (coder.bits - 1)) | _bits(extra, coder.bits - 1, dim).to(torch.int64)
        kappa = _floats(factors[:, 4:8]) * (-0.5 if metric == "l2" else 1.0)
    if not bool(torch.isfinite(kappa).all()):
        raise FormatError("value", f"{what} has a code with a factor that is NaN or infinite")
    return Codes(indices.to(quantizer.index_dtype), kappa)


def _floats(columns: Tensor) -> Tensor:
    """float32 (n, 1) of bytes (n, 4)."""
    return columns.contiguous().view(torch.float32)


def _bits(data: Tensor, width: int, positions: int) -> Tensor:
    """Integers (n, positions) of rows of bytes, each a little-endian bit string padded to whole bytes."""
    pad = 8 * data.shape[1] - width * positions
    widths = [width] * positions + ([pad] if pad else [])
    wide = torch.uint8 if width <= 8 else torch.int32
    return ops.unpack(data.reshape(-1), widths, len(data), wide)[:, :positions]


def _joined(parts: list[Codes], quantizer: Quantizer) -> Codes:
    if not parts:
        side = torch.zeros(0, quantizer.side_count, dtype=quantizer.side_dtype) if quantizer.side_count else None
        return Codes(torch.zeros(0, len(quantizer.levels), dtype=quantizer.index_dtype), side)
    sides = [arrays.as_tensor(codes.side) for codes in parts if codes.side is not None]
    return Codes(torch.cat([arrays.as_tensor(codes.indices) for codes in parts]), torch.cat(sides) if sides else None)


def _notes(found: Found, transforms: list[Linear]) -> Iterator[str]:
    if isinstance(found.coder, Signs) and found.coder.bits > 1:
        yield f"all {found.coder.bits} bits are decoded; faiss's reconstruct looks at the first of them only"
    if any(t.matrix is not None for t in transforms):
        yield "decoded values agree with faiss's to rounding: it turns back in float32, this library in float64"
    if found.metric == "ip" and any(t.bias.any() or t.mean.any() for t in transforms):
        yield "inner products are those of the vectors; faiss takes them after its centring"
