"""Every quantizer on independent N(0, 1) entries at 1 to 4 bits: the one source whose least error is known at every rate.

    python benchmarks/gaussian.py [--quick] [--out results/gaussian.csv]

Rows of width 128, 20,000 to fit and 10,000 held out, from a seeded generator; one thread. Columns of the file:

    quantizer, spec      a label, and what codeword.make is given
    rate                 bits a dimension asked for
    bits                 bits a dimension stored for the held-out rows, side information included
    error                mean squared error an entry on the held-out rows
    gap_db               10 log10(error / 2^(-2 bits)): dB above the Shannon bound at the bits really stored
    known, known_from    error at this rate from the literature, where there is one
    encode_per_second    held-out vectors encoded a second: median of five calls
    shared_bytes         what all vectors share
    left_out             why a quantizer has no such rate
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import codeword
from codeword.errors import CodewordError
from codeword.parts import random

DIM, FIT_ROWS, ROWS = 128, 20_000, 10_000
FIELDS = ("quantizer", "spec", "rate", "bits", "error", "gap_db", "known", "known_from", "encode_per_second", "shared_bytes", "left_out")
SPECS = {
    "ecsq": "ecsq:bits={bits}",
    "lloyd-max": "scalar:bits={bits},placement=lloyd,per=all",
    "uniform": "scalar:bits={bits},placement=mse,per=all",
    "lvq": "lvq:code_bits={bits}",
    "e8": "e8:bits={bits}",
    "pvq": "pvq:bits={bits}",
    "pq": "pq:bits={bits},iterations=10",
    "fsq": "projected(fsq:bits={bits})",
    "rabitq": "rabitq:code_bits={bits}",
    "saq": "saq:bits={bits}",
}
MAX_1960 = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}
UNIFORM_1960 = {1: 0.3634, 2: 0.1188, 3: 0.03744, 4: 0.01154}
KNOWN = {("lloyd-max", rate): (error, "Max 1960, table I") for rate, error in MAX_1960.items()} | \
        {("uniform", rate): (error, "Max 1960, table II") for rate, error in UNIFORM_1960.items()} | \
        {("e8", 2): (0.089, "QTIP 2024, table 1")}


def rows(count: int, seed: int) -> np.ndarray:
    return random.normal(seed, count * DIM, stream="gaussian benchmark").reshape(count, DIM)


def measure(label: str, rate: int, fit: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    spec = SPECS[label].replace("{bits}", str(rate))
    known, source = KNOWN.get((label, rate), (None, None))
    row = dict.fromkeys(FIELDS) | {"quantizer": label, "spec": spec, "rate": rate, "known": known, "known_from": source}
    try:
        quantizer = codeword.make(spec, DIM).fit(fit)
    except CodewordError as error:
        return row | {"left_out": str(error)}
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        codes = quantizer.encode(held_out)
        seconds.append(time.perf_counter() - begun)
    bits = quantizer.bits(codes)
    error = float(np.square(held_out - np.asarray(quantizer.decode(codes)), dtype=np.float64).mean())
    return row | {"bits": round(bits, 4), "error": float(f"{error:.4g}"),
                  "gap_db": round(10 * math.log10(error) + 20 * bits * math.log10(2), 3),
                  "encode_per_second": round(len(held_out) / statistics.median(seconds)), "shared_bytes": quantizer.shared_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows; writes nothing unless --out is given")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    share = 10 if options.quick else 1
    fit, held_out = rows(FIT_ROWS // share, 0), rows(ROWS // share, 1)
    found = []
    print(f"{'quantizer':10} {'rate':>4} {'bits':>6} {'error':>9} {'dB':>6} {'known':>8} {'vectors/s':>10}")
    for rate in (1, 2, 3, 4):
        for label in SPECS:
            row = measure(label, rate, fit, held_out)
            found.append(row)
            if row["left_out"]:
                print(f"{label:10} {rate:4}  {row['left_out'][:90]}")
            else:
                print(f"{label:10} {rate:4} {row['bits']:6.3f} {row['error']:9.4g} {row['gap_db']:6.2f} {row['known'] or '':>8} "
                      f"{row['encode_per_second']:10,}")
            sys.stdout.flush()
    out = options.out or (None if options.quick else Path(__file__).parents[1] / "results" / "gaussian.csv")
    if out:
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)


if __name__ == "__main__":
    main()
