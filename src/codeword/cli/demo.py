"""codeword demo: the main job on the bundled sentence embeddings. Every command is printed as one would type it, then run."""

from __future__ import annotations

import contextlib
import io
import shlex
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from codeword.cli.show import Json, emit, pairs, rounded
from codeword.errors import CodewordError

NLIST, NPROBE, BITS = 64, 32, 4


def register(app: typer.Typer) -> None:
    app.command(epilog="Example:  codeword demo --out demo")(demo)


Folder = Annotated[Path, typer.Option("--out", "-o", help="Folder for data, index and report; must not exist, or be an earlier demo's.")]


def demo(out: Folder = Path("demo"), as_json: Json = False) -> None:
    """Compare quantizers on bundled sentence embeddings, build a compressed index, and search it. Takes under a minute."""
    started = time.perf_counter()
    rows, width = _lay_out(out)
    _say(as_json, f"{rows:,} sentences as vectors of width {width}, and 500 more as queries, are now in {out}/ "
                  "(origin and licence: README.md there).")
    base, queries = out / "base.npy", out / "queries.npy"
    _say(as_json, "\nWhich quantizer serves them best?")
    compared = _run(as_json, "compare", base, "--queries", queries, "--metric", "cosine", "--bits", "1,2,4", "--out", out / "compare")
    _say(as_json, f"\nAn index of {BITS}-bit codes instead of 32-bit floats:")
    _run(as_json, "index", "build", base, "--metric", "cosine", "--quantizer", f"rabitq:bits={BITS}", "--nlist", NLIST, "--out",
         out / "base.index")
    _say(as_json, "\nThree sentences that are not in it, and the nearest that are:")
    _run(as_json, "index", "search", out / "base.index", queries, "--rows", "0-2", "-k", 3, "--nprobe", NPROBE,
         "--texts", out / "base.txt", "--query-texts", out / "queries.txt")
    _say(as_json, "\nAll queries, one thread, measured against exact search:")
    found = _run(as_json, "index", "search", out / "base.index", queries, "-k", 10, "--nprobe", NPROBE, "--base", base, "--out",
                 out / "hits.npz")
    report = out / "compare" / "report.html"
    summary = {"recall": found["recall"], "bytes_per_vector": found["bytes_per_vector"], "queries_per_second": found["queries_per_second"],
               "report": str(report), "best": compared["best"], "seconds": time.perf_counter() - started}

    def show() -> None:
        print()
        pairs({"recall@10": f"{summary['recall']:.3f}",
               "bytes per vector": f"{summary['bytes_per_vector']:.1f} (float32: {4 * width})",
               "queries per second": f"{rounded(summary['queries_per_second'])} on one thread",
               "report": str(report),
               "took": f"{summary['seconds']:.0f} s"})

    emit(summary, as_json, show)


def _lay_out(out: Path) -> tuple[int, int]:
    """Copies of the bundled files, and nothing left of an earlier demo."""
    from codeword.data import bundled
    from codeword.data.bundle import FOLDER
    if out.exists():
        if not (out / ".codeword-demo").is_file():
            raise CodewordError(f"{out} exists and is no earlier demo; name another folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / ".codeword-demo").write_text("This folder is removed when codeword demo runs again.\n")
    for source, target in (("base.f16.npy", "base.npy"), ("queries.f16.npy", "queries.npy"), ("base.txt", "base.txt"),
                           ("queries.txt", "queries.txt"), ("README.md", "README.md")):
        shutil.copyfile(FOLDER / source, out / target)
    return bundled().base.shape


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, flush=True)


def _run(quiet: bool, *words: Any) -> dict[str, Any]:
    """Print a command and run it in this process; returns its machine summary."""
    from codeword.cli import app, show
    arguments = [str(word) for word in words]
    _say(quiet, f"\n$ codeword {shlex.join(arguments)}")
    with show.capture() as summaries, contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
        code = app.run(arguments)
    if code:
        raise CodewordError(f"codeword {shlex.join(arguments)} ended with code {code}")
    return summaries[-1]
