"""A matrix in a safetensors file. The safetensors library validates the header (no overlaps, no holes, sizes agree); rows are mapped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from codeword.data.shards import ArrayShard, check_matrix, file_size, map_matrix
from codeword.errors import CodewordError, FormatError

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
           "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"}


def open_safetensors(path: Path, key: str | None = None) -> ArrayShard:
    """The tensor ``key``, or the only two-dimensional one. bfloat16 is read as float32, which holds it exactly."""
    file_size(path)
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise FormatError("header", f"{path} is not a readable safetensors file: {error}") from None
    tensors = {name: row for name, row in header.items() if name != "__metadata__"}
    if key is None:
        matrices = [name for name, row in tensors.items() if len(row["shape"]) == 2]
        if len(matrices) != 1:
            raise CodewordError(f"{path} holds {len(matrices)} matrices ({', '.join(sorted(matrices)) or 'none'}); "
                                f"name one as {path.name}#NAME")
        key = matrices[0]
    if key not in tensors:
        raise CodewordError(f"{path} has no tensor {key!r}; it has {', '.join(sorted(tensors)) or 'none'}")
    row = tensors[key]
    if row["dtype"] not in _DTYPES:
        raise FormatError("dtype", f"tensor {key!r} of {path} holds {row['dtype']}; {', '.join(_DTYPES)} are accepted")
    stored, shape = np.dtype(_DTYPES[row["dtype"]]), tuple(row["shape"])
    check_matrix(path, shape, stored)
    array = map_matrix(path, 8 + length + row["data_offsets"][0], shape, stored)
    if row["dtype"] == "BF16":
        return ArrayShard(path, array, lambda rows, _: (rows.astype(np.uint32) << 16).view(np.float32), dtype=np.dtype(np.float32))
    return ArrayShard(path, array)
