"""PQ and OPQ beside faiss's ProductQuantizer and OPQMatrix + ProductQuantizer: same training rows, 8-bit codebooks, two threads.

    OMP_WAIT_POLICY=passive python benchmarks/product.py VECTORS.npy MNIST.npz [--quick] [--methods pq,opq] [--seeds 5] [--out FILE.csv]

A row is one fit and one encode of each library, one after the other. Rows that the file already has are kept and not measured again, so a
run may be stopped and continued; --quick measures one seed. The last 5,000 rows of each set are held out. faiss's OPQ always starts
from the same rotation; its k-means follows the seed. faiss is left at its defaults (25 steps of k-means; OPQ: 50 rounds of 4 steps).

data, method, bits (a vector), seed
ours, theirs            mean squared error a vector of the training rows;  ours_held, theirs_held: of the held-out rows
ours_fit, theirs_fit    seconds of wall time;  ours_fit_cpu, theirs_fit_cpu: of processor time, which other load disturbs less
ours_encode, theirs_encode   seconds to encode the training rows, the best of three
load                    load average of the machine when the row was done: above the threads in use, wall times are not to be trusted
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import faiss
import numpy as np
import torch

from codeword.quantizer import Codes
from codeword.quantizers.opq import OPQ
from codeword.quantizers.pq import PQ

THREADS = 2
HELD_OUT = 5000
BITS = (32, 64, 128)
FIELDS = ("data", "method", "bits", "seed", "ours", "theirs", "ours_held", "theirs_held", "ours_fit", "theirs_fit", "ours_fit_cpu",
          "theirs_fit_cpu", "ours_encode", "theirs_encode", "load")
Row = dict[str, str]
Coder = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]


def ours(method: str, x: np.ndarray, books: int, seed: int) -> Coder:
    quantizer = (PQ if method == "pq" else OPQ)(dim=x.shape[1], num_codebooks=books, seed=1000 * seed).fit(x)
    return lambda rows: np.asarray(quantizer.encode(rows).indices), lambda codes: np.asarray(quantizer.decode(Codes(codes)))


def theirs(method: str, x: np.ndarray, books: int, seed: int) -> Coder:
    pq = faiss.ProductQuantizer(x.shape[1], books, 8)
    pq.cp.seed = 1234 + seed
    if method == "pq":
        pq.train(x)
        return pq.compute_codes, pq.decode
    rotation = faiss.OPQMatrix(x.shape[1], books)
    inner = faiss.ProductQuantizer(x.shape[1], books, 8)
    inner.cp.seed = 1234 + seed
    rotation.pq = inner
    rotation.train(x)
    pq.train(rotation.apply(x))
    return lambda rows: pq.compute_codes(rotation.apply(rows)), lambda codes: rotation.reverse_transform(pq.decode(codes))


def measure(build: Callable[[], Coder], train: np.ndarray, held: np.ndarray) -> tuple[float, float, float, float, float]:
    """(training error, held-out error, fit seconds, fit processor seconds, encode seconds)."""
    wall, cpu = time.perf_counter(), time.process_time()
    encode, decode = build()
    fit, fit_cpu = time.perf_counter() - wall, time.process_time() - cpu
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        codes = encode(train)
        best = min(best, time.perf_counter() - start)
    return error(train, decode(codes)), error(held, decode(encode(held))), fit, fit_cpu, best


def error(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.square(x - y, dtype=np.float64).sum(1).mean())


def load(path: Path) -> np.ndarray:
    stored = np.load(path)
    return np.ascontiguousarray(stored["train"].reshape(len(stored["train"]), -1) if path.suffix == ".npz" else stored, dtype=np.float32)


def table(rows: list[Row]) -> None:
    print("ours / faiss's")
    print(f"{'data':22} {'method':6} {'bits':>4} {'seeds':>5} {'error':>7} {'held':>7} {'fit':>6} {'cpu':>6} {'encode':>6}")
    for key in sorted({(row["data"], row["method"], int(row["bits"])) for row in rows}):
        own = [row for row in rows if (row["data"], row["method"], int(row["bits"])) == key]
        errors = [statistics.fmean(float(row[a]) for row in own) / statistics.fmean(float(row[b]) for row in own)
                  for a, b in (("ours", "theirs"), ("ours_held", "theirs_held"))]
        times = [statistics.median(float(row[f"ours_{what}"]) / float(row[f"theirs_{what}"]) for row in own) for what in
                 ("fit", "fit_cpu", "encode")]
        print(f"{key[0]:22} {key[1]:6} {key[2]:4} {len(own):5} {errors[0]:7.4f} {errors[1]:7.4f} " + " ".join(f"{t:6.2f}" for t in times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path, nargs="+")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default="pq,opq")
    parser.add_argument("--bits", default=",".join(map(str, BITS)))
    parser.add_argument("--out", type=Path, default=Path("results/product.csv"))
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    rows: list[Row] = list(csv.DictReader(options.out.open(newline=""))) if options.out.exists() else []
    done = {(row["data"], row["method"], int(row["bits"]), int(row["seed"])) for row in rows}
    sets = {path.stem: load(path) for path in options.vectors}
    for seed in range(1 if options.quick else options.seeds):
        for method in options.methods.split(","):
            for data, x in sets.items():
                for bits in map(int, options.bits.split(",")):
                    if (data, method, bits, seed) in done:
                        continue
                    train, held = x[:-HELD_OUT], x[-HELD_OUT:]
                    mine = measure(lambda: ours(method, train, bits // 8, seed), train, held)  # noqa: B023 called at once
                    peer = measure(lambda: theirs(method, train, bits // 8, seed), train, held)  # noqa: B023
                    values = [f"{v:.6g}" for pair in zip(mine, peer, strict=True) for v in pair]
                    rows.append(dict(zip(FIELDS, [data, method, str(bits), str(seed), *values, f"{os.getloadavg()[0]:.1f}"], strict=True)))
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    with options.out.open("w", newline="") as file:
                        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                        writer.writeheader()
                        writer.writerows(sorted(rows, key=lambda row: (row["data"], row["method"], int(row["bits"]), int(row["seed"]))))
                    print(rows[-1], flush=True)
    table(rows)


if __name__ == "__main__":
    main()
