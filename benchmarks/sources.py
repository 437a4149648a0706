"""What a training step costs where codewords come from somewhere else: forward and backward of each source over those of a plain VQ.

    python benchmarks/sources.py [--quick] [--out results/sources.csv]

N(0, 1) rows of width 64, the quantizers started on some of them, one thread, calls of all in turn, least processor time of each. Columns:

    quantizer, spec      the catalog's name, and what codeword.make is given
    codebook_size, rows  K and N
    seconds              processor time of one step: values and loss, and the gradients of both
    over_vq              the same over the plain VQ's of this size
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import codeword
from codeword.quantizer import Quantizer

DIM = 64
FIELDS = ("quantizer", "spec", "codebook_size", "rows", "seconds", "over_vq")
SPECS = {
    "vq": "vq:iterations=0",
    "simvq": "simvq:steps=0",
    "projected_vq": "projected_vq:steps=0",
    "bridge_vq": "bridge_vq:steps=0",
    "cosine_vq": "cosine_vq:iterations=0",
    "cosine_vq, entropy": "cosine_vq:iterations=0,entropy=0.03",
    "factorized_vq": "factorized_vq:iterations=0,entropy=0.0",
}


def step_seconds(quantizer: Quantizer, x: torch.Tensor) -> float:
    rows = x.clone().requires_grad_()
    quantizer.zero_grad()
    start = time.process_time()
    out = quantizer(rows)
    (out.values.sum() + out.loss).backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,024 codewords and 2,048 rows only")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = []
    for size, rows in ((1024, 2048),) if options.quick else ((1024, 16_384), (16_384, 16_384)):
        x = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(0))
        quantizers = {name: codeword.make(f"{spec},codebook_size={size}", DIM).fit(x[:2048]).train() for name, spec in SPECS.items()}
        best = dict.fromkeys(SPECS, float("inf"))
        for _ in range(2 if options.quick else 5):
            for name, quantizer in quantizers.items():
                best[name] = min(best[name], step_seconds(quantizer, x))
        for name, seconds in best.items():
            table.append({"quantizer": name, "spec": f"{SPECS[name]},codebook_size={size}", "codebook_size": size, "rows": rows,
                          "seconds": f"{seconds:.4f}", "over_vq": f"{seconds / best['vq']:.2f}"})
            print(f"{size:6d} {name:20s} {seconds * 1e3:8.1f} ms {seconds / best['vq']:6.2f}", flush=True)
    if options.out:
        with options.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    sys.exit(main())
