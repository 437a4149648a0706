"""RVQ and AQ beside faiss's ResidualQuantizer and LocalSearchQuantizer with their defaults: 8-bit codebooks, the same training rows.

    python benchmarks/additive.py VECTORS_FOLDER [--quick] [--seeds 5] [--only minilm-AQ-4,...] [--threads 2] [--out results/additive.csv]

Each row is one data set, quantizer, number of codebooks and seed; rows that the file has are skipped, so a run can be taken up again.
Base: the MiniLM sentences without the first 1,000; MNIST's training images. The seed draws 16,384 of its rows to train on and
starts both quantizers. ``base``: mean squared error a vector over the whole base; ``heldout``: over the rows not trained on. ``fit`` and
``encode`` (of the base): seconds of the wall clock; ``cpu``: of all threads, which says more on a busy machine (threads that
wait do not spin). Ours and theirs alternate, ours first at even seeds. ``load``: runnable processes when the row ended. --quick: one seed.
The table printed at the end has means over seeds, and ratios of ours to theirs.
"""

from __future__ import annotations

import argparse
import csv
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

import codeword

TRAIN = 16384
KINDS = (("AQ", 4), ("RVQ", 4), ("AQ", 8), ("RVQ", 8), ("RVQ", 16))
SUBJECTS = [(data, kind, books) for kind, books in KINDS for data in ("minilm", "mnist")]
MEASURES = ("base", "heldout", "fit", "fit_cpu", "encode", "encode_cpu")
FIELDS = ("data", "quantizer", "codebooks", "bits_per_vector", "seed", "threads",
          *(f"{who}_{what}" for what in MEASURES for who in ("ours", "theirs")), "load")


def base_of(folder: pathlib.Path, name: str) -> np.ndarray:
    if name == "minilm":
        return np.load(folder / "minilm_sentences.f16.npy")[1000:].astype(np.float32)
    return np.load(folder / "mnist784.npz")["train"].astype(np.float32)


class Theirs:
    """A faiss quantizer behind fit, encode and decode."""

    def __init__(self, kind: str, dim: int, books: int, seed: int) -> None:
        import faiss
        if kind == "RVQ":
            self.quantizer: Any = faiss.ResidualQuantizer(dim, books, 8)
            self.quantizer.cp.seed = 1234 + seed
        else:
            self.quantizer = faiss.LocalSearchQuantizer(dim, books, 8)
            self.quantizer.random_seed = 0x12345 + seed

    def fit(self, x: np.ndarray) -> None:
        self.quantizer.train(x)

    def encode(self, x: np.ndarray) -> Any:
        return self.quantizer.compute_codes(x)

    def decode(self, codes: Any) -> np.ndarray:
        return self.quantizer.decode(codes)


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def measure(quantizer: Any, base: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    train = np.ascontiguousarray(base[chosen])
    _, fit, fit_cpu = timed(lambda: quantizer.fit(train))
    codes, encode, encode_cpu = timed(lambda: quantizer.encode(base))
    errors = ((base - np.asarray(quantizer.decode(codes))).astype(np.float64) ** 2).sum(1)
    rest = np.ones(len(base), dtype=bool)
    rest[chosen] = False
    return {"base": errors.mean(), "heldout": errors[rest].mean(), "fit": fit, "fit_cpu": fit_cpu, "encode": encode,
            "encode_cpu": encode_cpu}


def row(base: np.ndarray, data: str, kind: str, books: int, seed: int, threads: int) -> dict[str, Any]:
    chosen = np.random.default_rng(seed).permutation(len(base))[:TRAIN]
    ours = getattr(codeword, kind)(dim=base.shape[1], num_codebooks=books, seed=1000 * seed)  # a stage takes its own seed + m
    contestants: list[tuple[str, Any]] = [("ours", ours), ("theirs", Theirs(kind, base.shape[1], books, seed))]
    found: dict[str, Any] = {"data": data, "quantizer": kind, "codebooks": books, "bits_per_vector": 8 * books, "seed": seed,
                             "threads": threads}
    for who, quantizer in contestants if seed % 2 == 0 else contestants[::-1]:
        found |= {f"{who}_{what}": f"{value:.6g}" for what, value in measure(quantizer, base, chosen).items()}
    return found | {"load": f"{os.getloadavg()[0]:.1f}"}


def read(path: pathlib.Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def table(rows: list[dict[str, str]]) -> None:
    print(f"{'':16} seeds   base      ratio  heldout   ratio  fit s  ratio   cpu  encode s ratio   cpu")
    for data, kind, books in SUBJECTS:
        mine = [r for r in rows if (r["data"], r["quantizer"], r["codebooks"]) == (data, kind, str(books))]
        if not mine:
            continue
        keys = [f"{who}_{what}" for what in MEASURES for who in ("ours", "theirs")]
        mean = {key: statistics.mean(float(r[key]) for r in mine) for key in keys}
        ratio = {what: mean[f"ours_{what}"] / mean[f"theirs_{what}"] for what in MEASURES}
        print(f"{data:7}{kind:4}{books:3}  {len(mine):5}   {mean['ours_base']:<9.6g} {ratio['base']:.4f} {mean['ours_heldout']:<9.6g} "
              f"{ratio['heldout']:.4f} {mean['ours_fit']:6.1f} {ratio['fit']:6.2f} {ratio['fit_cpu']:5.2f} {mean['ours_encode']:8.2f} "
              f"{ratio['encode']:6.2f} {ratio['encode_cpu']:5.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="RVQ and AQ beside faiss.")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "results" / "additive.csv")
    arguments = parser.parse_args()
    import faiss
    faiss.omp_set_num_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    wanted = set(filter(None, arguments.only.split(",")))
    bases: dict[str, np.ndarray] = {}
    for seed in range(1 if arguments.quick else arguments.seeds):
        for data, kind, books in SUBJECTS:
            done = {(r["data"], r["quantizer"], r["codebooks"], r["seed"]) for r in read(arguments.out)}
            if (data, kind, str(books), str(seed)) in done or (wanted and f"{data}-{kind}-{books}" not in wanted):
                continue
            if data not in bases:
                bases[data] = base_of(arguments.folder, data)
            found = row(bases[data], data, kind, books, seed, arguments.threads)
            new = not arguments.out.exists()
            with open(arguments.out, "a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(found)
            print(*(f"{key}={found[key]}" for key in found), flush=True)
    table(read(arguments.out))


if __name__ == "__main__":
    main()
