"""One file of vectors: a ``Shard`` gives its rows and nothing else. Two kinds exist, memory-mapped arrays and streams of batches.

Readers build shards, ``Vectors`` joins them. Every error names the file and, where one is at fault, the row.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from codeword.errors import FormatError, ShapeError

DIM_LIMIT = 1 << 20
"""Widest row that is believed; a header that claims more is refused."""

SKIP_ROWS = 1 << 16
"""A stream reads on past so many rows rather than start again at a later group."""


class Shard(ABC):
    """``rows`` by ``dim`` numbers of ``dtype`` in the file ``path``."""

    path: Path
    rows: int
    dim: int
    dtype: np.dtype

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop, 0 <= start <= stop <= rows; a view where the file is mapped."""

    @abstractmethod
    def take(self, indices: np.ndarray) -> np.ndarray:
        """A copy of the rows at ascending ``indices``."""


class ArrayShard(Shard):
    """An array, usually a memory map. ``decode(rows, numbers)`` turns stored rows into values and may refuse one of them."""

    def __init__(self, path: Path, array: np.ndarray, decode: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
                 dim: int | None = None, dtype: np.dtype | None = None):
        self.path, self.array, self.decode = path, array, decode
        self.rows, self.dim = len(array), array.shape[1] if dim is None else dim
        self.dtype = array.dtype if dtype is None else dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        rows = self.array[start:stop]
        return rows if self.decode is None else self.decode(rows, np.arange(start, stop))

    def take(self, indices: np.ndarray) -> np.ndarray:
        rows = np.asarray(self.array[indices])
        return rows if self.decode is None else np.array(self.decode(rows, indices))


class StreamShard(Shard):
    """Batches that can only be read in order from certain starting points (row groups, record batches)."""

    def __init__(self, path: Path, dim: int, dtype: np.dtype, starts: list[int], batches: Callable[[int], Iterator[np.ndarray]]):
        """``starts``: first row of each group and the total; ``batches(g)``: arrays of rows from group g to the end."""
        self.path, self.dim, self.dtype, self.rows = path, dim, dtype, starts[-1]
        self.starts, self.batches = np.asarray(starts), batches
        self._blocks: Iterator[tuple[int, np.ndarray]] | None = None
        self._first, self._block = 0, np.empty((0, dim), dtype)

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, self.dim), self.dtype)
        at = start
        while at < stop:
            first, block = self._block_with(at)
            end = min(stop, first + len(block))
            out[at - start:end - start] = block[at - first:end - first]
            at = end
        return out

    def take(self, indices: np.ndarray) -> np.ndarray:
        out = np.empty((len(indices), self.dim), self.dtype)
        done = 0
        while done < len(indices):
            first, block = self._block_with(int(indices[done]))
            end = int(np.searchsorted(indices, first + len(block)))
            out[done:end] = block[indices[done:end] - first]
            done = end
        return out

    def _block_with(self, row: int) -> tuple[int, np.ndarray]:
        # Going on in the open stream is free; anything else starts again at the group that holds the row.
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        if self._blocks is None or row < self._first or self.starts[group] >= self._first + len(self._block) + SKIP_ROWS:
            self._blocks, self._first, self._block = self._numbered(group), int(self.starts[group]), np.empty((0, self.dim), self.dtype)
        while row >= self._first + len(self._block):
            try:
                following = next(self._blocks, None)
            except BaseException:
                self._blocks = None  # a generator that raised is spent; the next read starts afresh and meets the same error
                raise
            if following is None:
                self._blocks = None
                raise FormatError("truncated", f"{self.path} ends before row {row} of the {self.rows} it declares")
            self._first, self._block = following
        return self._first, self._block

    def _numbered(self, group: int) -> Iterator[tuple[int, np.ndarray]]:
        first = int(self.starts[group])
        for block in self.batches(group):
            if block.shape[1] != self.dim or first + len(block) > self.rows:
                raise FormatError("shape",
                                  f"{self.path} changes its shape at row {first}: {block.shape} where rows of width {self.dim} go on")
            yield first, block
            first += len(block)


def file_size(path: Path) -> int:
    """Bytes of a regular, non-empty file; FormatError for anything else (a pipe would wait forever)."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise FormatError("file", f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise FormatError("file", f"{path} is not a regular file")
    if status.st_size == 0:
        raise FormatError("empty", f"{path} has no bytes")
    return status.st_size


def check_matrix(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuse what cannot be rows of real numbers before anything is allocated."""
    if dtype.kind not in "fiu" or dtype.itemsize > 8 or dtype.hasobject:
        raise FormatError("dtype", f"{path} holds {dtype}; float16/32/64 or integers up to 64 bits are accepted, never objects")
    if len(shape) != 2 or any(n < 0 for n in shape):
        raise ShapeError(f"{path} holds an array of shape {shape}; (rows, dim) is needed")
    if not 1 <= shape[1] <= DIM_LIMIT:
        raise ShapeError(f"{path} has rows of width {shape[1]}; 1..{DIM_LIMIT} is allowed")


def map_matrix(path: Path, offset: int, shape: tuple[int, int], dtype: np.dtype, fortran: bool = False) -> np.ndarray:
    """A read-only map of ``shape`` at ``offset``; an empty array where there are no rows (an empty map is an error)."""
    if shape[0] == 0:
        return np.zeros(shape, dtype)
    try:
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")
    except (OSError, ValueError) as error:
        raise FormatError("file", f"{path} cannot be mapped: {error}") from None


def check_extent(path: Path, what: str, need: int, have: int) -> None:
    """The bytes declared are exactly the bytes there."""
    if have < need:
        raise FormatError("truncated", f"{path} declares {need} bytes of {what} and has {have}")
    if have > need:
        raise FormatError("trailing", f"{path} has {have - need} bytes after the {need} of {what} that it declares")
