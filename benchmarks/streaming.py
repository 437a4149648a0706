"""Files larger than the memory they may take: ``python benchmarks/streaming.py [--out results/streaming.csv]``.

A file of 3 GB is made of the MiniLM vectors, repeated, in a temporary folder, and mapped. Each row of the table is one process that
encodes it, or fits from it, while this one reads RssAnon in its /proc/PID/status every 10 ms: memory the process owns, without the
pages of mapped files, which the system takes back when it likes. The last row opens an index of 1 GB, mapped (median of five).

The command line packs codes into a file; the Python API writes them unpacked into arrays mapped from files (``encode(out=)``).

Columns: ``what`` (command line, Python API, fit, open), ``quantizer``, ``dtype`` of the file, ``gigabytes`` of it, ``seconds``,
``megabytes_per_second``, ``anonymous_mb`` the peak, ``result_mb`` left on disk, ``target``: 1000 MB of anonymous memory, or 0.1 s to
open; ``holds``; ``load``, the machine's one-minute load before. Seconds beside other programs are upper bounds; memory does not depend
on them.
"""

from __future__ import annotations

import argparse
import csv
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
COLUMNS = ("what", "quantizer", "dtype", "gigabytes", "seconds", "megabytes_per_second", "anonymous_mb", "result_mb", "target", "holds",
           "load")
QUANTIZERS = ("rabitq:code_bits=1", "scalar:code_bits=4", "pq:bits=0.25,iterations=4")
MEMORY_MB, OPEN_SECONDS = 1000, 0.1

ENCODE = """
import sys, time, numpy as np, codeword
one, x = codeword.load(sys.argv[1]), np.load(sys.argv[2], mmap_mode="r")
few = one.encode(x[:1])
out = codeword.Codes(*(None if part is None else np.memmap(f"{sys.argv[3]}{i}", part.dtype, "w+", shape=(len(x), *part.shape[1:]))
                       for i, part in enumerate(few)))
start = time.perf_counter()
one.encode(x, out=out)
for part in out:
    if part is not None:
        part.flush()
print(time.perf_counter() - start, sum(part.nbytes for part in out if part is not None))
"""
FIT = """
import sys, time, numpy as np, codeword
one, x = codeword.make(sys.argv[1], 384), np.load(sys.argv[2], mmap_mode="r")
one.fit_values = 1 << 25
start = time.perf_counter()
one.fit(x)
print(time.perf_counter() - start, one.shared_bytes)
"""
OPEN = """
import sys, time, codeword
from codeword.search.index import Index
import codeword.search.saving
start = time.perf_counter()
index = Index.load(sys.argv[1], mmap=True)
print(time.perf_counter() - start, len(index))
"""


def watched(command: list[str]) -> tuple[str, float, float]:
    """(what it prints, seconds, peak RssAnon in MB) of a process."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}) as process:
        while process.poll() is None:
            try:
                status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                break
            peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))])
            time.sleep(0.01)
        text = process.communicate()[0]
        if process.returncode:
            raise SystemExit(f"{' '.join(command[:4])} ... failed with {process.returncode}")
    return text, time.perf_counter() - start, peak / 1000


def make_file(path: pathlib.Path, source: pathlib.Path, dtype: str, size: int) -> int:
    """A .npy of about ``size`` bytes: the vectors again and again, each time turned a little so that no block equals another."""
    vectors = np.load(source, mmap_mode="r")
    block = len(vectors)
    rows = size // (vectors.shape[1] * np.dtype(dtype).itemsize)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(rows, vectors.shape[1]))
    for i, start in enumerate(range(0, rows, block)):
        part = out[start:start + block]
        part[:] = np.roll(vectors, i, axis=1)[:len(part)] if dtype != "uint8" else np.clip(vectors[:len(part)] * 400 + 128, 0, 255)
    out.flush()
    return rows


def make_index(path: pathlib.Path, source: pathlib.Path, size: int) -> int:
    """A saved index of at least ``size`` bytes: four bits to search, the vectors beside them for re-ranking."""
    from codeword.search.index import Index
    vectors = np.load(source, mmap_mode="r")
    index = Index(dim=vectors.shape[1], quantizer="scalar:code_bits=4", store="float32").fit(vectors[:4096])
    while len(index) * index.bytes_per_vector < size:
        index.add(vectors)
    index.compact().save(path)
    return sum(file.stat().st_size for file in path.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of streaming encodes and fits.")
    parser.add_argument("--vectors", type=pathlib.Path, help=".npy (rows, 384)",
                        default=ROOT.parent / "shared" / "data" / "vectors" / "minilm_sentences.f16.npy")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / "streaming.csv")
    parser.add_argument("--quick", action="store_true", help="300 MB instead of 3 GB; nothing written")
    given = parser.parse_args()
    if not given.vectors.exists():
        raise SystemExit(f"{given.vectors} does not exist; --vectors names a .npy of width 384")
    size = 300_000_000 if given.quick else 3_000_000_000
    folder = pathlib.Path(tempfile.mkdtemp(prefix="streaming-"))
    rows: list[list[object]] = []

    def add(what: str, quantizer: str, dtype: str, amount: float, seconds: float, peak: float, codes: float, target: float, holds: bool,
            load: float) -> None:
        rate = "" if what == "open" else f"{amount / seconds / 1e6:.0f}"
        rows.append([what, quantizer, dtype, f"{amount / 1e9:.2f}", f"{seconds:.3f}", rate, f"{peak:.0f}", f"{codes / 1e6:.0f}", target,
                     "yes" if holds else "no", f"{load:.1f}"])
        print(*rows[-1], sep="  ", flush=True)
        if not given.quick:
            with open(given.out, "w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(COLUMNS)
                writer.writerows(rows)

    try:
        from codeword import catalog
        sample = np.load(given.vectors, mmap_mode="r")[:4096].astype(np.float32)
        for dtype in ("float16", "float32"):
            data = folder / f"{dtype}.npy"
            make_file(data, given.vectors, dtype, size)
            for spec in QUANTIZERS if dtype == "float32" else QUANTIZERS[::2]:
                name = folder / "quantizer.cw"
                catalog.make(spec, 384).fit(sample).save(name)
                for what in ("command line", "Python API"):
                    load = os.getloadavg()[0]
                    if what == "command line":
                        command = [sys.executable, "-m", "codeword", "encode", str(name), str(data), "-o", str(folder / "codes.cw"),
                                   "--overwrite"]
                    else:
                        command = [sys.executable, "-c", ENCODE, str(name), str(data), str(folder / "out")]
                    text, seconds, peak = watched(command)
                    codes = (folder / "codes.cw").stat().st_size if what == "command line" else float(text.split()[1])
                    seconds = seconds if what == "command line" else float(text.split()[0])
                    add(what, spec, dtype, data.stat().st_size, seconds, peak, codes, MEMORY_MB, peak < MEMORY_MB, load)
            spec, load = QUANTIZERS[2 if dtype == "float32" else 0], os.getloadavg()[0]
            text, _, peak = watched([sys.executable, "-c", FIT, spec, str(data)])
            add("fit", spec, dtype, data.stat().st_size, float(text.split()[0]), peak,
                float(text.split()[1]), MEMORY_MB, peak < MEMORY_MB, load)
            data.unlink()
        amount = make_index(folder / "index", given.vectors, size // 3)
        load = os.getloadavg()[0]
        found = sorted((float(text.split()[0]), peak) for text, _, peak in
                       (watched([sys.executable, "-c", OPEN, str(folder / "index")]) for _ in range(5)))
        seconds, peak = found[2]
        add("open", "scalar:code_bits=4 and float32", "", amount, seconds, peak, 0, OPEN_SECONDS, seconds < OPEN_SECONDS, load)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
