"""The border between callers' arrays and float32 rows: numpy or torch, any leading shape, half precision, integers, memory maps.

Nothing here copies a whole array: rows pass in blocks of about 16 MiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from codeword.errors import ShapeError
from codeword.parts import random
from codeword.parts.threads import one_thread

if TYPE_CHECKING:
    from codeword.quantizer import Codes

Array = Tensor | np.ndarray
T = TypeVar("T")

BLOCK_VALUES = 1 << 22

_TORCH_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TORCH_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)


def block_rows(dim: int) -> int:
    """Rows of one block of about 16 MiB as float32."""
    return max(1, BLOCK_VALUES // max(1, dim))


def check_rows(x: Any, dim: int, what: str) -> int:
    """Number of rows of ``x`` (..., dim); ShapeError for anything that is not a real-valued array of that width."""
    if isinstance(x, Tensor):
        if x.layout != torch.strided or x.device.type == "meta" or x.dtype not in _TORCH_FLOATS + _TORCH_INTEGERS:
            raise ShapeError(f"{what} got a {x.layout} tensor of {x.dtype} on {x.device.type}; a dense real-valued one is needed")
    elif isinstance(x, np.ndarray):
        if isinstance(x, np.ma.MaskedArray):
            raise ShapeError(f"{what} got a masked numpy array, whose mask would be lost; pass the valid rows only")
        if x.dtype.kind not in "fiu" or x.dtype.itemsize > 8:
            raise ShapeError(f"{what} got an array of dtype {x.dtype}; float16/32/64 or integers up to 64 bits are accepted")
    else:
        raise ShapeError(f"{what} got {type(x).__name__}; a numpy array or torch tensor of shape (..., {dim}) is needed")
    if x.ndim == 0 or x.shape[-1] != dim:
        raise ShapeError(f"{what} got shape {tuple(x.shape)}; (..., {dim}) is needed")
    return int(np.prod(x.shape[:-1], dtype=np.int64))


def as_tensor(x: Any) -> Tensor:
    """A tensor of any real-valued array-like; numpy memory that is read-only, strided backwards or big-endian is copied."""
    if isinstance(x, Tensor):
        if x.layout != torch.strided or x.device.type == "meta" or x.is_complex():
            raise ShapeError(f"got a {x.layout} tensor of {x.dtype} on {x.device.type}; a dense real-valued one is needed")
        return x
    try:
        array = np.asarray(x)
    except (ValueError, TypeError):
        raise ShapeError(f"got {type(x).__name__} that is no rectangular array; numbers of one shape are needed") from None
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise ShapeError(f"got {type(x).__name__} of dtype {array.dtype}; real numbers of up to 64 bits are needed")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(s < 0 for s in array.strides) or not array.flags.aligned:
        array = array.copy()
    return torch.from_numpy(array)


def float_blocks(x: Array, dim: int, minus: Array | None = None) -> Iterator[Tensor]:
    """float32 blocks (n, dim) of the rows of ``x``, less ``minus`` (broadcastable to x); at least one block, maybe empty."""
    rows = x.reshape(-1, dim)
    offset = None
    if minus is not None:
        offset = check_given(minus, tuple(x.shape), "encode")
        offset = offset.expand(*x.shape).reshape(-1, dim) if offset.ndim > 1 else offset.expand(dim)
    step = block_rows(dim)
    for start in range(0, max(1, len(rows)), step):
        block = _float32(rows[start:start + step])
        if offset is not None:
            block = block - (offset if offset.ndim == 1 else offset[start:start + step]).to(block.device)
        yield block


def _float32(rows: Array) -> Tensor:
    if isinstance(rows, Tensor):
        return rows.detach().to(torch.float32).contiguous()
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, which check_finite then names
        block = np.ascontiguousarray(rows, dtype=np.float32)
    return torch.from_numpy(block if block.flags.writeable and block.flags.aligned else block.copy())


def check_finite(rows: Tensor, what: str) -> None:
    """ShapeError naming the first row with NaN or infinity (float64 beyond float32's range counts as infinity)."""
    # A sum is finite only if all terms are; the precise look is taken only when it is not.
    if bool(torch.isfinite(rows.sum())):
        return
    bad = ~torch.isfinite(rows)
    if bool(bad.any()):
        where = tuple(int(i) for i in bad.nonzero()[0])
        raise ShapeError(f"{what} got {rows[where].item()} at position {where} of a block; values must be finite in float32")


def sample_indices(n: int, limit: int, seed: int) -> np.ndarray | None:
    """Ascending indices of a seeded sample of ``limit`` of ``n`` rows, or None when all are kept."""
    return None if n <= limit else np.sort(random.choice(seed, n, limit, stream="fit rows"))


def take_rows(x: Array, dim: int, keep: np.ndarray | None) -> Tensor:
    """float32 (m, dim) of the chosen rows; a copy where they are chosen, made a block at a time."""
    rows = x.reshape(-1, dim)
    if keep is None:
        return _float32(rows)
    step = block_rows(dim)
    out = torch.empty(len(keep), dim, device=rows.device if isinstance(rows, Tensor) else None)
    for start in range(0, len(keep), step):
        some = keep[start:start + step]
        out[start:start + step] = _float32(rows[torch.from_numpy(some)] if isinstance(rows, Tensor) else rows[some])
    return out


def check_weights(weights: Any, lead: tuple[int, ...], what: str) -> Tensor:
    """float32 (n,) row weights; they must have the rows' leading shape, be finite, non-negative and not all zero."""
    w = as_tensor(weights).detach()
    if tuple(w.shape) != lead:
        raise ShapeError(f"{what} got weights of shape {tuple(w.shape)} for rows of shape {lead}")
    w = w.to(torch.float32).reshape(-1)
    if not bool(torch.isfinite(w).all()) or bool((w < 0).any()) or not bool((w > 0).any()):
        raise ShapeError(f"{what} got weights that are not finite, non-negative and somewhere positive")
    return w


def check_given(given: Any, shape: tuple[int, ...], what: str) -> Tensor:
    """``given`` as float32, finite and broadcastable to ``shape`` without enlarging it."""
    offset = as_tensor(given).detach().float()
    try:
        fits = torch.broadcast_shapes(offset.shape, shape) == torch.Size(shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise ShapeError(f"{what} got given of shape {tuple(offset.shape)}, which does not broadcast to {shape}")
    check_finite(offset, f"{what} given")
    return offset


def unsigned_dtype(level: int) -> torch.dtype:
    """Smallest unsigned dtype that holds level - 1."""
    for dtype, limit in ((torch.uint8, 1 << 8), (torch.uint16, 1 << 16), (torch.uint32, 1 << 32)):
        if level <= limit:
            return dtype
    return torch.uint64


def check_indices(indices: Any, levels: tuple[int, ...], name: str, *, wide: bool = True) -> Tensor:
    """Tensor (..., positions) with every index inside its alphabet, int64, or as it came where not ``wide``; ShapeError otherwise."""
    t = as_tensor(indices)
    if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
        raise ShapeError(f"indices of {name} must be integers, got {t.dtype}")
    if t.ndim == 0 or t.shape[-1] != len(levels):
        raise ShapeError(f"indices of {name} have shape {tuple(t.shape)}; (..., {len(levels)}) is needed")
    rows, top = t.reshape(-1, len(levels)), torch.tensor(levels, dtype=torch.int64, device=t.device)
    step = block_rows(2 * len(levels))
    for start in range(0, len(rows), step):
        block = rows[start:start + step].to(torch.int64)
        outside = (block < 0) | (block >= top)
        if bool(outside.any()):
            row, position = (int(i) for i in outside.nonzero()[0])
            where = (*np.unravel_index(start + row, t.shape[:-1]), position)
            raise ShapeError(f"index {int(block[row, position])} at {tuple(int(i) for i in where)} is outside 0..{levels[position] - 1} "
                             f"of {name}")
    return t.to(torch.int64) if wide else t


def masked_mean(values: Tensor, keep: Tensor | None) -> Tensor:
    """Mean of (n,) values over kept rows; 0 when none are kept, still part of the graph: an empty batch on one of many ranks must
    give its parameters a gradient of zero, not none."""
    if keep is None:
        return values.mean() if values.numel() else values.sum()
    weight = keep.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def like(value: Tensor, model: Any) -> Array:
    """``value`` as numpy where ``model`` is numpy, else on the model's device."""
    return value.cpu().numpy() if isinstance(model, np.ndarray) else value.to(model.device)


def writable_rows(array: Any, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> Tensor:
    """``array`` of exactly that shape and type as a tensor (rows, shape[-1]) that shares its memory; ShapeError where it cannot."""
    usable = isinstance(array, (Tensor, np.ndarray)) and tuple(array.shape) == shape
    if isinstance(array, np.ndarray):
        usable = usable and array.flags.carray and array.dtype.isnative  # writeable, aligned, contiguous
    elif usable:
        usable = array.is_contiguous() and not array.requires_grad
    view = as_tensor(array) if usable else None
    if view is None or view.dtype != dtype:
        got = f"{array.dtype} {tuple(array.shape)}" if isinstance(array, (Tensor, np.ndarray)) else type(array).__name__
        raise ShapeError(f"{what} is {got}; a contiguous array {dtype} {shape} that may be written is needed")
    return view.view(-1, shape[-1])


def like_codes(codes: Codes, model: Any) -> Codes:
    """All parts of ``codes`` as ``like``."""
    return type(codes)(*(None if part is None else like(part, model) for part in codes))  # type: ignore[arg-type]


def keep_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``fn`` of a module's ``_apply`` (``to``, ``half``, ``cuda``), which may move a tensor but not change its dtype."""
    def moved(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        return result if result.dtype == tensor.dtype else tensor.to(result.device)
    return moved


def metric_root(metric: Tensor) -> Tensor:
    """R float32 (d, d) with |R x|^2 = x' metric x: the transposed Cholesky factor; ShapeError where metric is not positive definite."""
    with one_thread():  # it decides codes
        factor, info = torch.linalg.cholesky_ex(metric.double())
    if int(info):
        raise ShapeError("metric must be symmetric positive definite; add a multiple of the identity (damping)")
    return factor.mT.float().contiguous()
