"""PQ codes scanned by lut_scan beside faiss: IndexPQFastScan at 4 bits, IndexPQ at 8, with the same codebooks and the same codes.

    python benchmarks/lut_scan.py VECTORS.npy [--quick] [--threads 1,2] [--rounds 5] [--out results/lut_scan.csv]

faiss trains the codebooks and encodes; its centroids and codes are copied into our layout. The first rows of VECTORS are the queries.
A list in cache is 20,000 rows of the data; one in memory is 8 million rows, made from those codes by joining halves of different rows.
Both are timed from raw queries to the ten nearest ids, Index.search beside faiss' search, in interleaved rounds; the median counts. With
one thread the clock is the thread's processor time, else the wall's; then each measurement begins with a pause and a call that does not
count, because the libraries' threads spin for some milliseconds after a call, on a core that the other's want.

    bits, books, bytes           of a code, look-ups a row, bytes of codes a row
    rows, queries, threads       of one call
    ours_ns, theirs_ns, ratio    a code (one row for one query), everything included; ratio: theirs over ours
    ours_call, theirs_call       microseconds of the same call on a list of 32 rows: what a call costs apart from its rows
    net_ratio                    of the times less those
    scan_ns, ours_gbs            ours, tables made before (ops.lut_scan); bytes of codes times queries in that time
    read_gbs, share              sum of a buffer of the same size, same threads; ours_gbs over it
    ours_exact, theirs_exact     share of the ten nearest by the float32 definition that is returned (lists in cache)
    ours_recall, theirs_recall   share of the true ten nearest vectors (the same lists)
    clock, load, cpu
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import faiss
import numpy as np
import torch
from torch import Tensor

import codeword
from codeword import ops
from codeword.ops.lut_blocks import Blocks, pack_codes, reference
from codeword.parts import lookup
from codeword.search.segments import Segment, View

K = 10
FIELDS = ("bits", "books", "bytes", "rows", "queries", "threads", "ours_ns", "theirs_ns", "ratio", "ours_call", "theirs_call", "net_ratio",
          "scan_ns", "ours_gbs", "read_gbs", "share", "ours_exact", "theirs_exact", "ours_recall", "theirs_recall", "clock", "load", "cpu")
PIECE = 1 << 20


class Case:
    """The same codes in both libraries."""

    def __init__(self, base: np.ndarray, books: int, bits: int, rows: int) -> None:
        trained = faiss.IndexPQ(base.shape[1], books, bits)
        trained.train(base)
        codes = trained.pq.compute_codes(base)
        self.real = rows <= len(codes)
        self._hold(trained, codes[:rows] if self.real else joined(codes, rows))

    def _hold(self, trained: faiss.IndexPQ, codes: np.ndarray) -> None:
        self.books, self.bits, self.size, self.rows = trained.pq.M, trained.pq.nbits, 1 << trained.pq.nbits, len(codes)
        self.codes = codes
        self.codebooks = torch.from_numpy(faiss.vector_to_array(trained.pq.centroids).reshape(self.books, self.size, -1).copy())
        faiss.copy_array_to_vector(np.ascontiguousarray(codes).reshape(-1), trained.codes)
        trained.ntotal = self.rows
        self.trained, self.theirs = trained, faiss.IndexPQFastScan(trained) if self.bits == 4 else trained
        parts = [pack_codes(torch.from_numpy(self.unpacked(codes[i:i + PIECE])), self.size) for i in range(0, self.rows, PIECE)]
        self.blocks = Blocks(torch.cat(parts), None, self.books, self.size)
        self.index = self._index(trained.d)
        self.spans = torch.tensor([0, self.rows]).repeat(64, 1, 1)
        self.coarse = torch.zeros(64, 1)

    def _index(self, dim: int) -> codeword.Index:
        """Flat, of one segment that holds the blocks themselves."""
        quantizer = codeword.PQ(dim=dim, num_codebooks=self.books, codebook_size=self.size).fit(np.zeros((self.size, dim), np.float32))
        quantizer.codebooks.detach().copy_(self.codebooks)
        index = codeword.Index(dim=dim, quantizer=quantizer)
        ids = torch.arange(self.blocks.rows)
        ids[self.rows:] = -1
        tensors = {"scan.codes": self.blocks.codes, "ids": ids, "starts": torch.tensor([0]), "counts": torch.tensor([self.rows])}
        index._views = [View(Segment(tensors, self.blocks.rows))]
        return index

    def few(self) -> Case:
        """32 rows of it."""
        case = object.__new__(Case)
        case._hold(faiss.clone_index(self.trained), self.codes[:32])
        return case

    def unpacked(self, codes: np.ndarray) -> np.ndarray:
        """One code a byte (faiss packs two of 4 bits, the even book low)."""
        indices = codes if self.bits == 8 else np.stack((codes & 15, codes >> 4), axis=2).reshape(len(codes), -1)
        return np.pad(indices, ((0, -len(indices) % 32), (0, 0)))

    def tables(self, queries: np.ndarray) -> Tensor:
        return lookup.slice_tables(torch.from_numpy(queries), self.codebooks, "l2", "pq").tables

    def scan(self, tables: Tensor, queries: np.ndarray, threads: int) -> np.ndarray:
        return ops.lut_scan(self.blocks, tables, self.spans[:len(queries)], self.coarse[:len(queries)], K, None, threads)[1].numpy()

    def ours(self, queries: np.ndarray, threads: int) -> np.ndarray:
        return self.index.search(queries, K, num_threads=threads).ids

    def exact(self, queries: np.ndarray) -> np.ndarray:
        return reference(self.blocks, self.tables(queries), self.spans[:len(queries)], self.coarse[:len(queries)], K, None)[1].numpy()


def joined(codes: np.ndarray, rows: int) -> np.ndarray:
    """rows codes: the first half of row i, the second of row i + shift, with another shift each time around."""
    n, half = len(codes), codes.shape[1] // 2
    out = np.empty((rows, codes.shape[1]), np.uint8)
    for turn, start in enumerate(range(0, rows, n)):
        part = out[start:start + n]
        part[:, :half] = codes[:len(part), :half]
        part[:, half:] = np.roll(codes, 7919 * turn, axis=0)[:len(part), half:]
    return out


def timed(runs: list[Callable[[], object]], rounds: int, clock: Callable[[], float], least: float, pause: float) -> list[float]:
    """Median seconds of each, interleaved, each repeated until a measurement takes ``least`` seconds, after ``pause`` and a call more."""
    times: list[list[float]] = [[] for _ in runs]
    repeats = []
    for run in runs:
        run()
        start = time.perf_counter()
        run()
        repeats.append(max(1, int(least / max(time.perf_counter() - start, 1e-7))))
    for _ in range(rounds):
        for run, repeat, out in zip(runs, repeats, times, strict=True):
            time.sleep(pause)
            run()
            start = clock()
            for _ in range(repeat):
                run()
            out.append((clock() - start) / repeat)
    return [statistics.median(t) for t in times]


def overlap(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]))


def measure(case: Case, base: np.ndarray, queries: np.ndarray, threads: int, rounds: int) -> dict:
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    clock, name = (time.thread_time, "thread") if threads == 1 else (time.perf_counter, "wall")
    prepared, few = case.tables(queries), case.few()
    buffer = case.blocks.codes.view(-1).view(torch.int64)
    ours, theirs, scan, read, our_call, their_call = timed(
        [lambda: case.ours(queries, threads), lambda: case.theirs.search(queries, K), lambda: case.scan(prepared, queries, threads),
         buffer.sum, lambda: few.ours(queries, threads), lambda: few.theirs.search(queries, K)], rounds, clock, 0.02,
        0.0 if threads == 1 else 0.02)
    found, their_found = case.ours(queries, threads), case.theirs.search(queries, K)[1]
    pairs, size = case.rows * len(queries), case.blocks.codes.numel()
    row: dict = dict.fromkeys(FIELDS, "")
    row |= {"bits": case.bits, "books": case.books, "bytes": size // (len(case.blocks.codes) * 32), "rows": case.rows}
    row |= {"queries": len(queries), "threads": threads, "clock": name, "load": round(os.getloadavg()[0], 1), "cpu": cpu()}
    row |= {"ours_ns": round(ours / pairs * 1e9, 4), "theirs_ns": round(theirs / pairs * 1e9, 4), "ratio": round(theirs / ours, 2)}
    row |= {"ours_call": round(our_call * 1e6, 1), "theirs_call": round(their_call * 1e6, 1),
            "net_ratio": round((theirs - their_call) / max(ours - our_call, 1e-9), 2)}
    row |= {"scan_ns": round(scan / pairs * 1e9, 4), "ours_gbs": round(size * len(queries) / scan / 1e9, 1),
            "read_gbs": round(size / read / 1e9, 1), "share": round(len(queries) * read / scan, 2)}
    if case.real:
        true = faiss.IndexFlatL2(base.shape[1])
        true.add(base[:case.rows])
        near, exact = true.search(queries, K)[1], case.exact(queries)
        row |= {"ours_exact": round(overlap(found, exact), 4), "theirs_exact": round(overlap(their_found, exact), 4)}
        row |= {"ours_recall": round(overlap(found, near), 4), "theirs_recall": round(overlap(their_found, near), 4)}
    return row


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="1,2", help="on a busy machine only one thread's own clock means anything")
    parser.add_argument("--quick", action="store_true", help="cached lists only, three rounds")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    vectors = np.load(options.vectors).astype(np.float32)
    queries, base = vectors[:64], np.ascontiguousarray(vectors[64:30064])
    table = []
    for bits, books in ((4, 32), (4, 64), (8, 16), (8, 32)):
        for rows in (20_000, 8_000_000):
            if rows > len(base) and (options.quick or books * bits < 256):
                continue
            case = Case(base, books, bits, rows)
            for count in (1, 16):
                for threads in map(int, options.threads.split(",")):
                    row = measure(case, base, queries[:count], threads, 3 if options.quick else options.rounds)
                    print(" ".join(f"{key}={row[key]}" for key in FIELDS[:-1]), flush=True)
                    table.append(row)
                    if options.out:
                        with options.out.open("w", newline="") as file:
                            writer = csv.DictWriter(file, FIELDS)
                            writer.writeheader()
                            writer.writerows(table)


if __name__ == "__main__":
    main()
