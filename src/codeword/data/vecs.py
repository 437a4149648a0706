"""The .fvecs, .bvecs and .ivecs files of the TEXMEX benchmarks (Jegou et al. 2011): each row is an int32 width and its values.

The width of the first and the last row is checked on opening, that of every other row when it is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from codeword.data.shards import ArrayShard, check_matrix, file_size, map_matrix
from codeword.errors import CodewordError, FormatError

_VALUES = {".fvecs": np.dtype("<f4"), ".bvecs": np.dtype("u1"), ".ivecs": np.dtype("<i4")}


def open_vecs(path: Path, key: str | None = None) -> ArrayShard:
    """All rows of one file, mapped."""
    if key is not None:
        raise CodewordError(f"{path} holds one array; a key ({key!r}) is only for files that hold several")
    size, values = file_size(path), _VALUES[path.suffix.lower()]
    with path.open("rb") as file:
        head = file.read(4)
    if len(head) < 4:
        raise FormatError("truncated", f"{path} ends inside the width of row 0")
    dim = int.from_bytes(head, "little", signed=True)
    check_matrix(path, (0, dim), values)
    record = 4 + dim * values.itemsize
    if size % record:
        raise FormatError("truncated",
                          f"{path} has {size} bytes, not a multiple of the {record} of a row of width {dim}: row {size // record} is cut")
    stored = map_matrix(path, 0, (size // record, record), np.dtype("u1"))

    def decode(rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        widths = np.ascontiguousarray(rows[:, :4]).view("<i4")[:, 0]
        wrong = np.flatnonzero(widths != dim)
        if len(wrong):
            raise FormatError("shape", f"row {numbers[wrong[0]]} of {path} declares width {widths[wrong[0]]}; the first row has {dim}")
        return np.ascontiguousarray(rows[:, 4:]).view(values)

    shard = ArrayShard(path, stored, decode, dim=dim, dtype=values)
    shard.read(shard.rows - 1, shard.rows)
    return shard
