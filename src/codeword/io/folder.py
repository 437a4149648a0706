"""Objects that grow: a folder of immutable segments and one small manifest that is replaced last.

    KIND-DIGEST.cw   a file of ``tensors``, named by its kind and the first 16 hex digits of its digest; never changed
    manifest.json    canonical JSON: {"digest", "files": {name: {"sha256", "size"}}, "kind", "meta", "version"}

A commit flushes new segments, then replaces the manifest, then removes what it no longer names. A reader has the old set or the new
one: if a segment vanishes under it, the manifest has changed and ``read_folder`` begins again. A segment's digest covers its whole
content and stands in the manifest, so sections of two valid folders cannot be exchanged, and opening reads only headers.

One writer at a time: the first ``write_segment`` takes the folder's advisory lock, ``commit`` or ``close`` gives it back. Names are
single path components of one strict pattern, and links are not followed, so nothing outside the folder is ever opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from codeword.errors import CodewordError, FormatError
from codeword.io import canonical, files, tensors
from codeword.io.canonical import LIMITS, Limits

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

T = TypeVar("T")

MANIFEST = "manifest.json"
_SEGMENT = re.compile(r"(?P<kind>[a-z][a-z0-9_]{0,31})-(?P<digest>[0-9a-f]{16})\.cw")
_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")
_HEX = re.compile(r"[0-9a-f]{64}")


class Folder:
    """An open folder: one version of its manifest, and the segments written since."""

    def __init__(self, path: Path, manifest: dict[str, Any] | None, kind: str, limits: Limits = LIMITS) -> None:
        self.path, self.kind, self._limits = path, kind, limits
        self._manifest = manifest
        self._written: dict[str, dict[str, Any]] = {}
        self._lock: int | None = None

    @classmethod
    def create(cls, path: str | Path, kind: str) -> Self:
        """A new folder for an object of ``kind``; it holds nothing until the first ``commit``. An empty folder, or one without a
        manifest (a creation that was killed), is taken over. CodewordError where there is an object already."""
        if not _KIND.fullmatch(kind):
            raise CodewordError(f"kind {kind!r} must be 1..32 of a-z, 0-9, '_', beginning with a letter")
        folder = Path(path)
        files.make_folder(folder)
        strangers = [name for name in files.list_folder(folder) if not _SEGMENT.fullmatch(name)]
        if MANIFEST in strangers:
            raise CodewordError(f"{folder} already holds an object; open it, or remove it first")
        if strangers:
            raise CodewordError(f"{folder} already holds {strangers[0]!r}; an empty folder is needed")
        return cls(folder, None, kind)

    @classmethod
    def open(cls, path: str | Path, kind: str | None = None, *, limits: Limits = LIMITS) -> Self:
        """The folder as its manifest says; segments are opened on demand (``read_folder`` retries for readers). Raises FormatError."""
        manifest = read_manifest(path, limits)
        if kind is not None and manifest["kind"] != kind:
            raise FormatError("kind", f"{path} holds {manifest['kind']!r}, not {kind!r}")
        return cls(Path(path), manifest, manifest["kind"], limits)

    @property
    def manifest(self) -> dict[str, Any]:
        """The committed manifest; empty before the first commit."""
        return self._manifest or {}

    @property
    def meta(self) -> dict[str, Any]:
        """The free-form part of the manifest."""
        return self.manifest.get("meta", {})

    @property
    def segments(self) -> list[str]:
        """Names of the committed segments, sorted."""
        return sorted(self.manifest.get("files", {}))

    @property
    def size(self) -> int:
        """Bytes of all committed segments."""
        return sum(entry["size"] for entry in self.manifest.get("files", {}).values())

    def write_segment(self, kind: str, content: Mapping[str, Tensor | np.ndarray], header: dict[str, Any]) -> str:
        """Write one immutable segment, flushed, not yet part of the object; returns its name. Equal content has an equal name."""
        if not _KIND.fullmatch(kind):
            raise CodewordError(f"kind {kind!r} must be 1..32 of a-z, 0-9, '_', beginning with a letter")
        self._acquire()
        head, data, digest = tensors.encode_tensors(content, {"header": header, "segment": kind})
        name = f"{kind}-{digest[:16]}.cw"
        chunks = list(tensors._chunks(head, data))
        # Written even if a file of that name is there: it may be what a crash left of it.
        if self.manifest.get("files", {}).get(name, {}).get("sha256") != digest:
            files.write_file(self.path / name, chunks)
        self._written[name] = {"sha256": digest, "size": sum(len(chunk) for chunk in chunks)}
        return name

    def commit(self, meta: dict[str, Any], segments: Sequence[str]) -> None:
        """Make ``segments`` (new ones and any of the old) with ``meta`` the object, then remove everything else. Raises CodewordError
        for segments that are neither committed nor written here, OSError where writing fails: then the old version stands."""
        self._acquire()
        known = {**self.manifest.get("files", {}), **self._written}
        for name in segments:
            if name not in known:
                raise CodewordError(f"segment {name!r} is neither in the manifest of {self.path} nor written since")
        record = {"files": {name: known[name] for name in segments}, "kind": self.kind, "meta": meta, "version": tensors.VERSION}
        text = canonical.sealed(record)
        if len(text) > self._limits.header_bytes:
            raise CodewordError(f"the manifest of {self.path} would take {len(text)} bytes; at most {self._limits.header_bytes} are read")
        manifest = canonical.unseal(text, MANIFEST, self._limits)
        files.write_file(self.path / MANIFEST, [text])
        self._manifest = manifest
        self._written = {}
        try:
            remove_unreferenced(self.path, set(segments))
        finally:
            self.close()

    def read_segment(self, name: str, *, mmap: bool = False) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """Tensors and header of one segment, committed or just written; checked against the manifest. Raises FormatError."""
        entry, path = self._entry(name), self.path / name
        content, header = tensors.read_tensors(path, mmap=mmap, limits=self._limits, follow=False,
                                               expect=lambda known: _check_segment(known, name, entry, str(path)))
        return content, header["header"]

    def read_segment_header(self, name: str) -> tensors.FileHeader:
        """Header and tensor specs of one segment without its tensors."""
        known = tensors.read_header(self.path / name, limits=self._limits, follow=False)
        _check_segment(known, name, self._entry(name), str(self.path / name))
        return known._replace(header=known.header["header"])

    def close(self) -> None:
        """Give the writer's lock back; segments not committed are forgotten and removed by the next commit."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            files.unlock(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _entry(self, name: str) -> dict[str, Any]:
        entry = self._written.get(name) or self.manifest.get("files", {}).get(name)
        if entry is None:
            raise FormatError("name", f"{self.path} has no segment {name[:80]!r}")
        return entry

    def _acquire(self) -> None:
        """Become the writer, provided that nobody has committed since this object was opened."""
        if self._lock is not None:
            return
        lock = files.lock_folder(self.path)
        try:
            current = read_manifest(self.path, self._limits) if os.path.lexists(self.path / MANIFEST) else None
            if current != self._manifest:
                raise CodewordError(f"{self.path} was changed by another writer since it was opened; open it again")
        except BaseException:
            files.unlock(lock)
            raise
        self._lock = lock


def read_folder(path: str | Path, load: Callable[[Folder], T], kind: str | None = None, *, limits: Limits = LIMITS) -> T:
    """``load(folder)`` on one consistent version: begun again where a writer replaced the manifest meanwhile."""
    while True:
        folder = Folder.open(path, kind, limits=limits)
        try:
            return load(folder)
        except FormatError as error:
            if error.code != "file" or read_manifest(path, limits) == folder.manifest:
                raise


def read_manifest(path: str | Path, limits: Limits = LIMITS) -> dict[str, Any]:
    """The manifest of a folder with every field checked; no segment is opened. Raises FormatError."""
    what = str(Path(path) / MANIFEST)
    if os.path.isfile(path):
        raise FormatError("kind", f"{path} is a single file, not a folder")
    data = files.read_bytes(Path(path) / MANIFEST, limits.header_bytes, follow=False)
    if not data:
        raise FormatError("empty", f"{what} is empty")
    if data[:1] != b"{":
        raise FormatError("magic", f"{what} is not a manifest")
    tensors.check_version(canonical.parse(data, what, limits), what)
    return _check_manifest(canonical.unseal(data, what, limits), what)


def remove_unreferenced(path: str | Path, keep: set[str]) -> None:
    """Remove segments that are not in ``keep``, and what killed writers left. Strangers' files stay. Needs the writer's lock."""
    for name in files.list_folder(path):
        if _SEGMENT.fullmatch(name) and name not in keep:
            files.remove_file(Path(path) / name)
    files.remove_leftovers(path)


def export_file(path: str | Path, target: str | Path) -> None:
    """A folder as one file: its segments as byte tensors, its manifest in the header. Same folder, same bytes."""
    import numpy as np

    def collect(folder: Folder) -> None:
        content = {name: np.memmap(_open_checked(folder, name), dtype=np.uint8, mode="r") for name in folder.segments}
        header = {"kind": "folder", "manifest": {key: value for key, value in folder.manifest.items() if key != "digest"}}
        tensors.write_tensors(target, content, header)

    read_folder(path, collect)


def import_file(source: str | Path, path: str | Path, *, limits: Limits = LIMITS) -> Folder:
    """Inverse of ``export_file``: unpack into a new folder. The manifest appears after every segment has been verified; where one is
    refused, none stays. Raises FormatError."""
    content, header = tensors.read_tensors(source, mmap=True, limits=limits)
    if header.get("kind") != "folder":
        raise FormatError("kind", f"{source} holds {str(header.get('kind'))[:40]!r}, not an exported folder")
    canonical.fields(header, f"header of {source}", {"kind": str, "manifest": dict})
    text = canonical.sealed(header["manifest"])
    manifest = _check_manifest(canonical.unseal(text, f"manifest in {source}", limits), f"manifest in {source}")
    for name in content.keys() ^ manifest["files"].keys():
        raise FormatError("unknown-key" if name in content else "missing-key", f"{source} and its manifest disagree about segment {name!r}")
    folder = Folder.create(path, manifest["kind"])
    try:
        for name, entry in manifest["files"].items():
            files.write_file(folder.path / name, [content[name].numpy().data])
            _check_segment(tensors.verify_file(folder.path / name, limits=limits, follow=False), name, entry, str(source))
    except BaseException:
        for name in manifest["files"]:
            files.remove_file(folder.path / name)
        raise
    files.write_file(folder.path / MANIFEST, [text])
    return Folder.open(path, limits=limits)


def _open_checked(folder: Folder, name: str) -> Path:
    folder.read_segment_header(name)
    return folder.path / name


def _check_segment(known: tensors.FileHeader, name: str, entry: dict[str, Any], path: str) -> None:
    if known.size != entry["size"] or not canonical.same_digest(known.digest, entry["sha256"]):
        raise FormatError("digest", f"{path} is not the segment that the manifest names")
    if set(known.header) != {"header", "segment"} or not isinstance(known.header["header"], dict):
        raise FormatError("kind", f"{path} is a file of another kind, not a segment")
    if known.header["segment"] != name.partition("-")[0]:
        raise FormatError("kind", f"{path} holds {str(known.header['segment'])[:40]!r}, not {name.partition('-')[0]!r}")


def _check_manifest(record: dict[str, Any], what: str) -> dict[str, Any]:
    tensors.check_version(record, what)
    canonical.fields(record, what, {"digest": str, "files": dict, "kind": str, "meta": dict, "version": int})
    if not _KIND.fullmatch(record["kind"]):
        raise FormatError("kind", f"{what} has kind {record['kind'][:40]!r}")
    for name, entry in record["files"].items():
        match = _SEGMENT.fullmatch(name)
        if not match:
            raise FormatError("name", f"{what} names {name[:80]!r}; segments are called kind-digest.cw and lie in the folder itself")
        canonical.fields(entry, f"entry {name!r} of {what}", {"sha256": str, "size": int})
        if not _HEX.fullmatch(entry["sha256"]) or not entry["sha256"].startswith(match["digest"]):
            raise FormatError("name", f"entry {name!r} of {what} does not carry its own digest in its name")
        if entry["size"] < tensors.PAGE:
            raise FormatError("value", f"entry {name!r} of {what} has size {entry['size']}; a segment has at least {tensors.PAGE} bytes")
    return record
