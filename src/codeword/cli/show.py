"""Output: tables for people on stdout, one JSON object with --json instead; progress and notes always on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

PROGRESS_AFTER = 2.0
"""Seconds of work before a progress bar appears."""


_captured: list[dict[str, Any]] | None = None


@contextlib.contextmanager
def capture() -> Iterator[list[dict[str, Any]]]:
    """The machine summaries of all commands that run inside the block, whatever they print."""
    global _captured
    before, _captured = _captured, []
    try:
        yield _captured
    finally:
        _captured = before


def emit(summary: Mapping[str, Any], as_json: bool, show: Callable[[], object]) -> None:
    """The machine's summary or the people's text."""
    if _captured is not None:
        _captured.append(_plain(summary))
    if as_json:
        print(json.dumps(_plain(summary), allow_nan=False))
    else:
        show()
    sys.stdout.flush()


def note(text: str) -> None:
    """A line beside the result."""
    print(text, file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", notes: Sequence[str] = ()) -> None:
    """A table on stdout; the first column is text, the others are numbers and stand right. On a pipe it takes the width it needs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    grid = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for i, name in enumerate(columns):
        grid.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console.print(grid)
    for line in notes:
        console.print(Text(line))


def pairs(rows: Mapping[str, str]) -> None:
    """Names and values, one pair a line."""
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


@contextlib.contextmanager
def progress(what: str, total: float, quiet: bool = False) -> Iterator[Callable[[float], None]]:
    """``with progress("encode", rows) as advance: advance(n)``: a bar on stderr once the work has lasted two seconds."""
    started, bar, task, done = time.monotonic(), None, None, 0.0

    def advance(amount: float) -> None:
        nonlocal bar, task, done
        done += amount
        if quiet or not sys.stderr.isatty():
            return
        if bar is None and time.monotonic() - started > PROGRESS_AFTER:
            bar, task = _bar(), None
            task = bar.add_task(what, total=total)
            bar.start()
        if bar is not None and task is not None:
            bar.update(task, completed=done)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    return Progress(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
                    console=Console(stderr=True), transient=True)


def count(value: int, noun: str = "") -> str:
    """1234567 -> 1,234,567, every digit; with a noun "1 row", "2 rows" or "2 queries"."""
    if not noun:
        return f"{value:,}"
    return f"{value:,} {noun if value == 1 else noun[:-1] + 'ies' if noun.endswith('y') else noun + 's'}"


def rounded(value: float) -> str:
    """A speed to three digits: 1,234,567 -> 1,230,000."""
    if value >= 1000:
        value = round(value, 3 - len(str(int(value))))
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def size(count: float) -> str:
    """Bytes in the unit a person would use."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _plain(value.item())
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
