"""Anisotropic PQ codes (ScaNN's loss) on the card's experiment: inner products, 192 slices of 2 dimensions, 16 codewords each.

    python benchmarks/anisotropic.py VECTORS.npy [--quick] [--out results/anisotropic.csv]

VECTORS: unit rows; the first 1,000 are left for queries (500 are used), the next 20,000 are coded (--quick: 100 and 4,000). The codebooks
are those of plain k-means at every threshold: only the codes differ. No peer: ScaNN has no release for this platform's Python.

threshold     T, 0 = nearest codewords;  eta: how much more an error along the vector counts
mse           mean |x - x^|^2;  along: the part of it along x
recall        share of the true 10 best inner products among the 10 best estimates, without re-ranking
top_error     mean relative error |<q, x> - <q, x^>| / <q, x> over the true 10 best
encode_s      seconds of processor time to code all rows, one thread
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from codeword.parts import anisotropic
from codeword.quantizers.pq import PQ

THRESHOLDS = (0.0, 0.1, 0.15, 0.2, 0.3)
K = 10
FIELDS = ("threshold", "eta", "rows", "queries", "mse", "along", "recall", "top_error", "encode_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/anisotropic.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.from_numpy(np.load(options.vectors, mmap_mode="r")[:21000].astype(np.float32))
    queries, base = (x[:100], x[1000:5000]) if options.quick else (x[:500], x[1000:])
    exact = queries @ base.mT
    best = exact.topk(K, dim=1)
    dim = base.shape[1]
    fitted = PQ(dim=dim, num_codebooks=dim // 2, codebook_size=16).fit(base)
    rows = []
    for threshold in THRESHOLDS:
        quantizer = PQ(dim=dim, num_codebooks=dim // 2, codebook_size=16, anisotropy=threshold)
        quantizer.load_state_dict(fitted.state_dict())
        quantizer.fitted = True
        start = time.process_time()
        codes = quantizer.encode(base)
        seconds = time.process_time() - start
        decoded = torch.as_tensor(quantizer.decode(codes))
        left, estimate = base - decoded, queries @ decoded.mT
        found = estimate.topk(K, dim=1).indices
        recall = (found.unsqueeze(2) == best.indices.unsqueeze(1)).any(2).double().mean()
        top = ((best.values - estimate.gather(1, best.indices)).abs() / best.values.abs()).mean()
        along = ((left * base).sum(1).square() / base.square().sum(1)).mean()
        values = (threshold, float(anisotropic.weight(base, threshold).mean()), len(base), len(queries), float(left.square().sum(1).mean()),
                  float(along), float(recall), float(top), seconds)
        rows.append(dict(zip(FIELDS, (f"{value:.4g}" if isinstance(value, float) else value for value in values), strict=True)))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if options.quick:
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
