"""Quantizers side by side on one's own vectors, at equal stored bits, on rows that no quantizer was fitted on.

    relative error   sum |x - x^|^2 / sum |x - m|^2 over held-out rows, m the mean of the fit rows
    gap_db           how far that error lies above the Shannon bound at the bits really stored (report/bounds.py), in dB
    ip_error         rms(<q, x^> - <q, x>) / std(<q, x>) over all pairs of a query and a held-out row
    recall           share of a query's true 10 nearest held-out rows among the 10 that the codes rank first; ties count as found
    bytes            a vector, side information included; what all vectors share (codebooks, rotations) is counted beside it

Inner products and ranks come from the quantizer's own ``scan`` where it has one, since that is what an index uses, else from ``decode``.
Speeds are one pass over the held-out rows. Entropy-coded scalar quantization (report/ecsq.py), plain and along the principal axes,
stands among them with the length of an ideal entropy coder, and once as the catalog's ``ecsq`` with the bytes it really writes. A
quantizer that cannot take part says why.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from codeword.data.vectors import Vectors, choose_rows
from codeword.errors import CodewordError, ShapeError, Unsupported
from codeword.report import bounds
from codeword.report.ecsq import ecsq

QUANTIZERS: dict[str, str] = {
    "pq": "pq:bits={bits},iterations=10",
    "rabitq": "rabitq:bits={bits}",
    "pvq": "rotated(pvq:bits={bits})",
    "fsq": "projected(fsq:bits={bits})",
    "simvq": "rotated(product(simvq:codebook_size=256):groups={groups},shared=true)",
    "vq": "rotated(product(vq:codebook_size=256):groups={groups},shared=true)",
    "vq-whole": "vq:codebook_size={whole}",
    "ecsq": "ecsq",
    "ecsq-pca": "ecsq-pca",
    "ecsq-coded": "projected(ecsq:bits={bits}):map=pca",
}
"""What ``compare`` runs by default: a label and a spec. {groups}: slices that share one table of 256 codewords; {whole}: 2^(bits dim)."""

BASELINES = ("ecsq", "ecsq-pca")
"""Rows that are no quantizer of the catalog: the length of an ideal coder, at exactly the rate."""

VARIABLE = (*BASELINES, "ecsq-coded")
"""Rows of variable length, without access to one vector: what they reach is shown, but they are not in the running."""

FIT_ROWS, HELD_OUT_ROWS, QUERIES, K = 50_000, 10_000, 500, 10
RATE_TOLERANCE = 0.25
"""A configuration takes part at a rate if it stores at most this share more or less; the bits really stored are always shown."""


class Task(NamedTuple):
    """One row of the table to be."""

    label: str
    spec: str
    bits: float

    @property
    def key(self) -> str:
        return f"{self.label}@{self.bits:g}"


class Split(NamedTuple):
    """float32 rows: what quantizers see, what they are measured on, and what searches in it."""

    fit: np.ndarray
    held_out: np.ndarray
    queries: np.ndarray
    metric: str


class Reference(NamedTuple):
    """What does not depend on a quantizer: the matched Gaussian, the true inner products and neighbours."""

    mean: np.ndarray
    axes: np.ndarray
    spectrum: np.ndarray
    products: np.ndarray
    distances: np.ndarray
    reach: np.ndarray
    """true distance of each query's K-th neighbour, with a slack of float32 rounding"""


def plan(dim: int, bits: Sequence[float], quantizers: Iterable[str] | None = None) -> list[Task]:
    """Tasks for each rate; ``quantizers`` are labels of QUANTIZERS or spec strings, in which {bits} stands for the rate."""
    chosen = QUANTIZERS if quantizers is None else {name: QUANTIZERS.get(name, name) for name in quantizers}
    if not chosen or not bits or any(not 0 < rate <= 32 for rate in bits):
        raise CodewordError(f"compare got quantizers={list(chosen)} and bits={list(bits)}; "
                            "at least one of each, and bits in 0..32, are needed")
    tasks = []
    for rate in bits:
        exponent, groups = rate * dim, rate * dim / 8
        fields = {"bits": f"{rate:g}", "dim": dim, "groups": f"{groups:g}",
                  "whole": 1 << int(exponent) if exponent <= 24 and exponent == int(exponent) else f"2^{exponent:g}"}
        for label, template in chosen.items():
            spec = template
            for name, value in fields.items():
                spec = spec.replace(f"{{{name}}}", str(value))
            tasks.append(Task(label, spec, rate))
    return tasks


def split(vectors: Vectors, queries: Vectors | None, metric: str = "l2", seed: int = 0, fit_rows: int = FIT_ROWS,
          held_out_rows: int = HELD_OUT_ROWS, num_queries: int = QUERIES) -> Split:
    """A seeded choice of rows: a quarter (at most ``held_out_rows``) is held out, ``fit_rows`` of the rest are fitted on. Without
    ``queries`` one row in twenty is held out for them as well."""
    if metric not in ("l2", "ip", "cosine"):
        raise CodewordError(f"metric is {metric!r}; 'l2', 'ip' and 'cosine' are known")
    n = len(vectors)
    if n < 4 * K:
        raise ShapeError(f"{vectors.name} has {n} rows; a comparison needs at least {4 * K}")
    if queries is not None and queries.dim != vectors.dim:
        raise ShapeError(f"{queries.name} has rows of width {queries.dim}; {vectors.name} has {vectors.dim}")
    held = min(held_out_rows, n // 4)
    asked = 0 if queries is not None else min(num_queries, max(1, n // 20))
    rows = choose_rows(n, min(n, held + asked + fit_rows), seed)
    parts = [_float32(vectors, np.sort(part), metric) for part in np.split(rows, (held, held + asked))]
    own = parts[1] if queries is None else _float32(queries, np.sort(choose_rows(len(queries), min(num_queries, len(queries)), seed)),
                                                    metric)
    return Split(fit=parts[2], held_out=parts[0], queries=own, metric=metric)


def reference(data: Split) -> Reference:
    """Principal axes of the fit rows, spectrum of the held-out rows, true neighbours of the queries."""
    mean, axes = bounds.principal_axes(data.fit)
    spectrum = bounds.matched_spectrum(mean, axes, data.held_out)
    if not spectrum.sum() > 0:
        raise ShapeError("all held-out rows are equal; there is nothing to compare on")
    products = data.queries @ data.held_out.T
    distances = _distances(products, data)
    nearest = np.partition(distances, K - 1, axis=1)[:, K - 1]
    slack = 1e-6 * np.abs(distances).max(axis=1)
    return Reference(mean, axes, spectrum, products, distances, nearest + slack)


class Budget:
    """Seconds for a whole comparison. A task is refused once they are spent, or where the same quantizer's last rate, scaled to the
    new one, shows that it would not fit."""

    def __init__(self, seconds: float | None):
        self.seconds, self.started = seconds, time.monotonic()
        self._last: dict[str, tuple[float, float]] = {}

    def refuses(self, task: Task) -> dict[str, Any] | None:
        """The row that says so, or None where there is time for ``task``."""
        if self.seconds is None:
            return None
        spent = time.monotonic() - self.started
        rate, needed = self._last.get(task.label, (task.bits, 0.0))
        if spent >= self.seconds:
            return _left_out(task, f"the budget of {self.seconds:g} s was spent before it")
        if spent + needed * task.bits / rate > self.seconds:
            return _left_out(task, f"it would exceed the budget of {self.seconds:g} s (about {needed * task.bits / rate:.0f} s needed)")
        return None

    def measure(self, task: Task, data: Split, ref: Reference) -> dict[str, Any]:
        """``measure``, its time noted."""
        begun = time.monotonic()
        row = measure(task, data, ref)
        self._last[task.label] = (task.bits, time.monotonic() - begun)
        return row


def measure(task: Task, data: Split, ref: Reference) -> dict[str, Any]:
    """One row of the table, or the reason why there is none."""
    try:
        return _baseline(task, data, ref) if task.spec in BASELINES else _quantizer(task, data, ref)
    except CodewordError as error:
        return _left_out(task, str(error))


def curve(spectrum: np.ndarray, bits: Sequence[float]) -> list[tuple[float, float]]:
    """(bits, relative error) along the Shannon bound, for plots."""
    rates = np.linspace(0.8 * min(bits), 1.1 * max(bits), 60)
    return [(float(rate), bounds.distortion(spectrum, float(rate)) / float(spectrum.sum())) for rate in rates]


def best(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """At each rate the quantizer nearest to the Shannon bound at the bits it really stores, and the one of highest recall among those
    that store no more than the rate (by 2 %), those of variable length aside."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["left_out"] is not None or row["quantizer"] in VARIABLE:
            continue
        at = found.setdefault(f"{row['rate']:g}", {"error": row})
        if row["gap_db"] < at["error"]["gap_db"]:
            at["error"] = row
        if row["bits"] <= 1.02 * row["rate"] and ("recall" not in at or row["recall"] > at["recall"]["recall"]):
            at["recall"] = row
    return {rate: {name: row["quantizer"] for name, row in pair.items()} for rate, pair in found.items()}


# ---------------------------------------------------------------------- inside


def _float32(vectors: Vectors, rows: np.ndarray, metric: str) -> np.ndarray:
    block = np.array(vectors[rows], dtype=np.float32)
    bad = ~np.isfinite(block).all(axis=1)
    if bad.any():
        raise ShapeError(f"row {rows[np.flatnonzero(bad)[0]]} of {vectors.name} has NaN or infinity; values must be finite in float32")
    if metric == "cosine":
        length = np.linalg.norm(block, axis=1, keepdims=True)
        if (length == 0).any():
            raise ShapeError(f"row {rows[np.flatnonzero(length == 0)[0]]} of {vectors.name} is zero and has no direction; cosine needs one")
        block /= length
    return block


def _distances(products: np.ndarray, data: Split) -> np.ndarray:
    """(queries, rows) distances up to a constant of the query, from inner products."""
    if data.metric == "l2":
        return np.square(data.held_out, dtype=np.float32).sum(axis=1) - 2 * products
    return -products


def _quantizer(task: Task, data: Split, ref: Reference) -> dict[str, Any]:
    from codeword import catalog
    whole = re.fullmatch(r"vq:codebook_size=(2\^.+)", task.spec)
    if whole:
        raise Unsupported(f"one codebook for whole vectors would need {whole[1]} codewords")
    quantizer = catalog.make(task.spec, data.fit.shape[1])
    if not quantizer.input_space:
        raise Unsupported(f"{task.spec} does not decode into the input's space; wrap it: projected({task.spec})")
    stored = quantizer.nominal_bits if quantizer.fitted else None
    if stored is not None:
        _check_rate(stored, task)
    started = time.perf_counter()
    quantizer.fit(data.fit)
    fitted = time.perf_counter()
    stored = quantizer.nominal_bits
    _check_rate(stored, task)
    begun = time.perf_counter()
    codes = quantizer.encode(data.held_out)
    encoded = time.perf_counter()
    values = np.asarray(quantizer.decode(codes))
    decoded = time.perf_counter()
    count = len(data.held_out)
    products, distances = _estimates(quantizer, codes, values, data)
    bits = quantizer.bits(codes)
    return {
        **_figures(task, data, ref, bits, values, products, distances),
        "fit_seconds": fitted - started, "encode_per_second": count / (encoded - begun), "decode_per_second": count / (decoded - encoded),
        "bytes_per_vector": bits * quantizer.dim / 8, "shared_bytes": quantizer.shared_bytes,
    }


def _check_rate(stored: float, task: Task) -> None:
    if abs(stored - task.bits) > RATE_TOLERANCE * task.bits:
        raise Unsupported(f"{task.spec} stores {stored:.3g} bits a dimension, too far from {task.bits:g}")


def _estimates(quantizer: Any, codes: Any, values: np.ndarray, data: Split) -> tuple[np.ndarray, np.ndarray]:
    from codeword.quantizer import Scannable
    if not isinstance(quantizer, Scannable):
        products = data.queries @ values.T
        return products, np.square(values).sum(axis=1) - 2 * products if data.metric == "l2" else -products
    import torch
    queries = torch.from_numpy(data.queries)
    packed = quantizer.pack(codes)
    scores = {}
    for metric in {"ip", "l2" if data.metric == "l2" else "ip"}:
        found = [quantizer.scan(packed, quantizer.prepare(some, metric), 0, len(values))[0].numpy() for some in queries.split(64)]
        scores[metric] = np.concatenate(found)
    return -scores["ip"], scores["l2" if data.metric == "l2" else "ip"]


def _baseline(task: Task, data: Split, ref: Reference) -> dict[str, Any]:
    started = time.perf_counter()
    axes = ref.axes if task.spec == "ecsq-pca" else None
    coded = ecsq(data.fit, data.held_out, task.bits, mean=ref.mean, axes=axes)
    seconds = time.perf_counter() - started
    products = data.queries @ coded.values.T
    distances = np.square(coded.values).sum(axis=1) - 2 * products if data.metric == "l2" else -products
    return {
        **_figures(task, data, ref, coded.bits, coded.values, products, distances),
        "fit_seconds": seconds, "encode_per_second": None, "decode_per_second": None,
        "bytes_per_vector": coded.bits * data.fit.shape[1] / 8, "shared_bytes": coded.shared_bytes,
    }


def _figures(task: Task, data: Split, ref: Reference, bits: float, values: np.ndarray, products: np.ndarray,
             distances: np.ndarray) -> dict[str, Any]:
    error = float(np.square(data.held_out - values, dtype=np.float64).sum(axis=1).mean())
    ranked = np.argpartition(distances, K - 1, axis=1)[:, :K]
    found = np.take_along_axis(ref.distances, ranked, axis=1) <= ref.reach[:, None]
    spread = float(ref.products.std(dtype=np.float64))
    return {
        "quantizer": task.label, "spec": task.spec, "rate": task.bits, "bits": bits,
        "relative_error": error / float(ref.spectrum.sum()), "gap_db": bounds.gap_db(ref.spectrum, bits, error),
        "ip_error": float(np.sqrt(np.square(products - ref.products, dtype=np.float64).mean())) / spread if spread else 0.0,
        "recall": float(found.mean()), "left_out": None,
    }


def _left_out(task: Task, reason: str) -> dict[str, Any]:
    empty = dict.fromkeys(("bits", "relative_error", "gap_db", "ip_error", "recall", "fit_seconds", "encode_per_second",
                           "decode_per_second",
                           "bytes_per_vector", "shared_bytes"))
    return {"quantizer": task.label, "spec": task.spec, "rate": task.bits, **empty, "left_out": reason}
