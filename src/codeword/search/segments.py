"""Segments: immutable runs of packed rows, and the schema that makes, reads and takes them apart.

    Rows       encoded but not yet laid out: what ``add`` collects
    Segment    laid out by lists and packed; never changes, so readers, files and other threads may share it
    View       a segment and its tombstones; removing rows makes a new view

A segment holds, per row: the scan layout of its codes, its id, and what re-ranking reads (codes of a second quantizer, or the vector in
float16 or float32). Rows can be taken out of a segment again without loss, so merging segments never encodes anything twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codeword.errors import ShapeError
from codeword.parts import arrays
from codeword.quantizer import BLOCK, Codes, Packed, Quantizer, Scannable
from codeword.search.decoded import DecodedScan, from_bytes, to_bytes
from codeword.search.lists import Lists, arrange
from codeword.search.scores import exact_distance

STORES = {"none": None, "float16": torch.float16, "float32": torch.float32}


class Rows(NamedTuple):
    """Encoded rows in any order. ``fine``: codes of the re-ranking quantizer; ``vectors``: kept values."""

    ids: Tensor
    labels: Tensor
    codes: Codes
    fine: Codes | None
    vectors: Tensor | None

    def select(self, keep: Tensor) -> Rows:
        """The rows of a boolean mask or of int64 positions."""
        fine = None if self.fine is None else _select(self.fine, keep)
        vectors = None if self.vectors is None else self.vectors[keep]
        return Rows(self.ids[keep], self.labels[keep], _select(self.codes, keep), fine, vectors)


@dataclass(eq=False)
class Segment:
    """Never changed once made. ``tensors`` by name: ``scan.*`` the packed codes, ``ids`` (slots,) with -1 in padding, ``starts`` and
    ``counts`` (lists,), ``fine.*`` and ``vectors`` for re-ranking; maybe mapped from a file. ``name``: of that file, once there is one."""

    tensors: Mapping[str, Tensor]
    slots: int
    name: str = ""

    @property
    def ids(self) -> Tensor:
        return self.tensors["ids"]

    @cached_property
    def rows(self) -> int:
        return int(self.tensors["counts"].sum())

    @cached_property
    def packed(self) -> Packed:
        return Packed(self.group("scan"), self.slots)

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        ids = self.ids.numpy()
        order = np.argsort(ids, kind="stable")
        order = order[np.searchsorted(ids[order], 0):]
        return ids[order], order

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Slot of each id (n,) int64, -1 where this segment does not have it."""
        known, slots = self._sorted
        if not len(known):
            return np.full(len(ids), -1)
        at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[at] == ids, slots[at], -1)

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors called ``name.*``, without that prefix."""
        return {key[len(name) + 1:]: self.tensors[key] for key in self.tensors if key.startswith(name + ".")}

    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor; looks into none."""
        peek = getattr(self.tensors, "unchecked", self.tensors.__getitem__)
        return {name: peek(name).nbytes for name in self.tensors}

    def labels(self, slots: Tensor) -> Tensor:
        """List of each slot (n,): the last one that starts at or before it (an empty list starts where the next does)."""
        return torch.searchsorted(self.tensors["starts"].contiguous(), slots.contiguous(), right=True) - 1


@dataclass(frozen=True)
class View:
    """A segment less its tombstones: ``deleted`` (slots,) bool, or None while nothing is deleted."""

    segment: Segment
    deleted: Tensor | None = None
    dead: int = 0

    @property
    def live(self) -> int:
        return self.segment.rows - self.dead

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Slot of each live id, else -1."""
        slots = self.segment.find(ids)
        if self.deleted is not None:
            slots = np.where((slots >= 0) & self.deleted.numpy()[slots], -1, slots)
        return slots

    def without(self, slots: np.ndarray) -> View:
        """A new view with these live slots deleted."""
        deleted = torch.zeros(self.segment.slots, dtype=torch.bool) if self.deleted is None else self.deleted.clone()
        deleted[torch.from_numpy(slots)] = True
        return View(self.segment, deleted, self.dead + len(slots))

    def alive(self) -> Tensor:
        """(slots,) bool: neither padding nor deleted."""
        real = self.segment.ids >= 0
        return real if self.deleted is None else real & ~self.deleted


class Schema:
    """How rows become segments: the lists, the quantizer, and what re-ranking keeps."""

    def __init__(self, lists: Lists, quantizer: Quantizer, fine: Quantizer | None, store: str, metric: str) -> None:
        self.lists, self.quantizer, self.fine, self.metric = lists, quantizer, fine, metric
        self.store = STORES[store]
        self.scanner: Any = quantizer if isinstance(quantizer, Scannable) else DecodedScan(quantizer)

    # ------------------------------------------------------------------ making

    def encode(self, rows: Tensor, ids: Tensor) -> Rows:
        """Encode prepared float32 rows (n, dim)."""
        labels = self.lists.assign(rows)
        given = self.lists.given(labels)
        fine = None if self.fine is None else self.fine.encode(rows, given=given)
        vectors = None if self.store is None else rows.to(self.store)
        if vectors is not None and not bool(torch.isfinite(vectors).all()):
            raise ShapeError(f"add got values beyond {torch.finfo(vectors.dtype).max:g}, which store='float16' cannot keep; use 'float32'")
        return Rows(ids, labels, self.quantizer.encode(rows, given=given), fine, vectors)

    def seal(self, rows: Rows) -> Segment:
        """Lay out and pack ``rows`` (at least one)."""
        layout = arrange(rows.labels, rows.ids, self.lists.count)
        spread = rows.select(layout.source)
        packed = self._pack(spread.codes, spread.labels)
        tensors = {f"scan.{name}": tensor for name, tensor in packed.tensors.items()}
        tensors |= {"ids": layout.ids, "starts": layout.starts, "counts": layout.counts}
        if spread.fine is not None and self.fine is not None:
            tensors |= {f"fine.{name}": tensor for name, tensor in to_bytes(self.fine, spread.fine).items()}
        if spread.vectors is not None:
            tensors["vectors"] = spread.vectors
        return Segment(tensors, packed.rows)

    def _pack(self, codes: Codes, labels: Tensor) -> Packed:
        """Pack a few blocks at a time: scans keep the axis of rows first, so the parts just follow each other."""
        step = max(BLOCK, arrays.block_rows(self.quantizer.dim) // (2 * BLOCK) * BLOCK)
        slices = [slice(start, start + step) for start in range(0, len(labels), step)]
        parts = [self.scanner.pack(_select(codes, part), self.lists.given(labels[part])) for part in slices]
        tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
        return Packed(tensors, sum(part.rows for part in parts))

    def join(self, views: Sequence[View]) -> list[View]:
        """One view of all live rows, or none where there are none. Rows move as they are: nothing is decoded."""
        taken = [self._take(view) for view in views if view.live]
        if not taken:
            return []
        rows = {name: torch.cat([part[name] for part in taken]) for name in taken[0]}
        layout = arrange(rows.pop("labels"), rows.pop("ids"), self.lists.count)
        rows = {name: tensor[layout.source] for name, tensor in rows.items()}
        packed = self.scanner.lay({name[5:]: tensor for name, tensor in rows.items() if name.startswith("scan.")})
        tensors = {f"scan.{name}": tensor for name, tensor in packed.tensors.items()}
        tensors |= {"ids": layout.ids, "starts": layout.starts, "counts": layout.counts}
        tensors |= {name: tensor for name, tensor in rows.items() if not name.startswith("scan.")}
        return [View(Segment(tensors, packed.rows))]

    def _take(self, view: View) -> dict[str, Tensor]:
        """Live rows out of their layout, with ``labels`` and ``ids``."""
        segment, slots = view.segment, view.alive().nonzero().squeeze(1)
        rows = {f"scan.{name}": tensor for name, tensor in self.scanner.take(segment.packed, slots).items()}
        rows |= {name: segment.tensors[name][slots] for name in segment.tensors if name.startswith("fine.") or name == "vectors"}
        return rows | {"ids": segment.ids[slots], "labels": segment.labels(slots)}

    # ------------------------------------------------------------------ reading

    def decode(self, segment: Segment, slots: Tensor) -> Tensor:
        """float32 (n, dim) values of the chosen slots."""
        given = self.lists.given(segment.labels(slots))
        return arrays.as_tensor(self.quantizer.decode(self.scanner.unpack(segment.packed, slots), given=given))

    def refined(self, segment: Segment, slots: Tensor) -> Tensor:
        """float32 (n, dim): the best values kept for re-ranking."""
        if self.store is not None:
            return segment.tensors["vectors"][slots].float()
        assert self.fine is not None
        given = self.lists.given(segment.labels(slots))
        return arrays.as_tensor(self.fine.decode(from_bytes(self.fine, segment.group("fine"), slots), given=given))

    def refine(self, segments: Sequence[Segment], which: Tensor, slots: Tensor, queries: Tensor) -> Tensor:
        """Exact float32 distances (q, m) of prepared queries to the refined values of slots (q, m) in segments ``which`` (q, m);
        +inf where which is -1."""
        out = torch.full(which.shape, torch.inf)
        for number, segment in enumerate(segments):
            query, column = (which == number).nonzero(as_tuple=True)
            for part in _parts(len(query), queries.shape[1]):
                q, c = query[part], column[part]
                values, place = torch.unique(slots[q, c], return_inverse=True)
                out[q, c] = exact_distance(queries[q], self.refined(segment, values)[place], self.metric).float()
        return out


def concatenate(parts: Sequence[Rows]) -> Rows:
    """All rows of ``parts`` (at least one) in order."""
    if len(parts) == 1:
        return parts[0]
    fine = None if parts[0].fine is None else _concatenate([rows.fine for rows in parts if rows.fine is not None])
    vectors = None if parts[0].vectors is None else torch.cat([rows.vectors for rows in parts if rows.vectors is not None])
    return Rows(torch.cat([rows.ids for rows in parts]), torch.cat([rows.labels for rows in parts]),
                _concatenate([rows.codes for rows in parts]), fine, vectors)


def _concatenate(parts: Sequence[Codes]) -> Codes:
    sides = [arrays.as_tensor(codes.side) for codes in parts if codes.side is not None]
    return Codes(torch.cat([arrays.as_tensor(codes.indices) for codes in parts]), torch.cat(sides) if sides else None)


def _select(codes: Codes, keep: Tensor | slice) -> Codes:
    return Codes(arrays.as_tensor(codes.indices)[keep], None if codes.side is None else arrays.as_tensor(codes.side)[keep])


def _parts(count: int, dim: int) -> Iterator[slice]:
    step = max(1, (1 << 21) // max(1, dim))
    yield from (slice(start, start + step) for start in range(0, count, step))
