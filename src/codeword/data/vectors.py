"""Vectors in a file, a folder of files or a pattern, read a block at a time.

    x = open_vectors("base.fvecs")              # .npy .npz .fvecs .bvecs .ivecs .parquet .feather .arrow .safetensors
    x = open_vectors("mnist.npz#train")         # one of several arrays, tensors or columns
    x = open_vectors("shards/")                 # all files of one kind, in the order of the numbers in their names
    x.shape, x[10:20], x[[5, 3]], x.sample(1000, seed=0)
    for start, block in x.blocks(): ...

Opening reads headers only; nothing is ever unpickled; FormatError and ShapeError say which file and which row.
"""

from __future__ import annotations

import glob
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from codeword.data.arrow import open_arrow
from codeword.data.npy import open_npy, open_npz
from codeword.data.shards import ArrayShard, Shard
from codeword.data.vecs import open_vecs
from codeword.errors import CodewordError, FormatError, ShapeError
from codeword.parts import random

BLOCK_BYTES = 16 << 20


def open_vectors(path: str | Path, key: str | None = None) -> Vectors:
    """The rows at ``path``: a file, a folder of shards, or a pattern such as ``part-*.npy``. ``key`` names one array of a file that
    holds several; ``path#key`` does the same. Raises FormatError, ShapeError, or CodewordError where there is nothing to open."""
    text = str(path)
    if key is None and "#" in text and not Path(text).exists():
        text, _, key = text.rpartition("#")
    return Vectors([_open_file(file, key) for file in _files(text)], text)


class Vectors:
    """A read-only (rows, dim) matrix on disk. Indexing gives numpy arrays of ``dtype``; a slice of one mapped file is a view."""

    ndim = 2

    def __init__(self, shards: Sequence[Shard], name: str):
        first = shards[0]
        for shard in shards[1:]:
            if shard.dim != first.dim:
                raise ShapeError(f"{shard.path} has rows of width {shard.dim}; {first.path} before it has {first.dim}")
            if shard.dtype != first.dtype:
                raise FormatError("dtype", f"{shard.path} holds {shard.dtype}; {first.path} before it holds {first.dtype}")
        self.shards, self.name, self.dtype = tuple(shards), name, first.dtype
        self.starts = [0]
        for shard in shards:
            self.starts.append(self.starts[-1] + shard.rows)
        self.shape = (self.starts[-1], first.dim)

    @property
    def dim(self) -> int:
        return self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in memory."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def mapped(self) -> np.ndarray | None:
        """The array itself where all rows lie in one mapped file, for calls that take numpy arrays; None otherwise."""
        only = self.shards[0]
        return only.array if len(self.shards) == 1 and isinstance(only, ArrayShard) and only.decode is None else None

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        files = f", {len(self.shards)} files" if len(self.shards) > 1 else ""
        return f"Vectors({self.name!r}, shape={self.shape}, dtype={self.dtype}{files})"

    def __getitem__(self, item: int | slice | np.ndarray | Sequence[int]) -> np.ndarray:
        if isinstance(item, slice):
            start, stop, step = item.indices(len(self))
            return self._read(start, max(start, stop)) if step == 1 else self._take(np.arange(start, stop, step))
        index = np.asarray(item)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise ShapeError(f"a mask of shape {index.shape} was given for {len(self)} rows")
            return self._take(np.flatnonzero(index))
        if index.ndim > 1 or (index.size and index.dtype.kind not in "iu"):
            raise ShapeError(f"rows are indexed by an integer, a slice, a mask or a list of integers; "
                             f"got {type(item).__name__} of shape {index.shape}")
        rows = index.reshape(-1).astype(np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"a row index is outside 0..{len(self) - 1} of {self.name}")
        out = self._take(rows)
        return out[0] if index.ndim == 0 else out

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        rows = self[:]
        return np.array(rows, dtype=dtype) if copy else np.asarray(rows, dtype=dtype)

    def blocks(self, rows: int | None = None, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, block) from row ``start`` on, ``rows`` at a time (about 16 MiB by default)."""
        step = rows or max(1, BLOCK_BYTES // (self.dim * self.dtype.itemsize))
        for first in range(start, len(self), step):
            yield first, self._read(first, min(len(self), first + step))

    def sample(self, limit: int, seed: int = 0) -> np.ndarray:
        """A seeded choice of at most ``limit`` rows, in the order of the file."""
        if limit >= len(self):
            return self[:]
        return self._take(np.sort(choose_rows(len(self), limit, seed)))

    def check_finite(self, block: np.ndarray, start: int) -> np.ndarray:
        """``block``, or ShapeError naming the file and the first row with NaN or infinity (in float32)."""
        if block.dtype.kind == "f":
            with np.errstate(over="ignore"):
                bad = ~np.isfinite(block.astype(np.float32)).all(axis=1)
            if bad.any():
                row = start + int(np.flatnonzero(bad)[0])
                shard = bisect_right(self.starts, row) - 1
                raise ShapeError(f"row {row - self.starts[shard]} of {self.shards[shard].path} has NaN or infinity; "
                                 "values must be finite in float32")
        return block

    def _read(self, start: int, stop: int) -> np.ndarray:
        parts = []
        for shard, first, last in self._overlaps(start, stop):
            parts.append(shard.read(first, last))
        if not parts:
            return np.empty((0, self.dim), self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[Shard, int, int]]:
        for shard, first in zip(self.shards, self.starts):
            low, high = max(start, first), min(stop, first + shard.rows)
            if low < high:
                yield shard, low - first, high - first

    def _take(self, rows: np.ndarray) -> np.ndarray:
        order = np.argsort(rows, kind="stable")  # files are read forwards
        ascending = rows[order]
        out = np.empty((len(rows), self.dim), self.dtype)
        bounds = np.searchsorted(ascending, self.starts)
        for shard, first, low, high in zip(self.shards, self.starts, bounds, bounds[1:]):
            if low < high:
                out[order[low:high]] = shard.take(ascending[low:high] - first)
        return out


def choose_rows(n: int, k: int, seed: int) -> np.ndarray:
    """``k`` distinct row numbers of ``n``, in random order; the memory it takes grows with k, not with n, where n is large."""
    if n <= 1 << 22 or 4 * k >= n:
        return random.choice(seed, n, k, stream="sample rows")
    chosen = np.empty(0, np.int64)
    start = 0
    while len(chosen) < k:  # draws with replacement, each value kept once, in the order drawn
        drawn = (random.bits(seed, k, stream="sample rows", start=start) % np.uint64(n)).astype(np.int64)
        start += k
        joined = np.concatenate([chosen, drawn])
        _, first = np.unique(joined, return_index=True)
        chosen = joined[np.sort(first)]
    return chosen[:k]


def _open_safetensors(path: Path, key: str | None) -> Shard:
    from codeword.data.tensors import open_safetensors
    return open_safetensors(path, key)


_READERS: dict[str, Callable[[Path, str | None], Shard]] = {
    ".npy": open_npy, ".npz": open_npz, ".fvecs": open_vecs, ".bvecs": open_vecs, ".ivecs": open_vecs,
    ".parquet": open_arrow, ".feather": open_arrow, ".arrow": open_arrow, ".ipc": open_arrow, ".safetensors": _open_safetensors,
}


def _open_file(path: Path, key: str | None) -> Shard:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise CodewordError(f"{path} has the ending {path.suffix!r}; {', '.join(_READERS)} are read")
    return reader(path, key)


def _files(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in _READERS and not p.name.startswith(".")]
        kinds = sorted({p.suffix.lower() for p in found})
        if len(kinds) > 1:
            raise CodewordError(f"{text} mixes {', '.join(kinds)} files; name one kind with a pattern such as '{path / ('*' + kinds[0])}'")
        if not found:
            raise CodewordError(f"{text} holds no file of vectors ({', '.join(_READERS)})")
    elif path.exists() or not any(ch in text for ch in "*?["):
        found = [path]
    else:
        found = [Path(p) for p in glob.glob(text)]
        if not found:
            raise CodewordError(f"no file matches {text!r}")
    return sorted(found, key=lambda p: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", p.name)])
