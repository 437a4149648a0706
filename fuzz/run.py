"""Coverage-guided fuzzing of the targets in turn, with atheris (``pip install codeword[fuzz]``).

    python fuzz/run.py --seconds 60            all targets in a minute; appends the counts to results/reliability.csv
    python fuzz/run.py --target codes --seconds 600

An input that breaks a property is kept under fuzz/regressions/TARGET and from then on runs with the tests. Corpora grow in
.fuzz/TARGET (not in the repository; the seeds are made from samples).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "fuzz"), str(ROOT / "tests" / "io")]
NAMES = ("json", "tensors", "quantizer", "codes", "manifest", "job", "spec", "faiss")
FIELDS = ("goal", "what", "value", "threshold", "seconds", "version")
RESULTS = ROOT / "results" / "reliability.csv"
BEFORE_RELEASE = 5_000_000
"""Executions a Python parser that R4 asks for before the first release."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--target", choices=NAMES)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        return inside(given.target, given.seconds)
    names = [given.target] if given.target else list(NAMES)
    rows, broken = [], False
    for name in names:
        runs, seconds, findings = fuzz(name, max(1, given.seconds // len(names)))
        broken |= bool(findings)
        print(f"{name:10} {runs:9} executions in {seconds:5.0f} s, {len(findings)} findings")
        rows.append(("R4", f"fuzz {name}: executions", runs, BEFORE_RELEASE, round(seconds)))
        rows.append(("R4", f"fuzz {name}: findings", len(findings), 0, round(seconds)))
    record(rows)
    return int(broken)


def fuzz(name: str, seconds: int) -> tuple[int, float, list[Path]]:
    """(executions, seconds, inputs that broke a property) of one target in its own process."""
    start = time.perf_counter()
    crashes = ROOT / ".fuzz" / "findings" / name
    shutil.rmtree(crashes, ignore_errors=True)
    crashes.mkdir(parents=True)
    done = subprocess.run([sys.executable, __file__, "--inside", "--target", name, "--seconds", str(seconds)],
                          capture_output=True, text=True, errors="replace", check=False)
    runs = [int(n) for n in re.findall(r"(?:Done |#)(\d+)", done.stderr)]
    found = sorted(crashes.iterdir())
    if not runs or (done.returncode and not found):
        raise SystemExit(f"fuzzing {name} did not run:\n{done.stderr[-3000:]}")
    kept = []
    for path in found:
        target = ROOT / "fuzz" / "regressions" / name / hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
        kept.append(target)
        print(f"{name}: {target}\n{done.stderr[-2500:]}")
    return max(runs), time.perf_counter() - start, kept


def inside(name: str, seconds: int) -> int:
    """The process that fuzzes: never returns normally, libFuzzer ends it."""
    import atheris
    with atheris.instrument_imports(include=["codeword.io", "codeword.catalog"]):
        import targets
    import torch
    torch.set_num_threads(1)
    corpus = ROOT / ".fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for data in targets.seeds(name):
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={seconds}", "-max_len=65536", "-timeout=10", "-rss_limit_mb=2048",
                   "-len_control=0", f"-artifact_prefix={ROOT / '.fuzz' / 'findings' / name}/"], targets.TARGETS[name])
    atheris.Fuzz()
    return 0


def record(rows: list[tuple[str, str, int, int, int]]) -> None:
    """Append (goal, what, value, threshold, seconds) with the version to results/reliability.csv."""
    import codeword
    from codeword.io import files
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if not RESULTS.exists():
        writer.writerow(FIELDS)
    writer.writerows((*row, codeword.__version__) for row in rows)
    RESULTS.parent.mkdir(exist_ok=True)
    before = RESULTS.read_bytes() if RESULTS.exists() else b""
    files.write_file(RESULTS, [before, text.getvalue().encode()])


if __name__ == "__main__":
    sys.exit(main())
