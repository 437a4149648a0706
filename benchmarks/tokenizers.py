"""Image tokenizers with large codebooks on CIFAR-10, 8 x 8 tokens: does every codeword serve, and is the error below plain VQ's?

    python benchmarks/tokenizers.py ../shared/data/cifar10 [--minutes 8] [--steps 0] [--arms vq,simvq,...] [--seed 0]
                                    [--accelerator auto] [--out results/tokenizers.csv]

FOLDER holds train.parquet and test.parquet. Each arm is one run of the loop behind ``codeword tokenizer train`` with its
defaults: same first weights, same images in the same order, same schedule, K = 16,384; it ends after ``--steps`` or ``--minutes``,
whichever comes first. ``vq``: plain VQ as papers start it, U(+-1/K), no k-means, no revival. ``vq-data``: fitted on the first latents,
with averages and revival. ``projected_vq``: its frozen features are those of ``codeword tokenizer features`` on the training images (the
small network of this library in place of CLIP's); finding them does not count as training. Rows are written as they come; an arm that
the file has under the same device, seed and limits is skipped.

error: mean squared error of pixels in [0, 1] on all test images; usage: share of codewords chosen at least once there
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import torch

from codeword.data.images import open_images
from codeword.tokenizers.evaluate import evaluate
from codeword.tokenizers.features import codebook_features
from codeword.tokenizers.train import Limits, Settings, train

K = 16384
ARMS: dict[str, dict[str, object]] = {
    "vq": {"quantizer": f"vq:codebook_size={K}", "start": "random"},
    "vq-data": {"quantizer": f"vq:codebook_size={K},learning=ema"},
    "simvq": {"quantizer": f"simvq:codebook_size={K}"},
    "bridge_vq": {"quantizer": f"bridge_vq:codebook_size={K}"},
    "projected_vq": {"quantizer": f"projected_vq:codebook_size={K}", "dim": 8},
    "cosine_vq": {"quantizer": f"cosine_vq:codebook_size={K}", "dim": 8},
}
FIELDS = ("arm", "device", "seed", "minutes", "limit_steps", "steps", "train_seconds", "error", "psnr", "ssim", "ms_ssim", "frechet",
          "usage", "perplexity", "bits", "quantizer")


def measured(name: str, folder: Path, args: argparse.Namespace, device: str) -> dict[str, object]:
    options = ARMS[name]
    images, valid = open_images(folder / "train.parquet"), open_images(folder / "test.parquet")
    settings = Settings(seed=args.seed, **options)  # type: ignore[arg-type]
    limits = Limits(steps=args.steps or None, minutes=args.minutes, eval_every=1 << 30, save_seconds=1e9)
    frozen = codebook_features(images, K, size=settings.size, seed=args.seed) if name == "projected_vq" else None
    with tempfile.TemporaryDirectory() as job:
        done = train(images, valid, settings, limits, job, accelerator=args.accelerator, features=frozen)
        if done.interrupted:
            raise SystemExit(130)
    look = evaluate(done.tokenizer, valid, size=settings.size)
    found = {key: f"{look.numbers[key]:.6g}" for key in FIELDS if look.numbers.get(key) is not None}
    return {"arm": name, "device": device, "seed": args.seed, "minutes": args.minutes, "limit_steps": args.steps, "steps": done.steps,
            "train_seconds": f"{done.seconds:.0f}", **found, "quantizer": settings.quantizer}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--out", type=Path, default=Path("results/tokenizers.csv"))
    args = parser.parse_args()
    gpu = torch.cuda.is_available() and args.accelerator in ("auto", "gpu", "cuda")
    device = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} threads"
    rows = list(csv.DictReader(args.out.open(newline=""))) if args.out.exists() else []
    known = {(row["arm"], row["device"], row["seed"], row["minutes"], row["limit_steps"]) for row in rows}
    for name in args.arms.split(","):
        if (name, device, str(args.seed), str(args.minutes), str(args.steps)) in known:
            continue
        began = time.perf_counter()
        row = measured(name, args.folder, args, device)
        rows.append({key: str(value) for key, value in row.items()})
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print({key: row[key] for key in ("arm", "steps", "train_seconds", "error", "usage", "perplexity")},
              f"{time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
