"""An index: vectors kept as codes of any quantizer, searched flat or by lists, changed in place without rebuilding.

    index = Index(dim=384, metric="cosine", quantizer="rabitq:bits=4", nlist=64)
    index.fit(x).add(x)
    hits = index.search(q, k=10, nprobe=16)          # hits.distances, hits.ids

Rows go to lists (``lists.py``), become codes of their residual, and lie in immutable segments (``segments.py``). Deleting sets a tombstone,
adding an id again replaces its row, and small segments are merged as they pile up (a log-structured merge: eight of a size become one),
so adding one row at a time stays cheap; ``compact`` rewrites everything into full segments. Readers work on the snapshot they started
with. Codes move between segments as they are: no operation but ``add`` ever encodes.

Distances decrease with similarity: squared l2, -<q, x>, 1 - cos. What is compared is the quantizer's estimate; with ``rerank`` the best
k * rerank candidates are compared again with codes of ``rerank_quantizer`` or with the vectors themselves (``store``).
"""

from __future__ import annotations

import operator
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from codeword import catalog, ops
from codeword.errors import CodewordError, NotFitted, ShapeError, Unsupported
from codeword.io.folder import export_file, import_file
from codeword.ops.searcher import Searcher
from codeword.parts import arrays
from codeword.parts.arguments import require_input_space
from codeword.quantizer import Codes, Quantizer, Report
from codeword.search import saving, scores
from codeword.search.filters import Filter, id_array
from codeword.search.lists import Lists
from codeword.search.segments import STORES, Rows, Schema, View, concatenate
from codeword.search.top_k import part_of, top_k, top_k_native
from codeword.search.truth import Hits
from codeword.search.tune import TuneReport, tune

PENDING_ROWS = 1024
"""Fewer new rows than this wait in memory and are packed when a search comes."""

ENCODED_ROWS = 4096
"""Rows encoded at once; encoders take several times their memory."""

MERGED = 8
"""So many segments of a size class are merged into one of the next."""

_FLOAT32 = np.dtype(np.float32)

SEGMENT_BYTES = 1 << 28
"""Unpacked codes of one segment; bounds the memory of ``add`` and ``compact``."""


class Index:
    """``dim``; ``metric`` "l2", "ip" or "cosine"; ``quantizer`` a spec string or a Quantizer; ``nlist`` lists, None for flat; ``seed``;
    for re-ranking either ``rerank_quantizer`` (spec or Quantizer) or ``store`` "float16" or "float32" (the vectors themselves).

    A Quantizer that comes fitted is used as it is; since it has not seen residuals, lists then only route. Others are fitted by ``fit``."""

    def __init__(self, *, dim: int, metric: str = "l2", quantizer: str | Quantizer = "rabitq:bits=4", nlist: int | None = None,
                 seed: int = 0, rerank_quantizer: str | Quantizer | None = None, store: str = "none") -> None:
        scores.check_metric(metric)
        if not _is_integer(dim) or dim < 1:
            raise CodewordError(f"Index got dim={dim!r}; an integer >= 1 is needed")
        if nlist is not None and (not _is_integer(nlist) or not 1 <= nlist <= 1 << 24):
            raise CodewordError(f"Index got nlist={nlist!r}; 1..2^24 or None (flat) are allowed")
        if store not in STORES:
            raise CodewordError(f"Index got store={store!r}; {', '.join(map(repr, STORES))} are known")
        if store != "none" and rerank_quantizer is not None:
            raise CodewordError("Index re-ranks from rerank_quantizer or from store, not both")
        self.dim, self.metric, self.nlist, self.seed, self.store = int(dim), metric, nlist, seed, store
        self.quantizer, self._fits = _quantizer(quantizer, self.dim, seed)
        self.rerank_quantizer, self._fits_fine = (None, False) if rerank_quantizer is None else _quantizer(rerank_quantizer, self.dim, seed)
        self.nprobe = 16
        self.rerank = 4 if self.reranks else 0
        self.report = Report()
        self._lock = threading.RLock()
        self._schema: Schema | None = None
        self._searchers: _Searchers | None = None
        self._place: tuple[Path, str] | None = None
        self._forget()
        if nlist is None and not self._fits and not self._fits_fine:
            self._schema = Schema(Lists(None, False), self.quantizer, self.rerank_quantizer, store, metric)

    # ------------------------------------------------------------------ learning

    def fit(self, x: Any) -> Self:
        """Learn lists and quantizers from a seeded sample of ``x`` (n, dim); forgets earlier fits. Raises CodewordError where rows
        are stored already: their codes would lose their meaning."""
        n = arrays.check_rows(x, self.dim, "Index.fit")
        if n == 0:
            raise ShapeError("Index.fit got no rows; at least one is needed")
        if len(self):
            raise CodewordError(f"Index.fit would make the codes of {len(self)} stored rows meaningless; fit a new Index")
        for block in arrays.float_blocks(x, self.dim):
            arrays.check_finite(block, "Index.fit")
        keep = arrays.sample_indices(n, max(1 << 16, 64 * (self.nlist or 1)), self.seed)
        rows = scores.prepared(arrays.take_rows(x, self.dim, keep), self.metric, "Index.fit")
        self.report = Report() if len(rows) == n else Report(fit_rows=len(rows))
        nlist = None if self.nlist is None else min(self.nlist, len(rows))
        if nlist != self.nlist:
            self.report["nlist"] = nlist
        lists, repaired = Lists.fit(rows, nlist, self.seed, self._residual)
        if repaired:
            self.report["repaired_lists"] = repaired
        given = lists.given(lists.assign(rows))
        if given is not None:
            rows = rows - given
        for quantizer, wanted in ((self.quantizer, self._fits), (self.rerank_quantizer, self._fits_fine)):
            if quantizer is not None and wanted:
                quantizer.fit(rows)
                self.report.update(quantizer.report)
        with self._lock:
            self._forget()
            self._schema = Schema(lists, self.quantizer, self.rerank_quantizer, self.store, self.metric)
        return self

    # ------------------------------------------------------------------ changing

    def add(self, x: Any, ids: Any = None, *, on_duplicate: str = "error") -> np.ndarray:
        """Add rows ``x`` (n, dim) under ``ids`` (n,), by default the next free numbers; returns the ids, int64. An id that is stored
        already is an error, or replaces its row with ``on_duplicate="replace"``. All rows are added, or none."""
        if on_duplicate not in ("error", "replace"):
            raise CodewordError(f"add got on_duplicate={on_duplicate!r}; 'error' or 'replace' are known")
        n = arrays.check_rows(x, self.dim, "add")
        schema = self._fitted("add")
        numbers = None if ids is None else _distinct(id_array(ids, "add"), n)
        with self._lock:
            if numbers is None:
                numbers = np.arange(self._next_id, self._next_id + n)
            elif on_duplicate == "error" and (known := numbers[self._known(numbers)]).size:
                raise CodewordError(f"add got id {known[0]}, which is stored already; remove it or pass on_duplicate='replace'")
            sealed, rest = self._encode(schema, x, numbers)
            if on_duplicate == "replace":
                self._drop(numbers)
            self._views += sealed
            self._append(schema, rest)
            self._next_id = max(self._next_id, int(numbers.max()) + 1) if n else self._next_id
            self._merge(schema)
        return numbers

    def upsert(self, x: Any, ids: Any) -> np.ndarray:
        """``add`` where a stored id replaces its row."""
        return self.add(x, ids, on_duplicate="replace")

    def route(self, centroids: Any, *, residual: bool) -> Self:
        """Use given lists (nlist, dim) instead of learning them: for codes that were made elsewhere. ``residual``: codes are of x - c.
        Raises CodewordError where rows are stored already, or a quantizer is still to be fitted."""
        n = arrays.check_rows(centroids, self.dim, "route")
        if len(self) or self.nlist != n or not self.quantizer.fitted or self.reranks:
            raise CodewordError(f"route got {n} centroids for an index of {len(self)} rows, nlist={self.nlist} and "
                                f"{'a' if self.quantizer.fitted else 'an un'}fitted quantizer; an empty index with nlist={n}, a fitted "
                                "quantizer and nothing to re-rank from is needed")
        values = arrays.take_rows(centroids, self.dim, None).clone()
        arrays.check_finite(values, "route")
        with self._lock:
            self._forget()
            self._schema = Schema(Lists(values, residual), self.quantizer, None, self.store, self.metric)
        return self

    def add_codes(self, codes: Codes, ids: Any, lists: Any = None) -> None:
        """Add rows that are codes of the index's quantizer already, under new ``ids`` (n,); ``lists`` (n,): the list each belongs to,
        None for a flat index. All rows are added, or none."""
        schema = self._fitted("add_codes")
        if self.reranks:
            raise Unsupported("add_codes got codes alone, but this index re-ranks; add the vectors")
        indices, side, lengths = self.quantizer._check_codes(codes, wide=False)
        if indices.ndim != 2 or lengths is not None:
            raise ShapeError(f"add_codes got indices of shape {tuple(indices.shape)}; (n, {len(self.quantizer.levels)}), without lengths, "
                             "are needed")
        numbers = _distinct(id_array(ids, "add_codes"), len(indices))
        labels = np.zeros(len(indices), np.int64) if lists is None else id_array(lists, "add_codes")
        if (lists is None) != (self.nlist is None) or len(labels) != len(indices) or (len(labels) and int(labels.max()) >= self.lists):
            raise ShapeError(f"add_codes got lists that are not {len(indices)} numbers below {self.lists} (none for a flat index)")
        with self._lock:
            if (known := numbers[self._known(numbers)]).size:
                raise CodewordError(f"add_codes got id {known[0]}, which is stored already")
            if len(numbers):
                small = Codes(indices.to(self.quantizer.index_dtype).cpu(), None if side is None else side.cpu())
                self._append(schema, Rows(torch.from_numpy(numbers), torch.from_numpy(labels), small, None, None))
                self._next_id = max(self._next_id, int(numbers.max()) + 1)
                self._merge(schema)

    def remove(self, ids: Any, *, missing: str = "error") -> int:
        """Delete rows by id; returns how many. An unknown id is an error (then nothing is deleted) unless ``missing="ignore"``."""
        if missing not in ("error", "ignore"):
            raise CodewordError(f"remove got missing={missing!r}; 'error' or 'ignore' are known")
        numbers = np.unique(id_array(ids, "remove"))
        with self._lock:
            known = self._known(numbers)
            if missing == "error" and not known.all():
                raise CodewordError(f"remove got id {numbers[~known][0]}, which is not stored")
            self._drop(numbers[known])
        return int(known.sum())

    def compact(self) -> Self:
        """Rewrite all live rows into as few segments as their size allows: drops tombstones and padding of small segments."""
        with self._lock:
            schema = self._fitted("compact")
            groups: list[list[View]] = [[]]
            for view in self._snapshot():
                if sum(v.live for v in groups[-1]) + view.live > self._segment_rows and groups[-1]:
                    groups.append([])
                groups[-1].append(view)
            self._views, self._pending, self._pending_view = [], None, None
            for group in groups:
                self._views += [group[0]] if len(group) == 1 and not group[0].dead else schema.join(group)
        return self

    # ------------------------------------------------------------------ reading

    def search(self, q: Any, k: int = 10, nprobe: int | None = None, num_threads: int = 1, *, allow: Any = None, deny: Any = None,
               rerank: int | None = None) -> Hits:
        """The k nearest stored rows of queries (..., dim): ``distances`` (..., k) ascending, ``ids`` (..., k), ties by id; where there
        are fewer, +inf and -1. ``nprobe`` lists are visited and k * ``rerank`` candidates re-ranked (0: none); defaults are the
        attributes of these names, which ``tune`` sets. ``allow`` / ``deny``: a boolean mask over ids, or ids."""
        schema = self._fitted("search")
        rows = _plain(q, self.dim)
        if rows is None:
            arrays.check_rows(q, self.dim, "search")
        nprobe = self.nprobe if nprobe is None else nprobe
        rerank = self.rerank if rerank is None else rerank
        self._check_numbers(k, nprobe, num_threads, rerank)
        views = self._snapshot()
        if rows is not None and allow is None and deny is None and (searcher := self._native(schema, views)) is not None:
            found = top_k_native(schema, views, searcher, rows, int(k), int(nprobe), int(rerank), int(num_threads))
            if found is not None:
                return _hits(*found, q)
        blocks = [scores.prepared(block, self.metric, "search") for block in arrays.float_blocks(q, self.dim)]
        queries = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        distances, ids = top_k(schema, views, queries, int(k), int(nprobe), int(rerank), Filter(allow, deny), int(num_threads))
        shape = (*q.shape[:-1], int(k))
        return Hits(arrays.like(distances.reshape(shape), q), arrays.like(ids.reshape(shape), q))

    def _check_numbers(self, k: Any, nprobe: Any, num_threads: Any, rerank: Any) -> None:
        """CodewordError where an argument of ``search`` is not a number that is allowed."""
        if type(k) is type(nprobe) is type(num_threads) is type(rerank) is int and 1 <= k <= 1 << 16 and nprobe >= 1 and num_threads >= 1 \
                and rerank == 0:
            return
        limit = max(1 << 16, len(self))
        for name, value, least in (("k", k, 1), ("nprobe", nprobe, 1), ("num_threads", num_threads, 1), ("rerank", rerank, 0)):
            if not _is_integer(value) or value < least or (name == "k" and value > limit):
                allowed = f"{least}..{limit}" if name == "k" else f"an integer >= {least}"
                raise CodewordError(f"search got {name}={value!r}; {allowed} is allowed")
        if rerank and not self.reranks:
            raise Unsupported("search got rerank, but this index keeps nothing to re-rank from; build it with rerank_quantizer or store")

    def reconstruct(self, ids: Any) -> Any:
        """Decoded values (n, dim) float32 of stored ``ids`` (n,), as indexed (unit length for cosine, up to the code's error)."""
        schema = self._fitted("reconstruct")
        numbers = id_array(ids, "reconstruct")
        out = torch.empty(len(numbers), self.dim)
        missing = np.ones(len(numbers), dtype=bool)
        for view in self._snapshot():
            slots = view.find(numbers)
            here = slots >= 0
            missing &= ~here
            if here.any():
                out[torch.from_numpy(here)] = schema.decode(view.segment, torch.from_numpy(slots[here]))
        if missing.any():
            raise CodewordError(f"reconstruct got id {numbers[missing][0]}, which is not stored")
        out = out[0] if np.ndim(ids) == 0 else out
        return out if isinstance(ids, Tensor) else out.numpy()

    def tune(self, queries: Any, truth: Any, recall: float = 0.95, k: int | None = None) -> TuneReport:
        """Set ``nprobe`` and ``rerank`` to the cheapest that reach ``recall`` at k on one half of ``queries`` (q, dim), and report what
        they reach on the other half. ``truth`` (q, k) true ids, e.g. of ``exact_search``."""
        self._fitted("tune")
        return tune(self, queries, truth, recall, k)

    # ------------------------------------------------------------------ files

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the index as a folder, by habit called ``NAME.cw`` (see ``saving.py``): atomically, and only what is new if it came
        from there. Raises CodewordError where another index is in that place, or this one was changed there by someone else, unless
        ``overwrite``; OSError where writing fails, and then the old index stands."""
        with self._lock:
            saving.save(self, path, overwrite)

    @classmethod
    def load(cls, path: str | Path, *, mmap: bool = False) -> Self:
        """Read a folder that ``save``, or a file that ``export`` wrote. ``mmap=True`` maps segments instead of reading them and checks
        bytes when they are first used; ``mmap=False`` checks everything now. An exported file is always read. Raises FormatError."""
        if not Path(path).is_file():
            return saving.load(cls, path, mmap)
        with tempfile.TemporaryDirectory(prefix="codeword-") as folder:
            import_file(path, Path(folder) / "index")
            index = saving.load(cls, Path(folder) / "index", False)
        index._place = None
        return index

    def export(self, path: str | Path) -> None:
        """Write the index as one file. The same index in the same segments gives the same bytes."""
        with tempfile.TemporaryDirectory(prefix=".codeword-", dir=Path(path).resolve().parent) as folder:
            with self._lock:
                place = self._place
                saving.save(self, Path(folder) / "index", False)
                self._place = place
            export_file(Path(folder) / "index", path)

    # ------------------------------------------------------------------ what it holds

    @property
    def ids(self) -> np.ndarray:
        """Stored ids, ascending int64."""
        views = self._snapshot()
        return np.sort(np.concatenate([view.segment.ids[view.alive()].numpy() for view in views])) if views else np.empty(0, np.int64)

    def __len__(self) -> int:
        with self._lock:
            return sum(view.live for view in self._views) + (0 if self._pending is None else len(self._pending.ids))

    def __contains__(self, number: int) -> bool:
        return bool(self._known(id_array(number, "in")).all())

    @property
    def lists(self) -> int:
        """Lists a search can visit; 1 for a flat index."""
        return self._fitted("lists").lists.count

    @property
    def segments(self) -> int:
        """How many segments a search visits."""
        return len(self._snapshot())

    @property
    def reranks(self) -> bool:
        """Whether anything is kept to re-rank from."""
        return self.rerank_quantizer is not None or self.store != "none"

    @property
    def bytes_per_vector(self) -> float:
        """Every byte that grows with the rows (codes, factors, ids, padding, tombstones, list tables, what re-ranking keeps), per live
        row. What all rows share is in ``breakdown()["shared"]``."""
        return sum(value for key, value in self.breakdown().items() if key != "shared") / max(1, len(self))

    def breakdown(self) -> dict[str, int]:
        """Stored bytes by purpose, as they lie in segments: ``codes`` (with factors), ``ids``, ``rerank``, ``lists`` (offsets of every
        segment), ``padding`` (slots that hold no row), ``deleted`` (rows under tombstones, and one bit a slot), and ``shared``
        (centroids, codebooks, rotations). Files add a header of 4 KiB each."""
        out: dict[str, int] = dict.fromkeys(("codes", "ids", "rerank", "lists", "padding", "deleted", "shared"), 0)
        kinds = {"scan": "codes", "kept": "codes", "ids": "ids", "fine": "rerank", "vectors": "rerank"}
        for view in self._snapshot():
            slots = view.segment.slots
            for name, size in view.segment.sizes().items():
                kind = kinds.get(name.partition(".")[0])
                if kind is None:
                    out["lists"] += size
                    continue
                padding, deleted = size * (slots - view.segment.rows) // slots, size * view.dead // slots
                out["padding"] += padding
                out["deleted"] += deleted
                out[kind] += size - padding - deleted
            out["deleted"] += 0 if view.deleted is None else slots // 8
        centroids = None if self._schema is None else self._schema.lists.centroids
        out["shared"] = self.quantizer.shared_bytes + (self.rerank_quantizer.shared_bytes if self.rerank_quantizer is not None else 0)
        out["shared"] += 0 if centroids is None else centroids.numel() * centroids.element_size()
        return out

    # ------------------------------------------------------------------ inside

    @property
    def _residual(self) -> bool:
        """Residuals are encoded unless a quantizer came fitted on something else."""
        pairs = ((self.quantizer, self._fits), (self.rerank_quantizer, self._fits_fine))
        return all(quantizer is None or fits or not quantizer.learns for quantizer, fits in pairs)

    @property
    def _segment_rows(self) -> int:
        return max(1 << 16, SEGMENT_BYTES // (len(self.quantizer.levels) * self.quantizer.index_dtype.itemsize))

    def _fitted(self, what: str) -> Schema:
        if self._schema is None:
            raise NotFitted(f"Index.{what} needs a fitted index; call fit(x) first")
        return self._schema

    def _forget(self) -> None:
        self._views: list[View] = []
        self._pending: Rows | None = None
        self._pending_view: View | None = None
        self._next_id = 0

    def _snapshot(self) -> list[View]:
        """All views with live rows; rows that wait are packed now and stay packed until the next change."""
        with self._lock:
            if self._pending is not None and self._pending_view is None:
                self._pending_view = View(self._fitted("search").seal(self._pending))
            views = [*self._views, self._pending_view] if self._pending_view is not None else self._views
            return [view for view in views if view.live]

    def _native(self, schema: Schema, views: list[View]) -> Searcher | None:
        """What answers a search of these views in one native call, remembered until they or the quantizer change; None where the Python
        path must."""
        quantizer, known = self.quantizer, self._searchers
        state = [*quantizer._buffers.values(), *quantizer._parameters.values()]
        try:
            versions = [-1 if tensor is None else tensor._version for tensor in state]
        except RuntimeError:  # inference tensors do not count writes
            return None
        if known is None or known.schema is not schema or known.versions != versions or not _alike(known.state, state):
            recipe_of = getattr(schema.scanner, "recipe", None)
            recipe = None if recipe_of is None else recipe_of(scores.scanned_metric(self.metric))
            if recipe is None or not ops.searcher.available(recipe):
                return None
            preparation = ops.searcher.Preparation(self.dim, self.metric, schema.lists.routes, recipe)
            known = _Searchers(schema, state, versions, preparation, [], None)
        if known.searcher is None or not _alike(known.views, views):
            if not views:
                return None
            known = known._replace(views=views, searcher=ops.searcher.Searcher(known.preparation, [part_of(view) for view in views]))
        self._searchers = known
        return known.searcher

    def _encode(self, schema: Schema, x: Any, numbers: np.ndarray) -> tuple[list[View], Rows | None]:
        """Encode in blocks; full segments are sealed on the way, so that codes of few rows are ever held unpacked."""
        sealed: list[View] = []
        held: list[Rows] = []
        start = count = 0
        for block in arrays.float_blocks(x, self.dim):
            for part in block.split(ENCODED_ROWS):
                rows = scores.prepared(part, self.metric, "add")
                held.append(schema.encode(rows, torch.from_numpy(numbers[start:start + len(rows)])))
                start, count = start + len(rows), count + len(rows)
            if count >= self._segment_rows:
                sealed.append(View(schema.seal(concatenate(held))))
                held, count = [], 0
        return sealed, concatenate(held) if count else None

    def _append(self, schema: Schema, rows: Rows | None) -> None:
        if rows is None:
            return
        waiting = rows if self._pending is None else concatenate([self._pending, rows])
        self._pending, self._pending_view = waiting, None
        if len(waiting.ids) >= PENDING_ROWS:
            self._views.append(View(schema.seal(waiting)))
            self._pending = None

    def _merge(self, schema: Schema) -> None:
        """While MERGED segments share a size class (powers of MERGED times PENDING_ROWS), join them. Each row moves once a class."""
        while True:
            classes: dict[int, list[View]] = {}
            for view in self._views:
                if view.live * MERGED <= self._segment_rows:
                    classes.setdefault(_size_class(view.live), []).append(view)
            crowd = next((group for group in classes.values() if len(group) >= MERGED), None)
            if crowd is None:
                return
            self._views = [view for view in self._views if all(view is not other for other in crowd)] + schema.join(crowd)

    def _known(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) bool: which ids are stored."""
        with self._lock:
            known = np.zeros(len(numbers), dtype=bool) if self._pending is None else np.isin(numbers, self._pending.ids.numpy())
            for view in self._views:
                known |= view.find(numbers) >= 0
        return known

    def _drop(self, numbers: np.ndarray) -> None:
        """Delete the ids that are stored."""
        if not len(numbers):
            return
        changed = []
        for view in self._views:
            slots = view.find(numbers)
            slots = slots[slots >= 0]
            after = view.without(slots) if len(slots) else view
            changed += [after] if after.live else []
        self._views = changed
        if self._pending is not None:
            keep = ~np.isin(self._pending.ids.numpy(), numbers)
            if not keep.all():
                self._pending = self._pending.select(torch.from_numpy(keep)) if keep.any() else None
                self._pending_view = None


class _Searchers(NamedTuple):
    """The last native searcher, and what it was made of."""

    schema: Schema
    state: list[Tensor | None]
    versions: list[int]
    preparation: ops.searcher.Preparation
    views: list[View]
    searcher: Searcher | None


def _alike(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


def _plain(q: Any, dim: int) -> np.ndarray | None:
    """``q`` (..., dim) as C-contiguous float32 rows without a copy, or None where it is something else or empty."""
    if type(q) is Tensor and q.dtype is torch.float32 and q.is_cpu and not q.requires_grad and q.layout is torch.strided:
        array = q.numpy()
    elif type(q) is np.ndarray:
        array = q
    else:
        return None
    if array.dtype is not _FLOAT32 or not array.flags.c_contiguous or not array.size or array.shape[-1:] != (dim,):
        return None
    return array if array.ndim == 2 else array.reshape(-1, dim)


def _hits(distances: np.ndarray, ids: np.ndarray, q: Any) -> Hits:
    if q.ndim != 2:
        shape = (*q.shape[:-1], distances.shape[1])
        distances, ids = distances.reshape(shape), ids.reshape(shape)
    return Hits(distances, ids) if isinstance(q, np.ndarray) else Hits(torch.from_numpy(distances), torch.from_numpy(ids))


def _size_class(rows: int) -> int:
    size, limit = 0, PENDING_ROWS * MERGED
    while rows >= limit:
        size, limit = size + 1, limit * MERGED
    return size


def _quantizer(given: str | Quantizer, dim: int, seed: int) -> tuple[Quantizer, bool]:
    """The quantizer on CPU, and whether ``Index.fit`` is to fit it. A spec string takes the index's seed unless it names one."""
    if isinstance(given, str):
        quantizer = catalog.make(given, dim)
        if "seed" in quantizer.config and "seed=" not in given:
            quantizer = type(quantizer)(**(quantizer.config | {"seed": seed}))
    elif isinstance(given, Quantizer):
        quantizer = given
    else:
        raise CodewordError(f"Index got a quantizer of type {type(given).__name__}; a spec string or a Quantizer is needed")
    if quantizer.dim != dim:
        raise ShapeError(f"Index has dim={dim}, its quantizer {quantizer.name} has dim={quantizer.dim}")
    require_input_space(quantizer, "an index's rows")
    return quantizer.cpu(), isinstance(given, str) or not quantizer.fitted


def _distinct(numbers: np.ndarray, n: int) -> np.ndarray:
    if len(numbers) != n:
        raise ShapeError(f"add got {len(numbers)} ids for {n} rows")
    unique, counts = np.unique(numbers, return_counts=True)
    if len(unique) < n:
        raise CodewordError(f"add got id {unique[counts > 1][0]} twice in one call; ids must differ")
    return numbers


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
