"""The one contract: anything that turns vectors into codes and back is a ``Quantizer``.

A subclass writes four private methods over clean float32 rows (``_fit``, ``_encode``, ``_decode`` and, if it trains,
``_forward``); this file does what every quantizer owes its caller exactly once: numpy and torch alike, any leading shape,
half precision and integers without a full float32 copy, value checks, masks, honest bits, saving.

    fit(x)      learn from rows; always works, forgets earlier fits, reads at most ``fit_values`` numbers
    encode(x)   (..., dim) -> Codes; the same codes alone, in a batch, on any number of threads and any device
    decode(c)   Codes -> (..., dim) float32, the least-squares value
    forward(x)  differentiable and pure; in eval mode its values equal decode(encode(x))
    update(out) the only place where codebooks move outside the optimizer; call it after backward on every rank

What a quantizer can do beyond that is a small protocol at the end of this file.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from codeword.errors import CodewordError, FormatError, NotFitted, ShapeError, Unsupported
from codeword.parts import arguments, arrays

__all__ = [
    "Codes",
    "CodewordError",
    "EntropyCoded",
    "FormatError",
    "MatMul",
    "NotFitted",
    "Packed",
    "Progressive",
    "Quantized",
    "Quantizer",
    "Query",
    "Report",
    "Scannable",
    "ShapeError",
    "Unsupported",
]

Array = Tensor | np.ndarray


class Codes(NamedTuple):
    """What ``encode`` returns. ``indices`` (..., positions) unsigned; ``side`` (..., side_count) floats or None;
    ``lengths`` (...) valid leading positions, 0 = masked, or None when all are valid."""

    indices: Array
    side: Array | None = None
    lengths: Array | None = None


class Quantized(NamedTuple):
    """What ``forward`` returns. ``values`` like the input; ``loss`` one weighted scalar; ``stats`` detached tensors."""

    values: Tensor
    codes: Codes
    loss: Tensor
    stats: dict[str, Tensor]


class Report(dict[str, Any]):
    """What was changed or repaired on the way: revived codewords, damping, clipped values. Empty: nothing was."""


class Quantizer(nn.Module):
    """Base of all quantizers (see the module's docstring). Constructor arguments are the configuration: keyword-only,
    JSON values or another Quantizer, stored under their own names. Loading runs the constructor on torch's meta device with a
    stranger's arguments: ``io/objects.py`` states the rules that follow from it."""

    dim: int
    """Width of the vectors."""
    levels: tuple[int, ...]
    """Size of the alphabet at each position of a code."""
    side_count: int = 0
    """Floats kept beside the indices of each vector."""
    side_dtype: torch.dtype = torch.float32
    learns: bool = True
    """False for lattices and other codebooks that exist without data: they are fitted from the start."""
    later_arguments: ClassVar[dict[str, Any]] = {}
    """Arguments added after files of this class existed, each with the value that means what there was before."""
    takes_metric: bool = False
    """True where ``encode(metric=)`` minimises the quadratic form instead of the plain L2 error."""
    weighs_rows: bool = False
    """True where the weight of an error depends on the vector itself, also where ``given`` was taken off: see ``_encode_relative``."""
    commitment: float = 0.25
    """beta of the commitment loss in ``forward``: how strongly an encoder is held to the codewords."""
    fit_values: int = 1 << 27
    """``fit`` draws a seeded sample of rows when there are more numbers than this (512 MiB as float32)."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:  # types are checked here once; ranges in the constructors
            cls.__init__ = arguments.checked(cls.__init__)
        if "for_bits" in cls.__dict__:
            cls.for_bits = classmethod(arguments.checked_dial(cls.__dict__["for_bits"].__func__))  # type: ignore[method-assign]

    def __init__(self) -> None:
        super().__init__()
        self.fitted = not self.learns
        self.report = Report()

    # ------------------------------------------------------------------ the contract

    def fit(self, x: Array, *, weights: Array | None = None) -> Self:
        """Learn from ``x`` (..., dim), optionally weighted rows (...); rows of weight 0 count as absent. Raises ShapeError on
        bad shapes or values, and then leaves an earlier fit as it was. An error found later, while it learns (values too large to
        square, say), leaves a quantizer that learns unfitted: what it knew is partly overwritten, and only another fit helps."""
        n = arrays.check_rows(x, self.dim, f"{self.name}.fit")
        if n == 0:
            raise ShapeError(f"{self.name}.fit got no rows; at least one is needed")
        for block in arrays.float_blocks(x, self.dim):
            arrays.check_finite(block, f"{self.name}.fit")
        row_weights = None if weights is None else arrays.check_weights(weights, tuple(x.shape[:-1]), f"{self.name}.fit")
        usable = None if row_weights is None else np.flatnonzero(row_weights.cpu().numpy() > 0)
        count = n if usable is None else len(usable)
        keep = arrays.sample_indices(count, max(1, self.fit_values // self.dim), seed=getattr(self, "seed", 0))
        chosen = usable if keep is None else keep if usable is None else usable[keep]
        rows = arrays.take_rows(x, self.dim, None if chosen is None or len(chosen) == n else chosen).to(self.device)
        if row_weights is not None and chosen is not None:
            row_weights = row_weights[torch.from_numpy(chosen).to(row_weights.device)].to(self.device)
        self.report = Report() if keep is None else Report(fit_rows=len(rows))
        self.fitted = not self.learns
        try:
            with torch.autocast(self.device.type, enabled=False):
                self._fit(rows, row_weights)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ShapeError(f"{self.name}.fit could not factor the data's moments: too large or too unequal values ({error})") from error
        self._require_finite_state()
        self.fitted = True
        return self

    @torch.no_grad()
    def encode(self, x: Array, *, given: Array | None = None, metric: Array | None = None, out: Codes | None = None) -> Codes:
        """Codes of ``x`` (..., dim). ``given`` (broadcastable to x) is subtracted first, e.g. a list's centroid;
        ``metric`` (dim, dim) is the quadratic form to minimise, where ``takes_metric``. ``out``: Codes of the shapes and types that would
        be returned, on CPU arrays mapped from files perhaps; they are written, a block at a time, and returned."""
        self._require_fitted("encode")
        arrays.check_rows(x, self.dim, f"{self.name}.encode")
        form = self._check_metric(metric)
        lead = tuple(x.shape[:-1])
        n, start = math.prod(lead), 0
        device = x.device if isinstance(x, Tensor) else torch.device("cpu")
        if out is None:
            indices = torch.empty(n, len(self.levels), dtype=self.index_dtype, device=device)
            side = torch.empty(n, self.side_count, dtype=self.side_dtype, device=device)
        else:
            indices, side = self._views(out, lead)
        whole = arrays.float_blocks(x, self.dim) if given is not None and self.weighs_rows else None
        for block in arrays.float_blocks(x, self.dim, minus=given):
            arrays.check_finite(block, f"{self.name}.encode")
            with torch.autocast(self.device.type, enabled=False):
                own = block.to(self.device)
                index, extra = self._encode(own, form) if whole is None else self._encode_relative(own, next(whole).to(self.device), form)
            part = slice(start, start + len(block))
            indices[part] = index.to(self.index_dtype).to(indices.device)
            if extra is not None:
                side[part] = extra.to(self.side_dtype).to(side.device)
            start += len(block)
        if out is not None:
            return out
        codes = Codes(indices.reshape(*lead, len(self.levels)), side.reshape(*lead, self.side_count) if self.side_count else None)
        return arrays.like_codes(codes, x)

    @torch.no_grad()
    def decode(self, codes: Codes, *, given: Array | None = None) -> Array:
        """The least-squares values (..., dim), float32, of ``codes``; ``given`` is added back. Masked rows are zero."""
        self._require_fitted("decode")
        indices, side, lengths = self._check_codes(codes, wide=False)
        lead = indices.shape[:-1]
        rows = indices.reshape(-1, len(self.levels))
        flat = side.reshape(-1, self.side_count) if side is not None else None
        count = lengths.reshape(-1) if lengths is not None else None
        step = arrays.block_rows(self.dim)
        out = torch.empty(len(rows), self.dim, dtype=torch.float32, device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            for start in range(0, len(rows), step):
                part = slice(start, start + step)
                out[part] = self._decode_some(rows[part].to(torch.int64), flat[part] if flat is not None else None,
                                              count[part] if count is not None else None)
        values = out.reshape(*lead, self.dim)
        if given is not None:
            values = values + arrays.check_given(given, tuple(values.shape), f"{self.name}.decode").to(values)
            if lengths is not None:
                values = values * (lengths > 0).unsqueeze(-1)
        return arrays.like(values, codes.indices)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Quantized:
        """Quantize (..., dim) differentiably. ``mask`` (...) False rows get zero values, length 0, and no influence.
        Pure: no state changes, no value checks (NaN propagates), safe under autocast and ``torch.compile``."""
        return self._forward_with(x, mask, self._forward)

    def update(self, out: Quantized) -> Report:
        """Move codebooks that follow the data instead of the gradient (EMA, revival) from the statistics of ``out``.
        Collective: call it after backward, unconditionally, on every rank."""
        return Report()

    def bits(self, codes: Codes) -> float:
        """Stored bits per dimension of ``codes`` as written to a file: all positions in one packed bit string, side floats, and with
        ``lengths`` one unsigned number a row."""
        n = int(np.prod(codes.indices.shape[:-1]))
        if n and isinstance(self, EntropyCoded):
            from codeword.io.objects import codes_to_parts
            return 8 * sum(t.numel() * t.element_size() for t in codes_to_parts(codes, self)[0].values()) / (n * self.dim)
        lengths = 0 if codes.lengths is None else n * arrays.unsigned_dtype(len(self.levels) + 1).itemsize
        return 8 * (self.stored_bytes(n) + lengths) / (n * self.dim) if n else 0.0

    @property
    def nominal_bits(self) -> float:
        """Bits per dimension before padding to bytes: sum of ceil(log2 level) over positions, or their mean length where codes are
        entropy coded, plus side floats."""
        length = self.code_length() if isinstance(self, EntropyCoded) else sum(self.widths)
        return (length + 8 * self.side_count * self.side_dtype.itemsize) / self.dim

    @property
    def shared_bytes(self) -> int:
        """Bytes shared by all vectors: codebooks, tables, rotations. What only further training reads is saved, but not counted."""
        return _state_bytes(self) - sum(_state_bytes(part) - part.shared_bytes for part in _inner_quantizers(self))

    def stored_bytes(self, rows: int) -> int:
        """Bytes that ``rows`` codes take at ``widths`` bits a position (bit string padded once at its end, plus side floats): in a file,
        unless they are entropy coded there, and in memory, where any row can be read. ``bits`` counts what a file takes, lengths too."""
        return math.ceil(rows * sum(self.widths) / 8) + rows * self.side_count * self.side_dtype.itemsize

    @classmethod
    def for_bits(cls, dim: int, bits: float, **options: Any) -> Self:
        """The recommended configuration at ``bits`` stored bits per dimension. Raises Unsupported where there is none."""
        raise Unsupported(f"{cls.__name__} has no single dial for bits; pass its own arguments")

    # ------------------------------------------------------------------ identity and files

    @property
    def name(self) -> str:
        """The name in the catalog."""
        from codeword import catalog
        return catalog.name_of(type(self))

    @property
    def input_space(self) -> bool:
        """False where decode does not live in the space of x (FSQ's tanh, cosine codes): such a quantizer enters weights, caches and
        search only inside a wrapper that maps back. The catalog says it for a class; a combinator is what its parts are."""
        from codeword import catalog
        return catalog.lives_in_input_space(self.name, all(part.input_space for part in _inner_quantizers(self)))

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments by name; JSON values or Quantizers."""
        return {key: getattr(self, key) for key in inspect.signature(type(self).__init__).parameters if key != "self"}

    @property
    def structure(self) -> dict[str, Any]:
        """What fitting decided beyond the configuration, as JSON: enough to allocate before the state is read."""
        return {"fitted": self.fitted}

    def restore(self, structure: dict[str, Any]) -> None:
        """Inverse of ``structure``; called on a freshly built object before its tensors are loaded. Validates."""
        fitted = structure.get("fitted")
        if not isinstance(fitted, bool) or (not fitted and not self.learns):
            raise FormatError("config", f"structure of {self.name} needs a boolean 'fitted', got {fitted!r}")
        self.fitted = fitted

    def check_state(self) -> None:
        """Raise FormatError("value") where loaded tensors are impossible. Default: all floats are finite."""
        for key, value in self.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise FormatError("value", f"tensor {key!r} of {self.name} has non-finite values")

    def rebuild(self) -> None:
        """Recompute what is derived and not saved (non-persistent buffers, tables) from configuration and state. Loading runs
        constructors on the meta device and calls this last; a constructor that makes such tables calls it too."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits over configuration, structure and state: codes on disk carry it."""
        from codeword.io import objects
        return objects.fingerprint(self)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, durably and atomically. Same object, same bytes."""
        from codeword.io import objects
        objects.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file written by ``save``. Raises FormatError; never runs code from the file."""
        from codeword.io import objects
        loaded = objects.load(path)
        if not isinstance(loaded, cls):
            raise FormatError("kind", f"{path} holds {type(loaded).__name__}, not {cls.__name__}")
        return loaded

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.config.items() if not isinstance(v, nn.Module))

    # ------------------------------------------------------------------ what a subclass writes

    def _fit(self, rows: Tensor, weights: Tensor | None) -> None:
        """Learn from float32 ``rows`` (n, dim), n >= 1, finite. Must not warm-start from earlier state."""
        if self.learns:
            raise NotImplementedError

    def _encode(self, rows: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """float32 (n, dim) -> integer indices (n, positions), side floats (n, side_count) or None."""
        raise NotImplementedError

    def _encode_relative(self, rows: Tensor, vectors: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``_encode`` of rows = vectors - given, for quantizers with ``weighs_rows``."""
        raise NotImplementedError

    def _decode(self, indices: Tensor, side: Tensor | None) -> Tensor:
        """int64 (n, positions) -> float32 (n, dim)."""
        raise NotImplementedError

    def _forward(self, rows: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor, dict[str, Tensor]]:
        """values, indices, side, loss, stats over float32 rows. Default: straight-through over decode(encode(x)), and the commitment
        loss beta |x - sg(x^)|^2: without it an encoder walks away from codewords that cannot follow."""
        from codeword.parts.gradients import straight_through
        from codeword.parts.losses import commitment_term
        with torch.no_grad():
            index, side = self._encode(rows.detach(), None)
            side = None if side is None else side.to(self.side_dtype)  # as stored: decode sees the same rounding
            values = self._decode(index.to(torch.int64), side)
        commit = commitment_term(rows, values, keep)
        stats = {"commitment": commit.detach(), "error": commit.detach() * self.dim}
        return straight_through(rows, values), index, side, self.commitment * commit, stats

    # ------------------------------------------------------------------ shared by all

    @property
    def device(self) -> torch.device:
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    @property
    def widths(self) -> tuple[int, ...]:
        """Whole bits each position takes: ceil(log2 level)."""
        return tuple((level - 1).bit_length() for level in self.levels)

    @property
    def index_dtype(self) -> torch.dtype:
        """Smallest unsigned type that holds max(levels) - 1."""
        return arrays.unsigned_dtype(max(self.levels))

    def _forward_with(self, x: Tensor, mask: Tensor | None, forward: Callable[[Tensor, Tensor | None], tuple],
                      lengths: Tensor | None = None) -> Quantized:
        """All that ``forward`` does around ``_forward``, or around a function like it that uses the first ``lengths`` (...) int32 positions
        of each row's code."""
        if not torch.compiler.is_compiling():
            self._require_fitted("forward")
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise ShapeError(f"{self.name}.forward got {getattr(x, 'dtype', type(x).__name__)}; a floating-point tensor is needed")
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise ShapeError(f"{self.name}.forward got shape {tuple(x.shape)}; (..., {self.dim}) is needed")
        lead = x.shape[:-1]
        if mask is not None and mask.shape != lead:
            raise ShapeError(f"{self.name}.forward got a mask of shape {tuple(mask.shape)}; {tuple(lead)} is needed")
        with torch.autocast(x.device.type, enabled=False):
            rows = x.reshape(-1, self.dim).float()
            keep = None if mask is None else mask.reshape(-1).to(torch.bool)
            if keep is not None:  # NaN in padding must not leak through 0 * NaN
                rows = torch.where(keep.unsqueeze(-1), rows, torch.zeros((), device=rows.device))
            values, index, side, loss, stats = forward(rows, keep)
            if keep is not None:
                values = torch.where(keep.unsqueeze(-1), values, torch.zeros((), device=values.device))
        codes = Codes(
            index.to(self.index_dtype).reshape(*lead, len(self.levels)),
            side.to(self.side_dtype).reshape(*lead, self.side_count) if side is not None else None,
            lengths if keep is None else keep.reshape(lead).to(torch.int32) * (len(self.levels) if lengths is None else lengths),
        )
        return Quantized(values.to(x.dtype).reshape(x.shape), codes, loss, stats)

    def _decode_some(self, indices: Tensor, side: Tensor | None, lengths: Tensor | None) -> Tensor:
        values = self._decode(indices, side)
        if lengths is None:
            return values
        partial = (lengths != 0) & (lengths != len(self.levels))
        if bool(partial.any()):
            raise Unsupported(f"{self.name} cannot decode some of its positions only; lengths must be 0 or {len(self.levels)}")
        return values * (lengths > 0).unsqueeze(-1)

    def _require_finite_state(self) -> None:
        for key, value in self.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ShapeError(f"{self.name}.fit got values so large that its {key!r} leaves float32; scale them down")

    def _require_fitted(self, what: str) -> None:
        if not self.fitted:
            raise NotFitted(f"{self.name}.{what} needs a fitted quantizer; call fit(x) first")

    def _views(self, out: Codes, lead: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The arrays of ``out`` as rows of indices and side floats to write into; ShapeError where ``encode`` would return others."""
        wanted = [(out.indices, "indices", self.index_dtype, len(self.levels)), (out.side, "side", self.side_dtype, self.side_count)]
        views = []
        for array, name, dtype, width in wanted:
            if name == "side" and width == 0 and array is None:
                views.append(torch.empty(math.prod(lead), 0, dtype=dtype))
                continue
            views.append(arrays.writable_rows(array, (*lead, width), dtype, f"{self.name}.encode out.{name}"))
        if out.lengths is not None:
            raise ShapeError(f"{self.name}.encode got out with lengths; codes that it writes have none")
        return views[0], views[1]

    def _check_metric(self, metric: Array | None) -> Tensor | None:
        if metric is None:
            return None
        if not self.takes_metric:
            raise Unsupported(f"{self.name} minimises plain L2 only; call encode without metric and report that")
        form = arrays.as_tensor(metric).detach().to(self.device, torch.float64)
        if form.shape != (self.dim, self.dim):
            raise ShapeError(f"metric has shape {tuple(form.shape)}; ({self.dim}, {self.dim}) is needed")
        arrays.check_finite(form, f"{self.name}.encode metric")
        if bool(((form - form.mT).abs() > 1e-5 * form.abs().max()).any()):
            raise ShapeError(f"{self.name}.encode got a metric that is not symmetric; a quadratic form (dim, dim) is needed")
        return (form + form.mT) / 2

    def _check_codes(self, codes: Codes, *, wide: bool = True) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if not isinstance(codes, Codes):
            raise ShapeError(f"{self.name}.decode got {type(codes).__name__}; the Codes that encode returned are needed")
        indices = arrays.check_indices(codes.indices, self.levels, self.name, wide=wide).to(self.device)
        side, lengths = codes.side, codes.lengths
        if (side is None) != (self.side_count == 0):
            raise ShapeError(f"codes of {self.name} carry {self.side_count} side floats a vector; got {'none' if side is None else 'some'}")
        if side is not None:
            side = arrays.as_tensor(side).detach().to(self.device)
            if side.shape != (*indices.shape[:-1], self.side_count) or not side.is_floating_point():
                raise ShapeError(f"side is {side.dtype} {tuple(side.shape)}; floats {(*indices.shape[:-1], self.side_count)} are needed")
            side = side.to(self.side_dtype)
            arrays.check_finite(side.float(), f"{self.name}.decode side")
        if lengths is not None:
            lengths = arrays.as_tensor(lengths)
            if lengths.is_floating_point() or lengths.dtype == torch.bool:
                raise ShapeError(f"lengths must be integers, got {lengths.dtype}")
            lengths = lengths.to(self.device, torch.int64)
            if lengths.shape != indices.shape[:-1] or bool(((lengths < 0) | (lengths > len(self.levels))).any()):
                raise ShapeError(f"lengths must have shape {tuple(indices.shape[:-1])} and values 0..{len(self.levels)}")
        return indices, side, lengths

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Tables, statistics and factors keep their dtype: a codebook rounded by .half() would move every decision.
        return super()._apply(arrays.keep_dtype(fn), recurse)


def _state_bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


def _inner_quantizers(module: nn.Module) -> Iterator[Quantizer]:
    """The quantizers directly inside ``module``, lists of them included, not those inside them."""
    for child in module.children():
        if isinstance(child, Quantizer):
            yield child
        else:
            yield from _inner_quantizers(child)


# ---------------------------------------------------------------------- capabilities


class Packed(NamedTuple):
    """Codes in the layout a scan reads. Every tensor's first axis runs over rows or over blocks of ``BLOCK`` rows, so a
    segment can be saved, mapped and sliced without knowing what is in it. ``rows`` is a multiple of ``BLOCK``."""

    tensors: dict[str, Tensor]
    rows: int


BLOCK = 32
"""Rows a fused scan reads at once; lists start at multiples of it."""

Query = Any
"""Whatever ``prepare`` returns: tables, rotated queries; opaque to the caller."""


@runtime_checkable
class Scannable(Protocol):
    """Distances straight from codes. With c the ``given`` of a row's list, every estimate is split as

        distance(q, row) = coarse(q, c) + f(row) + g(q, row)          coarse: |q-c|^2 (l2), -<q,c> (ip)

    so one prepared query serves every list. The caller supplies ``coarse`` per (query, list); flat search has c = 0."""

    def pack(self, codes: Codes, given: Tensor | None = None) -> Packed:
        """Rows in scan layout; their number is padded to a multiple of BLOCK. ``given`` (rows, dim), one point a block."""
        ...

    def unpack(self, packed: Packed, rows: Tensor) -> Codes:
        """Codes of the chosen rows (n,) int64: indices exactly, side floats up to the rounding of the factors."""
        ...

    def take(self, packed: Packed, rows: Tensor) -> dict[str, Tensor]:
        """The chosen rows (n,) out of their layout, without loss: tensors whose first axis is n. So rows move between segments."""
        ...

    def lay(self, rows: dict[str, Tensor]) -> Packed:
        """Inverse of ``take`` for a multiple of BLOCK rows, each block of one list."""
        ...

    def check(self, packed: Packed) -> None:
        """ShapeError where values are impossible, e.g. in a stranger's file; whatever passes may be scanned."""
        ...

    def prepare(self, queries: Tensor, metric: str) -> Query:
        """Tables for ``queries`` (q, dim) float32; ``metric`` "l2" or "ip"."""
        ...

    def scan(self, packed: Packed, query: Query, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Rows start..stop for all prepared queries: (distance, lower bound), each (q, stop-start), without ``coarse``.
        The plain definition that ``search_spans`` must agree with."""
        ...

    def search_spans(self, packed: Packed, query: Query, spans: Tensor, coarse: Tensor, k: int,
                     allowed: Tensor | None, num_threads: int) -> tuple[Tensor, Tensor]:
        """Fused top-k. ``spans`` (q, p, 2) int64 row ranges, start a multiple of BLOCK (empty where start == stop);
        ``coarse`` (q, p) float32; ``allowed`` (rows,) bool or None. Returns distances (q, k) ascending, padded with +inf,
        and rows (q, k) int64, padded with -1. Ties go to the lower row. Same answer for any ``num_threads``."""
        ...


@runtime_checkable
class MatMul(Protocol):
    """A matrix product straight from codes."""

    def pack_matrix(self, codes: Codes, shape: tuple[int, int], axis: int) -> Packed: ...

    def matmul(self, x: Tensor, packed: Packed) -> Tensor: ...


@runtime_checkable
class Progressive(Protocol):
    """Codes whose prefix is a coarser code."""

    def truncate(self, codes: Codes, bits: float) -> Codes: ...


@runtime_checkable
class EntropyCoded(Protocol):
    """Indices that files hold as an entropy-coded stream, of a length that depends on them and without access to single rows."""

    def code_length(self) -> float:
        """Expected bits of the indices of one vector."""
        ...

    def compress(self, indices: Tensor) -> Tensor:
        """uint8 stream of ``indices`` (rows, positions) integers within their levels."""
        ...

    def expand(self, data: Tensor, rows: int) -> Tensor:
        """Inverse of ``compress``: int64 (rows, positions) within their levels; FormatError for a stranger's stream."""
        ...
