"""``ops.nearest``, ``segment_sum`` and a step of ``VQ`` on a GPU beside torch's matrix products of the same shape.

    python benchmarks/nearest_gpu.py [--out results/nearest_gpu.csv] [--seconds 110] [--tune]

First the answers: rows of every kind against the float64 definition evaluated on the device for all codewords, bit for bit. Then times:
medians of CUDA-event times, inputs in place. The product alone (float32, TF32, bfloat16) has N x K results; above 4 GiB of them it is
computed in blocks of rows into one buffer. ``blocks`` is what is usually written: cdist and argmin in blocks of rows. Columns: device;
what; way; n, d, k; data; ms; ratio to the TF32 product of that shape; peak_mib, largest memory beyond the inputs; second and full, shares
of rows that the second screen and the full pass saw; exact, whether answers equal the definition's. ``--seconds`` ends the run between
two shapes.
"""

from __future__ import annotations

import argparse
import csv
import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import codeword
from codeword import ops
from codeword.ops import reference
from codeword.ops.triton.nearest import Shape, counted

COLUMNS = ("device", "what", "way", "n", "d", "k", "data", "ms", "ratio", "peak_mib", "second", "full", "exact")
CASES = [(65536, 64, 16384), (65536, 64, 1024), (65536, 256, 16384), (65536, 8, 16384), (65536, 64, 65536), (16384, 64, 16384),
         (65536, 64, 262144)]
LARGEST = 1 << 32
TUNING = [Shape(128, 4, 3), Shape(128, 4, 4), Shape(128, 8, 3), Shape(256, 8, 3), Shape(64, 4, 3), Shape(128, 4, 2), Shape(128, 8, 2, 256),
          Shape(128, 8, 3, 64), Shape(128, 4, 3, 64)]


def data(kind: str, n: int, d: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator(device="cuda").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device="cuda")

    x, codebook = normal(n, d), normal(k, d)
    if kind == "clustered":  # 256 tight clusters of codewords, rows near codewords
        codebook = normal(256, d).repeat(-(-k // 256), 1)[:k] + 0.05 * codebook
        x = codebook[torch.randint(0, k, (n,), generator=g, device="cuda")] + 0.05 * x
    elif kind == "start":  # the usual start of a codebook, much smaller than the data
        codebook = (torch.rand(k, d, generator=g, device="cuda") * 2 - 1) / k
    elif kind == "offset":
        x, codebook = x + 1000, codebook + 1000
    elif kind == "integers":
        x, codebook = (2 * x).round(), (2 * codebook).round()
    elif kind == "near ties":
        codebook = normal(1, d) + torch.randint(-2, 3, (k, d), generator=g, device="cuda") * 2.0**-22
        x = codebook[:1] + 1e-3 * x
    elif kind == "hostile":
        x[::7, 0], x[1::11, -1], codebook[3::13] = torch.nan, torch.inf, codebook[3::13] * 1e9
        codebook[5], x[2:3] = torch.inf, x[2:3] * 1e25
    return x, codebook


def by_definition(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Every distance by the definition, in blocks."""
    indices, distances = [], []
    for block in x.split(max(1, (1 << 26) // max(1, len(codebook) * max(8, x.shape[1])))):
        distance = reference.exact_distances(block[:, None], codebook[None])
        least = distance.min(1).values
        finite = block.isfinite().all(1)
        first = (distance == least[:, None]).to(torch.int8).argmax(1)
        indices.append(torch.where(finite, first, 0))
        distances.append(torch.where(finite, least, torch.nan).float())
    return torch.cat(indices), torch.cat(distances)


def exact(x: Tensor, codebook: Tensor, shape: Shape | None = None) -> bool:
    indices, distances, _ = counted(x, codebook, shape)
    want = by_definition(x, codebook)
    return torch.equal(indices, want[0]) and torch.equal(distances.nan_to_num(-1.0), want[1].nan_to_num(-1.0))


def time_of(call: Callable[[], object], budget: float = 0.6) -> float:
    """Median milliseconds."""
    call()
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    repeats = int(min(40, max(3, budget / max(1e-6, time.perf_counter() - start))))
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in marks:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in marks)


def peak_mib(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    torch.cuda.synchronize()
    del kept
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def product(x: Tensor, codebook: Tensor) -> Callable[[], object]:
    """The bare matrix product, into one buffer."""
    rows = min(len(x), LARGEST // (len(codebook) * x.element_size()))
    out = x.new_empty(rows, len(codebook))

    def run() -> None:
        for start in range(0, len(x), rows):
            block = x[start:start + rows]
            torch.matmul(block, codebook.mT, out=out[:len(block)])

    return run


def in_blocks(x: Tensor, codebook: Tensor) -> Tensor:
    rows = max(1, (1 << 28) // len(codebook))
    return torch.cat([torch.cdist(block, codebook).argmin(1) for block in x.split(rows)])


class Table:
    def __init__(self, path: pathlib.Path, seconds: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w", newline="")
        self.writer = csv.writer(self.file, lineterminator="\n")
        self.writer.writerow(COLUMNS)
        self.device, self.end, self.failures = torch.cuda.get_device_name(), time.monotonic() + seconds, 0

    def add(self, what: str, way: str, n: int, d: int, k: int, kind: str, **found: Any) -> None:
        found = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in found.items()}
        self.failures += found.get("exact") is False
        self.writer.writerow([self.device, what, way, n, d, k, kind, *(found.get(name, "") for name in COLUMNS[7:])])
        self.file.flush()
        print(f"{what:8} {way:10} {n}x{d} with {k} {kind}: " + " ".join(f"{name} {value}" for name, value in found.items()), flush=True)

    def late(self) -> bool:
        return time.monotonic() > self.end


def answers(table: Table) -> None:
    for kind in ("gaussian", "clustered", "start", "offset", "integers", "near ties", "hostile"):
        for n, d, k in ((2048, 64, 4096), (777, 8, 16384), (513, 256, 3000), (300, 300, 1000), (100, 5, 50), (1, 64, 70000)):
            x, codebook = data(kind, n, d, k, seed=n)
            counts = counted(x, codebook)[2]
            table.add("answers", "triton", n, d, k, kind, exact=exact(x, codebook) and exact(x, codebook, Shape(splits=1)),
                      second=int(counts.second) / n, full=int(counts.full) / n)


def speed(table: Table, n: int, d: int, k: int) -> None:
    x, codebook = data("gaussian", n, d, k)
    base = None
    for way, factor, allowed in (("tf32", torch.float32, True), ("float32", torch.float32, False), ("bfloat16", torch.bfloat16, False)):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        ms = time_of(product(x.to(factor), codebook.to(factor)))
        base = base or ms
        table.add("matmul", way, n, d, k, "gaussian", ms=ms, ratio=ms / base)
    torch.backends.cuda.matmul.allow_tf32 = False
    if n * k <= 1 << 32:
        ms = time_of(lambda: in_blocks(x, codebook))
        table.add("nearest", "blocks", n, d, k, "gaussian", ms=ms, ratio=ms / base, peak_mib=peak_mib(lambda: in_blocks(x, codebook)))
    for kind in ("gaussian", "clustered", "start"):
        x, codebook = data(kind, n, d, k)
        counts = counted(x, codebook)[2]
        call = functools.partial(ops.nearest, x, codebook)
        ms = time_of(call)
        some = torch.randperm(n, device="cuda")[:max(16, (1 << 24) // k)]
        whole = ops.nearest(x, codebook)
        want = by_definition(x[some], codebook)
        table.add("nearest", "triton", n, d, k, kind, ms=ms, ratio=ms / base, peak_mib=peak_mib(call),
                  second=int(counts.second) / n, full=int(counts.full) / n,
                  exact=torch.equal(whole.indices[some], want[0]) and torch.equal(whole.distances[some], want[1]))


def backward(table: Table, n: int, d: int, k: int) -> None:
    x, codebook = data("gaussian", n, d, k)
    indices, grad = ops.nearest(x, codebook).indices, torch.randn(n, d, device="cuda")
    book = codebook.clone().requires_grad_()

    def gradient(way: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            (result,) = torch.autograd.grad(way(book, indices), book, grad)
            return result
        return run

    want = reference.segment_sum(grad.cpu(), indices.cpu(), k)[0].float()
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"triton": ops.gather, "index": lambda c, i: c[i],
                                                           "embedding": lambda c, i: torch.nn.functional.embedding(i, c)}
    for way, function in ways.items():
        call = gradient(function)
        table.add("gather", way, n, d, k, "gaussian", ms=time_of(call), peak_mib=peak_mib(call), exact="" if way != "triton" else
                  torch.equal(call().cpu(), want))
    for name, labels in (("gaussian", indices), ("one label", torch.zeros_like(indices))):
        table.add("segment_sum", "triton", n, d, k, name, ms=time_of(lambda labels=labels: ops.segment_sum(x, labels, k)))


def layer(table: Table, n: int, d: int, k: int) -> None:
    """Forward and backward of a VQ layer, and of the usual package's where it is installed."""
    x, codebook = data("gaussian", n, d, k)
    x.requires_grad_()
    ours = codeword.VQ(dim=d, codebook_size=k).cuda()
    ours.codebook.data.copy_(codebook)
    ours.fitted = True

    def step() -> None:
        out = ours(x)
        (out.values.sum() + out.loss).backward()

    ours.train()
    table.add("layer", "VQ", n, d, k, "gaussian", ms=time_of(step), peak_mib=peak_mib(step))
    try:
        from vector_quantize_pytorch import VectorQuantize  # type: ignore[import-not-found]
    except ImportError:
        return
    theirs = VectorQuantize(dim=d, codebook_size=k, learnable_codebook=True, ema_update=False).cuda()

    def their_step() -> None:
        values, _, loss = theirs(x.unsqueeze(0))
        (values.sum() + loss.sum()).backward()

    try:
        table.add("layer", "VectorQuantize", n, d, k, "gaussian", ms=time_of(their_step), peak_mib=peak_mib(their_step))
    except torch.cuda.OutOfMemoryError:
        table.add("layer", "VectorQuantize", n, d, k, "gaussian out of memory")


def tune(n: int, d: int, k: int) -> None:
    x, codebook = data("gaussian", n, d, k)
    for shape in TUNING:
        if d <= 64 and shape.columns == 64:
            continue
        try:
            print(f"tune {n}x{d} with {k} {shape}: {time_of(lambda shape=shape: counted(x, codebook, shape), 0.15):.3f} ms", flush=True)
        except Exception as error:
            print(f"tune {n}x{d} with {k} {shape}: {type(error).__name__} {str(error)[:200]}", flush=True)


def profile(n: int, d: int, k: int) -> None:
    """Where the time goes, kernel by kernel."""
    x, codebook = data("gaussian", n, d, k)
    ops.nearest(x, codebook)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        ops.nearest(x, codebook)
        torch.cuda.synchronize()
    times = sorted(((e.self_device_time_total, e.key) for e in found.key_averages()), reverse=True)
    print(f"profile {n}x{d} with {k}: " + ", ".join(f"{key[:24]} {us:.0f} us" for us, key in times[:12]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="nearest on a GPU.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "results" / "nearest_gpu.csv")
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--tune", action="store_true", help="also the time of other launch shapes and of single kernels")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    table = Table(arguments.out, arguments.seconds)
    answers(table)
    if arguments.tune:
        for n, d, k in CASES[:4]:
            profile(n, d, k)
        for n, d, k in CASES[:4]:
            tune(n, d, k)
    for n, d, k in CASES:
        if table.late():
            break
        speed(table, n, d, k)
    for k in (16384, 1024):
        if table.late():
            break
        backward(table, 65536, 64, k)
        layer(table, 16384, 64, k)
    if table.failures:
        raise SystemExit(f"{table.failures} rows differ from the definition")


if __name__ == "__main__":
    main()
