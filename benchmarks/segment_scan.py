"""Searching SAQ codes beside RaBitQ codes: recall, processor time and bytes, with the bound of unread segments on and off.

    python benchmarks/segment_scan.py VECTORS.npy [--quick] [--out results/segment_scan.csv]

codeword.Index over 20,000 rows, squared L2, 200 queries, k = 10, one thread; 16 lists are probed where there are lists.

    deviations    standard deviations SAQ allows a segment whose bits it has not read (the paper's m); "off": any
    recall        by true neighbours
    us            median microseconds of processor time a query, all in one call; scan_us: of search_spans alone over all rows (flat only)
    bytes         codes, factors and ids a vector; plan: dimensions x bits of each segment
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
import torch

import codeword
from codeword.search.truth import exact_search

K, QUERIES, ROWS = 10, 200, 20_000
FIELDS = ("data", "quantizer", "bits", "nlist", "deviations", "recall", "us", "scan_us", "bytes", "plan", "load")


def micro(run: Callable[[], object]) -> float:
    """Median microseconds a query of five runs, after one."""
    run()
    found = []
    for _ in range(5):
        start = time.thread_time()
        run()
        found.append(time.thread_time() - start)
    return statistics.median(found) / QUERIES * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--quick", action="store_true", help="4 bits, flat only, nothing written")
    parser.add_argument("--out", type=Path, default=Path("results/segment_scan.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.from_numpy(np.load(options.vectors)[:QUERIES + ROWS].astype(np.float32))
    queries, base = x[:QUERIES], x[QUERIES:].contiguous()
    truth = torch.as_tensor(exact_search(base, queries, K, "l2").ids)
    table = []
    for nlist in (None,) if options.quick else (None, 128):
        for bits in (4,) if options.quick else (1, 2, 4, 8):
            for name, spec in (("saq", f"saq:rate={bits}"), ("rabitq", f"rabitq:code_bits={bits}")):
                index = codeword.Index(dim=x.shape[1], metric="l2", quantizer=spec, nlist=nlist).fit(base)
                index.add(base)
                index.compact()
                for deviations in (None, 4.0, 6.0, 10.0) if name == "saq" else (None,):
                    quantizer = index.quantizer
                    if isinstance(quantizer, codeword.SAQ):
                        quantizer.deviations = deviations
                    ids = torch.as_tensor(index.search(queries, k=K, nprobe=16).ids)
                    table.append({
                        "data": options.vectors.stem.split(".")[0], "quantizer": name, "bits": bits, "nlist": nlist or "",
                        "deviations": ("off" if deviations is None else deviations) if name == "saq" else "",
                        "recall": round(float((ids.unsqueeze(2) == truth.unsqueeze(1)).any(2).float().mean()), 4),
                        "us": round(micro(lambda index=index: index.search(queries, k=K, nprobe=16)), 1),
                        "scan_us": round(flat_scan(index, queries), 1) if nlist is None else "", "bytes": round(index.bytes_per_vector, 1),
                        "plan": " ".join(f"{n}x{b}" for n, b in getattr(quantizer, "plan", ())), "load": round(os.getloadavg()[0], 1)})
                    print(" ".join(f"{key}={table[-1][key]}" for key in FIELDS), flush=True)
                if not options.quick:
                    write(options.out, table)


def write(path: Path, table: list[dict]) -> None:
    """The rows so far."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(table)


def flat_scan(index: codeword.Index, queries: torch.Tensor) -> float:
    quantizer, packed = index.quantizer, index._snapshot()[0].segment.packed
    assert isinstance(quantizer, (codeword.SAQ, codeword.RaBitQ))
    spans = torch.tensor([[[0, ROWS]]]).expand(len(queries), 1, 2)
    prepared, coarse = quantizer.prepare(queries, "l2"), queries.square().sum(1, keepdim=True)
    return micro(lambda: quantizer.search_spans(packed, prepared, spans, coarse, K, None, 1))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
