"""codeword inspect, verify: what a file is, and whether every byte of it is right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from codeword.cli.show import Json, count, emit, size

Paths = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files or folders written by codeword.", show_default=False)]


def register(app: typer.Typer) -> None:
    app.command(epilog="Example:  codeword inspect vectors.index")(inspect)
    app.command(epilog="Example:  codeword verify vectors.index pq2.cw")(verify)


def inspect(path: Annotated[str, typer.Argument(metavar="FILE", help="A file or folder of codeword, or a file of vectors.",
                                                show_default=False)],
            as_json: Json = False) -> None:
    """Say what a file or folder is, from its header alone."""
    from codeword.data.vectors import _READERS, open_vectors
    plain = Path(path)
    if not plain.is_dir() and Path(path.partition("#")[0]).suffix.lower() in _READERS:
        data = open_vectors(path)
        emit({"kind": "vectors", "shape": data.shape, "dtype": str(data.dtype), "bytes": data.nbytes}, as_json,
             lambda: print(f"{path}: {count(len(data), 'vector')} of width {data.dim}, {data.dtype}, {size(data.nbytes)}"))
        return
    from codeword.io import verify as check
    found = check.describe(plain)
    emit(found, as_json, lambda: _show(found))


def verify(paths: Paths, as_json: Json = False) -> None:
    """Check every byte: digests, structure, values. Exit code 0 clean, 1 damaged, 2 cannot tell. Nothing is ever changed."""
    from codeword.io import verify as check
    results = {str(path): check.verify(path) for path in paths}
    codes = [check.exit_code(path, results[str(path)]) for path in paths]

    def show() -> None:
        for path, findings in results.items():
            print(f"{path}: {'clean' if not findings else f'{len(findings)} finding' + 's' * (len(findings) > 1)}")
            for finding in findings:
                print(f"  {finding.message}")

    emit({"files": {path: [finding._asdict() for finding in findings] for path, findings in results.items()}, "exit_code": max(codes)},
         as_json, show)
    raise typer.Exit(1 if check.DAMAGED in codes else max(codes))


def _show(value: Any, depth: int = 0) -> None:
    """Nested JSON as indented lines; long lists by their length."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            print(f"{'  ' * depth}{key}")
            _show(item, depth + 1)
        else:
            text = f"{len(item)} values" if isinstance(item, list) and len(item) > 12 else item
            print(f"{'  ' * depth}{key}: {text}")
