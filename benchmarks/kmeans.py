"""k-means beside faiss.Kmeans from the same start: time to reach faiss's final error.

    python benchmarks/kmeans.py --data FOLDER [--threads 2] [--quick] [--out results/kmeans.csv]

FOLDER holds mnist784.npz and minilm_sentences.f16.npy (pixels and sentence embeddings). faiss runs its iterations on all rows; the error
of its final centroids is the goal (mean exact squared distance, outside of the time). Ours runs as many iterations as it needs to get
there, tolerance 0, from the same rows. Both alternate. Columns: data; shape; isa; threads; faiss_seconds and seconds (medians of five:
processor time of the thread for one thread, else wall clock); ratio of the medians; least and most ratio of the pairs; iterations and
faiss_iterations; error / faiss's; plus_plus: error after faiss's number of iterations from a k-means++ start / faiss's;
plus_plus_seconds: of that start alone. Rows of slices are the sum over twelve slices of that width, 256 centroids each, as product
quantization fits them.
"""

from __future__ import annotations

import argparse
import csv
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from codeword import ops
from codeword.data.vectors import open_vectors
from codeword.ops import dispatch
from codeword.parts import random
from codeword.parts.kmeans import KMeans, kmeans

try:
    import faiss
except ImportError:
    raise SystemExit("faiss is absent: pip install faiss-cpu") from None

COLUMNS = ("data", "shape", "isa", "threads", "faiss_seconds", "seconds", "ratio", "least", "most", "faiss_iterations", "iterations",
           "error", "plus_plus", "plus_plus_seconds")
FILES = {"mnist": "mnist784.npz#train", "minilm": "minilm_sentences.f16.npy"}
ROWS = {"mnist": 60000, "minilm": 54771}
SLICES = 12


def clock() -> Callable[[], float]:
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def theirs(x: np.ndarray, start: np.ndarray, iterations: int) -> tuple[float, np.ndarray]:
    solver = faiss.Kmeans(x.shape[1], len(start), niter=iterations, seed=1, min_points_per_centroid=1, max_points_per_centroid=10**9)
    now = clock()
    begin = now()
    solver.train(x, init_centroids=start)
    elapsed = now() - begin
    assert solver.centroids is not None
    return elapsed, solver.centroids


def ours(x: Tensor, start: Tensor, iterations: int) -> tuple[float, KMeans]:
    now = clock()
    begin = now()
    found = kmeans(x, len(start), initial=start, iterations=iterations, tolerance=0.0, rows_per_centroid=None)
    return now() - begin, found


def error(x: Tensor, centroids: Tensor) -> float:
    return float(ops.nearest(x, centroids).distances.double().mean())


def needed(x: Tensor, start: Tensor, goal: float, iterations: int) -> tuple[int, float]:
    """Iterations to the goal and the error there; where twice those of faiss do not reach it (another local minimum, as in slices
    full of equal rows, where the two fill empty clusters differently) as many as faiss takes: the column ``error`` is above 1 then."""
    for count in range(max(1, iterations - 2), 2 * iterations + 1):
        reached = error(x, ours(x, start, count)[1].centroids)
        if reached <= goal:
            return count, reached
    return iterations, error(x, ours(x, start, iterations)[1].centroids)


def compare(parts: list[np.ndarray], k: int, iterations: int, repeats: int) -> tuple:
    starts = [part[random.choice(7, len(part), k, stream="benchmark")] for part in parts]
    tensors = [(torch.from_numpy(part), torch.from_numpy(start)) for part, start in zip(parts, starts, strict=True)]
    goals = [error(x, torch.from_numpy(theirs(part, start, iterations)[1]))
             for part, start, (x, _) in zip(parts, starts, tensors, strict=True)]
    counts = [needed(x, start, goal, iterations) for (x, start), goal in zip(tensors, goals, strict=True)]
    pairs = []
    for _ in range(repeats):
        them = sum(theirs(part, start, iterations)[0] for part, start in zip(parts, starts, strict=True))
        us = sum(ours(x, start, count)[0] for (x, start), (count, _) in zip(tensors, counts, strict=True))
        pairs.append((them, us))
    now = clock()
    begin = now()
    for x, _ in tensors:
        kmeans(x, k, start="k-means++", iterations=0, rows_per_centroid=None)
    plus_seconds = now() - begin
    plus = sum(error(x, kmeans(x, k, start="k-means++", iterations=iterations, tolerance=0.0, rows_per_centroid=None).centroids)
               for x, _ in tensors)
    ratios = sorted(us / them for them, us in pairs)
    them, us = statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)
    return (them, us, us / them, ratios[0], ratios[-1], iterations, max(count for count, _ in counts),
            sum(reached for _, reached in counts) / sum(goals), plus / sum(goals), plus_seconds)


def cases(data: pathlib.Path, quick: bool) -> Iterator[tuple[str, list[np.ndarray], int, int]]:
    for name, file in FILES.items():
        x = np.asarray(open_vectors(str(data / file))[:ROWS[name] // (8 if quick else 1)], dtype=np.float32)
        yield name, [x], 256 if quick else 1024, 10
        for width in (4, 8) if name == "minilm" else (8,):
            middle = x.shape[1] // 2 // width * width
            slices = [np.ascontiguousarray(x[:, middle + i * width:middle + (i + 1) * width]) for i in range(SLICES)]
            yield f"{name} slices", slices, 256, 25


def main() -> None:
    parser = argparse.ArgumentParser(description="k-means beside faiss.Kmeans.")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "results" / "kmeans.csv")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="an eighth of the rows, one repeat; writes nothing unless --out is given")
    arguments = parser.parse_args()
    module = dispatch.native()
    if module is None:
        raise SystemExit("the compiled module is absent: make native")
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    rows = []
    for name, parts, k, iterations in cases(arguments.data, arguments.quick):
        shape = f"{len(parts)} x " * (len(parts) > 1) + f"{len(parts[0])}x{parts[0].shape[1]} to {k}"
        for isa in [isa for isa in reversed(module.runnable_isas()) if isa != "baseline"] or ["baseline"]:
            module.set_isa(isa)
            row = (name, shape, isa, arguments.threads, *compare(parts, k, iterations, 1 if arguments.quick else 5))
            rows.append(row)
            print(f"{name:14} {shape:26} {isa:7} faiss {row[4]:7.3f} s  ours {row[5]:7.3f} s  "
                  f"ratio {row[6]:.3f} ({row[7]:.3f}..{row[8]:.3f})  iterations {row[9]} / {row[10]}  "
                  f"error {row[11]:.6f}  k-means++ {row[12]:.4f} ({row[13]:.2f} s)", flush=True)
    module.set_isa("")
    if arguments.quick and arguments.out == parser.get_default("out"):
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with open(arguments.out, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])


if __name__ == "__main__":
    main()
