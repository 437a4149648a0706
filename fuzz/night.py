"""The long runs: kill loops, every prefix, every bit, and the fuzz targets for longer. Counts go to results/reliability.csv.

    python fuzz/night.py                                           as ``make night`` does: hours on two cores
    python fuzz/night.py --rounds 20 --stride 200 --seconds 30     a small helping
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000, help="kills of a writer")
    parser.add_argument("--stride", type=int, default=1, help="take every n-th prefix and bit")
    parser.add_argument("--seconds", type=int, default=1800, help="of fuzzing, for each target")
    given = parser.parse_args()
    broken = 0
    for goal, what, threshold, check in (
        ("R14", "kills of a saving process", 1000, lambda: kills(given.rounds)),
        ("R2", "prefixes refused", 10_000, lambda: damage(given.stride, prefixes)),
        ("R3", "flipped bits noticed", 100_000, lambda: damage(given.stride, bits)),
    ):
        start = time.perf_counter()
        tried, failed = check()
        seconds = round(time.perf_counter() - start)
        broken += failed
        print(f"{goal:4} {what}: {tried} in {seconds} s, {failed} failures", flush=True)
        run.record([(goal, what, tried, threshold, seconds), (goal, f"{what}: failures", failed, 0, seconds)])
    for name in run.NAMES:
        runs, seconds, findings = run.fuzz(name, given.seconds)
        broken += len(findings)
        print(f"R4   fuzz {name}: {runs} executions in {seconds:.0f} s, {len(findings)} findings", flush=True)
        run.record([("R4", f"fuzz {name}: executions", runs, run.BEFORE_RELEASE, round(seconds)),
                    ("R4", f"fuzz {name}: findings", len(findings), 0, round(seconds))])
    return int(broken > 0)


def kills(rounds: int) -> tuple[int, int]:
    """Rounds in which a killed writer left a readable old or new version, in folders of 20; and those in which it did not."""
    import io_kill
    good = bad = 0
    while good + bad < rounds:
        count = min(20, rounds - good - bad)
        with tempfile.TemporaryDirectory() as home:
            try:
                io_kill.rounds(Path(home), count, seed=time.time_ns())
                good += count
            except AssertionError as error:
                print("mixed or unreadable:", error)
                bad += count
    return good, bad


def damage(stride: int, variants: object) -> tuple[int, int]:
    """(refused, accepted or refused by another error than FormatError) over all kinds of files."""
    import io_samples

    from codeword.errors import FormatError
    good = bad = 0
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "f"
        for sample in io_samples.all_files():
            for data in variants(sample.data, stride):  # type: ignore[operator]
                path.write_bytes(data)
                try:
                    sample.read(path)
                    bad += 1
                    print(f"{sample.name}: accepted a damaged file of {len(data)} bytes")
                except FormatError as error:
                    good, bad = (good, bad + 1) if error.code == "internal" else (good + 1, bad)
                except Exception as error:
                    bad += 1
                    print(f"{sample.name}: {type(error).__name__}: {error}")
    return good, bad


def prefixes(data: bytes, stride: int) -> Iterator[bytes]:
    for size in range(0, len(data), stride):
        yield data[:size]


def bits(data: bytes, stride: int) -> Iterator[bytes]:
    for bit in range(0, 8 * len(data), stride):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
