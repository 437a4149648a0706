"""searcher: an index's search from raw queries to hits in one native call.

With one query the work between small operations takes longer than the scan they prepare. So what an index holds is handed over once
(no copies but of what is turned), and a search is one call: prepared rows, lists, queries made ready, scans, merging by (distance, id).
Its definition is the Python path (``search.top_k``), whose bits it gives; the parts are those of ``lut_scan``, ``bit_scan`` and
``segment_scan`` with ``lut_tables``, ``bit_query`` and ``segment_query``.

How queries are made ready is a quantizer's ``recipe(metric)``, one of

    Slices     tables of slices, maybe after a rotation: PQ, OPQ        (lookup.slice_tables)
    Sums       tables of whole codewords: RVQ, AQ                       factor * project(query, codewords)
    Bits       a random rotation, rounded: RaBitQ, CAQ                  (bit_blocks.prepare)
    Segments   orthonormal axes in segments, rounded: SAQ               (segment_blocks.prepare)

A quantizer without a recipe is searched by the Python path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codeword.ops import dispatch
from codeword.ops.lut_blocks import width


class Slices(NamedTuple):
    """``turned`` float32 (M, d, K), ``first`` float64 (M, K) or None, ``factor`` -1 or -2, ``rotation`` float32 (dim, dim) or None."""

    turned: Tensor
    first: Tensor | None
    factor: float
    rotation: Tensor | None = None


class Sums(NamedTuple):
    """``codebooks`` float32 (M, K, dim), ``factor`` -1 or -2."""

    codebooks: Tensor
    factor: float


class Bits(NamedTuple):
    """Arguments of ``bit_blocks.prepare``."""

    center: Tensor
    signs: Tensor
    bits: int
    slack: float


class Segments(NamedTuple):
    """``mean`` (dim,), ``axes`` float32 (coded, dim), ``plan`` and ``constants`` of ``segment_blocks.prepare``."""

    mean: Tensor
    axes: Tensor
    plan: tuple[tuple[int, int], ...]
    constants: Tensor


Recipe = Slices | Sums | Bits | Segments

_OPS = {Slices: ("lut_tables", "lut_scan"), Sums: ("lut_tables", "lut_scan"), Bits: ("bit_query", "bit_scan"),
        Segments: ("segment_query", "segment_scan")}


class Part(NamedTuple):
    """Rows of one segment: packed ``tensors``, ``ids`` (slots,), ``starts`` and ``counts`` (lists,), ``allowed`` bool (slots,) or None, and
    how many rows are ``live``."""

    tensors: Mapping[str, Tensor]
    ids: Tensor
    starts: Tensor
    counts: Tensor
    allowed: Tensor | None
    live: int


class Preparation:
    """How queries are made ready, as the native side takes it: matrices turned once, for every set of rows to come. ``lists``: centroids
    (n, dim), their squares (n,) and whether codes are of residuals; None for one list at the origin."""

    def __init__(self, dim: int, metric: str, lists: tuple[Tensor, Tensor, bool] | None, recipe: Recipe) -> None:
        self.dim, self.metric, self.recipe = dim, metric, recipe
        self.lists = None if lists is None else (_turned(lists[0]), _numpy(lists[1]), lists[2])
        self._name, self._arguments = _arguments(recipe)

    def tell(self) -> Any:
        """A native searcher without rows."""
        module = dispatch.native()
        assert module is not None
        native = module.Searcher(self.dim, self.metric)
        if self.lists is not None:
            native.set_lists(*self.lists)
        getattr(native, self._name)(*self._arguments)
        return native


class Searcher:
    """The rows of ``parts`` (at least one), searched by queries made ready by ``preparation``."""

    def __init__(self, preparation: Preparation, parts: Sequence[Part]) -> None:
        self._native = preparation.tell()
        for part in parts:
            _add(self._native, preparation.recipe, part, preparation.metric != "ip")

    def search(self, queries: np.ndarray, wanted: int, nprobe: int, num_threads: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Distances float32 and ids int64 (q, wanted), padded with +inf and -1, of ``queries`` float32 (q, dim), C-contiguous; None where
        one has values that may not be searched, or CODEWORD_OPS asks for the definitions."""
        distances, ids = np.empty((len(queries), wanted), np.float32), np.empty((len(queries), wanted), np.int64)
        return (distances, ids) if self._native.search(queries, wanted, nprobe, num_threads, distances, ids, None, None) else None

    def candidates(self, queries: np.ndarray, wanted: int, nprobe: int, num_threads: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """The same with the number of the part and the slot of each hit, -1 where there is none: distances, ids, parts, slots."""
        shape = len(queries), wanted
        out = np.empty(shape, np.float32), np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.int64)
        if not self._native.search(queries, wanted, nprobe, num_threads, *out):
            return None
        distances, ids, which, slots = (torch.from_numpy(array) for array in out)
        return distances, ids, which, slots


def available(recipe: Recipe) -> bool:
    """Whether this machine has what the recipe needs, and nothing forces the definitions. (A search asks for the latter again.)"""
    return all(dispatch.choice(op) == "native" for op in _OPS[type(recipe)])


def _arguments(recipe: Recipe) -> tuple[str, tuple[Any, ...]]:
    """The native method that takes a recipe, and its arguments."""
    if isinstance(recipe, Slices):
        first = None if recipe.first is None else _numpy(recipe.first)
        return "set_slices", (_numpy(recipe.turned), first, recipe.factor, None if recipe.rotation is None else _turned(recipe.rotation))
    if isinstance(recipe, Sums):
        books, size = recipe.codebooks.shape[:2]
        return "set_sums", (_turned(recipe.codebooks.flatten(0, 1)), books, size, recipe.factor)
    if isinstance(recipe, Bits):
        return "set_bits", (_numpy(recipe.center), _numpy(recipe.signs), recipe.bits, recipe.slack)
    return "set_segments", (_numpy(recipe.mean), _turned(recipe.axes), np.array(recipe.plan, dtype=np.int64), _numpy(recipe.constants))


def _add(native: Any, recipe: Recipe, part: Part, l2: bool) -> None:
    t = part.tensors
    common = (_numpy(part.ids), _numpy(part.starts), _numpy(part.counts),
              None if part.allowed is None else _numpy(part.allowed.view(torch.uint8)), part.live)
    if isinstance(recipe, Slices | Sums):
        size = recipe.turned.shape[2] if isinstance(recipe, Slices) else recipe.codebooks.shape[1]
        terms = t.get("row_terms") if l2 else None
        native.add_codes(_numpy(t["codes"]), width(size), None if terms is None else _numpy(terms), *common)
    else:
        rest, factors = t.get("rest"), t.get("rest_factors")
        native.add_bits(_numpy(t["planes"]), _numpy(t["factors"]), _numpy(t["centers"]), None if rest is None else _numpy(rest),
                        None if factors is None else _numpy(factors), *common)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _turned(matrix: Tensor) -> np.ndarray:
    return _numpy(matrix.detach().float().mT)
