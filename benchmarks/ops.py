"""Speed of the ops beside torch's matrix product of the same shape: ``python benchmarks/ops.py [--out results/ops.csv]``.

Medians of five: of the calling thread's processor time for one thread, which a busy machine disturbs least, and of the wall clock
for more. Compare ratios, not seconds. The matrix product writes into memory that exists; every op allocates its result as users see
it. ``ratio`` is seconds / seconds of that product; ops that only move bytes have ``gigabytes_per_second`` instead. The tables in
csrc/*/README.md are written from the file.
"""

from __future__ import annotations

import argparse
import csv
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from codeword import ops
from codeword.ops import dispatch, reference

REPEATS = 5
COLUMNS = ("op", "shape", "isa", "impl", "threads", "seconds", "ratio", "gigabytes_per_second")
NEAREST = ((65536, 64, 1024), (65536, 8, 256), (65536, 4, 256), (65536, 1, 256), (16384, 128, 256), (4096, 784, 256), (4096, 384, 1024))
TABLES = ((1024, 32, 12, 16), (1024, 32, 12, 256))
PROJECT = ((16384, 64, 64), (4096, 384, 384))


def seconds(call: Callable[[], object], threads: int) -> float:
    clock = time.thread_time if threads == 1 else time.perf_counter
    call()
    times = []
    for _ in range(REPEATS):
        start = clock()
        call()
        times.append(clock() - start)
    return statistics.median(times)


def product_rows(op: str, n: int, d: int, k: int, threads: int) -> Iterator[tuple]:
    g = torch.Generator().manual_seed(0)
    x, matrix = torch.randn(n, d, generator=g), torch.randn(k, d, generator=g)
    out = torch.empty(n, k)
    shape = f"{n}x{d} with {k}"
    base = seconds(lambda: torch.matmul(x, matrix.mT, out=out), threads)
    yield "matmul", shape, "", "torch", threads, base, 1.0, None
    call, plain = (ops.nearest, reference.nearest) if op == "nearest" else (ops.project, reference.project)
    for isa in isas():
        took = seconds(lambda: call(x, matrix), threads)
        yield op, shape, isa, "native", threads, took, took / base, None
    if threads == 1 and n * d * k <= 1 << 29:
        took = seconds(lambda: plain(x, matrix), threads)
        yield op, shape, "", "reference", threads, took, took / base, None


def table_rows(threads: int) -> Iterator[tuple]:
    """lut_tables beside torch's batched product of the same slices and codebooks (which adds no |c|^2)."""
    g = torch.Generator().manual_seed(0)
    for n, books, d, k in TABLES:
        queries, words = torch.randn(n, books, d, generator=g), torch.randn(books, d, k, generator=g)
        squares = words.double().square().sum(1)
        out = torch.empty(books, n, k)
        turned = queries.transpose(0, 1).contiguous()
        base = seconds(lambda turned=turned, words=words, out=out: torch.bmm(turned, words, out=out), threads)
        for isa in isas():
            took = seconds(lambda q=queries, w=words, s=squares: ops.lut_tables(q, w, -2.0, s), threads)
            yield "lut_tables", f"{n}x{books}x{d} with {k}", isa, "native", threads, took, took / base, None


def moving_rows(threads: int) -> Iterator[tuple]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(16384, 384, generator=g)
    square = x[:, :256].contiguous()
    signs = torch.where(torch.rand(4, 384, generator=g) < 0.5, -1.0, 1.0)
    labels = torch.randint(0, 256, (len(x),), generator=g)
    codes = torch.randint(0, 16, (65536, 48), generator=g).to(torch.uint8)
    packed = {w: ops.pack(codes & ((1 << w) - 1), [w] * 48) for w in (1, 3, 4, 8)}
    float_bytes = x.numel() * 4
    calls: dict[tuple[str, str], tuple[Callable[[], object], int]] = {
        ("hadamard", "16384x256"): (lambda: ops.hadamard(square), 2 * square.numel() * 4),
        ("rotate", "16384x384"): (lambda: ops.rotate(x, signs), 2 * float_bytes),
        ("segment_sum", "16384x384 in 256"): (lambda: ops.segment_sum(x, labels, 256), float_bytes),
    }
    for w, data in packed.items():
        fit = codes & ((1 << w) - 1)
        calls["pack", f"65536x48 uint8 to {w} bits"] = (lambda fit=fit, w=w: ops.pack(fit, [w] * 48), codes.numel() + len(data))
        calls["unpack", f"65536x48 uint8 from {w} bits"] = (
            lambda data=data, w=w: ops.unpack(data, [w] * 48, 65536, torch.uint8), codes.numel() + len(data))
    for (op, shape), (call, moved) in calls.items():
        for isa in isas():
            took = seconds(call, threads)
            yield op, shape, isa, "native", threads, took, None, moved / took / 1e9


def isas() -> Iterator[str]:
    """Each instruction set that runs here, forced while the caller uses it."""
    module = dispatch.native()
    if module is None:
        raise SystemExit("the compiled module is absent: make native")
    for isa in module.runnable_isas():
        module.set_isa(isa)
        yield isa
    module.set_isa("")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the ops beside torch.matmul.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "results" / "ops.csv")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with open(arguments.out, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            rows = (row for op, shapes in (("nearest", NEAREST), ("project", PROJECT)) for shape in shapes
                    for row in product_rows(op, *shape, threads))
            for source in (rows, table_rows(threads), moving_rows(threads)):
                for *labels, took, ratio, rate in source:
                    cells = ("" if value is None else f"{value:.2f}" for value in (ratio, rate))
                    writer.writerow([*labels, f"{took:.6f}", *cells])
                    print(*labels, f"{took * 1e3:.2f} ms", "" if ratio is None else f"{ratio:.2f} x matmul",
                          "" if rate is None else f"{rate:.1f} GB/s", flush=True)
    write_tables(arguments.out)


def write_tables(table: pathlib.Path) -> None:
    """Between the markers of each op's README: the rows of that op."""
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    for readme in (pathlib.Path(__file__).parents[1] / "csrc").glob("*/README.md"):
        mine = [row for row in rows if row["op"] in (readme.parent.name, "un" + readme.parent.name)]
        text = readme.read_text()
        if not mine or "<!-- speed -->" not in text:
            continue
        lines = ["| op | shape | instructions | threads | ms | x matmul | GB/s |", "|---|---|---|---|---|---|---|"]
        lines += [f"| {row['op']} | {row['shape']} | {row['isa'] or row['impl']} | {row['threads']} | {float(row['seconds']) * 1e3:.2f} | "
                  f"{row['ratio']} | {row['gigabytes_per_second']} |" for row in mine]
        head, tail = text.split("<!-- speed -->")[0], text.split("<!-- /speed -->")[1]
        readme.write_text(head + "<!-- speed -->\n" + "\n".join(lines) + "\n<!-- /speed -->" + tail)


if __name__ == "__main__":
    main()
