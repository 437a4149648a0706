"""bit_scan beside rabitqlib's IvfIndex on one list of the same codes' size: nanoseconds a code, in the cache and from memory.

    python benchmarks/bit_scan.py [--quick] [--rounds 5] [--out results/bit_scan.csv]

Rows are Gaussian clusters, 384 dimensions, squared L2; queries lie near rows. "cache": 5,000 rows, whose first look reads 0.3 MB (L2).
"memory": at least 512 MiB of codes, made of 50,000 encoded rows over and over, every copy stored apart. rabitqlib has no scan of its own in
Python, so its whole search over one list with nprobe=1 is timed, beside Index.search of a flat index: raw queries to ids.
Both answer the same queries; rounds alternate and the median counts. "batch": all queries in one call; "single": one a call. A measurement
takes at least 20 ms; with two threads it begins with a pause and a call that does not count, because the libraries' threads spin for some
milliseconds after a call, on a core that the other's want.

    ours_ns, theirs_ns     nanoseconds of wall time a code and query; ratio: theirs / ours
    first_bytes            bytes a code that the first look must read (planes and factors)
    gbps                   these bytes over our time; queries of a batch that share the code stream count once each
    stream_gbps            plain sequential read of the same memory (planes and factors), same threads, in the same rounds, median: what
                           two threads get depends on where a buffer lies, and on the second
    share                  gbps / stream_gbps for single queries: of the memory bandwidth
    load as measured; cpu_ns, their_cpu_ns, cpu_ratio: by processor time of the process instead
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import rabitqlib
import torch

import codeword
from codeword.search.segments import Segment, View

DIM, SEED_ROWS = 384, 49_984
FIELDS = ("place", "bits", "rows", "threads", "calls", "k", "ours_ns", "theirs_ns", "ratio", "cpu_ns", "their_cpu_ns", "cpu_ratio",
          "first_bytes", "gbps", "stream_gbps", "share", "load")


def rows_and_queries(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    centers = torch.randn(200, DIM, generator=g)
    x = centers[torch.randint(0, 200, (SEED_ROWS,), generator=g)] + 0.7 * torch.randn(SEED_ROWS, DIM, generator=g)
    return x, x[torch.randint(0, SEED_ROWS, (count,), generator=g)] + 0.5 * torch.randn(count, DIM, generator=g)


class Ours:
    def __init__(self, x: torch.Tensor, bits: int, copies: int) -> None:
        quantizer = codeword.RaBitQ(dim=DIM, code_bits=bits, fast=True)
        packed = quantizer.pack(quantizer.encode(x))
        self.rows = packed.rows * copies
        tensors = {f"scan.{name}": tensor.repeat(copies, *([1] * (tensor.ndim - 1))) for name, tensor in packed.tensors.items()}
        tensors |= {"ids": torch.arange(self.rows), "starts": torch.tensor([0]), "counts": torch.tensor([self.rows])}
        self.index = codeword.Index(dim=DIM, quantizer=quantizer)
        self.index._views = [View(Segment(tensors, self.rows))]  # one segment; adding copy after copy would take minutes
        self.first_look = [tensors[f"scan.{name}"].view(-1).view(torch.int64) for name in ("planes", "factors")]

    def read(self, num_threads: int) -> None:
        """Sum what the first look reads."""
        before = torch.get_num_threads()
        torch.set_num_threads(num_threads)
        for values in self.first_look:
            values.sum()
        torch.set_num_threads(before)

    def search(self, queries: torch.Tensor, k: int, num_threads: int) -> None:
        self.index.search(queries.numpy(), k, num_threads=num_threads)


class Theirs:
    def __init__(self, x: torch.Tensor, bits: int, copies: int) -> None:
        rows, labels = x.numpy(), np.zeros(len(x), np.uint32)
        self.index = rabitqlib.IvfIndex(DIM, len(x), 1, bits, "l2")
        self.index.build(rows, np.zeros((1, DIM), np.float32), labels, 1, True)
        if copies > 1:
            self.index.reserve(0, len(x) * copies)
        for _ in range(copies - 1):
            self.index.add(rows, labels, 2, True)

    def search(self, queries: torch.Tensor, k: int, num_threads: int) -> None:
        self.index.search(queries.numpy(), k, 1, num_threads=num_threads)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(ours: Ours, theirs: Theirs, queries: torch.Tensor, k: int, num_threads: int, single: bool, rounds: int) -> list[list[float]]:
    """Median (wall, processor) seconds of ours and of theirs for all queries, and of reading what the first look reads."""
    parts = queries.split(1 if single else len(queries))

    def answer(index: Ours | Theirs) -> Callable[[], None]:
        def run() -> None:
            for part in parts:
                index.search(part, k, num_threads)
        return run

    def many(run: Callable[[], None], repeat: int) -> tuple[float, float]:
        if num_threads > 1:
            time.sleep(0.02)
            run()
        wall, cpu = timed(lambda: [run() for _ in range(repeat)])
        return wall / repeat, cpu / repeat

    runs = [answer(ours), answer(theirs), lambda: ours.read(num_threads)]
    repeats = []
    for run in runs:
        run()
        repeats.append(max(1, int(0.02 / timed(run)[0])))
    found = [[many(run, repeat) for run, repeat in zip(runs, repeats, strict=True)] for _ in range(rounds)]
    return [[statistics.median(r[i][j] for r in found) for j in range(2)] for i in range(len(runs))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="cache only, fewer rounds")
    parser.add_argument("--out", type=Path, default=Path("results/bit_scan.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, queries = rows_and_queries(64)
    table = []
    for place in ("cache", "memory")[:1 if options.quick else 2]:
        for bits in (1, 4, 8):
            copies = 1 if place == "cache" else -(-(512 << 20) // (SEED_ROWS * DIM * bits // 8))
            base = x[:4992] if place == "cache" else x
            ours, theirs = Ours(base, bits, copies), Theirs(base, bits, copies)
            rows = ours.rows
            first = DIM // 8 + 12
            some = queries if place == "cache" else queries[:4]
            for num_threads in (1, 2):
                for k in (10, 100) if place == "cache" else (10,):
                    for single in (True, False):
                        rounds = 2 if options.quick else options.rounds
                        (wall, cpu), (their_wall, their_cpu), (stream, _) = measure(ours, theirs, some, k, num_threads, single, rounds)
                        unit = 1e9 / rows / len(some)
                        fast = rows * first / stream / 1e9
                        gbps = first / (wall * unit)
                        table.append({
                            "place": place, "bits": bits, "rows": rows, "threads": num_threads, "k": k,
                            "calls": "single" if single else "batch", "ours_ns": round(wall * unit, 3),
                            "theirs_ns": round(their_wall * unit, 3), "ratio": round(their_wall / wall, 2),
                            "cpu_ns": round(cpu * unit, 3), "their_cpu_ns": round(their_cpu * unit, 3),
                            "cpu_ratio": round(their_cpu / cpu, 2), "first_bytes": first, "gbps": round(gbps, 1),
                            "stream_gbps": round(fast, 1), "share": round(gbps / fast, 2) if single else "",
                            "load": round(os.getloadavg()[0], 1)})
                        print(" ".join(f"{key}={table[-1][key]}" for key in FIELDS), flush=True)
            del ours, theirs
            if not options.quick:
                write(options.out, table)


def write(path: Path, table: list[dict]) -> None:
    """The rows so far."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
