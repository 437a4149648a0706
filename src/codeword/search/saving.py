"""An index on disk: a folder (``io/folder.py``) of immutable, content-named files and one manifest that is replaced last.

    quantizer-*.cw, fine-*.cw    the quantizers, as ``io/objects.py`` writes them
    lists-*.cw                   centroids
    rows-*.cw                    one segment: its tensors as they are scanned, so that a mapped file is searched in place
    deleted-*.cw                 tombstones of one segment, one bit a slot

Saving again to the same folder writes only what is new and then one manifest. Readers that have the folder open keep their files (a
removed file lives on while it is mapped), and a crash leaves the old index or the new one. Every segment names, by ``fingerprint``,
the quantizers and centroids its codes belong to.

Reading believes nothing. Names, dtypes and shapes must be those this very index would write (``_template``: one row is encoded to see
them), list tables must tile the segment, ids must be where the tables say, codes must be possible. With ``mmap=True`` a tensor's bytes
are compared with its digest, and its values checked, when a search first needs them; ``vectors``, which are read a few rows at a time,
are left to ``codeword verify``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from codeword.errors import CodewordError, FormatError, ShapeError
from codeword.io import canonical, objects
from codeword.io.folder import MANIFEST, Folder, read_folder
from codeword.io.tensors import MappedTensors, Spec
from codeword.quantizer import BLOCK, Packed, Quantizer
from codeword.search.lists import Lists
from codeword.search.segments import Schema, Segment, View

if TYPE_CHECKING:
    from codeword.search.index import Index

KIND = "index"
T = TypeVar("T", bound="Index")


def save(index: Index, path: str | Path, overwrite: bool) -> None:
    """See ``Index.save``."""
    place = Path(path)
    views = index._snapshot()
    with _open(index, place, overwrite) as folder:
        known = set(folder.segments)
        parts = {"quantizer": _write_quantizer(folder, "quantizer", index.quantizer),
                 "fine": "" if index.rerank_quantizer is None else _write_quantizer(folder, "fine", index.rerank_quantizer)}
        schema = index._schema
        parts["lists"] = "" if schema is None or schema.lists.centroids is None else folder.write_segment(
            "lists", {"centroids": schema.lists.centroids}, {})
        rows = []
        for view in views:
            assert schema is not None
            if view.segment.name not in known:
                header = {"fingerprint": _fingerprint(schema), "slots": view.segment.slots}
                view.segment.name = folder.write_segment("rows", view.segment.tensors, header)
            deleted = "" if view.deleted is None else folder.write_segment(
                "deleted", {"bits": torch.from_numpy(np.packbits(view.deleted.numpy(), bitorder="little"))}, {"slots": view.segment.slots})
            rows.append({"deleted": deleted, "rows": view.segment.name})
        config = {"dim": index.dim, "metric": index.metric, "nlist": index.nlist or 0, "seed": index.seed, "store": index.store}
        state = {"fits": [index._fits, index._fits_fine], "fitted": schema is not None, "next_id": index._next_id,
                 "nprobe": index.nprobe, "rerank": index.rerank, "residual": schema is not None and schema.lists.residual}
        names = [name for name in (*parts.values(), *(name for row in rows for name in row.values())) if name]
        folder.commit({"config": config, "parts": parts, "segments": rows, "state": state}, list(dict.fromkeys(names)))
        index._place = (place.resolve(), folder.manifest["digest"])


def load(cls: type[T], path: str | Path, mmap: bool) -> T:
    """See ``Index.load``."""

    def read(folder: Folder) -> T:
        index = _build(cls, folder, mmap)
        index._place = (Path(path).resolve(), folder.manifest["digest"])
        return index

    return read_folder(path, read, KIND)


def _open(index: Index, place: Path, overwrite: bool) -> Folder:
    """The folder to write to: a new one, the one this index came from or was saved to last, or any index with ``overwrite``."""
    if not (place / MANIFEST).exists():
        return Folder.create(place, KIND)
    folder = Folder.open(place, KIND)
    if not overwrite:
        home, digest = index._place or (None, "")
        if home != place.resolve():
            raise CodewordError(f"{place} already holds an index; load it, choose another place, or pass overwrite=True")
        if digest != folder.manifest["digest"]:
            raise CodewordError(f"{place} was changed by another writer since this index was loaded; load it again, or pass overwrite=True")
    return folder


def _write_quantizer(folder: Folder, kind: str, quantizer: Quantizer) -> str:
    tensors, header = objects.to_parts(quantizer)
    return folder.write_segment(kind, tensors, header)


def _fingerprint(schema: Schema) -> str:
    """16 hex digits over everything that gives codes their meaning."""
    centroids = schema.lists.centroids
    parts = [schema.quantizer.fingerprint, "" if schema.fine is None else schema.fine.fingerprint, schema.metric, str(schema.store),
             str(schema.lists.residual), "" if centroids is None else hashlib.sha256(centroids.contiguous().numpy().data).hexdigest()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------- reading


def _build(cls: type[T], folder: Folder, mmap: bool) -> T:
    what = f"manifest of {folder.path}"
    meta = canonical.fields(folder.meta, what, {"config": dict, "parts": dict, "segments": list, "state": dict})
    config = canonical.fields(meta["config"], what, {"dim": int, "metric": str, "nlist": int, "seed": int, "store": str})
    parts = canonical.fields(meta["parts"], what, {"fine": str, "lists": str, "quantizer": str})
    state = canonical.fields(meta["state"], what, {"fits": list, "fitted": bool, "next_id": int, "nprobe": int, "rerank": int,
                                                   "residual": bool})
    quantizer = objects.from_parts(*folder.read_segment(parts["quantizer"]), parts["quantizer"])
    fine = objects.from_parts(*folder.read_segment(parts["fine"]), parts["fine"]) if parts["fine"] else None
    try:
        index = cls(**{**config, "nlist": config["nlist"] or None}, quantizer=quantizer, rerank_quantizer=fine)
    except CodewordError as error:
        raise FormatError("config", f"{what}: {error}") from None
    if [type(flag) for flag in state["fits"]] != [bool, bool]:
        raise FormatError("header", f"{what} has 'fits' that are not two booleans")
    if min(state["next_id"], state["rerank"], state["nprobe"] - 1) < 0 or (state["rerank"] and not index.reranks):
        raise FormatError("value", f"{what} has an impossible next_id, nprobe or rerank")
    index._fits, index._fits_fine = state["fits"]
    index._next_id, index.nprobe, index.rerank = state["next_id"], state["nprobe"], state["rerank"]
    if not state["fitted"]:
        if meta["segments"] or parts["lists"]:
            raise FormatError("value", f"{what} has rows in an index that is not fitted")
        index._schema = None
        return index
    if not quantizer.fitted or not (fine is None or fine.fitted) or bool(parts["lists"]) != bool(config["nlist"]):
        raise FormatError("value", f"{what} calls an index fitted that lacks its quantizer or lists")
    lists = Lists(_centroids(folder, parts["lists"], index) if parts["lists"] else None, state["residual"])
    index._schema = Schema(lists, quantizer, fine, index.store, index.metric)
    index._views = list(_views(folder, meta["segments"], index._schema, index._next_id, mmap, what))
    if not mmap:
        _check_distinct(index._views)
    return index


def _centroids(folder: Folder, name: str, index: Index) -> Tensor:
    tensors, _ = folder.read_segment(name)
    centroids = tensors.get("centroids")
    if set(tensors) != {"centroids"} or centroids is None or centroids.dtype != torch.float32:
        raise FormatError("dtype", f"{name} holds {sorted(tensors)}; float32 centroids alone are needed")
    if centroids.ndim != 2 or centroids.shape[1] != index.dim or not 1 <= len(centroids) <= (index.nlist or 0):
        raise FormatError("shape", f"{name} has centroids {tuple(centroids.shape)}; (1..{index.nlist}, {index.dim}) is needed")
    if not bool(torch.isfinite(centroids).all()):
        raise FormatError("value", f"{name} has non-finite centroids")
    return centroids


def _views(folder: Folder, entries: list[Any], schema: Schema, next_id: int, mmap: bool, what: str) -> Iterator[View]:
    template, fingerprint = _template(schema), _fingerprint(schema)
    for entry in entries:
        names = canonical.fields(entry, what, {"deleted": str, "rows": str})
        name = names["rows"]
        known = folder.read_segment_header(name)
        header = canonical.fields(known.header, f"header of {name}", {"fingerprint": str, "slots": int})
        if header["fingerprint"] != fingerprint:
            raise FormatError("fingerprint", f"{name} holds codes of other quantizers or lists than this index has")
        _check_shapes(known.specs, template, header["slots"], schema.lists.count, name)
        tensors, _ = folder.read_segment(name, mmap=mmap)
        lazy = _OnFirstTouch(tensors) if isinstance(tensors, MappedTensors) else None
        segment = Segment(tensors if lazy is None else lazy, header["slots"], name)
        _check_tables(segment, name)
        if lazy is None:
            _check_ids(segment, next_id)
            _check_codes(schema, segment)
            _check_vectors(segment)
        else:
            lazy.checks = {"ids": partial(_check_ids, segment, next_id), "scan": partial(_check_codes, schema, segment)}
        yield _view(folder, segment, names["deleted"])


class _OnFirstTouch(Mapping[str, Tensor]):
    """Mapped tensors whose values are checked when a group of them ("ids", "scan") is first taken."""

    def __init__(self, tensors: MappedTensors) -> None:
        self._tensors = tensors
        self.checks: dict[str, Callable[[], None]] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name == "vectors":  # read row by row: a digest over all of them would read the whole file
            return self._tensors.unchecked(name)
        check = self.checks.pop(name.partition(".")[0], None)
        if check is not None:
            try:
                check()
            except FormatError:
                self.checks[name.partition(".")[0]] = check
                raise
        return self._tensors[name]

    def unchecked(self, name: str) -> Tensor:
        return self._tensors.unchecked(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _view(folder: Folder, segment: Segment, name: str) -> View:
    if not name:
        return View(segment)
    tensors, header = folder.read_segment(name)
    bits = tensors.get("bits")
    if set(tensors) != {"bits"} or bits is None or bits.dtype != torch.uint8 or header != {"slots": segment.slots}:
        raise FormatError("shape", f"{name} does not hold the tombstones of {segment.name}")
    if bits.shape != (segment.slots // 8,):
        raise FormatError("shape", f"{name} has {tuple(bits.shape)} bytes; ({segment.slots // 8},) are needed")
    deleted = torch.from_numpy(np.unpackbits(bits.numpy(), bitorder="little").astype(bool))
    if bool((deleted & ~_real(segment)).any()):
        raise FormatError("value", f"{name} has a tombstone on padding")
    return View(segment, deleted, int(deleted.sum()))


def _template(schema: Schema) -> dict[str, Tensor]:
    """Tensors of a segment of one row: what names, dtypes and shapes must be."""
    row = torch.zeros(1, schema.quantizer.dim)
    row[0, 0] = 1
    return dict(schema.seal(schema.encode(row, torch.zeros(1, dtype=torch.int64))).tensors)


def _check_shapes(specs: Mapping[str, Spec], template: dict[str, Tensor], slots: int, lists: int, name: str) -> None:
    if slots < BLOCK or slots % BLOCK:
        raise FormatError("shape", f"{name} has {slots} slots; a positive multiple of {BLOCK} is needed")
    scans = [{key for key in names if key.startswith("scan.")} for names in (specs, template)]
    if scans[0] - scans[1] and scans[1] - scans[0]:
        raise FormatError("missing-key", f"{name} keeps its codes in another layout ({', '.join(sorted(scans[0]))}) than the one this "
                                         f"version reads ({', '.join(sorted(scans[1]))}); build the index again")
    if missing := template.keys() - specs.keys():
        raise FormatError("missing-key", f"{name} lacks the tensor {min(missing)!r}")
    if extra := specs.keys() - template.keys():
        raise FormatError("unknown-key", f"{name} has the tensor {min(extra)!r}, which this index does not")
    for key, model in template.items():
        rows = lists if key in ("starts", "counts") else slots if len(model) == BLOCK else slots // BLOCK
        if specs[key].torch_dtype != model.dtype:
            raise FormatError("dtype", f"{name} has {key!r} of type {specs[key].dtype}; {model.dtype} is needed")
        if specs[key].shape != (rows, *model.shape[1:]):
            raise FormatError("shape", f"{name} has {key!r} of shape {specs[key].shape}; {(rows, *model.shape[1:])} is needed")


def _check_tables(segment: Segment, name: str) -> None:
    """Lists must tile the segment in order, each from a block's start."""
    starts, counts = segment.tensors["starts"], segment.tensors["counts"]
    if bool((counts < 0).any()) or bool((counts > segment.slots).any()):
        raise FormatError("value", f"{name} has a list of impossible length")
    padded = (counts + BLOCK - 1) // BLOCK * BLOCK
    ends = padded.cumsum(0)
    if int(ends[-1]) != segment.slots or bool((starts != ends - padded).any()):
        raise FormatError("value", f"{name} has list tables that do not tile its {segment.slots} slots")


def _real(segment: Segment) -> Tensor:
    """(slots,) bool: slots that hold a row, by the list tables."""
    slots = torch.arange(segment.slots)
    lists = segment.labels(slots)
    return slots - segment.tensors["starts"][lists] < segment.tensors["counts"][lists]


def _check_ids(segment: Segment, next_id: int) -> None:
    ids, real = segment.ids, _real(segment)
    if bool(((ids >= 0) != real).any()) or bool((ids[~real] != -1).any()) or int(ids.max()) >= next_id:
        raise FormatError("value", f"{segment.name} has ids where its lists have none, or beyond the largest ever given")
    if len(torch.unique(ids[real])) < segment.rows:
        raise FormatError("value", f"{segment.name} has an id twice")


def _check_codes(schema: Schema, segment: Segment) -> None:
    try:
        schema.scanner.check(Packed(segment.group("scan"), segment.slots))  # not segment.packed, which remembers what it found
    except ShapeError as error:
        raise FormatError("value", f"{segment.name}: {error}") from None


def _check_vectors(segment: Segment) -> None:
    if "vectors" in segment.tensors and not bool(torch.isfinite(segment.tensors["vectors"]).all()):
        raise FormatError("value", f"{segment.name} has non-finite vectors")


def _check_distinct(views: list[View]) -> None:
    """No live id may stand in two segments."""
    ids = torch.cat([view.segment.ids[view.alive()] for view in views]) if views else torch.empty(0)
    if len(torch.unique(ids)) < len(ids):
        raise FormatError("value", "the index has an id in two segments")
