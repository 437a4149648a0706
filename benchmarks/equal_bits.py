"""Every learned quantizer and lattice in one tokenizer: same encoder and decoder, same images, 12 bits a token.

    python benchmarks/equal_bits.py ../shared/data/cifar10 [--steps 500] [--seeds 3] [--arms vq,fsq,...] [--quick] [--out FILE.csv]

FOLDER holds train.parquet and test.parquet. An arm is one run of the loop behind ``codeword tokenizer train`` with its defaults (8 x 8
tokens, 32 wide) and a network of half the usual width for ``--steps``: same first weights, same images in the same order, same schedule;
only the quantizer differs, and around those of another width a trained affine map (``affine``). Rows are written as they come, and those
that the file has are skipped.

    token_bits         of one of the 8 x 8 places, whatever the number of codebooks
    error, psnr        of pixels in [0, 1] on all test images; usage: share of codewords chosen there, perplexity: of their choice, of one
                       codebook (the mean over codebooks); a codebook of 64 words has at most 64
    step_ms            a training step of the whole tokenizer (wall clock, with reading images)
    quantizer_ms       the quantizer's own forward, backward and update on the 4,096 latents of a batch (least of ten, wall clock)
    quantizer_mib      the largest memory of that beyond what was there before, of a process of its own (VmHWM, where the system tells)
    load               load average when the row was done: above the threads in use, wall times are not to be trusted

The table at the end has means over seeds.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch

from codeword import catalog
from codeword.data.images import Images, open_images
from codeword.quantizer import Quantizer
from codeword.tokenizers.evaluate import evaluate
from codeword.tokenizers.train import Limits, Settings, train

BITS, DIM, LATENTS = 12, 32, 4096
ARMS = {
    "vq": "vq:codebook_size=4096",
    "vq-ema": "vq:codebook_size=4096,learning=ema",
    "vq-rotation": "vq:codebook_size=4096,learning=ema,estimator=rotation",
    "vq-diveq": "vq:codebook_size=4096,estimator=diveq",
    "cosine_vq": "affine(cosine_vq:codebook_size=4096):width=8",
    "simvq": "simvq:codebook_size=4096",
    "bridge_vq": "bridge_vq:codebook_size=4096",
    "projected_vq": "projected_vq:codebook_size=4096",
    "fsq": "affine(fsq:grid=8x8x8x8):width=4",
    "lfq": "affine(lfq:num_codebooks=1):width=12",
    "bsq": "affine(bsq:num_codebooks=1):width=12",
    "pq": "pq:num_codebooks=2,codebook_size=64,learning=ema",
    "gumbel_pq": "gumbel_pq:num_codebooks=2,codebook_size=64",
    "factorized_vq": "affine(factorized_vq:num_codebooks=2,codebook_size=64):width=16",
    "rvq": "rvq:num_codebooks=2,codebook_size=64,learning=ema",
    "group_rvq": "group_rvq:groups=2,layers=2,codebook_size=8,learning=ema",
    "masked_rvq": "masked_rvq:masked=2,layers=2,codebook_size=8,dropout=0.0",
}
FIELDS: tuple[str, ...] = ("arm", "seed", "steps", "token_bits", "error", "psnr", "usage", "perplexity", "step_ms", "quantizer_ms",
                           "quantizer_mib", "load", "quantizer")


def measured(arm: str, seed: int, steps: int, images: Images, valid: Images) -> dict[str, str]:
    settings = Settings(quantizer=ARMS[arm], network="vqgan:width=8", dim=DIM, seed=seed)
    limits = Limits(steps=steps, eval_every=1 << 30, log_every=1 << 30, save_seconds=1e9)
    with tempfile.TemporaryDirectory() as folder:
        done = train(images, valid, settings, limits, folder)
        if done.interrupted:
            raise SystemExit(130)
        look = evaluate(done.tokenizer, valid, size=settings.size, thorough=False).numbers
        done.tokenizer.quantizer.save(pathlib.Path(folder) / "quantizer.cw")
        alone, memory = apart(pathlib.Path(folder) / "quantizer.cw")
    bits = sum(map(math.log2, done.tokenizer.quantizer.levels))
    if round(bits) != BITS:
        raise SystemExit(f"{arm} has {bits} bits a token; this table is of {BITS}")
    return {"arm": arm, "seed": str(seed), "steps": str(done.steps), "token_bits": f"{bits:g}",
            **{key: f"{look[key]:.6g}" for key in ("error", "psnr", "usage", "perplexity")},
            "step_ms": f"{1000 * done.seconds / done.steps:.1f}", "quantizer_ms": f"{alone:.2f}",
            "quantizer_mib": "" if memory < 0 else f"{memory:.1f}", "load": f"{os.getloadavg()[0]:.1f}", "quantizer": ARMS[arm]}


def apart(path: pathlib.Path) -> tuple[float, float]:
    """(milliseconds, MiB) of a step of the saved quantizer in a process of its own; -1 MiB where the system does not tell."""
    command = [sys.executable, __file__, "--child", str(path), str(torch.get_num_threads())]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"the step of {path.name} failed in a process of its own:\n{done.stderr}")
    first, second = done.stdout.split()[-2:]
    return float(first), float(second)


def child(path: str, threads: int) -> None:
    torch.set_num_threads(threads)
    quantizer = Quantizer.load(path).train()
    x = torch.randn(LATENTS, DIM, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # what is imported or made once is not the step's
        step(quantizer, x[:256])
    memory = -1.0
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        step(quantizer, x)
        memory = (_status("VmHWM") - before) / 1024
    except OSError:
        step(quantizer, x)
    print(1000 * min(step(quantizer, x) for _ in range(10)), memory)


def step(quantizer: Quantizer, x: torch.Tensor) -> float:
    x, slope = x.clone().requires_grad_(), x.flip(0)
    quantizer.zero_grad(set_to_none=True)
    start = time.perf_counter()
    out = quantizer(x)
    losses = [out.loss] * out.loss.requires_grad  # a lattice without losses has none
    torch.autograd.backward([out.values, *losses], [slope, *map(torch.ones_like, losses)])
    quantizer.update(out)
    return time.perf_counter() - start


def _status(key: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise OSError(key)


def table(rows: list[dict[str, str]]) -> None:
    columns = ("error", "psnr", "usage", "perplexity", "step_ms", "quantizer_ms", "quantizer_mib")
    print(f"{'arm':14} {'seeds':>5} " + " ".join(f"{name:>13}" for name in columns))
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if own:
            means = [statistics.fmean(float(row[name] or "nan") for row in own) for name in columns]
            print(f"{arm:14} {len(own):5} " + " ".join(f"{value:13.5g}" for value in means))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--quick", action="store_true", help="one seed of three steps; nothing is written")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "results" / "equal_bits.csv")
    given = parser.parse_args()
    steps, seeds = (3, 1) if given.quick else (given.steps, given.seeds)
    for arm in given.arms.split(","):
        catalog.make(ARMS[arm], DIM)
    images, valid = open_images(given.folder / "train.parquet"), open_images(given.folder / "test.parquet")
    rows = list(csv.DictReader(given.out.open(newline=""))) if given.out.exists() and not given.quick else []
    known = {(row["arm"], row["seed"], row["steps"]) for row in rows}
    for seed in range(seeds):
        for arm in given.arms.split(","):
            if (arm, str(seed), str(steps)) in known:
                continue
            rows.append(measured(arm, seed, steps, images, valid))
            print(*(f"{key}={rows[-1][key]}" for key in FIELDS[:-1]), flush=True)
            if not given.quick:
                given.out.parent.mkdir(parents=True, exist_ok=True)
                new = not given.out.exists()
                with given.out.open("a", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                    if new:
                        writer.writeheader()
                    writer.writerow(rows[-1])
    table(rows)


if __name__ == "__main__":
    main()
