"""What several commands read: vectors, ids, row numbers, rates; and how they pass larger-than-memory data on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codeword.errors import CodewordError, ShapeError

if TYPE_CHECKING:
    import numpy as np

    from codeword.data import Vectors

VectorsArgument = Annotated[str, typer.Argument(
    metavar="VECTORS", show_default=False,
    help="File, folder or 'pattern' of .npy .npz .fvecs .bvecs .ivecs .parquet .feather .arrow .safetensors; "
         "FILE#NAME names one array in it.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]


def vectors(path: str, dim: int | None = None) -> Vectors:
    """The vectors at ``path``, of width ``dim`` where given, at least one row."""
    from codeword.data import open_vectors
    found = open_vectors(path)
    if len(found) == 0:
        raise ShapeError(f"{path} has no rows")
    if dim is not None and found.dim != dim:
        raise ShapeError(f"{path} has rows of width {found.dim}; {dim} is needed")
    return found


def fit_rows(source: Vectors, limit: int, seed: int) -> np.ndarray:
    """The rows a ``fit`` sees: all of a mapped file that is small enough, else a seeded sample; values checked, the row at fault named."""
    import numpy as np
    rows = source.mapped if source.mapped is not None and len(source) <= limit else source.sample(limit, seed)
    if rows.dtype.kind == "f":
        for start in range(0, len(rows), 1 << 14):
            with np.errstate(over="ignore"):
                bad = ~np.isfinite(rows[start:start + (1 << 14)].astype(np.float32)).all(axis=1)
            if bad.any():
                where = f"row {start + int(np.flatnonzero(bad)[0])}" if len(rows) == len(source) else "a sampled row"
                raise ShapeError(f"{where} of {source.name} has NaN or infinity; values must be finite in float32")
    return rows


def rates(text: str) -> list[float]:
    """'1,2,4' as numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise CodewordError(f"--bits is {text!r}; numbers separated by commas are needed, e.g. 1,2,4") from None


def specs(text: str | None) -> list[str] | None:
    """'pq,rabitq:bits=4,fast=true' as ['pq', 'rabitq:bits=4,fast=true']: a comma inside a spec is followed by key=value."""
    if text is None:
        return None
    found: list[str] = []
    depth = 0
    for piece in text.split(","):
        if found and (depth > 0 or re.match(r"\s*\w+=", piece)):
            found[-1] += "," + piece
        else:
            found.append(piece.strip())
        depth += piece.count("(") - piece.count(")")
    if not all(found):
        raise CodewordError(f"--quantizers is {text!r}; names or specs separated by commas are needed, e.g. pq,rabitq")
    return found


def integers(texts: list[str], what: str) -> np.ndarray:
    """Integers given as arguments, comma lists or ranges such as 10-19."""
    import numpy as np
    numbers: list[int] = []
    for part in (piece for text in texts for piece in text.split(",")):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        if match is None:
            raise CodewordError(f"{what} {part!r} is not a number or a range such as 10-19")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first > 1 << 26:
            raise CodewordError(f"{what} {part!r} is empty or too long a range")
        numbers.extend(range(first, last + 1))
    return np.asarray(numbers, dtype=np.int64)


def ids_file(path: Path, rows: int | None = None) -> np.ndarray:
    """int64 ids: one a line of a text file, or a one-column array of integers. ShapeError unless there are ``rows``."""
    import numpy as np
    if path.suffix.lower() in (".txt", ".csv"):
        from codeword.data import read_sentences
        lines = read_sentences(path)
        numbers = np.empty(len(lines), np.int64)
        for i, line in enumerate(lines):
            if not re.fullmatch(r"\s*\d{1,18}\s*", line):
                raise CodewordError(f"line {i + 1} of {path} is {line[:40]!r}; an id 0..10^18 is needed")
            numbers[i] = int(line)
    elif path.suffix.lower() == ".npy":
        from codeword.data.npy import open_array
        numbers = open_array(path)
        if numbers.ndim not in (1, 2) or (numbers.ndim == 2 and numbers.shape[1] != 1) or numbers.dtype.kind not in "iu":
            raise ShapeError(f"{path} holds {numbers.dtype} of shape {numbers.shape}; (rows,) integers are needed")
        numbers = numbers.reshape(-1).astype(np.int64)
    else:
        raise CodewordError(f"{path} has the ending {path.suffix!r}; ids are read from .npy or, one a line, from .txt")
    if rows is not None and len(numbers) != rows:
        raise ShapeError(f"{path} has {len(numbers)} ids for {rows} rows")
    return numbers
