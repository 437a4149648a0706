"""The ops as quantizers call them: checked, dispatched, and visible to torch.compile and export as custom ops."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codeword.errors import ShapeError
from codeword.ops import dispatch, reference


class Nearest(NamedTuple):
    """``indices`` int64 (n,), ``distances`` float32 (n,): the squared distance, float64 rounded once."""

    indices: Tensor
    distances: Tensor


def nearest(x: Tensor, codebook: Tensor) -> Nearest:
    """Nearest codeword of each row in squared L2: x (n, d), codebook (k, d), both float32, k >= 1.

    Defined as the argmin of the float64 distance in 8-lane order (``reference.exact_distances``), lowest index on ties; so it
    depends on neither batch, threads nor device. Rows with NaN or infinity, and all rows where the codebook has a NaN, get index 0
    and distance NaN. No gradient.
    """
    if x.ndim != 2 or codebook.ndim != 2 or x.shape[1] != codebook.shape[1] or codebook.shape[0] == 0:
        raise ShapeError(f"nearest got x {tuple(x.shape)} and codebook {tuple(codebook.shape)}; (n, d) and (k >= 1, d) are needed")
    return Nearest(*dispatch.run(_nearest, x.detach().float().contiguous(), codebook.detach().float().contiguous()))


@torch.library.custom_op("codeword::nearest", mutates_args=())
def _nearest(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    if dispatch.choice("nearest", x.device) == "native":
        indices = torch.empty(x.shape[0], dtype=torch.int64)
        distances = torch.empty(x.shape[0], dtype=torch.float32)
        _native().nearest(x.numpy(), codebook.numpy(), indices.numpy(), distances.numpy(), dispatch.num_threads())
        return indices, distances
    if dispatch.choice("nearest", x.device) == "triton":
        return dispatch.triton().nearest(x, codebook)
    return reference.nearest(x, codebook)


@_nearest.register_fake
def _(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], dtype=torch.int64), x.new_empty(x.shape[0], dtype=torch.float32)


class Tracker:
    """``nearest`` of the same rows against a codebook that moves a little from call to call, as in k-means: the same result, for less
    where most rows can be shown to keep their codeword (a lower bound of the distance to every group of codewords is kept for each row).
    Small codebooks of narrow rows are searched anew instead, which is faster; ``always`` keeps bounds for them too.

    Rows may come in blocks: ``move(codebook)`` once, then ``nearest(x, start)`` for the block of rows that begins at ``start``."""

    LIMIT = 1 << 28
    """Bytes that the bounds may take; where they would need more every call starts anew."""

    def __init__(self, rows: int, device: torch.device | str = "cpu", *, always: bool = False) -> None:
        self.rows, self.always = rows, always
        self.native = dispatch.choice("nearest_tracked", device) == "native"
        self._codebook: Tensor | None = None
        self._shifts: np.ndarray | None = None
        self._moves = 0
        self._seen = torch.full((rows,), -1)  # the move at which the bounds of a row were right
        self._each = 0

    def move(self, codebook: Tensor) -> None:
        """The codebook (k, d) of the calls to come."""
        before, self._codebook = self._codebook, codebook.detach().float().contiguous().clone()  # the caller may write into its own
        self._shifts = None
        self._moves += 1
        if not self.native:
            return
        if before is None or before.shape != self._codebook.shape:
            self._start(*self._codebook.shape)
        elif self._each:
            shift = torch.linalg.vector_norm(self._codebook.double() - before.double(), dim=1)
            groups = -(-len(shift) // self._each)
            shift = torch.nn.functional.pad(shift, (0, groups * self._each - len(shift))).view(groups, self._each).amax(1)
            self._shifts = (shift * (1 + 1e-6) + 1e-37).float().numpy()

    def _start(self, k: int, d: int) -> None:
        each = _native().nearest_group(k, d) if self.always or _native().nearest_tracking_pays(k, d) else 0
        self._each = each if each and self.rows * -(-k // each) * 4 <= self.LIMIT else 0
        if self._each:
            self._bounds = torch.empty(self.rows, -(-k // each))
            self._indices = torch.empty(self.rows, dtype=torch.int64)
        self._seen.fill_(-1)

    def nearest(self, x: Tensor, start: int = 0) -> Nearest:
        assert self._codebook is not None, "move comes first"
        if not self.native or not self._each:
            return nearest(x, self._codebook)
        if x.ndim != 2 or x.shape[1] != self._codebook.shape[1] or start + len(x) > self.rows:
            raise ShapeError(f"Tracker got x {tuple(x.shape)} at row {start}; (n, {self._codebook.shape[1]}) within {self.rows} rows "
                             "is needed")
        x = x.detach().float().contiguous()
        part = slice(start, start + len(x))
        shifts = self._shifts if bool((self._seen[part] == self._moves - 1).all()) else None
        distances = torch.empty(len(x))
        indices = self._indices[part]
        if not _native().nearest_tracked(x.numpy(), self._codebook.numpy(), shifts, indices.numpy(), distances.numpy(),
                                         self._bounds[part].numpy(), dispatch.num_threads()):
            self._seen[part] = -1
            return nearest(x, self._codebook)
        self._seen[part] = self._moves
        return Nearest(indices.clone(), distances)


def project(x: Tensor, matrix: Tensor) -> Tensor:
    """x (n, d) times matrix (m, d) transposed -> float32 (n, m), differentiable. Every product that decides a code goes through
    here: float64 accumulation over d in ascending order, rounded once, so a row's result does not depend on its batch."""
    if x.ndim != 2 or matrix.ndim != 2 or x.shape[1] != matrix.shape[1]:
        raise ShapeError(f"project got x {tuple(x.shape)} and matrix {tuple(matrix.shape)}; (n, d) and (m, d) are needed")
    return dispatch.run(_project, x.float().contiguous(), matrix.float().contiguous())


@torch.library.custom_op("codeword::project", mutates_args=())
def _project(x: Tensor, matrix: Tensor) -> Tensor:
    if dispatch.choice("project", x.device) == "native":
        out = torch.empty(x.shape[0], matrix.shape[0], dtype=torch.float32)
        _native().project(x.detach().numpy(), matrix.detach().numpy(), out.numpy(), dispatch.num_threads())
        return out
    return reference.project(x, matrix)


@_project.register_fake
def _(x: Tensor, matrix: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], matrix.shape[0], dtype=torch.float32)


def _project_setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _project_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, matrix = ctx.saved_tensors  # type: ignore[attr-defined]
    need_x, need_matrix = ctx.needs_input_grad  # type: ignore[attr-defined]
    return grad @ matrix if need_x else None, grad.mT @ x if need_matrix else None


_project.register_autograd(_project_backward, setup_context=_project_setup)


def hadamard(x: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform of the last axis (a power of two), float32, differentiable, its own inverse."""
    n = x.shape[-1]
    if n & (n - 1) or n == 0:
        raise ShapeError(f"hadamard got width {n}; a power of two is needed (rotate takes any width)")
    return dispatch.run(_hadamard, x.float().reshape(-1, n).contiguous()).reshape(x.shape)


@torch.library.custom_op("codeword::hadamard", mutates_args=())
def _hadamard(x: Tensor) -> Tensor:
    if dispatch.choice("hadamard", x.device) == "native":
        out = torch.empty_like(x)
        _native().hadamard(x.detach().numpy(), out.numpy(), dispatch.num_threads())
        return out
    return reference.hadamard(x)


@_hadamard.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


_hadamard.register_autograd(lambda ctx, grad: _hadamard(grad.contiguous()), setup_context=lambda ctx, inputs, output: None)


def rotate(x: Tensor, signs: Tensor, inverse: bool = False) -> Tensor:
    """Random rotation of the last axis (any width n) by four rounds of signs, Hadamard and Kac step (FHT-Kac of the RaBitQ
    library): x (..., n), signs (4, n) of +-1. O(n log n), exactly orthonormal up to float32 rounding, differentiable."""
    n = x.shape[-1]
    if signs.shape != (4, n) or n == 0:
        raise ShapeError(f"rotate got width {n} and signs {tuple(signs.shape)}; a width n >= 1 and signs (4, n) are needed")
    return dispatch.run(_rotate, x.float().reshape(-1, n).contiguous(), signs.float().contiguous(), inverse).reshape(x.shape)


@torch.library.custom_op("codeword::rotate", mutates_args=())
def _rotate(x: Tensor, signs: Tensor, inverse: bool) -> Tensor:
    if dispatch.choice("rotate", x.device) == "native":
        out = torch.empty_like(x)
        _native().rotate(x.detach().numpy(), signs.numpy(), out.numpy(), inverse, dispatch.num_threads())
        return out
    return reference.rotate(x, signs, inverse)


@_rotate.register_fake
def _(x: Tensor, signs: Tensor, inverse: bool) -> Tensor:
    return torch.empty_like(x)


def _rotate_setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.inverse = inputs[2]  # type: ignore[attr-defined]


def _rotate_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
    (signs,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return dispatch.run(_rotate, grad.contiguous(), signs, not ctx.inverse), None, None  # type: ignore[attr-defined]


_rotate.register_autograd(_rotate_backward, setup_context=_rotate_setup)


def segment_sum(x: Tensor, labels: Tensor, segments: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sums (segments, d) float64 and counts (segments,) float64 of the rows of x (n, d) by int64 label, rows added in order.
    With ``weights`` (n,) float32 both are weighted (the product is exact in float64). No gradient."""
    if x.ndim != 2 or labels.shape != (x.shape[0],) or (weights is not None and weights.shape != labels.shape):
        raise ShapeError(f"segment_sum got x {tuple(x.shape)}, labels {tuple(labels.shape)} and weights "
                         f"{None if weights is None else tuple(weights.shape)}; (n, d), (n,) and None or (n,) are needed")
    weights = None if weights is None else weights.detach().float().contiguous()
    return dispatch.run(_segment_sum, x.detach().float().contiguous(), labels.to(torch.int64).contiguous(), segments, weights)


@torch.library.custom_op("codeword::segment_sum", mutates_args=())
def _segment_sum(x: Tensor, labels: Tensor, segments: int, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    _check_labels(labels, segments)
    if dispatch.choice("segment_sum", x.device) == "native":
        sums = torch.zeros(segments, x.shape[1], dtype=torch.float64)
        counts = torch.zeros(segments, dtype=torch.float64)
        w = None if weights is None else weights.numpy()
        _native().segment_sum(x.numpy(), labels.numpy(), w, sums.numpy(), counts.numpy(), dispatch.num_threads())
        return sums, counts
    if dispatch.choice("segment_sum", x.device) == "triton":
        sums, counts = x.new_zeros(segments, x.shape[1], dtype=torch.float64), x.new_zeros(segments, dtype=torch.float64)
        dispatch.triton().segment_add(sums, counts, x, labels, weights)
        return sums, counts
    return reference.segment_sum(x, labels, segments, weights)


@_segment_sum.register_fake
def _(x: Tensor, labels: Tensor, segments: int, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(segments, x.shape[1], dtype=torch.float64), x.new_empty(segments, dtype=torch.float64)


class SegmentSum:
    """``segment_sum`` of rows that come in blocks: ``sums`` and ``counts`` are the same bits as those of all rows at once."""

    def __init__(self, segments: int, dim: int, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(segments, dim, dtype=torch.float64, device=device)
        self.counts = torch.zeros(segments, dtype=torch.float64, device=device)

    def add(self, x: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Rows x (n, d) with int64 labels (n,) and float32 weights (n,) or None, added in order."""
        segments, dim = self.sums.shape
        if x.ndim != 2 or x.shape[1] != dim or labels.shape != (x.shape[0],) or (weights is not None and weights.shape != labels.shape):
            raise ShapeError(f"SegmentSum got x {tuple(x.shape)}, labels {tuple(labels.shape)} and weights "
                             f"{None if weights is None else tuple(weights.shape)}; (n, {dim}), (n,) and None or (n,) are needed")
        x, labels = x.detach().float().contiguous(), labels.to(torch.int64).contiguous()
        weights = None if weights is None else weights.detach().float().contiguous()
        _check_labels(labels, segments)
        if dispatch.choice("segment_sum", x.device) == "native":
            w = None if weights is None else weights.numpy()
            _native().segment_sum(x.numpy(), labels.numpy(), w, self.sums.numpy(), self.counts.numpy(), dispatch.num_threads())
        elif dispatch.choice("segment_sum", x.device) == "triton":
            dispatch.triton().segment_add(self.sums, self.counts, x, labels, weights)
        else:
            reference.segment_add(self.sums, self.counts, x, labels, weights)


def gather(codebook: Tensor, indices: Tensor) -> Tensor:
    """codebook (k, d) float32, indices (n,) int64 -> the chosen codewords (n, d), differentiable. The gradient of a codeword is the sum of
    its rows' gradients, by ``segment_sum`` (float64, in the order of the rows) rounded once to float32: the same bits on every device."""
    if codebook.ndim != 2 or indices.ndim != 1:
        raise ShapeError(f"gather got a codebook {tuple(codebook.shape)} and indices {tuple(indices.shape)}; (k, d) and (n,) are needed")
    return dispatch.run(_gather, codebook.float(), indices.to(torch.int64))


@torch.library.custom_op("codeword::gather", mutates_args=())
def _gather(codebook: Tensor, indices: Tensor) -> Tensor:
    return codebook.index_select(0, indices)


@_gather.register_fake
def _(codebook: Tensor, indices: Tensor) -> Tensor:
    return codebook.new_empty(indices.shape[0], codebook.shape[1])


@torch.library.custom_op("codeword::gather_backward", mutates_args=())
def _gather_backward(grad: Tensor, indices: Tensor, size: int) -> Tensor:
    if dispatch.choice("segment_sum", grad.device) == "triton":
        return dispatch.triton().gathered(grad.contiguous(), indices.contiguous(), size)
    return _segment_sum(grad.contiguous(), indices.contiguous(), size, None)[0].float()


@_gather_backward.register_fake
def _(grad: Tensor, indices: Tensor, size: int) -> Tensor:
    return grad.new_empty(size, grad.shape[1])


def _gather_setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.size = inputs[0].shape[0]  # type: ignore[attr-defined]


def _gather_grad(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, None]:
    (indices,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return _gather_backward(grad, indices, ctx.size), None  # type: ignore[attr-defined]


_gather.register_autograd(_gather_grad, setup_context=_gather_setup)


def _check_labels(labels: Tensor, segments: int) -> None:
    if labels.numel():
        low, high = (int(v) for v in torch.aminmax(labels))
        if low < 0 or high >= segments:
            raise ShapeError(f"segment_sum got labels {low}..{high}; 0..{segments - 1} are allowed")


def packed_bytes(rows: int, widths: Sequence[int]) -> int:
    """Bytes of the bit string of ``rows`` codes with the given bit widths."""
    return (rows * sum(widths) + 7) // 8


INDEX_DTYPES = (torch.uint8, torch.uint16, torch.int32, torch.int64)
"""What ``pack`` reads without a copy and ``unpack`` can return."""


def pack(indices: Tensor, widths: Sequence[int]) -> Tensor:
    """One little-endian bit string, uint8 (packed_bytes,), of indices (rows, positions): position p takes widths[p] bits (0..63),
    least significant bit first, rows follow each other without gaps, the last byte is padded with zero bits."""
    if indices.ndim != 2 or indices.shape[1] != len(widths) or any(not 0 <= w <= 63 for w in widths):
        raise ShapeError(f"pack got indices {tuple(indices.shape)} and {len(widths)} widths; (rows, positions) and widths 0..63 are needed")
    if indices.is_floating_point() or indices.is_complex():
        raise ShapeError(f"pack got indices of {indices.dtype}; integers are needed")
    kind = indices.dtype if indices.dtype in INDEX_DTYPES else torch.int64
    return dispatch.run(_pack, indices.detach().to(kind).contiguous(), list(widths))


@torch.library.custom_op("codeword::pack", mutates_args=())
def _pack(indices: Tensor, widths: Sequence[int]) -> Tensor:
    if dispatch.choice("pack", indices.device) == "native":
        out = torch.zeros(packed_bytes(len(indices), widths), dtype=torch.uint8)
        fit = _native().pack(indices.numpy(), _int64(widths), out.numpy(), dispatch.num_threads())
    else:
        wide = indices.to(torch.int64)
        fit = not bool(((wide < 0) | (wide >> torch.tensor(list(widths), dtype=torch.int64, device=wide.device) != 0)).any())
        out = reference.pack(wide, widths) if fit else wide
    if not fit:
        raise ShapeError(f"pack got an index that does not fit its width; 0..2^width - 1 are allowed, widths {_brief(widths)}")
    return out


@_pack.register_fake
def _(indices: Tensor, widths: Sequence[int]) -> Tensor:
    return indices.new_empty(packed_bytes(indices.shape[0], widths), dtype=torch.uint8)


def unpack(data: Tensor, widths: Sequence[int], rows: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Inverse of ``pack``: ``dtype`` (rows, positions), one of ``INDEX_DTYPES``. ShapeError where ``data`` has not exactly the
    bytes needed."""
    if rows < 0 or any(not 0 <= w <= 63 for w in widths):
        raise ShapeError(f"unpack got {rows} rows and widths {_brief(widths)}; rows >= 0 and widths 0..63 are needed")
    need = packed_bytes(rows, widths)
    if data.dtype != torch.uint8 or data.ndim != 1 or len(data) != need:
        raise ShapeError(f"unpack got {tuple(data.shape)} {data.dtype}; {need} bytes are needed for {rows} rows")
    widest = max(widths, default=0)
    if dtype not in INDEX_DTYPES or widest > torch.iinfo(dtype).max.bit_length():
        raise ShapeError(f"unpack got dtype {dtype} for widths up to {widest}; uint8, uint16, int32 or int64 that holds them is needed")
    return dispatch.run(_unpack, data.contiguous(), list(widths), rows, dtype)


@torch.library.custom_op("codeword::unpack", mutates_args=())
def _unpack(data: Tensor, widths: Sequence[int], rows: int, dtype: torch.dtype) -> Tensor:
    if dispatch.choice("unpack", data.device) == "native":
        out = torch.empty(rows, len(widths), dtype=dtype)
        _native().unpack(data.numpy(), _int64(widths), out.numpy(), dispatch.num_threads())
        return out
    return reference.unpack(data, widths, rows).to(dtype)


@_unpack.register_fake
def _(data: Tensor, widths: Sequence[int], rows: int, dtype: torch.dtype) -> Tensor:
    return data.new_empty(rows, len(widths), dtype=dtype)


def _int64(widths: Sequence[int]) -> np.ndarray:
    return np.array(list(widths), dtype=np.int64)


def _brief(widths: Sequence[int]) -> str:
    return str(list(widths[:8]))[:-1] + (", ...]" if len(widths) > 8 else "]")


def _native() -> ModuleType:
    module = dispatch.native()
    assert module is not None
    return module
