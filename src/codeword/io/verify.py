"""What ``codeword verify`` and ``codeword inspect`` do. Nothing is ever edited.

``verify`` checks every byte: digests, canonical form, and, for quantizers, codes, indexes, tokenizers and tokens, that they load.
``describe`` reads headers and manifests only (and imports no torch).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from codeword.errors import CodewordError, FormatError
from codeword.io import files, folder, jobs, tensors

CLEAN, DAMAGED, CANNOT_TELL = 0, 1, 2
"""Exit codes of ``codeword verify``."""


class Finding(NamedTuple):
    """One thing that is wrong: where, a code of ``errors.FORMAT_CODES``, and a sentence."""

    path: str
    code: str
    message: str


_UNKNOWN = {"file", "version", "magic", "kind"}
"""Codes that say nothing about damage: not ours, of a later release, or not readable by us."""


def verify(path: str | Path) -> list[Finding]:
    """Everything wrong with a file or folder; empty where it is whole."""
    path = Path(path)
    if not path.is_dir():
        return _try(path, lambda: _verify_file(path))
    if os.path.lexists(path / folder.MANIFEST):
        return _verify_folder(path)
    if os.path.lexists(path / jobs.JOB):
        return _verify_job(path)
    return [Finding(str(path), "file", f"{path} is a folder with neither {folder.MANIFEST} nor {jobs.JOB}")]


def exit_code(path: str | Path, findings: list[Finding]) -> int:
    """0 clean, 1 damaged, 2 cannot tell: the object itself is not ours, not readable, or of a later release."""
    if not findings:
        return CLEAN
    top = {str(path), str(Path(path) / folder.MANIFEST), str(Path(path) / jobs.JOB)}
    return CANNOT_TELL if all(f.path in top and f.code in _UNKNOWN for f in findings) else DAMAGED


def describe(path: str | Path) -> dict[str, Any]:
    """What a file or folder says it is, as JSON. Raises FormatError where the header or manifest is not whole."""
    path = Path(path)
    if path.is_dir() and os.path.lexists(path / jobs.JOB):
        return _describe_job(path)
    if path.is_dir():
        return _describe_folder(path)
    known = tensors.read_header(path)
    return {"kind": known.header.get("kind", "tensors"), "format": tensors.VERSION, "bytes": known.size, "digest": known.digest,
            "header": known.header, "tensors": _describe_tensors(known)}


# ---------------------------------------------------------------------- inside


def _try(path: Path, check: Any) -> list[Finding]:
    try:
        check()
    except FormatError as error:
        return [Finding(str(path), error.code, str(error))]
    except (CodewordError, OSError) as error:
        return [Finding(str(path), "file", f"{path} cannot be checked: {error}")]
    return []


def _verify_file(path: Path) -> None:
    known = tensors.verify_file(path)
    kind = known.header.get("kind")
    if kind == "codes" and "stream" in known.specs:
        return  # entropy coded: the bytes are whole; what they mean takes the quantizer
    if kind in ("quantizer", "codes"):
        from codeword.io import objects
        objects.load(path) if kind == "quantizer" else objects.load_codes(path)
    if kind in ("image_tokenizer", "dynamic_tokenizer"):
        from codeword.tokenizers.frame import load_tokenizer
        load_tokenizer(path)


def _verify_folder(path: Path) -> list[Finding]:
    try:
        opened = folder.Folder.open(path)
    except FormatError as error:
        return [Finding(str(path / folder.MANIFEST), error.code, str(error))]
    found = []
    for name in opened.segments:
        def check(name: str = name) -> None:
            opened.read_segment_header(name)
            tensors.verify_file(path / name, follow=False)
        found += _try(path / name, check)
    if not found and opened.kind == "index":
        from codeword.search.index import Index
        found = _try(path, lambda: Index.load(path))
    if not found and opened.kind == "tokens":
        from codeword.tokenizers.shards import TokenShards
        found = _try(path, lambda: sum(map(len, TokenShards(path, partial=True).blocks())))
    return found


def _verify_job(path: Path) -> list[Finding]:
    found = _try(path / jobs.JOB, lambda: jobs.read_job(path))
    for name in files.list_folder(path):
        if name.endswith(".cw"):
            found += _try(path / name, lambda name=name: tensors.verify_file(path / name, follow=False))
    return found


def _describe_folder(path: Path) -> dict[str, Any]:
    opened = folder.Folder.open(path)
    segments = {}
    for name in opened.segments:
        known = opened.read_segment_header(name)
        segments[name] = {"bytes": known.size, "header": known.header, "tensors": _describe_tensors(known)}
    extra = [name for name in files.list_folder(path) if name != folder.MANIFEST and name not in segments]
    return {"kind": opened.kind, "format": tensors.VERSION, "bytes": opened.size, "meta": opened.meta, "segments": segments,
            "unreferenced": extra}


def _describe_job(path: Path) -> dict[str, Any]:
    record = jobs.read_job(path)
    units = [name for name in files.list_folder(path) if name.startswith("unit-")]
    damaged = [name for name in units if _try(path / name, lambda name=name: tensors.verify_file(path / name, follow=False))]
    return {"kind": "job", "format": tensors.VERSION, "job": record, "units_finished": len(units) - len(damaged), "units_damaged": damaged}


def _describe_tensors(known: tensors.FileHeader) -> dict[str, Any]:
    return {name: {"dtype": spec.dtype, "shape": list(spec.shape), "bytes": spec.stop - spec.start} for name, spec in known.specs.items()}
