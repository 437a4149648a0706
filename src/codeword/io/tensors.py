"""Tensors and a JSON header in one safetensors file (huggingface.co/docs/safetensors), written and read more strictly than it asks.

    8 bytes   n, little-endian                     8 + n is a multiple of 4096
    n bytes   canonical JSON, padded with spaces   {"__metadata__": {"codeword": TEXT}, NAME: {"data_offsets", "dtype", "shape"}, ...}
    the rest  tensors in order of their names      each starts at a multiple of 64

TEXT is again canonical JSON: {"digest", "header", "sha256", "version"}: ``header`` is the caller's; ``sha256`` has one digest a tensor;
``digest`` is the SHA-256 of the first 8 + n bytes with its own 64 digits set to zero. So the digest stands for the whole file, is known
after reading the header alone, and no bit can change unnoticed: header bits by ``digest``, tensor bits by ``sha256``, padding because
it must be zero.

Alignment. safetensors forbids holes, so the gap behind a tensor whose size is no multiple of 64 is itself a tensor: "_pad.0",
"_pad.1", ... of zero bytes (dtype U8), one where needed and never behind the last tensor. The public package opens these files and
shows those few extra names; here they are neither shown nor accepted from a caller. (Ordering alone cannot align two odd sizes, and
longer shapes would change the data.)

Reading. The header is parsed within ``Limits``; then the layout is computed again from names, dtypes and shapes, and has to give the
same bytes. Sizes are compared with the file before anything is allocated. ``mmap=False`` checks every digest while reading.
``mmap=True`` checks header and sizes, maps the file, and checks a tensor's digest when it is first taken from the result
(``verify()``: all of them; ``unchecked(name)``: not yet, for code that bounds every value it reads). Not promised: safety when another
process changes a mapped file in place; writers here never do.
"""

from __future__ import annotations

import hashlib
import math
import mmap as mapping
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.io import canonical, files
from codeword.io.canonical import LIMITS, Limits

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

VERSION = 1
ALIGN = 64
PAGE = 4096

ITEMSIZE = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
            "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}

_TORCH = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16",
          "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64", "F64": "float64"}
_NAMES = {word: code for code, word in _TORCH.items()}

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")
_PAD = "_pad."
_METADATA = "__metadata__"
_HEX = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1 << 22


Part = Callable[[], "Tensor"]


class Pieces(NamedTuple):
    """A tensor's memory: ``size`` bytes, and what gives them in order."""

    size: int
    each: Callable[[], Iterator[memoryview]]


class Spec(NamedTuple):
    """One tensor of a file; ``start`` and ``stop`` count from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    sha256: str

    @property
    def torch_dtype(self) -> Any:
        import torch
        return getattr(torch, _TORCH[self.dtype])


class FileHeader(NamedTuple):
    """``header`` as given to ``write_tensors``; ``specs`` by name, in file order; ``digest`` stands for the whole file."""

    header: dict[str, Any]
    specs: dict[str, Spec]
    digest: str
    size: int


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor | np.ndarray | Sequence[Part]], header: dict[str, Any], *,
                  durable: bool = True) -> str:
    """Write ``tensors`` and the JSON object ``header`` atomically; returns the file's digest. The same arguments give the same bytes. A
    sequence of functions that give tensors stands for these one below the other; each is called several times, and what it gives is
    held no longer than it takes to write it. Raises CodewordError for names, dtypes or headers that cannot be stored, OSError where
    writing fails."""
    head, data, digest = encode_tensors(tensors, header)
    files.write_file(path, _chunks(head, data), durable=durable)
    return digest


def encode_tensors(tensors: Mapping[str, Tensor | np.ndarray | Sequence[Part]],
                   header: dict[str, Any]) -> tuple[bytes, list[Pieces], str]:
    """The bytes of a file: its header, the pieces of each tensor's memory in order, and the digest."""
    if sys.byteorder != "little":
        raise Unsupported("files are written on little-endian machines only")
    raw = {name: _pieces(name, tensors[name]) for name in sorted(tensors)}
    shapes = {name: (dtype, shape) for name, (dtype, shape, _) in raw.items()}
    digests = {name: _sha256(memory) for name, (_, _, memory) in raw.items()}
    record = {"digest": canonical.DIGEST_ZEROS, "header": header, "sha256": digests, "version": VERSION}
    canonical.encode(record)
    head = _header_bytes(record, shapes)
    if len(head) > LIMITS.header_bytes or len(raw) > LIMITS.tensors:
        raise CodewordError(f"{len(raw)} tensors and a header of {len(head)} bytes; at most {LIMITS.tensors} tensors and "
                            f"{LIMITS.header_bytes} bytes fit into one file")
    canonical.encode(_entries(record, shapes))
    digest = hashlib.sha256(head).hexdigest()
    return _header_bytes({**record, "digest": digest}, shapes), [memory for _, _, memory in raw.values()], digest


def read_header(path: str | Path, *, limits: Limits = LIMITS, follow: bool = True) -> FileHeader:
    """Header of a file, fully checked against its own digest and the file's size; no tensor is read. Raises FormatError."""
    descriptor, found = files.open_regular(path, follow=follow)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        return _read_header(file, found.st_size, str(path), limits)


def read_tensors(path: str | Path, *, mmap: bool = False, limits: Limits = LIMITS, follow: bool = True,
                 expect: Callable[[FileHeader], None] | None = None) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Tensors by name and the caller's header. ``mmap=True`` gives a ``MappedTensors``. Raises FormatError, nothing else; ``expect``
    may raise it too, before any tensor is read."""
    descriptor, found = files.open_regular(path, follow=follow)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        known = _read_header(file, found.st_size, str(path), limits)
        if expect is not None:
            expect(known)
        if mmap:
            return MappedTensors(str(path), known, _map(file, known.size)), known.header
        loaded = {name: _load(file, spec, f"{path}: tensor {name!r}") for name, spec in known.specs.items()}
        _check_padding(file, known, str(path))
        return loaded, known.header


def verify_file(path: str | Path, *, limits: Limits = LIMITS, follow: bool = True) -> FileHeader:
    """Check every byte of a file without torch and in constant memory; returns its header. Raises FormatError."""
    descriptor, found = files.open_regular(path, follow=follow)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        known = _read_header(file, found.st_size, str(path), limits)
        for name, spec in known.specs.items():
            what = f"{path}: tensor {name!r}"
            digest = hashlib.sha256()
            for block in _blocks(file, spec.start, spec.stop, what):
                digest.update(block)
                if spec.dtype == "BOOL":
                    _check_bools(block, what)
            _check_digest(digest.hexdigest(), spec, what)
        _check_padding(file, known, str(path))
        return known


class MappedTensors(Mapping[str, "Tensor"]):
    """Tensors over a mapped file (private pages: writing to one changes no file). Taking one checks its digest the first time."""

    def __init__(self, path: str, known: FileHeader, memory: mapping.mmap) -> None:
        self._path, self._known, self._memory = path, known, memory
        self._checked: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        spec = self._known.specs[name]
        if name not in self._checked:
            what = f"{self._path}: tensor {name!r}"
            view = memoryview(self._memory)[spec.start:spec.stop]
            _check_digest(hashlib.sha256(view).hexdigest(), spec, what)
            if spec.dtype == "BOOL":
                _check_bools(view, what)
            self._checked.add(name)
        return self.unchecked(name)

    def unchecked(self, name: str) -> Tensor:
        """The mapped tensor without a look at its bytes, for code that bounds every value it takes from it."""
        import torch
        spec = self._known.specs[name]
        if spec.start == spec.stop:
            return torch.empty(spec.shape, dtype=spec.torch_dtype)
        count = (spec.stop - spec.start) // ITEMSIZE[spec.dtype]
        return torch.frombuffer(self._memory, dtype=spec.torch_dtype, count=count, offset=spec.start).reshape(spec.shape)

    def verify(self) -> None:
        """Check all digests and the padding now."""
        for name in self:
            self[name]
        for start, stop in _gaps(self._known):
            if any(self._memory[start:stop]):
                raise FormatError("value", f"{self._path}: padding at {start} is not zero")

    def __iter__(self) -> Iterator[str]:
        return iter(self._known.specs)

    def __len__(self) -> int:
        return len(self._known.specs)


# ---------------------------------------------------------------------- writing


def _pieces(name: str, given: Tensor | np.ndarray | Sequence[Part]) -> tuple[str, tuple[int, ...], Pieces]:
    """dtype code, shape and bytes of a tensor, or of several one below the other."""
    if not isinstance(given, (list, tuple)):
        code, shape, memory = _raw(name, cast(Any, given))
        return code, shape, Pieces(len(memory), lambda: iter((memory,)))
    found = [_raw(name, part())[:2] for part in given]
    if not found or len({(code, shape[1:]) for code, shape in found}) > 1 or not all(shape for _, shape in found):
        raise CodewordError(f"tensor {name!r} is given as {len(found)} parts that do not stand below each other: equal dtypes and widths "
                            "are needed")
    code, shape = found[0][0], (sum(shape[0] for _, shape in found), *found[0][1][1:])
    return code, shape, Pieces(ITEMSIZE[code] * math.prod(shape), lambda: (_raw(name, part())[2] for part in given))


def _sha256(pieces: Pieces) -> str:
    digest = hashlib.sha256()
    for memory in pieces.each():
        digest.update(memory)
    return digest.hexdigest()


def _raw(name: str, tensor: Tensor | np.ndarray) -> tuple[str, tuple[int, ...], memoryview]:
    """dtype code, shape and bytes in row-major order."""
    import numpy as np
    if not _NAME.fullmatch(name) or name.startswith(_PAD) or name == _METADATA:
        raise CodewordError(f"tensor name {name!r} cannot be stored; letters, digits, '_', '.', '-' are allowed, but not {_PAD!r} in front")
    if isinstance(tensor, np.ndarray):
        array = np.ascontiguousarray(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)).reshape(tensor.shape)
        code = _NAMES.get(str(array.dtype))
        if code is None:
            raise CodewordError(f"tensor {name!r} has dtype {array.dtype}; {', '.join(_NAMES)} are allowed")
        return code, array.shape, array.reshape(-1).view(np.uint8).data
    import torch
    code = _NAMES.get(str(tensor.dtype).removeprefix("torch."))
    if code is None or tensor.layout != torch.strided or tensor.device.type == "meta":
        raise CodewordError(f"tensor {name!r} is {tensor.layout} {tensor.dtype} on {tensor.device.type}; "
                            f"dense {', '.join(_NAMES)} are allowed")
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return code, tuple(tensor.shape), flat.view(torch.uint8).numpy().data


def _header_bytes(record: dict[str, Any], shapes: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The first 8 + n bytes: a pure function of the record and of names, dtypes and shapes in order."""
    text = canonical.dump(_entries(record, shapes))
    padded = -(-(8 + len(text)) // PAGE) * PAGE - 8
    return padded.to_bytes(8, "little") + text.ljust(padded)


def _entries(record: dict[str, Any], shapes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
    entries: dict[str, Any] = {_METADATA: {"codeword": canonical.dump(record).decode("ascii")}}
    for name, dtype, shape, start, stop in _layout(shapes):
        entries[name] = {"data_offsets": [start, stop], "dtype": dtype, "shape": list(shape)}
    return entries


def _layout(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> Iterator[tuple[str, str, tuple[int, ...], int, int]]:
    """(name, dtype, shape, start, stop) of all tensors and fillers, in file order; offsets count from the end of the header."""
    stop, fillers = 0, 0
    for name, (dtype, shape) in shapes.items():
        gap = -stop % ALIGN
        if gap:
            yield f"{_PAD}{fillers}", "U8", (gap,), stop, stop + gap
            stop, fillers = stop + gap, fillers + 1
        start, stop = stop, stop + ITEMSIZE[dtype] * math.prod(shape)
        yield name, dtype, shape, start, stop


def _chunks(head: bytes, data: list[Pieces]) -> Iterator[bytes | memoryview]:
    yield head
    stop = 0
    for pieces in data:
        if -stop % ALIGN:
            yield bytes(-stop % ALIGN)
        yield from pieces.each()
        stop += -stop % ALIGN + pieces.size


# ---------------------------------------------------------------------- reading: the header


def _read_header(file: Any, size: int, path: str, limits: Limits) -> FileHeader:
    head = _header_text(file, size, path, limits)
    what = f"header of {path}"
    entries = canonical.fields(canonical.parse(head[8:].rstrip(b" "), what, limits), what, {}, open_ended=True)
    record = _record(entries, what, limits)
    zeroed = head.replace(b'digest\\":\\"' + record["digest"].encode(), b'digest\\":\\"' + canonical.DIGEST_ZEROS.encode(), 1)
    if not canonical.same_digest(hashlib.sha256(zeroed).hexdigest(), record["digest"]):
        raise FormatError("digest", f"{what} differs from its digest")
    specs = _specs(entries, record, len(head), what, limits)
    if _header_bytes(record, {name: (spec.dtype, spec.shape) for name, spec in specs.items()}) != head:
        raise FormatError("header", f"{what} is not in canonical form")
    end = max((spec.stop for spec in specs.values()), default=len(head))
    if size < end:
        raise FormatError("truncated", f"{path} has {size} bytes; its header declares {end}")
    if size > end:
        raise FormatError("trailing", f"{path} has {size} bytes; its header declares {end}")
    return FileHeader(record["header"], specs, record["digest"], size)


def _header_text(file: Any, size: int, path: str, limits: Limits) -> bytes:
    """The first 8 + n bytes, as many as there are and are allowed."""
    if size == 0:
        raise FormatError("empty", f"{path} is empty")
    start = _read(file, 0, min(9, size), path)
    if size < 9:
        raise FormatError("truncated", f"{path} has {size} bytes; a header takes more")
    if start[8:] != b"{":
        raise FormatError("magic", f"{path} is not a safetensors file")
    n = int.from_bytes(start[:8], "little")
    if n > limits.header_bytes:
        raise FormatError("limit", f"{path} declares a header of {n} bytes; at most {limits.header_bytes} are allowed")
    if 8 + n > size:
        raise FormatError("truncated", f"{path} has {size} bytes; its header alone declares {8 + n}")
    return _read(file, 0, 8 + n, path)


def _record(entries: dict[str, Any], what: str, limits: Limits) -> dict[str, Any]:
    """Our own record inside the metadata, its version checked before anything else in it."""
    metadata = entries.get(_METADATA)
    if not isinstance(metadata, dict) or "codeword" not in metadata:
        raise FormatError("kind", f"{what} has no 'codeword' metadata: a safetensors file, but none of codeword's")
    text = canonical.fields(metadata, f"metadata in the {what}", {"codeword": str})["codeword"]
    if not text.isascii():
        raise FormatError("header", f"codeword metadata in the {what} is not ASCII")
    inner = canonical.parse(text.encode("ascii"), f"codeword metadata in the {what}", limits)
    check_version(inner, what)
    record = canonical.fields(inner, what, {"digest": str, "header": dict, "sha256": dict, "version": int})
    if canonical.dump(record) != text.encode("ascii"):
        raise FormatError("header", f"codeword metadata in the {what} is not in canonical form")
    if not _HEX.fullmatch(record["digest"]):
        raise FormatError("header", f"{what} has digest {record['digest'][:70]!r}; 64 hex digits are needed")
    return record


def check_version(record: Any, what: str) -> None:
    """Refuse formats of later releases by their number, before anything in them is interpreted."""
    version = record.get("version") if isinstance(record, dict) else None
    if isinstance(version, int) and not isinstance(version, bool) and version != VERSION:
        raise FormatError("version", f"{what} is in format {version}; this release reads format {VERSION}, "
                                     f"{'a newer codeword is needed' if version > VERSION else 'no release wrote that'}")


def _specs(entries: dict[str, Any], record: dict[str, Any], base: int, what: str, limits: Limits) -> dict[str, Spec]:
    """Tensors in file order, each field checked, and all offsets equal to the one layout their shapes allow."""
    names = sorted(name for name in entries if name != _METADATA and not name.startswith(_PAD))
    if len(names) > limits.tensors:
        raise FormatError("limit", f"{what} has {len(names)} tensors; at most {limits.tensors} are allowed")
    missing, extra = set(names) - set(record["sha256"]), set(record["sha256"]) - set(names)
    if missing:
        raise FormatError("missing-key", f"{what} has no digest of tensor {min(missing)!r}")
    if extra:
        raise FormatError("unknown-key", f"{what} has a digest of {min(extra)!r}, but no such tensor")
    shapes, offsets = {}, {}
    for name in sorted(name for name in entries if name != _METADATA):
        shapes[name], offsets[name] = _entry(entries[name], name, what, limits)
    real = {name: shapes[name] for name in names}
    expected = {name: (dtype, shape, start, stop) for name, dtype, shape, start, stop in _layout(real)}
    for name in sorted(shapes.keys() | expected.keys()):
        if name not in expected or name not in shapes or (*shapes[name], *offsets[name]) != expected[name]:
            raise FormatError("layout", f"{what} places tensor {name!r} at {offsets.get(name)}; "
                                        f"its neighbours' sizes imply {expected.get(name, 'none')}")
    for name in names:
        if not isinstance(record["sha256"][name], str) or not _HEX.fullmatch(record["sha256"][name]):
            raise FormatError("header", f"{what} has no 64 hex digits as digest of tensor {name!r}")
    return {name: Spec(dtype, shape, base + offsets[name][0], base + offsets[name][1], record["sha256"][name])
            for name, (dtype, shape) in real.items()}


def _entry(entry: Any, name: str, what: str, limits: Limits) -> tuple[tuple[str, tuple[int, ...]], tuple[int, int]]:
    what = f"{what}, tensor {name!r},"
    if not _NAME.fullmatch(name):
        raise FormatError("name", f"{what} has a name that is not made of letters, digits, '_', '.', '-'")
    canonical.fields(entry, what, {"data_offsets": list, "dtype": str, "shape": list})
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in ITEMSIZE:
        raise FormatError("dtype", f"{what} has dtype {dtype[:20]!r}; {', '.join(ITEMSIZE)} are known")
    if len(shape) > limits.axes or any(type(n) is not int or n < 0 for n in shape):
        raise FormatError("shape", f"{what} has a shape that is not at most {limits.axes} non-negative integers")
    if math.prod(n for n in shape if n) > limits.elements:
        raise FormatError("limit", f"{what} has shape {shape}; at most {limits.elements} elements are allowed")
    if len(offsets) != 2 or any(type(n) is not int or n < 0 for n in offsets):
        raise FormatError("layout", f"{what} has offsets that are not two non-negative integers")
    return (dtype, tuple(shape)), (offsets[0], offsets[1])


# ---------------------------------------------------------------------- reading: the data


def _read(file: Any, start: int, count: int, path: str) -> bytes:
    buffer = bytearray(count)
    _read_into(file, start, memoryview(buffer), path)
    return bytes(buffer)


def _read_into(file: Any, start: int, target: memoryview, what: str) -> None:
    try:
        file.seek(start)
        while target:
            taken = file.readinto(target)
            if not taken:
                raise FormatError("truncated", f"{what} ended while it was read")
            target = target[taken:]
    except OSError as error:
        raise FormatError("file", f"{what} cannot be read: {error.strerror}") from None


def _load(file: Any, spec: Spec, what: str) -> Tensor:
    import torch
    flat = torch.empty(spec.stop - spec.start, dtype=torch.uint8)
    view = flat.numpy().data
    _read_into(file, spec.start, view, what)
    _check_digest(hashlib.sha256(view).hexdigest(), spec, what)
    if spec.dtype == "BOOL":
        _check_bools(view, what)
    return flat.view(spec.torch_dtype).reshape(spec.shape)


def _blocks(file: Any, start: int, stop: int, what: str) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(_BLOCK, stop - start)))
    for at in range(start, stop, _BLOCK):
        part = buffer[:min(_BLOCK, stop - at)]
        _read_into(file, at, part, what)
        yield part


def _check_digest(digest: str, spec: Spec, what: str) -> None:
    if not canonical.same_digest(digest, spec.sha256):
        raise FormatError("digest", f"{what} differs from its digest")


def _check_bools(data: memoryview, what: str) -> None:
    if bytes(data).translate(None, b"\0\1"):
        raise FormatError("value", f"{what} is boolean and has bytes other than 0 and 1")


def _gaps(known: FileHeader) -> Iterator[tuple[int, int]]:
    specs = list(known.specs.values())
    for left, right in pairwise(specs):
        if left.stop < right.start:
            yield left.stop, right.start


def _check_padding(file: Any, known: FileHeader, path: str) -> None:
    for start, stop in _gaps(known):
        if any(_read(file, start, stop - start, path)):
            raise FormatError("value", f"{path}: padding at {start} is not zero")


def _map(file: Any, size: int) -> mapping.mmap:
    if not hasattr(mapping, "MAP_PRIVATE"):
        return mapping.mmap(file.fileno(), size, access=mapping.ACCESS_COPY)
    # Private and writable: a tensor may be written to without a fault; without reservation, so that files may exceed the memory.
    flags = mapping.MAP_PRIVATE | getattr(mapping, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
    return mapping.mmap(file.fileno(), size, flags=flags, prot=mapping.PROT_READ | mapping.PROT_WRITE)
