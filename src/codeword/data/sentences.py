"""One text a line, in the order of the vectors they belong to."""

from __future__ import annotations

from pathlib import Path

from codeword.data.shards import file_size
from codeword.errors import FormatError, ShapeError

SIZE_LIMIT = 4 << 30
"""Bytes of a text file that are read into memory."""


def read_sentences(path: str | Path, rows: int | None = None) -> list[str]:
    """Lines of a UTF-8 file, without their line ends; ShapeError where there are not exactly ``rows``."""
    path = Path(path)
    size = file_size(path)
    if size > SIZE_LIMIT:
        raise FormatError("limit", f"{path} has {size} bytes of text; {SIZE_LIMIT} are allowed")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FormatError("value", f"line {line} of {path} is not UTF-8: {error.reason}") from None
    lines = text.removesuffix("\n").split("\n")  # not splitlines(): texts may hold other line-like characters
    lines = [line.removesuffix("\r") for line in lines]
    if rows is not None and len(lines) != rows:
        raise ShapeError(f"{path} has {len(lines)} lines for {rows} vectors; one line a vector is needed")
    return lines
