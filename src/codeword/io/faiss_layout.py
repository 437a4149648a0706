"""The layout of faiss index files, read with suspicion and without faiss. Imports no torch; vectors and codes stay mapped.

A file is one index: four letters, the fields of its class, and inside it the indexes it is made of. Integers and floats are little-endian,
a vector is its length (uint64, in elements) and its elements.

    header      int32 d · int64 ntotal · int64 0x100000 twice · uint8 is_trained · int32 metric (0 ip, 1 l2)
    PQ          uint64 d, M, nbits · centroids float32 (M, 2^nbits, d / M)
    SQ          int32 type, rangestat · float32 rangestat_arg · uint64 d, code_size · trained float32
    RaBitQ      uint64 d, code_size · int32 metric · uint64 nb_bits (only where there are several)
    transform   four letters, its fields · int32 d_in, d_out · uint8 is_trained
    ivf         header · uint64 nlist, nprobe · an IxF2 / IxFI index of centroids · uint8 and a vector (direct map)
    lists       "ilar" · uint64 nlist, code_size · "full" sizes or "sprs" (list, size) pairs · per list codes, then int64 ids

    IxPq IxPo IxPQ   header · PQ · codes · (but IxPQ) int32 search_type, uint8 encode_signs, int32 polysemous_ht
    IxSQ             header · SQ · codes
    Ixrq Ixrr        header · RaBitQ (rr: several bits) · codes · center float32 · uint8 qb
    IwPQ             ivf · uint8 by_residual · uint64 code_size · PQ · lists
    IwSQ IwSq        ivf · SQ · uint64 code_size · (Sq) uint8 by_residual · lists
    Iwrq Iwrr        ivf · RaBitQ · uint64 code_size · uint8 by_residual · uint8 qb · lists
    IxPT             header · int32 count · transforms · an index
    IxMp IxM2        header · an index · ids int64

Everything else is refused by its four letters. Every length is compared with what is left of the file before anything is made of it,
every field that another one implies is compared with it, and nothing may follow the index.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from codeword.errors import FormatError

MAX_DIM = 1 << 16
MAX_LISTS = 1 << 24
MAX_NESTING = 4
MAX_TRANSFORMS = 3

READ = ("IxPq", "IxPo", "IxPQ", "IxSQ", "Ixrq", "Ixrr", "IwPQ", "IwSQ", "IwSq", "Iwrq", "Iwrr", "IxPT", "IxMp", "IxM2")
NAMES = {"IxPq": "IndexPQ", "IxPo": "IndexPQ", "IxPQ": "IndexPQ", "IxSQ": "IndexScalarQuantizer", "Ixrq": "IndexRaBitQ",
         "Ixrr": "IndexRaBitQ", "IwPQ": "IndexIVFPQ", "IwSQ": "IndexIVFScalarQuantizer", "IwSq": "IndexIVFScalarQuantizer",
         "Iwrq": "IndexIVFRaBitQ", "Iwrr": "IndexIVFRaBitQ", "IxPT": "IndexPreTransform", "IxMp": "IndexIDMap", "IxM2": "IndexIDMap2"}
SCALAR_TYPES = ("QT_8bit", "QT_4bit", "QT_8bit_uniform", "QT_4bit_uniform", "QT_fp16", "QT_8bit_direct", "QT_6bit", "QT_bf16",
                "QT_8bit_direct_signed", "QT_0bit", "QT_1bit_tqmse", "QT_2bit_tqmse", "QT_3bit_tqmse", "QT_4bit_tqmse", "QT_8bit_tqmse")
SCALAR_BITS = (8, 4, 8, 4, 16, 8, 6, 16, 8, 0, 1, 2, 3, 4, 8)


class Product(NamedTuple):
    """``centroids`` float32 (M, 2^bits, d / M)."""

    bits: int
    centroids: np.ndarray


class Scalar(NamedTuple):
    """``type`` one of ``SCALAR_TYPES``; ``trained`` float32, whose meaning the type decides."""

    type: str
    bits: int
    trained: np.ndarray


class Signs(NamedTuple):
    """RaBitQ as faiss has it: no rotation, ``bits`` a dimension, factors in each code; ``center`` float32 (d,), None with lists."""

    bits: int
    center: np.ndarray | None


class Linear(NamedTuple):
    """y = matrix (x - mean) + bias; matrix float32 (d_out, d_in), or None for the identity."""

    matrix: np.ndarray | None
    bias: np.ndarray
    mean: np.ndarray


class Lists(NamedTuple):
    """``centroids`` float32 (nlist, d); per list its codes uint8 (n, code_size) and ids int64 (n,)."""

    centroids: np.ndarray
    residual: bool
    nprobe: int
    codes: list[np.ndarray]
    ids: list[np.ndarray]


class Found(NamedTuple):
    """One index. ``kinds``: four letters from the outside in; ``dim``: of the vectors outside; ``transforms``: applied in order;
    ``codes`` uint8 (rows, code_size), empty where there are ``lists``; ``ids`` int64 (rows,) of an id map, by row number."""

    kinds: tuple[str, ...]
    dim: int
    rows: int
    metric: str
    coder: Product | Scalar | Signs
    codes: np.ndarray
    transforms: tuple[Linear, ...] = ()
    lists: Lists | None = None
    ids: np.ndarray | None = None


def read(path: str | Path) -> Found:
    """What the faiss index file ``path`` holds. Raises FormatError."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FormatError("file", f"{path} is not a regular file")
            if status.st_size == 0:
                raise FormatError("empty", f"{path} is empty")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError("file", f"{path} cannot be read: {error.strerror}") from None
    return parse(data, str(path))


def parse(data: mmap.mmap | bytes, what: str) -> Found:
    """As ``read``, of bytes."""
    reader = _Reader(memoryview(data), what)
    found = _index(reader, 0)
    if reader.left:
        raise FormatError("trailing", f"{what} has {reader.left} bytes after its index")
    return found


# ---------------------------------------------------------------------- primitives


class _Reader:
    """Fields of a file in order; nothing is taken that is not there."""

    def __init__(self, data: memoryview, what: str) -> None:
        self._data, self._at, self.what = data, 0, what

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def _take(self, count: int, field: str) -> memoryview:
        if count > self.left:
            raise FormatError("truncated", f"{self.what} has {self.left} bytes left at byte {self._at}; {field} takes {count}")
        self._at += count
        return self._data[self._at - count:self._at]

    def letters(self) -> str:
        text = bytes(self._take(4, "a kind"))
        if not text.isalnum() or not text.isascii():
            raise FormatError("magic", f"{self.what} has {text!r} at byte {self._at - 4}; four letters that name a part of a faiss index "
                                       "are needed")
        return text.decode("ascii")

    def integer(self, size: int, field: str, low: int, high: int, signed: bool = False) -> int:
        value = int.from_bytes(self._take(size, field), "little", signed=signed)
        if not low <= value <= high:
            code = "limit" if value > high else "value"
            raise FormatError(code, f"{self.what} has {field}={value} at byte {self._at - size}; {low}..{high} are read")
        return value

    def int32(self, field: str, low: int, high: int) -> int:
        return self.integer(4, field, low, high, signed=True)

    def uint64(self, field: str, low: int, high: int) -> int:
        return self.integer(8, field, low, high)

    def flag(self, field: str) -> bool:
        return bool(self.integer(1, field, 0, 1))

    def skip(self, size: int, field: str) -> None:
        self._take(size, field)

    def array(self, dtype: str, count: int, field: str) -> np.ndarray:
        """``count`` elements, as a view of the file."""
        raw = self._take(count * np.dtype(dtype).itemsize, field)
        return np.frombuffer(raw, dtype=dtype)

    def vector(self, dtype: str, field: str, count: int | None = None) -> np.ndarray:
        """A vector with its length in front; ``count``: the only length allowed."""
        have = self.integer(8, f"length of {field}", 0, (1 << 64) - 1)
        if count is not None and have != count:
            raise FormatError("shape", f"{self.what} has {field} of {have} elements at byte {self._at - 8}; {count} are needed")
        return self.array(dtype, have, field)

    def floats(self, field: str, count: int | None = None) -> np.ndarray:
        """A vector of finite float32, copied out of the file."""
        values = self.vector("<f4", field, count).astype(np.float32)
        if not np.isfinite(values).all():
            raise FormatError("value", f"{self.what} has {field} with NaN or infinity")
        return values

    def same(self, field: str, found: int, wanted: int) -> None:
        if found != wanted:
            raise FormatError("shape", f"{self.what} has {field}={found} before byte {self._at}; {wanted} is implied by what is before it")


class _Header(NamedTuple):
    dim: int
    rows: int
    metric: str


def _header(reader: _Reader, *, trained: bool = True) -> _Header:
    dim = reader.int32("d", 1, MAX_DIM)
    rows = reader.integer(8, "ntotal", 0, (1 << 62), signed=True)
    reader.skip(16, "the header")
    is_trained = reader.flag("is_trained")
    metric = reader.int32("metric", -(1 << 31), (1 << 31) - 1)
    if metric not in (0, 1):
        raise FormatError("kind", f"{reader.what} is made for faiss metric {metric}; 0 (inner product) and 1 (l2) are read")
    if trained and not is_trained:
        raise FormatError("value", f"{reader.what} holds an index that is not trained: there is nothing to read")
    return _Header(dim, rows, "l2" if metric else "ip")


# ---------------------------------------------------------------------- indexes


def _index(reader: _Reader, depth: int) -> Found:
    kind = reader.letters()
    if kind not in READ:
        raise FormatError("kind", f"{reader.what} has {kind!r} where the letters of a faiss index are expected; "
                                  f"{', '.join(dict.fromkeys(NAMES.values()))} are read")
    if depth == MAX_NESTING:
        raise FormatError("limit", f"{reader.what} nests more than {MAX_NESTING} indexes")
    if kind == "IxPT":
        return _pre_transform(reader, kind, depth)
    if kind in ("IxMp", "IxM2"):
        return _id_map(reader, kind, depth)
    return _inverted(reader, kind) if kind.startswith("Iw") else _flat(reader, kind)


def _flat(reader: _Reader, kind: str) -> Found:
    header = _header(reader)
    coder, size = _coder(reader, kind, header)
    codes = reader.vector("u1", "codes", header.rows * size).reshape(header.rows, size)
    metric = header.metric
    if kind.startswith("Ixr"):
        coder = coder._replace(center=reader.floats("center", header.dim))
        reader.integer(1, "qb", 0, 8)
    if kind in ("IxPq", "IxPo"):
        reader.skip(4, "search_type")
        reader.flag("encode_signs")
        reader.skip(4, "polysemous_ht")
    if kind in ("IxPQ", "IxPo"):
        metric = "l2"  # these wrote 0 whatever they meant, and meant l2
    return Found((kind,), header.dim, header.rows, metric, coder, codes)


def _inverted(reader: _Reader, kind: str) -> Found:
    header = _header(reader)
    count = reader.uint64("nlist", 1, MAX_LISTS)
    nprobe = reader.uint64("nprobe", 0, 1 << 62)
    centroids = _centroids(reader, header, count)
    if reader.integer(1, "direct map", 0, 2) == 2:
        raise FormatError("kind", "a direct map by hash table is not read; write the index with set_direct_map_type(NoMap)")
    reader.vector("<i8", "direct map")
    residual = True
    if kind == "IwPQ":
        residual = reader.flag("by_residual")
        stated = reader.uint64("code_size", 1, 1 << 32)
    coder, size = _coder(reader, kind, header)
    if kind != "IwPQ":
        stated = reader.uint64("code_size", 1, 1 << 32)
    if kind == "IwSq" or kind.startswith("Iwr"):
        residual = reader.flag("by_residual")
    if kind.startswith("Iwr"):
        reader.integer(1, "qb", 0, 8)
        residual = True  # its codes are relative to the centroid whatever the flag says
    reader.same("code_size", stated, size)
    codes, ids = _lists(reader, count, size)
    reader.same("ntotal", header.rows, sum(map(len, ids)))
    return Found((kind,), header.dim, header.rows, header.metric, coder, np.empty((0, size), np.uint8),
                 lists=Lists(centroids, residual, max(1, min(nprobe, count)), codes, ids))


def _pre_transform(reader: _Reader, kind: str, depth: int) -> Found:
    header = _header(reader)
    count = reader.int32("number of transforms", 1, MAX_TRANSFORMS)
    transforms, width = [], header.dim
    for _ in range(count):
        transform = _transform(reader, width)
        transforms.append(transform)
        width = len(transform.bias)
    found = _index(reader, depth + 1)
    reader.same("d of the inner index", found.dim, width)
    reader.same("ntotal of the inner index", found.rows, header.rows)
    return found._replace(kinds=(kind, *found.kinds), dim=header.dim, transforms=(*transforms, *found.transforms))


def _id_map(reader: _Reader, kind: str, depth: int) -> Found:
    header = _header(reader, trained=False)
    found = _index(reader, depth + 1)
    reader.same("d of the inner index", found.dim, header.dim)
    ids = reader.vector("<i8", "ids", found.rows)
    reader.same("ntotal", header.rows, found.rows)
    if found.ids is not None:
        raise FormatError("kind", f"{reader.what} has an id map inside an id map; one is read")
    return found._replace(kinds=(kind, *found.kinds), ids=ids)


def _centroids(reader: _Reader, header: _Header, count: int) -> np.ndarray:
    kind = reader.letters()
    if kind not in ("IxF2", "IxFI"):
        raise FormatError("kind", f"{reader.what} routes rows by a faiss {kind!r}; IndexFlat (IxF2, IxFI) is read")
    inner = _header(reader)
    reader.same("d of the centroids", inner.dim, header.dim)
    reader.same("number of centroids", inner.rows, count)
    return reader.floats("centroids", count * header.dim).reshape(count, header.dim)


def _lists(reader: _Reader, count: int, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    kind = reader.letters()
    if kind == "il00":
        return [], []
    if kind != "ilar":
        raise FormatError("kind", f"{reader.what} keeps its lists as a faiss {kind!r}; arrays in the file (ilar) are read")
    reader.same("nlist of the lists", reader.uint64("nlist", 0, MAX_LISTS), count)
    reader.same("code_size of the lists", reader.uint64("code_size", 0, 1 << 32), size)
    layout = reader.letters()
    if layout == "full":
        sizes = reader.vector("<u8", "list sizes", count)
    elif layout == "sprs":
        pairs = reader.vector("<u8", "list sizes")
        if len(pairs) % 2 or len(pairs) > 2 * count:
            raise FormatError("shape", f"{reader.what} has {len(pairs)} numbers for list sizes; pairs, at most {count}, are needed")
        which, some = pairs[::2], pairs[1::2]
        if len(which) and (int(which.max()) >= count or bool((which[1:] <= which[:-1]).any())):
            raise FormatError("value", f"{reader.what} has sizes of lists that are not ascending numbers below {count}")
        sizes = np.zeros(count, np.uint64)
        sizes[which.astype(np.int64)] = some
    else:
        raise FormatError("kind", f"{reader.what} gives list sizes as {layout!r}; 'full' and 'sprs' are read")
    codes, ids = [], []
    for n in map(int, sizes):
        codes.append(reader.array("u1", n * size, "codes of a list").reshape(n, size))
        ids.append(reader.array("<i8", n, "ids of a list"))
    return codes, ids


# ---------------------------------------------------------------------- what codes vectors


def _coder(reader: _Reader, kind: str, header: _Header) -> tuple[Product | Scalar | Signs, int]:
    """The quantizer, and the bytes of its codes."""
    letters = kind[2:].lower()
    if letters in ("pq", "po"):
        return _product(reader, header)
    if letters == "sq":
        return _scalar(reader, header)
    return _signs(reader, header, several=letters == "rr")


def _product(reader: _Reader, header: _Header) -> tuple[Product, int]:
    reader.same("d of the product quantizer", reader.uint64("d", 1, MAX_DIM), header.dim)
    books = reader.uint64("M", 1, header.dim)
    bits = reader.uint64("nbits", 1, 16)
    if header.dim % books:
        raise FormatError("value", f"{reader.what} has M={books} slices of d={header.dim} dimensions; a divisor is needed")
    centroids = reader.floats("centroids", header.dim << bits)
    return Product(bits, centroids.reshape(books, 1 << bits, header.dim // books)), (books * bits + 7) // 8


def _scalar(reader: _Reader, header: _Header) -> tuple[Scalar, int]:
    number = reader.int32("type of scalar quantizer", 0, (1 << 31) - 1)
    if number >= len(SCALAR_TYPES) or SCALAR_BITS[number] == 0:
        name = SCALAR_TYPES[number] if number < len(SCALAR_TYPES) else str(number)
        raise FormatError("kind", f"{reader.what} holds a scalar quantizer of type {name}; "
                                  f"{', '.join(t for t, bits in zip(SCALAR_TYPES, SCALAR_BITS) if bits)} are read")
    name, bits = SCALAR_TYPES[number], SCALAR_BITS[number]
    reader.skip(8, "rangestat")
    reader.same("d of the scalar quantizer", reader.uint64("d", 1, MAX_DIM), header.dim)
    size = (header.dim * bits + 7) // 8
    reader.same("code_size", reader.uint64("code_size", 1, 1 << 32), size)
    if name.endswith("tqmse"):
        count = 2 * (1 << bits) - 1
    elif name.endswith("uniform"):
        count = 2
    else:
        count = 2 * header.dim if name in ("QT_8bit", "QT_6bit", "QT_4bit") else 0
    return Scalar(name, bits, reader.floats("trained", count)), size


def _signs(reader: _Reader, header: _Header, several: bool) -> tuple[Signs, int]:
    reader.same("d of RaBitQ", reader.uint64("d", 1, MAX_DIM), header.dim)
    stated = reader.uint64("code_size", 1, 1 << 32)
    reader.same("metric of RaBitQ", reader.int32("metric", 0, 1), 1 if header.metric == "l2" else 0)
    bits = reader.uint64("nb_bits", 2, 9) if several else 1
    size = (header.dim + 7) // 8 + 8
    if several:
        size += 4 + (header.dim * (bits - 1) + 7) // 8 + 8
    reader.same("code_size", stated, size)
    return Signs(bits, None), size


# ---------------------------------------------------------------------- transforms


def _transform(reader: _Reader, width: int) -> Linear:
    kind = reader.letters()
    if kind == "VCnt":
        mean = reader.floats("mean", width)
        _widths(reader, width, width)
        return Linear(None, np.zeros(width, np.float32), mean)
    if kind in ("Pcam", "PcAm", "PCAm"):
        reader.skip(4 if kind != "Pcam" else 8, "eigen_power")
        reader.flag("random_rotation")
        if kind != "PCAm":
            reader.skip(4, "balanced_bins")
        for field in ("mean", "eigenvalues", "PCAMat"):
            reader.floats(field)  # what the matrix and bias below were made from
    elif kind not in ("LTra", "rrot"):
        raise FormatError("kind", f"{reader.what} transforms vectors by a faiss {kind!r}; linear maps (LTra: OPQ, Pcam: PCA, rrot: "
                                  "random rotation) and VCnt (centring) are read")
    biased = reader.flag("have_bias")
    matrix = reader.floats("matrix")
    bias = reader.floats("bias")
    height = len(matrix) // width
    if not 1 <= height <= MAX_DIM or height * width != len(matrix):
        raise FormatError("shape", f"{reader.what} has a matrix of {len(matrix)} numbers over {width} dimensions; whole rows are needed")
    if biased and len(bias) != height:
        raise FormatError("shape", f"{reader.what} has a bias of {len(bias)} numbers; {height} are needed")
    _widths(reader, width, height)
    return Linear(matrix.reshape(height, width), bias if biased else np.zeros(height, np.float32), np.zeros(width, np.float32))


def _widths(reader: _Reader, width: int, height: int) -> None:
    reader.same("d_in of a transform", reader.int32("d_in", 0, MAX_DIM), width)
    reader.same("d_out of a transform", reader.int32("d_out", 0, MAX_DIM), height)
    if not reader.flag("is_trained"):
        raise FormatError("value", f"{reader.what} has a transform that is not trained")
