"""FSQ, LFQ, BSQ, GroupRVQ and entropies beside vector-quantize-pytorch: a training step of each layer, a forward pass in eval mode, codes.

    OMP_WAIT_POLICY=passive python benchmarks/lattices.py [--only lfq] [--repeats 7] [--out results/lattices.csv]

Both sides get the same input (N, d), produce values, indices and their loss, and in training pass a gradient back to the input. Runs of
both alternate in one process, best of ``repeats``; memory is measured in a process of its own for each side: the growth of its largest
resident size (VmHWM, on Linux) over one step, after a step on 16 rows. Rows of the file that are measured again are replaced.

what                    layer and mode; "train": forward and backward of sum(values) + loss; "eval": forward without gradient, where ours
                        still computes entropies and usage, for validation, and theirs does not; "codes": ours encode and decode, theirs
                        its forward pass in eval mode, so that both give indices and values and nothing else
shape                   N x d, and the codes
ours_seconds, theirs_seconds, ratio (ours over theirs; below 1 is faster)
ours_mib, theirs_mib    peak memory beyond what the process had before
load                    load average when the row was done: above the threads in use, wall times are not to be trusted
Where theirs cannot run (a table of 2^d codes) its columns are empty.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor

import codeword
from codeword.parts import entropy

THREADS = 2
FIELDS: tuple[str, ...] = ("what", "shape", "ours_seconds", "theirs_seconds", "ratio", "ours_mib", "theirs_mib", "load")
Step = Callable[[Tensor], None]


class Case(NamedTuple):
    what: str
    shape: str
    rows: int
    dim: int
    ours: Callable[[], Step]
    theirs: Callable[[], Step] | None


def _layer(make: Callable[[], torch.nn.Module], mode: str, batch: bool) -> Callable[[], Step]:
    """A step of a layer; theirs takes (1, N, d) and returns a tuple with values first and, where it has one, a loss last."""
    def build() -> Step:
        layer = make().train(mode == "train")

        def step(x: Tensor) -> None:
            given = x.unsqueeze(0) if batch else x
            if mode == "codes" and isinstance(layer, codeword.Quantizer):
                layer.decode(layer.encode(x))
                return
            if mode != "train":
                with torch.no_grad():
                    layer(given)
                return
            out: Any = layer(given.detach().requires_grad_())
            total = out[0].sum()
            if isinstance(out, codeword.Quantized):
                total = total + out.loss
            elif torch.is_tensor(out[-1]) and out[-1].is_floating_point():
                total = total + out[-1].sum()
            total.backward()
        return step
    return build


def _dense_entropy(x: Tensor, codebook: Tensor) -> Tensor:
    p = torch.softmax(-torch.cdist(x, codebook).square(), dim=1)
    mean = p.mean(0)
    return -(p * p.clamp(min=1e-30).log()).sum(1).mean() + (mean * mean.clamp(min=1e-30).log()).sum()


def _entropy(dim: int, size: int, ours: bool) -> Callable[[], Step]:
    def build() -> Step:
        codebook = torch.randn(size, dim, generator=torch.Generator().manual_seed(1)).requires_grad_()

        def step(x: Tensor) -> None:
            x = x.detach().requires_grad_()
            loss = entropy.difference(*entropy.codebook_entropies(x, codebook, 1.0)) if ours else _dense_entropy(x, codebook)
            loss.backward()
        return step
    return build


def _group(dim: int) -> codeword.GroupRVQ:
    return codeword.GroupRVQ(dim=dim, groups=2, layers=2, codebook_size=1024, learning="ema", iterations=2).fit(
        torch.randn(2048, dim, generator=torch.Generator().manual_seed(2)))


def cases() -> list[Case]:
    """All measurements."""
    import vector_quantize_pytorch as peer
    grid, rows = [8, 5, 5, 5], 65536
    found = []

    def residual() -> torch.nn.Module:
        return peer.GroupedResidualVQ(dim=512, groups=2, num_quantizers=2, codebook_size=1024, rotation_trick=False)

    for mode in ("train", "eval", "codes"):
        found.append(Case(f"fsq {mode}", f"{rows} x 4, {grid}", rows, 4, _layer(lambda: codeword.FSQ(dim=4, grid=grid), mode, False),
                          _layer(lambda: peer.FSQ(grid), mode, True)))
        for count, bits in ((16384, 10), (4096, 14), (16384, 18), (16384, 36)):
            possible = bits < 18
            for name, ours, spherical in (("lfq", codeword.LFQ, False), ("bsq", codeword.BSQ, True)):
                def theirs(bits: int = bits, spherical: bool = spherical) -> torch.nn.Module:
                    return peer.LFQ(dim=bits, codebook_size=2**bits, commitment_loss_weight=0.0 if spherical else 0.25, spherical=spherical)

                found.append(Case(f"{name} {mode}", f"{count} x {bits}", count, bits,
                                  _layer(lambda ours=ours, bits=bits: ours(dim=bits), mode, False),
                                  _layer(theirs, mode, True) if possible else None))
        found.append(Case(f"group_rvq {mode}", "4096 x 512, 2 x 2 x 1024", 4096, 512, _layer(lambda: _group(512), mode, False),
                          _layer(residual, mode, True)))
    found.append(Case("entropy train", "4096 x 64, 4096 codewords, dense formula", 4096, 64, _entropy(64, 4096, True),
                      _entropy(64, 4096, False)))
    return found


def data(case: Case, rows: int | None = None) -> Tensor:
    return torch.randn(rows or case.rows, case.dim, generator=torch.Generator().manual_seed(0))


def seconds(case: Case, repeats: int) -> tuple[float, float | None]:
    """Best wall times of both sides, in turn."""
    x = data(case)
    steps = [case.ours(), *([] if case.theirs is None else [case.theirs()])]
    best = [float("inf")] * len(steps)
    for step in steps:
        step(x[:16])
    for _ in range(repeats):
        for i, step in enumerate(steps):
            start = time.perf_counter()
            step(x)
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1] if len(best) > 1 else None


def grown(case: Case, side: str) -> float:
    """MiB that this process' largest size grows by in one step."""
    build = case.ours if side == "ours" else case.theirs
    assert build is not None
    step, x = build(), data(case)
    step(x[:16])
    before = _largest()
    step(x)
    return (_largest() - before) / 1024


def _largest() -> int:
    """KiB. getrusage's number would start at the size of the process that started this one."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def _grown_apart(number: int, side: str) -> float:
    done = subprocess.run([sys.executable, __file__, "--memory", str(number), side], capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="FSQ, LFQ, BSQ, GroupRVQ and entropies beside vector-quantize-pytorch.")
    parser.add_argument("--only", default="", help="measure rows whose name starts with this")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("results/lattices.csv"))
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.memory:
        print(grown(cases()[int(options.memory[0])], options.memory[1]))
        return
    known: dict[tuple[str, str], dict[str, str]] = {}
    if options.out.exists():
        with options.out.open(newline="") as file:
            known = {(row["what"], row["shape"]): row for row in csv.DictReader(file)}
    for number, case in enumerate(cases()):
        if not case.what.startswith(options.only):
            continue
        ours, theirs = seconds(case, options.repeats)
        sides = ["ours", *([] if theirs is None else ["theirs"])]
        mib = {side: f"{_grown_apart(number, side):.1f}" for side in sides}
        known[case.what, case.shape] = row = {
            "what": case.what, "shape": case.shape, "ours_seconds": f"{ours:.5f}",
            "theirs_seconds": "" if theirs is None else f"{theirs:.5f}", "ratio": "" if theirs is None else f"{ours / theirs:.3f}",
            "ours_mib": mib["ours"], "theirs_mib": mib.get("theirs", ""), "load": f"{os.getloadavg()[0]:.1f}"}
        print("  ".join(row.values()), flush=True)
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(known.values())


if __name__ == "__main__":
    main()
