"""Parquet, Feather and Arrow IPC: a column of lists of numbers, all of one length (the extra ``data``).

Parquet streams batches from its row groups; IPC files are mapped and give one record batch at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from codeword.data.shards import StreamShard, check_matrix, file_size
from codeword.errors import CodewordError, FormatError, ShapeError, Unsupported

_BATCH_VALUES = 1 << 20


def open_arrow(path: Path, key: str | None = None) -> StreamShard:
    """The column ``key``, or the only one that holds lists of numbers."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise Unsupported(f"{path.suffix} files need pyarrow, the extra 'data': pip install 'codeword[data]'") from None
    file_size(path)
    with _readable(path):
        if path.suffix.lower() == ".parquet":
            return _parquet(pa, parquet.ParquetFile(path, memory_map=True), path, key)
        return _ipc(pa, path, key)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    # ArrowInvalid is a ValueError, ArrowIOError an OSError; our own errors are ValueErrors too and pass.
    try:
        yield
    except (CodewordError, MemoryError):
        raise
    except Exception as error:
        raise FormatError("header", f"{path} cannot be read: {str(error)[:200]}") from None


def _parquet(pa: Any, file: Any, path: Path, key: str | None) -> StreamShard:
    name = _column(pa, file.schema_arrow, path, key)
    counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    starts = [0, *np.cumsum(counts, dtype=np.int64).tolist()]

    def batches(group: int, rows: int = 0) -> Iterator[np.ndarray]:
        with _readable(path):
            step = rows or max(1, _BATCH_VALUES // dim)
            for g in range(group, len(counts)):  # one at a time: given all, the reader fetches ahead without a limit
                at = starts[g]
                for batch in file.iter_batches(step, row_groups=[g], columns=[name], use_threads=False):
                    yield _matrix(pa, batch.column(0), path, at)
                    at += batch.num_rows

    dim = 1
    dim, dtype = _width(pa, file.schema_arrow.field(name).type, lambda: next(batches(0, 1), None), path)
    return StreamShard(path, dim, dtype, starts, batches)


def _ipc(pa: Any, path: Path, key: str | None) -> StreamShard:
    source = pa.memory_map(str(path))
    with source:
        magic = source.read(6)
    source = pa.memory_map(str(path))
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(source)
        count = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
        get = reader.get_batch
    else:  # a stream holds its batches one behind the other; over a map they are views, so keeping them costs nothing
        reader = pa.ipc.open_stream(source)
        kept = list(reader)
        count, get = [batch.num_rows for batch in kept], kept.__getitem__
    name = _column(pa, reader.schema, path, key)
    starts = [0, *np.cumsum(count, dtype=np.int64).tolist()]

    def batches(group: int) -> Iterator[np.ndarray]:
        with _readable(path):
            for i in range(group, len(count)):
                yield _matrix(pa, get(i).column(name), path, starts[i])

    dim, dtype = _width(pa, reader.schema.field(name).type, lambda: next((b for b in batches(0) if len(b)), None), path)
    return StreamShard(path, dim, dtype, starts, batches)


def _column(pa: Any, schema: Any, path: Path, key: str | None) -> str:
    lists = [field.name for field in schema if _is_list(pa, field.type)]
    if key is not None:
        if key not in lists:
            raise CodewordError(f"{path} has no column {key!r} of lists of numbers; it has {', '.join(lists) or 'none'}")
        return key
    if len(lists) != 1:
        raise CodewordError(f"{path} has {len(lists)} columns of lists of numbers ({', '.join(lists) or 'none'}); "
                            f"name one as {path.name}#NAME")
    return lists[0]


def _is_list(pa: Any, kind: Any) -> bool:
    kind = getattr(kind, "storage_type", kind)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _width(pa: Any, kind: Any, first: Any, path: Path) -> tuple[int, np.dtype]:
    kind = getattr(kind, "storage_type", kind)
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    if pa.types.is_fixed_size_list(kind):
        dim = kind.list_size
    else:
        block = first()
        if block is None:
            raise ShapeError(f"{path} has no rows, so its lists have no width")
        dim = block.shape[1]
    check_matrix(path, (0, dim), dtype)
    return dim, dtype


def _matrix(pa: Any, column: Any, path: Path, start: int) -> np.ndarray:
    """(rows, width) of one batch that begins at row ``start``; nulls and ragged rows are refused by number."""
    column = getattr(column, "storage", column)
    column.validate(full=True)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise FormatError("value", f"row {start + row} of {path} is null; every row needs its vector")
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
    else:
        widths = column.value_lengths().to_numpy()
        width = int(widths[0]) if len(widths) else 1
        ragged = np.flatnonzero(widths != width)
        if len(ragged):
            raise FormatError("shape",
                              f"row {start + int(ragged[0])} of {path} has {widths[ragged[0]]} values; the rows before it have {width}")
    values = column.flatten()
    if values.null_count:
        at = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise FormatError("value", f"row {start + at // width} of {path} has a null value")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), width)
