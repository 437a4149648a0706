"""What our ops and torch's cost each other on two threads: ``python benchmarks/after_torch.py [--out results/after_torch.csv]``.

torch's OpenMP workers spin for some milliseconds after a parallel region, on a core that our pool wants. Each op runs (a) after a matrix
product on two threads and a pause, in which those workers go to sleep, and (b) right after the same product. Both see the same caches.
The last rows turn it round: the product after each op and a pause, and right after it.

Columns: first and second (what runs before, what is measured), threads, milliseconds after the pause (``paused``) and at once
(``at_once``), their medians of ``REPEATS``, taken in turns; ``loss`` = at_once / paused - 1, the median over the pairs; ``target`` 0.2;
``load`` is the machine's one-minute load before the row: beside other programs both columns grow, and the loss is not theirs alone.
"""

from __future__ import annotations

import argparse
import csv
import os
import pathlib
import statistics
import time
from collections.abc import Callable

import torch

from codeword import ops
from codeword.ops import bit_blocks, dispatch
from codeword.quantizers.rabitq import RaBitQ

REPEATS = 25
PAUSE = 0.03
THREADS = 2
TARGET = 0.2
COLUMNS = ("first", "second", "threads", "paused", "at_once", "loss", "target", "load")


def calls(rows: int) -> dict[str, Callable[[], object]]:
    """Every native op on inputs that take it a few milliseconds."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 384, generator=g)
    square, book, matrix = x[:, :256].contiguous(), torch.randn(256, 384, generator=g), torch.randn(128, 384, generator=g)
    signs = torch.where(torch.rand(4, 384, generator=g) < 0.5, -1.0, 1.0)
    labels = torch.randint(0, 256, (rows,), generator=g)
    codes = torch.randint(0, 8, (4 * rows, 96), generator=g).to(torch.uint8)
    packed = ops.pack(codes, [3] * 96)
    magnitudes = torch.randint(0, 1 << 30, (rows // 4, 384), generator=g, dtype=torch.int32)
    quantizer = RaBitQ(dim=384, code_bits=1)
    scanned = quantizer.pack(quantizer.encode(x))
    query = quantizer.prepare(x[:16], "l2")
    spans = torch.tensor([[[0, rows]]]).expand(16, 1, 2).contiguous()
    coarse = torch.zeros(16, 1)
    assert isinstance(query, bit_blocks.Query)
    return {
        "nearest": lambda: ops.nearest(x, book),
        "project": lambda: ops.project(x, matrix),
        "rotate": lambda: ops.rotate(x, signs),
        "hadamard": lambda: ops.hadamard(square),
        "pack": lambda: ops.pack(codes, [3] * 96),
        "unpack": lambda: ops.unpack(packed, [3] * 96, len(codes), torch.uint8),
        "segment_sum": lambda: ops.segment_sum(x, labels, 256),
        "bit_scan": lambda: quantizer.search_spans(scanned, query, spans, coarse, 10, None, THREADS),
        "grid_code": lambda: ops.grid_code(magnitudes, 8),
    }


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def pair(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Medians of ``second`` in seconds after a pause and at once, and the median loss of the pairs."""
    paused, at_once = [], []
    for _ in range(repeats):
        first()
        time.sleep(PAUSE)
        paused.append(timed(second))
        first()
        at_once.append(timed(second))
    loss = statistics.median(b / a - 1 for a, b in zip(paused, at_once, strict=True))
    return statistics.median(paused), statistics.median(at_once), loss


def main() -> None:
    parser = argparse.ArgumentParser(description="What ops and torch cost each other on two threads.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "results" / "after_torch.csv")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, smaller inputs, nothing written")
    given = parser.parse_args()
    if dispatch.native() is None:
        raise SystemExit("the compiled module is absent: make native")
    torch.set_num_threads(THREADS)
    a = torch.randn(512, 1024)
    b = torch.randn(1024, 1024)

    def product() -> object:
        return torch.matmul(a, b)

    repeats = 5 if given.quick else REPEATS
    every = calls(4096 if given.quick else 16384)
    rows = []
    for name, call in every.items():
        call()
        pairs = [("matmul", name, product, call), (name, "matmul", call, product)]
        for first, second, before, measured in pairs:
            load = os.getloadavg()[0]
            paused, at_once, loss = pair(before, measured, repeats)
            rows.append([first, second, THREADS, f"{paused * 1e3:.3f}", f"{at_once * 1e3:.3f}", f"{loss:.3f}", TARGET, f"{load:.1f}"])
            print(f"{first:12} then {second:12} {paused * 1e3:8.2f} ms paused {at_once * 1e3:8.2f} ms at once {loss:7.1%}", flush=True)
    if not given.quick:
        with open(given.out, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)


if __name__ == "__main__":
    main()
