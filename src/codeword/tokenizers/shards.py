"""Token shards: the one format in which tokens lie on a disk, whatever signal they came from.

    manifest.json      kind "tokens"; meta: complete, consumed, fingerprint, levels, order, signal, skipped, source, total
    tokens-DIGEST.cw   some hundred to some thousand items, never changed:
        indices        (places, positions) of the smallest unsigned type; the items' places follow each other
        shapes         (items, axes of the signal) int32, where known: what decoding gives back
        grids          (items, axes) int32, or positions (places, axes) int32 where there is no grid
        starts         (items + 1,) int64: item i has the places starts[i] .. starts[i + 1]; only where items differ in length
        mask           (places,) bool, where some places hold nothing
        labels         (items,) int64;   names, name_starts: UTF-8 and (items + 1,) int64; either where there are any

A writer adds one segment and replaces the manifest (``io/folder``): whatever kills it, the folder holds all segments before or after.
``consumed`` says how much of the source they cover, so encoding goes on from there; ``source`` and ``fingerprint`` must be the same, or
the folder is refused. A reader maps segments, checks a segment's digests and every value when it first touches it, and takes single
items by number. Indices are kept unpacked: 14 bits take 16, and a generator reads rows without a copy.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from codeword.errors import CodewordError, FormatError, ShapeError
from codeword.io import canonical
from codeword.io.folder import MANIFEST, Folder
from codeword.parts import arrays
from codeword.tokenizers.tokens import MAX_PLACES, SIGNALS, Layout, Tokens

KIND = "tokens"
MAX_ITEMS = 1 << 20
"""Items of one segment."""
_FIELDS = {"complete": bool, "consumed": int, "fingerprint": str, "levels": list, "order": list, "signal": str, "skipped": list,
           "source": dict, "total": int}


class TokenWriter:
    """Adds segments to a folder of token shards (see ``start``). One writer at a time; ``consumed``: items of the source it covers."""

    def __init__(self, folder: Folder, meta: dict[str, Any]) -> None:
        self._folder, self._meta = folder, meta

    @classmethod
    def start(cls, path: str | Path, *, fingerprint: str, signal: str, levels: Sequence[int], source: dict[str, Any], total: int,
              resume: bool = False) -> Self:
        """A new folder for the tokens of ``total`` items of ``source`` (JSON that identifies it), or with ``resume`` the unfinished one
        that is there. Raises CodewordError where it is of another tokenizer or source, or there already and ``resume`` is not said."""
        meta = {"complete": False, "consumed": 0, "fingerprint": fingerprint, "levels": list(levels), "order": [], "signal": signal,
                "skipped": [], "source": canonical.decode(canonical.encode(source), "source"), "total": total}
        _check_meta(meta, "the new shards")
        if not (Path(path) / MANIFEST).exists():
            return cls(Folder.create(path, KIND), meta)
        folder = Folder.open(path, KIND)
        found = _check_meta(folder.meta, str(path))
        for key in ("fingerprint", "signal", "levels", "source", "total"):
            if found[key] != meta[key]:
                what = {"fingerprint": "another tokenizer", "source": "other images, or other options"}.get(key, f"another {key}")
                raise CodewordError(f"{path} holds tokens of {what} ({_short(found[key])} there, {_short(meta[key])} here); "
                                    "use another folder")
        if not resume:
            raise CodewordError(f"{path} already holds these tokens{'' if found['complete'] else ', unfinished'}; "
                                f"{'remove it first' if found['complete'] else 'resume it (--resume)'}, or use another folder")
        return cls(folder, found)

    @property
    def consumed(self) -> int:
        return self._meta["consumed"]

    @property
    def complete(self) -> bool:
        return self._meta["complete"]

    @property
    def skipped(self) -> list[str]:
        """Items of the source that could not be read, the first thousand."""
        return self._meta["skipped"]

    @property
    def items(self) -> int:
        """Items written so far."""
        return sum(count for _, count in self._meta["order"])

    def write(self, items: Sequence[Tokens], consumed: int, *, names: Sequence[str] | None = None, labels: Sequence[int] | None = None,
              skipped: Sequence[str] = ()) -> None:
        """Add ``items`` (each without a batch axis) as one segment; the shards then cover the first ``consumed`` items of the source,
        of which ``skipped`` could not be read. Raises ShapeError where an item is not of this tokenizer."""
        if not self.consumed < consumed <= self._meta["total"] or len(items) > MAX_ITEMS:
            raise CodewordError(f"a segment of {len(items)} items cannot bring the shards from {self.consumed} to {consumed} of "
                                f"{self._meta['total']} items")
        meta = {**self._meta, "consumed": consumed, "skipped": [*self._meta["skipped"], *skipped][:1000]}
        if items:
            for item in items:
                item.check()
                if item.fingerprint != meta["fingerprint"] or list(item.layout.levels) != meta["levels"]:
                    raise ShapeError(f"tokens of {item.fingerprint} with levels {_short(item.layout.levels)} do not belong to these shards")
            name = self._folder.write_segment(KIND, _pack(items, names, labels), {"first": self.items, "items": len(items)})
            meta["order"] = [*meta["order"], [name, len(items)]]
        self._commit(meta)

    def finish(self) -> None:
        """Say that the source is covered. Raises CodewordError where it is not."""
        if self.consumed != self._meta["total"]:
            raise CodewordError(f"the shards cover {self.consumed} of {self._meta['total']} items")
        if not self.complete:
            self._commit({**self._meta, "complete": True})

    def close(self) -> None:
        """Give the folder's lock back."""
        self._folder.close()

    def _commit(self, meta: dict[str, Any]) -> None:
        self._folder.commit(meta, [name for name, _ in meta["order"]])
        self._meta = meta


class TokenShards:
    """A read-only sequence of ``Tokens``, mapped. ``partial``: also open shards whose encoding has not finished."""

    def __init__(self, path: str | Path, *, partial: bool = False) -> None:
        self.path = Path(path)
        self._folder = Folder.open(path, KIND)
        meta = _check_meta(self._folder.meta, str(path))
        if {name for name, _ in meta["order"]} != set(self._folder.segments):
            raise FormatError("missing-key", f"the order of {path} does not name its segments, each once")
        if not meta["complete"] and not partial:
            raise CodewordError(f"{path} is unfinished: {meta['consumed']} of {meta['total']} items are encoded; resume it (--resume)")
        self.meta, self.fingerprint = meta, meta["fingerprint"]
        self.levels, self.signal = tuple(meta["levels"]), meta["signal"]
        self._names = [name for name, _ in meta["order"]]
        self._starts = [0, *accumulate(count for _, count in meta["order"])]
        self._segments: list[_Segment | None] = [None] * len(self._names)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> Tokens:
        """Item ``i``, without a batch axis; views of the mapped file. Raises FormatError where its segment is damaged."""
        segment, row = self._place(i)
        low, high = segment.span(row)
        grid = () if segment.grids is None else tuple(segment.grids[row].tolist())
        shape = () if segment.shapes is None else tuple(segment.shapes[row].tolist())
        return Tokens(segment.indices[low:high], None if segment.positions is None else segment.positions[low:high],
                      None if segment.mask is None else segment.mask[low:high],
                      Layout(self.signal, self.levels, grid, shape), self.fingerprint)

    def __iter__(self) -> Iterator[Tokens]:
        return (self[i] for i in range(len(self)))

    def batch(self, rows: Sequence[int] | np.ndarray) -> Tokens:
        """Several items of one layout below each other: indices (b, n, positions). Raises ShapeError where their layouts differ."""
        items = [self[int(row)] for row in rows]
        if not items:
            raise ShapeError("a batch of no items has no layout")
        if any(item.layout != items[0].layout or len(item.indices) != len(items[0].indices) for item in items):
            raise ShapeError("the items of this batch have different layouts; take them one at a time, or encode at one size")
        stacked: list[Any] = [None if any(value is None for value in column) else torch.stack(column) for column in
                              zip(*((item.indices, item.positions, item.mask) for item in items))]
        return Tokens(stacked[0], stacked[1], stacked[2], items[0].layout, self.fingerprint)

    def name(self, i: int) -> str | None:
        """What item ``i`` was called, or None."""
        segment, row = self._place(i)
        if segment.names is None or segment.name_starts is None:
            return None
        low, high = segment.name_starts[row:row + 2].tolist()
        return bytes(segment.names[low:high].numpy()).decode("utf-8", "replace")

    @property
    def labels(self) -> Tensor | None:
        """int64 (items,), or None where some item has none."""
        found = [self._segment(i).labels for i in range(len(self._names))]
        known = [labels for labels in found if labels is not None]
        return torch.cat(known) if known and len(known) == len(found) else None

    @property
    def places(self) -> int:
        """Tokens of all items together."""
        return sum(len(self._segment(i).indices) for i in range(len(self._names)))

    @property
    def nbytes(self) -> int:
        return self._folder.size

    def blocks(self) -> Iterator[Tensor]:
        """Indices (places, positions) of one segment after another."""
        return (self._segment(i).indices for i in range(len(self._names)))

    def _place(self, i: int) -> tuple[_Segment, int]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"item {i} is outside 0..{len(self) - 1} of {self.path}")
        i %= len(self)
        at = bisect_right(self._starts, i) - 1
        return self._segment(at), i - self._starts[at]

    def _segment(self, at: int) -> _Segment:
        known = self._segments[at]
        if known is None:
            name, items = self._names[at], self._starts[at + 1] - self._starts[at]
            content, header = self._folder.read_segment(name, mmap=True)
            canonical.fields(header, f"header of {name}", {"first": int, "items": int})
            if (header["first"], header["items"]) != (self._starts[at], items):
                raise FormatError("value",
                                  f"{name} holds {header['items']} items from {header['first']} on, not {items} from {self._starts[at]}")
            known = self._segments[at] = _unpack(content, items, self.levels, f"{self.path}/{name}")
        return known


# ---------------------------------------------------------------------- one segment


class _Segment(NamedTuple):
    indices: Tensor
    starts: Tensor | None
    grids: Tensor | None
    shapes: Tensor | None
    positions: Tensor | None
    mask: Tensor | None
    labels: Tensor | None
    names: Tensor | None
    name_starts: Tensor | None
    items: int

    def span(self, row: int) -> tuple[int, int]:
        if self.starts is not None:
            low, high = self.starts[row:row + 2].tolist()
            return low, high
        each = len(self.indices) // self.items
        return row * each, (row + 1) * each


def _pack(items: Sequence[Tokens], names: Sequence[str] | None, labels: Sequence[int] | None) -> dict[str, Tensor]:
    lengths = [len(item.indices) for item in items]
    out = {"indices": torch.cat([item.indices for item in items]).cpu()}
    if len(set(lengths)) > 1:
        out["starts"] = torch.tensor([0, *accumulate(lengths)], dtype=torch.int64)
    if items[0].layout.grid:
        out["grids"] = torch.tensor([item.layout.grid for item in items], dtype=torch.int32)
    if all(item.layout.shape for item in items):
        out["shapes"] = torch.tensor([item.layout.shape for item in items], dtype=torch.int32)
    if any(item.positions is not None for item in items):
        out["positions"] = torch.cat([item.positions for item in items if item.positions is not None]).cpu()
    if any(item.mask is not None for item in items):
        out["mask"] = torch.cat([torch.ones(len(item.indices), dtype=torch.bool) if item.mask is None else item.mask.cpu()
                                 for item in items])
    if labels is not None:
        out["labels"] = torch.as_tensor(labels, dtype=torch.int64)
    if names is not None:
        encoded = [name.encode("utf-8", "replace") for name in names]
        out["names"] = torch.from_numpy(np.frombuffer(b"".join(encoded), np.uint8).copy())
        out["name_starts"] = torch.tensor([0, *accumulate(map(len, encoded))], dtype=torch.int64)
    for name, count in (("labels", len(items)), ("name_starts", len(items) + 1)):
        if name in out and len(out[name]) != count:
            raise ShapeError(f"{len(items)} items were given with {len(out[name]) - count + len(items)} {name.partition('_')[0]}s")
    return out


def _unpack(content: Mapping[str, Tensor], items: int, levels: tuple[int, ...], what: str) -> _Segment:
    """A segment with every dtype, shape and value checked (its digests are, as its tensors are taken)."""
    unknown = content.keys() - set(_Segment._fields)
    if unknown:
        raise FormatError("unknown-key", f"{what} has a tensor {min(unknown)!r} that token shards do not have")
    if "indices" not in content:
        raise FormatError("missing-key", f"{what} has no indices")
    found = {name: content[name] for name in content}
    indices = found["indices"]
    dtypes = {"indices": arrays.unsigned_dtype(max(levels)), "starts": torch.int64, "grids": torch.int32, "shapes": torch.int32,
              "positions": torch.int32, "mask": torch.bool, "labels": torch.int64, "names": torch.uint8, "name_starts": torch.int64}
    for name, tensor in found.items():
        if tensor.dtype != dtypes[name]:
            raise FormatError("dtype", f"tensor {name!r} of {what} is {tensor.dtype}; {dtypes[name]} is needed")
    places = len(indices) if indices.ndim == 2 else 0
    shapes = {"indices": (places, len(levels)), "starts": (items + 1,), "grids": (items, None), "shapes": (items, None),
              "positions": (places, None), "mask": (places,), "labels": (items,), "names": (None,), "name_starts": (items + 1,)}
    for name, tensor in found.items():
        want = shapes[name]
        if tensor.ndim != len(want) or any(n is not None and n != m for n, m in zip(want, tensor.shape)) \
                or max(tensor.shape[1:], default=1) > 4096:
            raise FormatError("shape", f"tensor {name!r} of {what} has shape {tuple(tensor.shape)}; {want} is needed")
    if ("grids" in found) == ("positions" in found):
        raise FormatError("missing-key", f"{what} needs either grids or positions")
    if ("names" in found) != ("name_starts" in found):
        raise FormatError("missing-key", f"{what} has names without their starts, or the reverse")
    segment = _Segment(**{name: found.get(name) for name in _Segment._fields if name != "items"}, items=items)  # type: ignore[arg-type]
    _check_values(segment, places, levels, what)
    return segment


def _check_values(segment: _Segment, places: int, levels: tuple[int, ...], what: str) -> None:
    try:
        arrays.check_indices(segment.indices, levels, what, wide=False)
    except ShapeError as error:
        raise FormatError("value", str(error)) from None
    if segment.starts is None and places % segment.items:
        raise FormatError("shape", f"{what} has {places} places for {segment.items} items")
    for starts, end in ((segment.starts, places), (segment.name_starts, 0 if segment.names is None else len(segment.names))):
        if starts is not None and (int(starts[0]) != 0 or int(starts[-1]) != end or bool((starts[1:] < starts[:-1]).any())):
            raise FormatError("value", f"{what} has starts that do not ascend from 0 to {end}")
    lengths = torch.full((segment.items,), places // segment.items) if segment.starts is None else segment.starts.diff()
    grids = segment.grids
    if grids is not None and (bool((grids < 1).any()) or not 1 <= grids.shape[1] <= 4
                              or not bool((grids.double().prod(1) == lengths.double()).all())):
        raise FormatError("value", f"{what} has a grid that its item does not fill")
    if bool((lengths > MAX_PLACES).any()):
        raise FormatError("limit", f"{what} has an item of more than {MAX_PLACES} places")
    if segment.shapes is not None and (bool((segment.shapes < 1).any()) or not 1 <= segment.shapes.shape[1] <= 5):
        raise FormatError("value", f"{what} has a signal without extent")


def _check_meta(meta: dict[str, Any], what: str) -> dict[str, Any]:
    canonical.fields(meta, f"manifest of {what}", _FIELDS)
    Layout.from_json({"grid": [], "levels": meta["levels"], "shape": [], "signal": meta["signal"]}, what)
    assert meta["signal"] in SIGNALS
    if len(meta["fingerprint"]) != 16 or not set(meta["fingerprint"]) <= set("0123456789abcdef"):
        raise FormatError("header", f"{what} has no fingerprint of 16 hex digits")
    for entry in meta["order"]:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and type(entry[1]) is int
                and 1 <= entry[1] <= MAX_ITEMS):
            raise FormatError("header", f"the order of {what} is not [segment, items] pairs")
    names = [name for name, _ in meta["order"]]
    if len(set(names)) != len(names) or any(type(name) is not str for name in meta["skipped"]):
        raise FormatError("header", f"{what} names a segment twice, or has skipped items without names")
    if not 0 <= sum(count for _, count in meta["order"]) <= meta["consumed"] <= meta["total"] <= 1 << 40 \
            or (meta["complete"] and meta["consumed"] != meta["total"]):
        raise FormatError("value", f"{what} says {meta['consumed']} of {meta['total']} items, which its segments do not bear out")
    return meta


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def encoded_so_far(path: str | Path) -> tuple[int, int] | None:
    """(consumed, total) of shards that are there, or None."""
    if not (Path(path) / MANIFEST).exists():
        return None
    meta = _check_meta(Folder.open(path, KIND).meta, str(path))
    return meta["consumed"], meta["total"]


