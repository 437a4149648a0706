"""codeword compare: which quantizer serves these vectors best."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from codeword.cli.inputs import Seed, VectorsArgument, rates, specs, vectors
from codeword.cli.show import Json, emit, progress, table


def register(app: typer.Typer) -> None:
    app.command(epilog="Example:  codeword compare base.npy --queries queries.npy --bits 1,2,4")(compare)


def compare(source: VectorsArgument,
            bits: Annotated[str, typer.Option(help="Stored bits a dimension, side information included.")] = "1,2,4",
            queries: Annotated[str | None, typer.Option(help="Query vectors; default: some rows are held out for it.",
                                                        show_default=False)] = None,
            quantizers: Annotated[str | None, typer.Option(
                help="Names or spec strings, separated by commas; {bits} stands for the rate. Default: all.", show_default=False)] = None,
            metric: Annotated[str, typer.Option(help="l2, ip or cosine.")] = "l2",
            budget: Annotated[float | None, typer.Option(help="Seconds; what does not fit is left out and says so.", min=0.0,
                                                         show_default=False)] = None,
            out: Annotated[Path, typer.Option("--out", "-o",
                                              help="Folder for report.html, the plot, results.csv and results.json.")] = Path("compare"),
            resume: Annotated[bool,
                              typer.Option("--resume", help="Continue a comparison that was interrupted; finished rows are kept.")] = False,
            limit: Annotated[int, typer.Option(help="Fit on at most so many rows.", min=40)] = 50_000,
            held_out: Annotated[int, typer.Option(help="Measure on at most so many rows (a quarter at most).", min=10)] = 10_000,
            seed: Seed = 0, as_json: Json = False) -> None:
    """Compare quantizers on your vectors at equal stored bits, on rows none of them was fitted on.

    Relative error, dB to the Shannon bound, inner-product error, recall@10, speed, bytes; entropy-coded scalar quantization, the
    strongest baseline, is among them. Writes a self-contained report.html. Ctrl-C keeps finished rows; --resume goes on."""
    from codeword import catalog
    from codeword.io import jobs
    from codeword.report import compare as room
    from codeword.report import document
    from codeword.search.scores import check_metric
    data = vectors(source)
    asked = None if queries is None else vectors(queries, data.dim)
    tasks = room.plan(data.dim, rates(bits), specs(quantizers))
    check_metric(metric)
    for task in tasks:
        if task.spec not in room.BASELINES:
            catalog.check(task.spec)
    folder = out / "job"
    inputs = {f"{kind}{i}": shard.path for kind, of in (("vectors", data), ("queries", asked)) if of is not None
              for i, shard in enumerate(of.shards)}
    config = {"vectors": data.name, "metric": metric, "limit": limit, "held_out": held_out}
    with _made(out), jobs.Job.start(folder, "compare", config=config, inputs=inputs, seed=seed, resume=resume and folder.exists(),
                                    replace_finished=True) as job:
        split = room.split(data, asked, metric, seed, limit, held_out)
        ref = room.reference(split)
        with progress("compare", len(tasks), as_json) as advance:
            rows = _measure(room, job, tasks, split, ref, room.Budget(budget), advance)
        summary = {
            "data": {"vectors": data.name, "rows": len(data), "dim": data.dim, "metric": metric, "seed": seed, "fit_rows": len(split.fit),
                     "held_out_rows": len(split.held_out), "queries": len(split.queries)},
            "rows": rows, "bound": room.curve(ref.spectrum, [task.bits for task in tasks]), "best": room.best(rows),
            "versions": _versions(),
        }
        written = document.write(out, summary)
        job.finish()
    emit(summary | {"files": [str(path) for path in written]}, as_json, lambda: _show(summary, out))


@contextlib.contextmanager
def _made(out: Path) -> Iterator[None]:
    """The folder ``out``; an error takes it away again if it is new and still empty."""
    from codeword.io import files
    new = not out.exists()
    files.make_folder(out)
    try:
        yield
    except Exception:
        if new:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def _measure(room: Any, job: Any, tasks: Any, split: Any, ref: Any, budget: Any, advance: Any) -> list[dict[str, Any]]:
    """A row a task, each kept in the job as it comes; one phase a task, so that other rates and quantizers can join a finished job."""
    rows = []
    for task in tasks:
        phase = "row_" + hashlib.sha256(f"{task.key} {task.spec}".encode()).hexdigest()[:16]
        if not job.is_done(task.key, phase):
            refused = budget.refuses(task)
            if refused is not None:
                rows.append(refused)
                advance(1)
                continue
            ran = job.run([task.key], lambda _, task=task: ({}, budget.measure(task, split, ref)), phase=phase)
            if ran.interrupted:
                raise KeyboardInterrupt
        rows.append(job.result(task.key, phase)[1])
        advance(1)
    return rows


def _versions() -> dict[str, str]:
    import numpy
    import torch

    import codeword
    from codeword import ops
    return {"codeword": codeword.__version__, "torch": torch.__version__, "numpy": numpy.__version__, "nearest": ops.choice("nearest"),
            "threads": str(ops.num_threads())}


def _show(summary: dict[str, Any], out: Path) -> None:
    from codeword.report import document
    about, rows = summary["data"], summary["rows"]
    print(f"{about['vectors']}: {about['fit_rows']:,} rows of width {about['dim']} to fit on, {about['held_out_rows']:,} held out, "
          f"{about['queries']:,} queries, {about['metric']}")
    for rate in dict.fromkeys(row["rate"] for row in rows):
        own = sorted((row for row in rows if row["rate"] == rate and row["left_out"] is None), key=lambda row: row["relative_error"])
        if own:
            cells = [[document.cell(row, field, form) for field, _, form in document.COLUMNS] for row in own]
            table([title for _, title, _ in document.COLUMNS], cells, title=f"{rate:g} bits a dimension")
    left_out: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["left_out"] is not None:
            left_out.setdefault((row["quantizer"], row["left_out"]), []).append(f"{row['rate']:g}")
    for (name, reason), at in left_out.items():
        print(f"left out: {name} at {', '.join(at)} bits: {reason}")
    for rate, pair in summary["best"].items():
        print(f"best at {rate} bits: {pair['error']} (error), {pair['recall']} (recall@10)")
    print(f"report: {out / 'report.html'}")
