"""``ops.nearest`` beside torch's bare float32 matrix product.

    python benchmarks/nearest.py --data FOLDER [--quick] [--out results/nearest.csv]

FOLDER holds mnist784.npz and minilm_sentences.f16.npy (pixels and sentence embeddings).

The product of 65,536 x 64 rows with 65,536 codewords has 16 GiB of results, so it is computed in blocks of rows into one preallocated
buffer and nothing is done with them; ``nearest`` allocates its result as users see it. Both alternate in one run. Columns: data; shape
(rows x width with codewords); isa (avx2 and baseline screen in float32, avx512 in 8-bit integers or float32, by shape); threads; seconds
(median of five: processor time of the thread for one thread, else wall clock); ratio to the product in the same run; extra_mib (largest
memory of the call beyond before, where the system tells); least and most ratio of the five pairs. Every result is compared between
instruction sets, and a sample of its rows with the distances by definition.
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
from codeword.ops import dispatch, reference

COLUMNS = ("data", "shape", "isa", "threads", "seconds", "ratio", "least", "most", "extra_mib")
BLOCK = 4096
FILES = {"mnist": "mnist784.npz#train", "minilm": "minilm_sentences.f16.npy"}
NARROW = ((65536, 1, 256), (65536, 2, 16), (65536, 2, 256), (65536, 4, 16), (65536, 4, 256), (65536, 8, 16), (65536, 8, 256),
          (65536, 16, 256), (65536, 32, 256), (65536, 49, 256), (65536, 64, 64))


def gaussian(n: int, d: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g), torch.randn(k, d, generator=g)


def clustered(n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    """Codewords in 256 tight clusters, rows near codewords."""
    g = torch.Generator().manual_seed(1)
    codebook = torch.randn(256, d, generator=g).repeat(-(-k // 256), 1)[:k] + 0.05 * torch.randn(k, d, generator=g)
    return codebook[torch.randint(0, k, (n,), generator=g)] + 0.05 * torch.randn(n, d, generator=g), codebook


def near_ties(n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    """Codewords that differ in their last bits: no screen tells them apart."""
    g = torch.Generator().manual_seed(2)
    base = torch.randn(1, d, generator=g)
    return base + 1e-3 * torch.randn(n, d, generator=g), base + torch.randint(-2, 3, (k, d), generator=g) * 2.0**-22


def real(path: pathlib.Path, n: int, k: int) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(np.asarray(open_vectors(str(path))[:], dtype=np.float32))
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(3))]
    return x[:n].contiguous(), x[-k:].contiguous()


def cases(quick: bool, data: pathlib.Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    scale = 8 if quick else 1
    for name, make in (("gaussian", gaussian), ("clustered", clustered)):
        yield name, *make(65536 // scale, 64, 65536 // scale)
    yield "near ties", *near_ties(1024 // scale, 64, 1024)
    for name, file in FILES.items():
        yield name, *real(data / file, 16384 // scale, 1024)
    for n, d, k in NARROW:
        yield "gaussian", *gaussian(n // scale, d, k)


def clock(threads: int) -> Callable[[], float]:
    return time.thread_time if threads == 1 else time.perf_counter


def measure(name: str, x: Tensor, codebook: Tensor, threads: int, isas: list[str], repeats: int) -> Iterator[tuple]:
    module = dispatch.native()
    assert module is not None
    out, columns, now = torch.empty(min(len(x), BLOCK), len(codebook)), codebook.mT, clock(threads)
    shape = f"{len(x)}x{x.shape[1]} with {len(codebook)}"
    results = []
    for isa in isas:
        module.set_isa(isa)
        results.append(ops.nearest(x, codebook))
        memory = extra_mib(lambda: ops.nearest(x, codebook))
        pairs = []
        for _ in range(repeats):
            start = now()
            for row in range(0, len(x), BLOCK):
                torch.matmul(x[row:row + BLOCK], columns, out=out[:len(x) - row])
            middle = now()
            ops.nearest(x, codebook)
            pairs.append((middle - start, now() - middle))
        ratios = sorted(took / base for base, took in pairs)
        base, took = statistics.median(b for b, _ in pairs), statistics.median(t for _, t in pairs)
        if isa == isas[0]:
            yield name, shape, "matmul", threads, base, 1.0, 1.0, 1.0, None
        yield name, shape, isa, threads, took, took / base, ratios[0], ratios[-1], memory
    module.set_isa("")
    check(x, codebook, results)


def check(x: Tensor, codebook: Tensor, results: list[ops.Nearest]) -> None:
    for found in results[1:]:
        if not (torch.equal(found.indices, results[0].indices) and torch.equal(found.distances, results[0].distances)):
            raise SystemExit("two instruction sets disagree")
    for row in range(0, len(x), max(1, len(x) // 16)):
        distance = reference.exact_distances(x[row], codebook)
        if int(distance.argmin()) != int(results[0].indices[row]):
            raise SystemExit(f"row {row} is not the nearest by definition")


def extra_mib(call: Callable[[], object]) -> float | None:
    """Largest resident memory during the call beyond that before it."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        kept = call()
        del kept
        return (_status("VmHWM") - before) / 1024
    except OSError:
        return None


def _status(key: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise OSError(key)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of nearest beside torch.matmul.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "results" / "nearest.csv")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="an eighth of the rows, one repeat; writes nothing unless --out is given")
    arguments = parser.parse_args()
    module = dispatch.native()
    if module is None:
        raise SystemExit("the compiled module is absent: make native")
    torch.set_num_threads(arguments.threads)
    isas = [isa for isa in reversed(module.runnable_isas()) if isa != "baseline"] or ["baseline"]
    rows = []
    for name, x, codebook in cases(arguments.quick, arguments.data):
        for row in measure(name, x, codebook, arguments.threads, isas, 1 if arguments.quick else 5):
            rows.append(row)
            print(f"{row[0]:10} {row[1]:24} {row[2]:8} {row[3]} threads {row[4] * 1e3:9.2f} ms {row[5]:6.3f} x matmul "
                  f"({row[6]:.3f}..{row[7]:.3f})" + ("" if row[8] is None else f" {row[8]:6.1f} MiB"), flush=True)
    if arguments.quick and arguments.out == parser.get_default("out"):
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with open(arguments.out, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for *labels, seconds, ratio, least, most, memory in rows:
            writer.writerow([*labels, f"{seconds:.6f}", f"{ratio:.3f}", f"{least:.3f}", f"{most:.3f}",
                             "" if memory is None else f"{memory:.1f}"])


if __name__ == "__main__":
    main()
