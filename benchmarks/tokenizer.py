"""Image tokenizers: how long the default job takes, and every quantizer on the same encoder, data and steps.

    python benchmarks/tokenizer.py job IMAGES [--valid IMAGES] [--minutes 10] [--out FILE.csv]
    python benchmarks/tokenizer.py quantizers TRAIN TEST [--steps 3000] [--size 16384] [--seeds 3] [--only simvq,vq-random] [--out FILE.csv]

``job`` runs train, encode and report as a user does, with the defaults, and writes the seconds of each: together they must stay below 15
minutes on two cores. ``quantizers`` trains one tokenizer a row, each in a process of its own; rows that the file has already are kept and
not measured again, so a run may be stopped and continued. Give it CIFAR-10's train.parquet and test.parquet.

quantizer, seed, steps       spec by the name in ARMS; plain VQ of the papers is "vq-random": U(+-1/K), no revival, no k-means
error, psnr, ssim            on all test images, after rounding to uint8
usage, perplexity            over all test images
bits                         a pixel
step_cpu_ms, peak_mib        processor time of a step, all threads; largest resident memory of the process
seconds, load                of the run; load average of the machine at its end: above the threads in use, seconds are not to be trusted
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from codeword.cli import main as codeword
from codeword.errors import CodewordError

ARMS = {
    "vq-random": ("vq:codebook_size={size},revival=0", "random"), "vq-kmeans": ("vq:codebook_size={size},revival=0", "data"),
    "vq-ema": ("vq:codebook_size={size},learning=ema", "data"), "simvq": ("simvq:codebook_size={size}", "data"),
    "bridge_vq": ("bridge_vq:codebook_size={size}", "data"), "cosine_vq": ("cosine_vq:codebook_size={size}", "data"),
    "fsq": ("fsq:grid=8x8x8x8x4", "data"),
}
JOB_FIELDS = ("images", "step", "seconds", "load")
FIELDS = ("quantizer", "seed", "steps", "error", "psnr", "ssim", "usage", "perplexity", "bits", "step_cpu_ms", "peak_mib", "seconds",
          "load")


def job(images: str, valid: str | None, minutes: float, out: Path) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as home:
        held = ["--valid", valid] if valid else []
        for name, words in (("train", ["train", images, "-o", f"{home}/tok", "--minutes", str(minutes), *held]),
                            ("encode", ["encode", f"{home}/tok", images, "-o", f"{home}/tokens"]),
                            ("report", ["report", f"{home}/tok", valid or images])):
            began = time.perf_counter()
            assert codeword(["tokenizer", *words]) == 0, name
            rows.append({"images": Path(images).name, "step": name, "seconds": round(time.perf_counter() - began, 1), "load": _load()})
    rows.append({"images": Path(images).name, "step": "all", "seconds": round(sum(row["seconds"] for row in rows), 1), "load": _load()})
    _write(out, JOB_FIELDS, rows)


def quantizers(train: str, test: str, steps: int, size: int, seeds: int, only: list[str], out: Path) -> None:
    rows: list[dict[str, Any]] = []
    if out.exists():
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {(row["quantizer"], row["seed"], row["steps"]) for row in rows}
    for seed in range(seeds):
        for name in only:
            if (name, str(seed), str(steps)) in done:
                continue
            command = [sys.executable, __file__, "one", train, test, "--steps", str(steps), "--size", str(size), "--only", name, "--seed",
                       str(seed)]
            found = subprocess.run(command, capture_output=True, text=True, check=False)
            if found.returncode:
                print(f"{name}, seed {seed}: {found.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            rows.append(json.loads(found.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
            _write(out, FIELDS, rows)


def one(train: str, test: str, steps: int, size: int, name: str, seed: int) -> None:
    """One row, as JSON."""
    from codeword.cli.tokenizer import _usual_dim
    from codeword.data.images import open_images
    from codeword.tokenizers.evaluate import evaluate
    from codeword.tokenizers.train import Limits, Settings
    from codeword.tokenizers.train import train as run
    spec, start = ARMS[name]
    spec = spec.format(size=size)
    images, held = open_images(train), open_images(test)
    settings = Settings(quantizer=spec, start=start, dim=_usual_dim(spec), seed=seed, size=32, channels=images.channels)
    with tempfile.TemporaryDirectory() as home:
        began, cpu = time.perf_counter(), time.process_time()
        outcome = run(images, held, settings, Limits(steps=steps, eval_every=1 << 30), Path(home) / "job")
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    found = evaluate(outcome.tokenizer, held, size=32).numbers
    kept = ("error", "psnr", "ssim", "usage", "perplexity", "bits")
    row = {"quantizer": name, "seed": seed, "steps": steps, **{key: round(found[key], 6) for key in kept},
           "step_cpu_ms": round(1000 * cpu / steps, 1), "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
           "seconds": round(seconds, 1), "load": _load()}
    print(json.dumps(row))


def _load() -> float:
    return round(os.getloadavg()[0], 1)


def _write(path: Path, fields: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("job", "quantizers", "one"))
    parser.add_argument("images", nargs="+", help="job: IMAGES; quantizers: TRAIN TEST")
    parser.add_argument("--valid")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--size", type=int, default=16384)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(ARMS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    only = given.only.split(",")
    if set(only) - set(ARMS):
        raise SystemExit(f"--only has {', '.join(set(only) - set(ARMS))}; {', '.join(ARMS)} are known")
    try:
        if given.what == "job":
            job(given.images[0], given.valid, given.minutes, given.out or Path("results/tokenizer_job.csv"))
        elif given.what == "quantizers":
            quantizers(*given.images, given.steps, given.size, given.seeds, only, given.out or Path("results/tokenizer.csv"))
        else:
            one(*given.images, given.steps, given.size, only[0], given.seed)
    except CodewordError as error:
        raise SystemExit(f"tokenizer: {error}") from None


if __name__ == "__main__":
    main()
