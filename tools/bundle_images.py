"""Make src/codeword/data/bundled_images from Fashion-MNIST in idx files: ``python tools/bundle_images.py FOLDER [TARGET]``.

Kept are the first 5,000 training and the first 1,000 test images with their labels, in their order, in the same format (gzip without
a date, so that the same images are the same bytes).
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

KEPT = {"train": 5_000, "t10k": 1_000}


def cut(source: Path, target: Path, count: int) -> None:
    """The first ``count`` items of an idx file."""
    data = gzip.decompress(source.read_bytes())
    axes = data[3]
    sizes = struct.unpack(f">{axes}I", data[4:4 + 4 * axes])
    item = 1
    for size in sizes[1:]:
        item *= size
    start = 4 + 4 * axes
    kept = data[:4] + struct.pack(f">{axes}I", count, *sizes[1:]) + data[start:start + count * item]
    target.write_bytes(gzip.compress(kept, compresslevel=9, mtime=0))


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for part, count in KEPT.items():
        for kind in ("images-idx3", "labels-idx1"):
            cut(source / f"{part}-{kind}-ubyte.gz", target / f"{part}-{kind}-ubyte.gz", count)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parents[1] / "src/codeword/data/bundled_images")
