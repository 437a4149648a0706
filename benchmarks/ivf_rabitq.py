"""Inverted lists of RaBitQ codes beside rabitqlib's IvfIndex: same centroids, same lists, same bits, one thread, squared L2.

    python benchmarks/ivf_rabitq.py VECTORS.npy [--through index,scan] [--bits 1,4,7,8] [--nlist 256] [--rounds 5] [--out FILE.csv]

"index" is codeword.Index as a user calls it; "scan" the quantizer's fused search alone, over lists probed by one plain product.

The first rows of VECTORS are the queries, the rest is the base. Both libraries answer all queries in one call (and, with --single, one
query a call), rounds alternate between them, and the median counts. Recall is by true neighbours: a hit is right where its exact
distance is at most the true k-th (times 1 + 1e-6). bytes: codes, factors and ids a vector; centroids are shared. ratio: our queries per
second over theirs at equal recall, by log-linear interpolation of their curve (empty where ours lies outside it).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

import codeword
from codeword import ops
from codeword.parts.arrays import sample_indices
from codeword.parts.kmeans import kmeans
from codeword.quantizer import BLOCK

K = 10
PROBES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
FIELDS = ("through", "bits", "nlist", "nprobe", "ours_recall", "theirs_recall", "ours_qps", "theirs_qps", "ours_spread", "theirs_spread",
          "ours_bytes", "theirs_bytes", "ratio", "calls", "cpu", "load")


class Whole:
    """codeword.Index. Its centroids and lists are what everybody else gets."""

    def __init__(self, base: Tensor, nlist: int, bits: int) -> None:
        self.index = codeword.Index(dim=base.shape[1], metric="l2", quantizer=f"rabitq:code_bits={bits}", nlist=nlist).fit(base)
        self.index.add(base)
        self.index.compact()

    def search(self, queries: Tensor, nprobe: int) -> np.ndarray:
        return np.asarray(self.index.search(queries, k=K, nprobe=nprobe, num_threads=1).ids)

    def bytes(self, rows: int) -> float:
        return self.index.bytes_per_vector


class Lists:
    """Codes of every list in one packed array, lists starting at multiples of 32 rows."""

    def __init__(self, base: Tensor, centroids: Tensor, labels: Tensor, bits: int) -> None:
        self.quantizer = codeword.RaBitQ(dim=base.shape[1], code_bits=bits)
        self.centroids, self.half = centroids, centroids.square().sum(1)
        counts = torch.bincount(labels, minlength=len(centroids))
        padded = -(-counts // BLOCK) * BLOCK
        starts = torch.cat((torch.zeros(1, dtype=torch.int64), padded.cumsum(0)))
        self.spans = torch.stack((starts[:-1], starts[:-1] + counts), dim=1)
        order = torch.argsort(labels, stable=True)
        place = starts[labels[order]] + torch.arange(len(order)) - (counts.cumsum(0) - counts)[labels[order]]
        self.ids = torch.full((int(starts[-1]),), -1)
        self.ids[place] = order
        # Padding rows repeat the list's centroid: their codes are zero and no span reaches them.
        points = centroids.repeat_interleave(padded, 0)
        rows = points.clone()
        rows[place] = base[order]
        self.packed = self.quantizer.pack(self.quantizer.encode(rows, given=points), points)

    def search(self, queries: Tensor, nprobe: int) -> np.ndarray:
        coarse = torch.addmm(self.half, queries, self.centroids.mT, alpha=-2) + queries.square().sum(1, keepdim=True)
        near = coarse.topk(nprobe, largest=False)
        query = self.quantizer.prepare(queries, "l2")
        _, rows = self.quantizer.search_spans(self.packed, query, self.spans[near.indices], near.values.clamp(min=0), K, None, 1)
        return self.ids[rows].numpy()

    def bytes(self, rows: int) -> float:
        return (sum(t.numel() * t.element_size() for t in self.packed.tensors.values()) + self.ids.numel() * 8) / rows


class Theirs:
    """rabitqlib with our centroids and lists."""

    def __init__(self, base: Tensor, centroids: Tensor, labels: Tensor, bits: int) -> None:
        import rabitqlib
        self.index = rabitqlib.IvfIndex(base.shape[1], len(base), len(centroids), bits, "l2")
        self.index.build(base.numpy(), centroids.numpy(), labels.numpy().astype(np.uint32), 1, False)

    def search(self, queries: np.ndarray, nprobe: int) -> np.ndarray:
        return np.asarray(self.index.search(queries, K, nprobe, num_threads=1)[0]).astype(np.int64)

    def bytes(self, rows: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index"
            self.index.save(str(path))
            return path.stat().st_size / rows


def answer(search: Callable, queries: Tensor | np.ndarray, nprobe: int, single: bool) -> None:
    """All queries in one call, or one a call."""
    if not single:
        search(queries, nprobe)
        return
    for i in range(len(queries)):
        search(queries[i:i + 1], nprobe)


def recall(found: np.ndarray, base: Tensor, queries: Tensor, limit: Tensor) -> float:
    """Share of the k returned rows within the true k-th distance."""
    rows = torch.from_numpy(found.reshape(len(queries), -1)).clamp(min=0)
    distance = (base[rows].double() - queries.double().unsqueeze(1)).square().sum(2)
    return float((distance <= limit.unsqueeze(1) * (1 + 1e-6)).double().mean())


def truth(base: Tensor, queries: Tensor) -> Tensor:
    """Exact k-th distances, float64."""
    limits = []
    for block in queries.split(64):
        near = torch.cdist(block, base).topk(4 * K, largest=False).indices
        exact = (base[near].double() - block.double().unsqueeze(1)).square().sum(2)
        limits.append(exact.sort(1).values[:, K - 1])
    return torch.cat(limits)


def measure(run: list[Callable], rounds: int, calls: int) -> list[list[float]]:
    """Queries per second of each callable, ``rounds`` interleaved rounds after a warm-up."""
    speeds: list[list[float]] = [[] for _ in run]
    for one in run:
        one()
    for _ in range(rounds):
        for speed, one in zip(speeds, run, strict=True):
            start = time.perf_counter()
            one()
            speed.append(calls / (time.perf_counter() - start))
    return speeds


def ratio_at_equal_recall(rows: list[dict]) -> None:
    """Fill ``ratio``: ours over theirs interpolated in (recall, log qps)."""
    curve = sorted((row["theirs_recall"], np.log(row["theirs_qps"])) for row in rows)
    x, y = np.array([c[0] for c in curve]), np.array([c[1] for c in curve])
    for row in rows:
        inside = x[0] <= row["ours_recall"] <= x[-1]
        row["ratio"] = round(float(row["ours_qps"] / np.exp(np.interp(row["ours_recall"], x, y))), 3) if inside else ""


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--through", default="index,scan")
    parser.add_argument("--bits", default="1,4,7,8")
    parser.add_argument("--nlist", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=None, help="of the base, for a quick look")
    parser.add_argument("--single", action="store_true", help="one query a call")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    vectors = torch.from_numpy(np.load(options.vectors).astype(np.float32))
    queries, base = vectors[:options.queries], vectors[options.queries:][:options.rows].contiguous()
    limit = truth(base, queries)
    # The index learns its centroids with the same call, hence the same ones.
    sample = sample_indices(len(base), max(1 << 16, 64 * options.nlist), 0)
    centroids = kmeans(base if sample is None else base[torch.from_numpy(sample)], options.nlist).centroids
    labels = ops.nearest(base, centroids).indices
    arrays = queries.numpy()
    table = []
    for bits, through in itertools.product(map(int, options.bits.split(",")), options.through.split(",")):
        start = time.perf_counter()
        ours = Whole(base, options.nlist, bits) if through == "index" else Lists(base, centroids, labels, bits)
        middle = time.perf_counter()
        theirs = Theirs(base, centroids, labels, bits)
        print(f"{through} bits={bits} build: ours {middle - start:.1f} s, theirs {time.perf_counter() - middle:.1f} s", flush=True)
        rows = []
        for nprobe in (p for p in PROBES if p <= options.nlist):
            run = [partial(answer, ours.search, queries, nprobe, options.single),
                   partial(answer, theirs.search, arrays, nprobe, options.single)]
            speed = measure(run, options.rounds, len(queries))
            median = [statistics.median(s) for s in speed]
            rows.append({
                "through": through, "bits": bits, "nlist": options.nlist, "nprobe": nprobe,
                "ours_recall": round(recall(ours.search(queries, nprobe), base, queries, limit), 4),
                "theirs_recall": round(recall(theirs.search(arrays, nprobe), base, queries, limit), 4),
                "ours_qps": round(median[0]), "theirs_qps": round(median[1]),
                "ours_spread": round((max(speed[0]) - min(speed[0])) / median[0], 3),
                "theirs_spread": round((max(speed[1]) - min(speed[1])) / median[1], 3),
                "ours_bytes": round(ours.bytes(len(base)), 1), "theirs_bytes": round(theirs.bytes(len(base)), 1),
                "calls": "single" if options.single else "batch", "cpu": cpu(), "load": round(os.getloadavg()[0], 1)})
        ratio_at_equal_recall(rows)
        for row in rows:
            print(" ".join(f"{key}={row[key]}" for key in FIELDS[:13]), flush=True)
        table += rows
        if options.out:
            write(options.out, table)


def write(path: Path, table: list[dict]) -> None:
    """The rows so far, after every configuration."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
