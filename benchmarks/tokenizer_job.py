"""From a folder of images to a trained tokenizer, token shards and a report: seconds of each step, with the defaults of the commands.

    python benchmarks/tokenizer_job.py IMAGES [--valid IMAGES] [--minutes 10] [--out results/tokenizer_job.csv]

Together they must stay below 15 minutes on two cores. (Which quantizer is how good: ``benchmarks/tokenizers.py``.)

load: load average of the machine when the step was done; above the number of cores, seconds are not to be trusted
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from pathlib import Path

from codeword.cli import main as codeword

FIELDS = ("images", "step", "seconds", "load")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--valid")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("results/tokenizer_job.csv"))
    given = parser.parse_args()
    held = ["--valid", given.valid] if given.valid else []
    rows = []
    with tempfile.TemporaryDirectory() as home:
        for words in (["train", given.images, "-o", f"{home}/tok", "--minutes", str(given.minutes), *held],
                      ["encode", f"{home}/tok", given.images, "-o", f"{home}/tokens"],
                      ["report", f"{home}/tok", given.valid or given.images]):
            began = time.perf_counter()
            code = codeword(["tokenizer", *words])
            if code:
                return code
            rows.append([Path(given.images).name, words[0], round(time.perf_counter() - began, 1), round(os.getloadavg()[0], 1)])
    rows.append([Path(given.images).name, "all", round(sum(row[2] for row in rows), 1), round(os.getloadavg()[0], 1)])
    with given.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([FIELDS, *rows])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
