"""Quantizers and codes as files. A quantizer is saved as what it was built from, what fitting decided, and its tensors:

    object       {"quantizer": name, "config": {...}, "structure": {...}}; a quantizer inside a configuration is such an object again
    fingerprint  16 hex digits of the SHA-256 over object and tensors (dtype, shape, digest)

Loading reads the tensors (never more memory than the file has bytes), resolves the name through the catalog, runs the constructor on
torch's meta device, ``restore``s the structure, compares every tensor with what the constructor declared, and only then assigns them.
So a configuration that asks for a codebook of a terabyte allocates nothing and is refused. The rules this asks of a quantizer:

1. A constructor makes its tensors with torch factory functions (``torch.zeros``, ``torch.ones``), or, if it must compute them, in time
   and memory O(dim); it decides nothing by looking into a tensor. It bounds every argument that it multiplies, loops or repeats over.
2. Saved state is parameters and persistent buffers. On loading, the file wins over what the constructor computed.
3. What is derived and not saved (non-persistent buffers, tables) is computed in ``rebuild``, which the constructor calls as well.
4. ``structure`` holds what fitting decided about shapes; ``restore`` checks it like any stranger's input and allocates with
   factory functions. A combinator's ``structure`` covers the quantizers it made itself; those it was given are saved with their own.
5. ``check_state`` refuses impossible values. After that nothing is trusted less than program data.
6. An argument that a later release adds stands in ``later_arguments`` with the value that means what there was before. At that value
   it is not stored, so old files load, and old fingerprints and bytes stay. Defaults may change: every other argument is stored.

Codes are one bit string (``ops.pack``), or the stream of a quantizer that is ``EntropyCoded``, with their levels, shape and the
quantizer's fingerprint; every index is checked against its level on loading.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codeword import catalog, ops
from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.io import canonical
from codeword.io.canonical import LIMITS, Limits
from codeword.io.tensors import _NAMES, read_tensors, write_tensors
from codeword.parts import arrays
from codeword.quantizer import Codes, EntropyCoded, Quantizer

MAX_DIM = 1 << 16
"""Widest quantizer a file may hold."""
MAX_TOTAL_DIM = 1 << 18
"""Widths of a quantizer and of all inside it together: what constructors may cost before a tensor has been compared."""
MAX_PARTS = 1024
"""Quantizers in one file, itself included."""
MAX_POSITIONS = 1 << 18
"""Longest code a file may declare."""
_UNPACK_BITS = 1 << 18
"""Bits unpacked at once: the plain implementation takes tens of bytes for each."""
_MAX_ARGUMENT = 1 << 31
_MAX_NESTING = 4
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def save(quantizer: Quantizer, path: str | Path, *, durable: bool = True) -> None:
    """Write ``quantizer`` as one file, atomically. Raises CodewordError where it is not in the catalog."""
    tensors, header = to_parts(quantizer)
    write_tensors(path, tensors, header, durable=durable)


def load(path: str | Path, *, limits: Limits = LIMITS) -> Quantizer:
    """The quantizer in ``path``, on the CPU. Raises FormatError; never runs code from the file."""
    tensors, header = read_tensors(path, limits=limits)
    return from_parts(tensors, header, str(path))


def fingerprint(quantizer: Quantizer) -> str:
    """16 hex digits that stand for the object: equal for equal configuration, structure and tensors."""
    return _fingerprint(_record(quantizer), _state(quantizer))


def save_codes(path: str | Path, codes: Codes, quantizer: Quantizer, *, durable: bool = True) -> None:
    """Write ``codes`` of ``quantizer`` as one file, atomically. Raises ShapeError where they are not its codes."""
    tensors, header = codes_to_parts(codes, quantizer)
    write_tensors(path, tensors, header, durable=durable)


def join_codes(path: str | Path, parts: Sequence[Callable[[], tuple[Mapping[str, Tensor], dict[str, Any]]]],
               quantizer: Quantizer) -> None:
    """Write codes that come as several ``codes_to_parts`` of rows that follow each other: the file that ``save_codes`` writes of all of
    them. Bit strings are not unpacked, and one part is in memory at a time; each but the last must fill whole bytes. Entropy coded ones
    are coded again as one stream, in memory."""
    if isinstance(quantizer, EntropyCoded):
        found = [codes_from_parts(*part(), quantizer) for part in parts]
        columns: Any = zip(*found, strict=True)
        merged: Any = [None if column[0] is None else torch.cat(column) for column in columns]
        joined = Codes(*merged)
        return save_codes(path, joined, quantizer)
    names: set[tuple[str, ...]] = set()
    headers = []
    for part in parts:
        tensors, header = part()
        names.add(tuple(tensors))
        headers.append(header)
    if len(names) != 1 or any(header | {"shape": []} != headers[0] | {"shape": []} or len(header["shape"]) != 1 for header in headers):
        raise CodewordError(f"{len(parts)} parts of codes are not rows of one quantizer that follow each other")
    rows = [header["shape"][0] for header in headers]
    if headers[0]["fingerprint"] != quantizer.fingerprint or any(n * sum(quantizer.widths) % 8 for n in rows[:-1]):
        raise CodewordError(f"parts of {rows[:3]} ... rows of {headers[0]['quantizer']!r} cannot be joined: they are another "
                            "quantizer's, or end within a byte")
    pieces = {name: [lambda part=part, name=name: part()[0][name] for part in parts] for name in names.pop()}
    write_tensors(path, pieces, {**headers[0], "shape": [sum(rows)]})


def load_codes(path: str | Path, quantizer: Quantizer | None = None, *, limits: Limits = LIMITS) -> Codes:
    """The codes in ``path`` as torch tensors, every value checked. Raises FormatError; with ``quantizer`` given, also where they are
    another one's ("fingerprint"). Without it codes that are entropy coded cannot be read ("kind")."""
    tensors, header = read_tensors(path, limits=limits)
    return codes_from_parts(tensors, header, quantizer, str(path))


# ---------------------------------------------------------------------- quantizers


def to_parts(quantizer: Quantizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a quantizer, for ``write_tensors`` or a segment of a folder."""
    record, state = _record(quantizer), _state(quantizer)
    return state, {"fingerprint": _fingerprint(record, state), "kind": "quantizer", "object": record}


def from_parts(tensors: Mapping[str, Tensor], header: dict[str, Any], what: str = "the file") -> Quantizer:
    """Inverse of ``to_parts``, believing nothing. The tensors become the quantizer's own."""
    check_kind(header, "quantizer", what)
    canonical.fields(header, f"header of {what}", {"fingerprint": str, "kind": str, "object": dict})
    with torch.device("meta"):
        quantizer = _Builder(f"object in {what}").build(header["object"], 0)
    declared = quantizer.state_dict()
    check_declared({name: (t.dtype, tuple(t.shape)) for name, t in declared.items()}, tensors, what)
    quantizer.load_state_dict(dict(tensors), assign=True)
    with torch.device("cpu"):
        _check_values(quantizer, what)
    if not canonical.same_digest(_fingerprint(header["object"], tensors), header["fingerprint"]):
        raise FormatError("fingerprint", f"{what} does not have the fingerprint {header['fingerprint'][:16]!r} that it states")
    return quantizer


def check_kind(header: dict[str, Any], kind: str, what: str) -> None:
    """FormatError("kind") where a valid file holds another kind of object."""
    found = header.get("kind")
    if found != kind:
        raise FormatError("kind", f"{what} holds {str(found)[:40]!r}, not {kind!r}")


def _record(quantizer: Quantizer) -> dict[str, Any]:
    name = quantizer.name
    if catalog.quantizer_class(name) is not type(quantizer):
        raise CodewordError(f"{type(quantizer).__name__} is not the catalog's {name!r}; only quantizers of the catalog can be saved")
    parts = [part for part in quantizer.modules() if isinstance(part, Quantizer)]
    total = sum(part.dim for part in parts)
    if quantizer.dim > MAX_DIM or total > MAX_TOTAL_DIM or len(parts) > MAX_PARTS:
        raise Unsupported(f"{name} has dim={quantizer.dim}, and {len(parts)} quantizers of {total} dimensions in all; files hold up to "
                          f"{MAX_DIM}, {MAX_PARTS} and {MAX_TOTAL_DIM}")
    config = {key: _plain(value) for key, value in quantizer.config.items()}
    later = type(quantizer).later_arguments
    config = {key: value for key, value in config.items() if key not in later or later[key] != value}
    return {"config": config, "quantizer": name, "structure": quantizer.structure}


def _plain(value: Any) -> Any:
    if isinstance(value, Quantizer):
        return _record(value)
    if isinstance(value, (list, tuple, torch.nn.ModuleList)):
        return [_plain(item) for item in value]
    return value


def _state(quantizer: Quantizer) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in quantizer.state_dict().items()}


def _fingerprint(record: dict[str, Any], state: Mapping[str, Tensor]) -> str:
    digests = {name: [_NAMES[str(t.dtype).removeprefix("torch.")], list(t.shape), digest_of(t)] for name, t in state.items()}
    return hashlib.sha256(canonical.encode({"object": record, "tensors": digests})).hexdigest()[:16]


def digest_of(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and "quantizer" in value


# ---------------------------------------------------------------------- building from a stranger's record


class _Builder:
    """Quantizers from records that may say anything, within a budget of objects and widths."""

    def __init__(self, what: str) -> None:
        self._what, self._left, self._parts = what, MAX_TOTAL_DIM, 0

    def build(self, record: Any, depth: int) -> Quantizer:
        what = self._what
        canonical.fields(record, what, {"config": dict, "quantizer": str, "structure": dict})
        self._parts += 1
        if depth == _MAX_NESTING or self._parts > MAX_PARTS:
            raise FormatError("limit", f"{what} nests more than {_MAX_NESTING} quantizers, or has more than {MAX_PARTS} in all")
        name, config = record["quantizer"], record["config"]
        try:
            cls = catalog.quantizer_class(name)
        except CodewordError as error:
            raise FormatError("name", f"{what}: {error}") from None
        known = inspect.signature(cls.__init__).parameters.keys() - {"self"}
        for key in config.keys() - known:
            raise FormatError("unknown-key", f"{what}: {name} has no argument {key[:40]!r}")
        for key in known - config.keys() - cls.later_arguments.keys():
            raise FormatError("missing-key", f"{what}: {name} needs the argument {key!r}")
        arguments = {**cls.later_arguments, **{key: self._argument(key, value, depth) for key, value in config.items()}}
        try:
            quantizer = cls(**arguments)
            self._spend(quantizer.dim)
            quantizer.restore(record["structure"])
        except FormatError:
            raise
        except MemoryError:
            raise FormatError("limit", f"{what}: {name} with this configuration needs more memory than there is") from None
        except Exception as error:  # a stranger's arguments: whatever the constructor says, it is the file's fault
            raise FormatError("config", f"{what}: {name} refuses its configuration: {str(error)[:300]}") from error
        return quantizer

    def _argument(self, key: str, value: Any, depth: int) -> Any:
        if _is_record(value):
            return self.build(value, depth + 1)
        if isinstance(value, list):
            return [self._argument(key, item, depth) for item in value]
        if type(value) is int and key != "seed" and abs(value) > (MAX_DIM if key == "dim" else _MAX_ARGUMENT):
            raise FormatError("limit", f"{self._what}: argument {key!r} is {value}, more than is read from a file")
        return value

    def _spend(self, dim: int) -> None:
        self._left -= dim
        if dim > MAX_DIM or self._left < 0:
            raise FormatError("limit", f"{self._what} is wider than {MAX_DIM}, or all its parts together than {MAX_TOTAL_DIM}")


def check_declared(declared: dict[str, tuple[torch.dtype, tuple[int, ...]]], found: Mapping[str, Tensor], what: str) -> None:
    for name in sorted(declared.keys() | found.keys()):
        if name not in found:
            raise FormatError("missing-key", f"{what} lacks the tensor {name!r}")
        if name not in declared:
            raise FormatError("unknown-key", f"{what} has a tensor {name!r} that its configuration does not declare")
        dtype, shape = declared[name]
        if found[name].dtype != dtype:
            raise FormatError("dtype", f"tensor {name!r} of {what} is {found[name].dtype}; its configuration declares {dtype}")
        if tuple(found[name].shape) != shape:
            raise FormatError("shape", f"tensor {name!r} of {what} has shape {tuple(found[name].shape)}; {shape} is declared")


def _check_values(quantizer: Quantizer, what: str) -> None:
    """``check_state`` and ``rebuild`` of all quantizers inside, innermost first."""
    for part in reversed([module for module in quantizer.modules() if isinstance(module, Quantizer)]):
        try:
            part.check_state()
        except FormatError:
            raise
        except Exception as error:  # values that a check did not foresee are impossible values
            raise FormatError("value", f"{what}: {part.name} refuses its state: {error}") from error
        part.rebuild()
    for name, tensor in (*quantizer.named_parameters(), *quantizer.named_buffers()):
        if tensor.is_meta:
            raise FormatError("internal", f"{quantizer.name} neither saves {name!r} nor makes it in rebuild()")


# ---------------------------------------------------------------------- codes


def codes_to_parts(codes: Codes, quantizer: Quantizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of ``codes``: "indices" (the bit string) or "stream" (entropy coded), "side" and "lengths" where there are any."""
    indices, side, lengths = quantizer._check_codes(codes, wide=False)
    shape = list(indices.shape[:-1])
    rows = indices.reshape(-1, len(quantizer.levels)).cpu()
    if isinstance(quantizer, EntropyCoded):
        tensors = {"stream": quantizer.compress(rows)}
        stored = tensors["stream"].numel()
    else:
        stored = math.ceil(len(rows) * sum(quantizer.widths) / 8)
    if indices.numel() > _most_positions(stored):
        raise Unsupported(f"{quantizer.name} stores these codes in almost no bits; a reader could not bound their number")
    if not isinstance(quantizer, EntropyCoded):
        tensors = {"indices": ops.pack(rows, quantizer.widths)}
    if side is not None:
        tensors["side"] = side.cpu()
    if lengths is not None:
        tensors["lengths"] = lengths.cpu().to(arrays.unsigned_dtype(len(quantizer.levels) + 1))
    levels = [[level, len(list(run))] for level, run in groupby(quantizer.levels)]
    return tensors, {"dim": quantizer.dim, "fingerprint": quantizer.fingerprint, "kind": "codes", "levels": levels,
                     "quantizer": quantizer.name, "shape": shape}


def codes_from_parts(tensors: Mapping[str, Tensor], header: dict[str, Any], quantizer: Quantizer | None = None,
                     what: str = "the file") -> Codes:
    """Inverse of ``codes_to_parts``, believing nothing."""
    check_kind(header, "codes", what)
    canonical.fields(header, f"header of {what}",
                     {"dim": int, "fingerprint": str, "kind": str, "levels": list, "quantizer": str, "shape": list})
    if not _FINGERPRINT.fullmatch(header["fingerprint"]):
        raise FormatError("header", f"{what} has no fingerprint of 16 hex digits")
    levels, shape = _levels(header["levels"], what), _lead_shape(header["shape"], what)
    if quantizer is not None:
        if quantizer.fingerprint != header["fingerprint"]:
            raise FormatError("fingerprint", f"{what} was encoded by {header['quantizer'][:40]!r} with fingerprint "
                                             f"{header['fingerprint']}; the given {quantizer.name!r} has {quantizer.fingerprint}")
        if tuple(quantizer.levels) != levels or quantizer.dim != header["dim"] or quantizer.name != header["quantizer"]:
            raise FormatError("shape", f"{what} declares other levels than the quantizer whose fingerprint it carries")
    rows, widths = math.prod(shape), tuple((level - 1).bit_length() for level in levels)
    if "stream" in tensors and quantizer is None:
        raise FormatError("kind", f"{what} is entropy coded; its codes cannot be read without the quantizer that wrote them")
    _check_code_tensors(tensors, shape, rows, levels, widths, quantizer, what)
    lengths = tensors.get("lengths")
    lengths = None if lengths is None else lengths.to(torch.int32)
    if isinstance(quantizer, EntropyCoded):
        found = quantizer.expand(tensors["stream"], rows).to(arrays.unsigned_dtype(max(levels)))
        return Codes(found.reshape(*shape, len(levels)), tensors.get("side"), lengths)
    indices, tops = torch.empty(rows, len(levels), dtype=arrays.unsigned_dtype(max(levels))), torch.tensor(levels)
    for start, stop, block in _unpack(tensors["indices"], widths, rows):
        if bool((block >= tops).any()):
            raise FormatError("value", f"{what} has an index outside its level among rows {start}..{stop - 1}")
        indices[start:stop] = block.to(indices.dtype)
    return Codes(indices.reshape(*shape, len(levels)), tensors.get("side"), lengths)


def _levels(runs: list[Any], what: str) -> tuple[int, ...]:
    """Levels from [[level, how many positions in a row], ...]."""
    pairs = [run for run in runs if isinstance(run, list) and len(run) == 2 and all(type(n) is int and n >= 1 for n in run)]
    if len(pairs) != len(runs) or not pairs:
        raise FormatError("header", f"{what} has levels that are not pairs of positive integers")
    if sum(count for _, count in pairs) > MAX_POSITIONS:
        raise FormatError("limit", f"{what} has more than {MAX_POSITIONS} positions a code")
    if any(left[0] == right[0] for left, right in pairwise(pairs)):
        raise FormatError("header", f"{what} has levels that are not in shortest form")
    return tuple(level for level, count in pairs for _ in range(count))


def _lead_shape(shape: list[Any], what: str) -> tuple[int, ...]:
    if len(shape) > LIMITS.axes or any(type(n) is not int or n < 0 for n in shape):
        raise FormatError("shape", f"{what} has a shape that is not at most {LIMITS.axes} non-negative integers")
    if math.prod(n for n in shape if n) > LIMITS.elements:
        raise FormatError("limit", f"{what} has shape {shape}; at most {LIMITS.elements} codes are allowed")
    return tuple(shape)


def _check_code_tensors(tensors: Mapping[str, Tensor], shape: tuple[int, ...], rows: int, levels: tuple[int, ...], widths: tuple[int, ...],
                        quantizer: Quantizer | None, what: str) -> None:
    """Shapes, dtypes and values of all three tensors but the indices themselves."""
    main = "stream" if isinstance(quantizer, EntropyCoded) else "indices"
    if main not in tensors:
        raise FormatError("missing-key", f"{what} lacks the tensor {main!r}")
    for name in tensors.keys() - {main, "side", "lengths"}:
        raise FormatError("unknown-key", f"{what} has a tensor {name!r}; codes have none of that name")
    data, side, lengths = tensors[main], tensors.get("side"), tensors.get("lengths")
    need = data.numel() if main == "stream" else ops.packed_bytes(rows, widths)
    if data.dtype != torch.uint8:
        raise FormatError("dtype", f"{what} has indices of {data.dtype}; a bit string of uint8 is needed")
    if tuple(data.shape) != (need,):
        raise FormatError("shape", f"{what} has a bit string of shape {tuple(data.shape)}; {rows} codes take ({need},)")
    if rows * len(levels) > _most_positions(need):
        raise FormatError("limit", f"{what} declares {rows} codes of {len(levels)} positions in {need} bytes")
    spare = 0 if main == "stream" else 8 * need - rows * sum(widths)
    if spare and int(data[-1]) >> (8 - spare):
        raise FormatError("value", f"{what} has padding bits that are not zero")
    if side is not None:
        if not side.is_floating_point() or (quantizer is not None and side.dtype != quantizer.side_dtype):
            raise FormatError("dtype", f"{what} has side information of {side.dtype}")
        if side.ndim == 0 or tuple(side.shape[:-1]) != shape or side.shape[-1] == 0:
            raise FormatError("shape", f"{what} has side information of shape {tuple(side.shape)}; {(*shape, 'count')} is needed")
        if not bool(torch.isfinite(side).all()):
            raise FormatError("value", f"{what} has side information that is not finite")
    if quantizer is not None and quantizer.side_count != (0 if side is None else side.shape[-1]):
        raise FormatError("shape", f"{what} has other side information than the {quantizer.side_count} floats of {quantizer.name}")
    if lengths is not None:
        if lengths.dtype != arrays.unsigned_dtype(len(levels) + 1):
            raise FormatError("dtype", f"{what} has lengths of {lengths.dtype}; the smallest unsigned type is needed")
        if tuple(lengths.shape) != shape:
            raise FormatError("shape", f"{what} has lengths of shape {tuple(lengths.shape)}; {shape} is needed")
        if bool((lengths.to(torch.int64) > len(levels)).any()):
            raise FormatError("value", f"{what} has lengths above {len(levels)}")


def _most_positions(packed: int) -> int:
    """Positions that ``packed`` bytes may declare: 8 a byte, with room for alphabets of one symbol, which take no bits at all."""
    return max(64 * packed, 1 << 24)


def _unpack(data: Tensor, widths: tuple[int, ...], rows: int) -> Iterator[tuple[int, int, Tensor]]:
    """(start, stop, int64 indices) in small blocks that begin on byte boundaries."""
    bits = sum(widths)
    step = max(8, _UNPACK_BITS // max(bits, len(widths)) // 8 * 8)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        yield start, stop, ops.unpack(data[start * bits // 8:ops.packed_bytes(stop, widths)], widths, stop - start)
