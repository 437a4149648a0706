"""Training steps of quantizer layers beside torch's bare float32 matrix product and beside vector-quantize-pytorch.

    python benchmarks/layers.py [--threads 2] [--repeats 5] [--quick] [--only NAME ...] [--out results/layers.csv]

A step is forward, backward (from a gradient of the values that is there already, and of the loss, to the input and all that learns) and
update, on standard normal tokens (n x dim) and a codebook of standard normal codewords. The product of the same shape, n x dim times
dim x codebook_size, is computed in blocks of rows into one preallocated buffer, and nothing is done with it; a residual's is taken once
for each stage. All layers of a case and the product alternate in one run. Columns: layer; library; tokens; dim; codebook_size;
num_codebooks; threads; forward, backward and update in seconds (median; processor time of the thread for one thread, else wall clock);
forward and backward over the product in the same run (median of the ratios); peak_mib: largest memory of a step beyond what it had
before, of a child process of its own (VmHWM, where the system tells). vector-quantize-pytorch builds tables of tokens x codewords; where
they would need more than ``--peer-mib`` it is left out.

To add a layer: a line in ``LAYERS`` that builds it, and its name in ``CASES``.
"""

from __future__ import annotations

import argparse
import csv
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import codeword
from codeword.quantizer import Quantizer

COLUMNS = ("layer", "library", "tokens", "dim", "codebook_size", "num_codebooks", "threads", "forward", "backward", "update",
           "forward_ratio", "backward_ratio", "peak_mib")
BLOCK = 4096
OURS, THEIRS = "codeword", "vector-quantize-pytorch"


class Layer(NamedTuple):
    """``build`` makes it for (dim, codebook_size, num_codebooks); ``call`` gives (values, loss, what update needs)."""

    library: str
    build: Callable[[int, int, int], nn.Module]
    call: Callable[[Any, Tensor], tuple[Tensor, Tensor, Any]]


class Case(NamedTuple):
    tokens: int
    dim: int
    size: int
    books: int
    layers: tuple[str, ...]


def ours(spec: str) -> Layer:
    """A quantizer of this spec, {size} and {books} filled in, with codewords at random: fitting is not what is measured."""
    def build(dim: int, size: int, books: int) -> Quantizer:
        quantizer = codeword.make(spec.format(size=size, books=books), dim)
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, tensor in (*quantizer.named_parameters(), *quantizer.named_buffers()):
                if name.rpartition(".")[2] in ("codebook", "codebooks", "basis", "weight"):
                    tensor.copy_(torch.randn(tensor.shape, generator=g) / (1.0 if tensor.shape[-1] != tensor.shape[0] else dim**0.5))
        for part in quantizer.modules():
            if isinstance(part, Quantizer) and part.learns:
                part.restore({"fitted": True})
            if hasattr(part, "upkeep"):
                part.upkeep.start(getattr(part, "codebooks", None) if hasattr(part, "codebooks") else part.codebook)
        return quantizer.train()

    def call(layer: Quantizer, x: Tensor) -> tuple[Tensor, Tensor, Any]:
        out = layer(x)
        return out.values, out.loss, out

    return Layer(OURS, build, call)


def theirs(kind: str, **options: Any) -> Layer:
    def build(dim: int, size: int, books: int) -> nn.Module:
        import vector_quantize_pytorch
        torch.manual_seed(0)
        more = {"num_quantizers": books} if kind.startswith("Residual") else {}
        return getattr(vector_quantize_pytorch, kind)(dim=dim, codebook_size=size, **more, **options).train()

    def call(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Any]:
        values, _, loss, *_ = layer(x.unsqueeze(0))
        return values.squeeze(0), loss.sum(), None

    return Layer(THEIRS, build, call)


LAYERS: dict[str, Layer] = {
    "VQ": ours("vq:codebook_size={size}"),
    "VQ ema": ours("vq:codebook_size={size},learning=ema"),
    "VQ rotation": ours("vq:codebook_size={size},learning=ema,estimator=rotation"),
    "VQ ibq": ours("vq:codebook_size={size},estimator=ibq,temperature=8.0"),
    "SimVQ": ours("simvq:codebook_size={size}"),
    "RVQ": ours("rvq:num_codebooks={books},codebook_size={size},beam=1,learning=ema"),
    "VectorQuantize learnable": theirs("VectorQuantize", learnable_codebook=True, ema_update=False, rotation_trick=False),
    "VectorQuantize ema": theirs("VectorQuantize", rotation_trick=False),
    "VectorQuantize rotation": theirs("VectorQuantize", rotation_trick=True),
    "SimVQ theirs": theirs("SimVQ", rotation_trick=False),
    "ResidualVQ": theirs("ResidualVQ", rotation_trick=False),
}
VQS = ("VQ", "VectorQuantize learnable", "VQ ema", "VectorQuantize ema", "VQ rotation", "VectorQuantize rotation", "VQ ibq", "SimVQ",
       "SimVQ theirs")
CASES = (
    Case(16384, 64, 1024, 1, VQS),
    Case(16384, 64, 16384, 1, VQS),
    Case(16384, 64, 65536, 1, ("VQ", "VQ ema", "SimVQ")),
    Case(4096, 64, 262144, 1, ("VQ", "VQ ema", "SimVQ")),
    Case(16384, 64, 1024, 8, ("RVQ", "ResidualVQ")),
)
QUICK = (Case(512, 16, 64, 1, VQS), Case(512, 16, 64, 3, ("RVQ", "ResidualVQ")))


def tokens_of(case: Case) -> Tensor:
    return torch.randn(case.tokens, case.dim, generator=torch.Generator().manual_seed(1))


def step(layer: Layer, module: Any, x: Tensor, now: Callable[[], float]) -> tuple[float, float, float]:
    """Seconds of forward, backward and update."""
    x, slope = x.clone().requires_grad_(), x.flip(0)
    module.zero_grad(set_to_none=True)
    start = now()
    values, loss, rest = layer.call(module, x)
    middle = now()
    torch.autograd.backward((values, loss), (slope, torch.ones_like(loss)))
    end = now()
    if layer.library == OURS:
        module.update(rest)
    if x.grad is None or not bool(torch.isfinite(x.grad).all()):
        raise SystemExit("the input received no gradient")
    return middle - start, end - middle, now() - end


def measure(case: Case, threads: int, repeats: int, names: list[str], peer_mib: float, memory: bool) -> list[tuple]:
    now = time.thread_time if threads == 1 else time.perf_counter
    x, left_out = tokens_of(case), 4 * case.tokens * case.size * 4 / 2**20 > peer_mib
    chosen = [name for name in names if LAYERS[name].library == OURS or not left_out]
    for name in set(names) - set(chosen):
        print(f"{name} at {case.tokens} x {case.size} is left out: four tables of tokens x codewords exceed {peer_mib:.0f} MiB")
    modules = {name: LAYERS[name].build(case.dim, case.size, case.books) for name in chosen}
    g = torch.Generator().manual_seed(2)
    columns, buffer = torch.randn(case.dim, case.size, generator=g), torch.empty(min(BLOCK, case.tokens), case.size)
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in ["matmul", *chosen]}
    for repeat in range(repeats + 1):  # the first warms up
        start = now()
        for _ in range(case.books):
            for row in range(0, case.tokens, BLOCK):
                torch.matmul(x[row:row + BLOCK], columns, out=buffer[:case.tokens - row])
        base = now() - start
        for name in chosen:
            took = step(LAYERS[name], modules[name], x, now)
            if repeat:
                times[name].append((*took, took[0] / base, took[1] / base))
        if repeat:
            times["matmul"].append((base, 0.0, 0.0, 1.0, 0.0))
    rows = []
    for name, found in times.items():
        library = "torch" if name == "matmul" else LAYERS[name].library
        middle = [statistics.median(column) for column in zip(*found, strict=True)]
        peak = peak_mib(case, name, threads) if memory and name != "matmul" else None
        rows.append((name, library, case.tokens, case.dim, case.size, case.books, threads, *middle, peak))
    return rows


def peak_mib(case: Case, name: str, threads: int) -> float | None:
    """Of a child process that does nothing else."""
    done = subprocess.run([sys.executable, __file__, "--child", name, *map(str, case[:4]), str(threads)], text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{name} failed in a process of its own:\n{done.stderr}")
    value = float(done.stdout.split()[-1])
    return None if value < 0 else value


def child(name: str, tokens: int, dim: int, size: int, books: int, threads: int) -> None:
    """Prints the largest memory of a step beyond that before it, in MiB; -1 where the system does not tell."""
    torch.set_num_threads(threads)
    layer, small = LAYERS[name], min(tokens, 256)
    module, x = layer.build(dim, size, books), tokens_of(Case(tokens, dim, size, books, ()))
    for _ in range(2):  # what is imported or made once is not the step's
        step(layer, module, x[:small], time.perf_counter)
    module.zero_grad(set_to_none=True)
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        step(layer, module, x, time.perf_counter)
        print((_status("VmHWM") - before) / 1024)
    except OSError:
        print(-1)


def _status(key: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise OSError(key)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], *map(int, sys.argv[3:8]))
    parser = argparse.ArgumentParser(description="Training steps of quantizer layers beside a matrix product and vector-quantize-pytorch.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "results" / "layers.csv")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-mib", type=float, default=8192, help="memory that tables of vector-quantize-pytorch may take")
    parser.add_argument("--only", nargs="+", choices=LAYERS, default=list(LAYERS), metavar="NAME", help="layers to run")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one repeat; writes nothing unless --out is given")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for case in QUICK if arguments.quick else CASES:
        names = [name for name in case.layers if name in arguments.only]
        for row in measure(case, arguments.threads, 1 if arguments.quick else arguments.repeats, names, arguments.peer_mib, True):
            rows.append(row)
            memory = "" if row[12] is None else f", {row[12]:8.1f} MiB"
            print(f"{row[0]:26} {row[2]} x {row[3]}, {row[5]} x {row[4]:6}: forward {row[7]:8.4f} s {row[10]:7.3f} x, "
                  f"backward {row[8]:8.4f} s {row[11]:7.3f} x, update {row[9]:7.4f} s{memory}", flush=True)
    if arguments.quick and arguments.out == parser.get_default("out"):
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with open(arguments.out, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for *labels, forward, backward, update, forward_ratio, backward_ratio, peak in rows:
            writer.writerow([*labels, f"{forward:.5f}", f"{backward:.5f}", f"{update:.5f}", f"{forward_ratio:.3f}", f"{backward_ratio:.3f}",
                             "" if peak is None else f"{peak:.1f}"])


if __name__ == "__main__":
    main()
