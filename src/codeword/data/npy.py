"""NumPy's .npy and .npz. Headers are parsed as a bounded literal (no pickle), sizes are checked against the file,
rows are mapped. Members of an .npz that were saved without compression are mapped in place as well."""

from __future__ import annotations

import ast
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from codeword.data.shards import ArrayShard, check_extent, check_matrix, file_size, map_matrix
from codeword.errors import CodewordError, FormatError, ShapeError

UNPACK_LIMIT = 4 << 30
"""Bytes of a compressed .npz member that are unpacked into memory."""

_HEADER_LIMIT = 10_000
_MAGIC = b"\x93NUMPY"


def open_npy(path: Path, key: str | None = None) -> ArrayShard:
    """One array (rows, dim), mapped."""
    if key is not None:
        raise CodewordError(f"{path} holds one array; a key ({key!r}) is only for files that hold several")
    size = file_size(path)
    with path.open("rb") as file:
        shape, fortran, dtype = _header(file, path)
        start = file.tell()
    check_matrix(path, shape, dtype)
    check_extent(path, "rows", shape[0] * shape[1] * dtype.itemsize, size - start)
    return ArrayShard(path, map_matrix(path, start, (shape[0], shape[1]), dtype, fortran))


def open_array(path: Path) -> np.ndarray:
    """An array of any shape, mapped, e.g. ids; its bytes checked like those of ``open_npy``."""
    size = file_size(path)
    with path.open("rb") as file:
        shape, fortran, dtype = _header(file, path)
        start = file.tell()
    check_matrix(path, (1, 1), dtype)
    if any(n < 0 for n in shape):
        raise ShapeError(f"{path} holds an array of shape {shape}")
    check_extent(path, "values", math.prod(shape) * dtype.itemsize, size - start)
    flat = map_matrix(path, start, (math.prod(shape), 1), dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def open_npz(path: Path, key: str | None = None) -> ArrayShard:
    """The member ``key``, or the only two-dimensional one."""
    size = file_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _member(archive, path, size, _choose(archive, path, key))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, struct.error, OSError, UnicodeError) as error:
        raise FormatError("header", f"{path} is not a readable .npz archive: {error}") from None


def _choose(archive: zipfile.ZipFile, path: Path, key: str | None) -> zipfile.ZipInfo:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
    if len(members) != sum(info.filename.endswith(".npy") for info in archive.infolist()):
        raise FormatError("duplicate", f"{path} holds two members of one name")
    if key is not None:
        if key not in members:
            raise CodewordError(f"{path} has no array {key!r}; it has {', '.join(sorted(members)) or 'none'}")
        return members[key]
    matrices = {}
    for name, info in members.items():
        with archive.open(info) as file:
            shape, _, dtype = _header(file, path)
        if len(shape) == 2 and dtype.kind in "fiu":
            matrices[name] = info
    if len(matrices) != 1:
        raise CodewordError(f"{path} holds {len(matrices)} arrays of rows ({', '.join(sorted(matrices)) or 'none'}); "
                            f"name one as {path.name}#NAME")
    return next(iter(matrices.values()))


def _member(archive: zipfile.ZipFile, path: Path, size: int, info: zipfile.ZipInfo) -> ArrayShard:
    with archive.open(info) as file:
        shape, fortran, dtype = _header(file, path)
        header = file.tell()
        check_matrix(path, shape, dtype)
        need = shape[0] * shape[1] * dtype.itemsize
        check_extent(path, f"rows in {info.filename!r}", need, info.file_size - header)
        if info.compress_type == zipfile.ZIP_STORED:
            start = _data_start(path, info)
            if info.compress_size != info.file_size or start + info.file_size > size:
                raise FormatError("layout", f"member {info.filename!r} of {path} reaches beyond the file")
            return ArrayShard(path, map_matrix(path, start + header, (shape[0], shape[1]), dtype, fortran))
        data = _unpack(file, path, info, need)
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return ArrayShard(path, array)


def _data_start(path: Path, info: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(info.header_offset)
        head = file.read(30)
    name, extra = struct.unpack("<HH", head[26:30])
    return info.header_offset + 30 + name + extra


def _unpack(file: IO[bytes], path: Path, info: zipfile.ZipInfo, need: int) -> bytearray:
    # The size is a claim until the bytes have come, so the buffer grows with them.
    if need > UNPACK_LIMIT:
        raise FormatError("limit",
                          f"{info.filename!r} of {path} unpacks to {need} bytes; {UNPACK_LIMIT} are allowed "
                          "(an .npy file is mapped at any size)")
    data = bytearray()
    while chunk := file.read(1 << 20):
        data += chunk
        if len(data) > need:
            break
    check_extent(path, f"rows in {info.filename!r}", need, len(data))
    return data


def _header(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    # At most _HEADER_LIMIT bytes are looked at, whatever length the header claims.
    head = file.read(10)
    if head[:6] != _MAGIC:
        raise FormatError("magic", f"{path} is not an .npy array")
    if len(head) < 10:
        raise FormatError("truncated", f"{path} ends inside its header")
    major, minor = head[6], head[7]
    if (major, minor) == (1, 0):
        length = struct.unpack("<H", head[8:10])[0]
    elif (major, minor) == (2, 0):
        length = struct.unpack("<I", (head[8:10] + file.read(2)).ljust(4, b"\0"))[0]
    else:
        raise FormatError("version", f"{path} has .npy version {major}.{minor}; 1.0 and 2.0 are read")
    if length > _HEADER_LIMIT:
        raise FormatError("limit", f"{path} declares an .npy header of {length} bytes; {_HEADER_LIMIT} are allowed")
    text = file.read(length)
    if len(text) < length:
        raise FormatError("truncated", f"{path} ends inside its header")
    return _parsed(text, path)


def _parsed(text: bytes, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        value = ast.literal_eval(text.decode("latin1").strip())
        if not isinstance(value, dict) or value.keys() != {"descr", "fortran_order", "shape"}:
            raise ValueError("the keys descr, fortran_order and shape are needed")
        shape, fortran, descr = value["shape"], value["fortran_order"], value["descr"]
        if not isinstance(shape, tuple) or not all(type(n) is int for n in shape) or type(fortran) is not bool:
            raise ValueError(f"shape {shape!r}, fortran_order {fortran!r}")
        if not isinstance(descr, str):
            raise FormatError("dtype", f"{path} holds records; rows of plain numbers are needed")
        return shape, fortran, np.dtype(descr)
    except CodewordError:
        raise
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise FormatError("header", f"{path} has a malformed .npy header: {str(error)[:200]}") from None
