"""codeword fit, encode, decode: a quantizer file, codes files, and vectors again."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from codeword.cli.inputs import Seed, VectorsArgument, fit_rows, vectors
from codeword.cli.show import Json, count, emit, note, pairs, progress, size
from codeword.errors import CodewordError

Output = Annotated[Path, typer.Option("--out", "-o", help="File to write; appears whole or not at all.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT where it exists.")]
QuantizerFile = Annotated[Path, typer.Argument(metavar="QUANTIZER", help="File written by codeword fit.", show_default=False)]

UNIT_BYTES = 64 << 20
"""Vectors of one unit of an encode job, as float32: what a kill loses at most."""


def register(app: typer.Typer) -> None:
    app.command(epilog="Example:  codeword fit base.npy --quantizer pq:bits=2 -o pq2.cw")(fit)
    app.command(epilog="Example:  codeword encode pq2.cw 'shards/*.npy' -o codes.cw --resume")(encode)
    app.command(epilog="Example:  codeword decode pq2.cw codes.cw -o decoded.npy")(decode)


def fit(source: VectorsArgument, out: Output,
        quantizer: Annotated[str, typer.Option(help="Spec string, e.g. pq:bits=2 or 'rotated(pvq:bits=4)'.")] = "rabitq:code_bits=4",
        limit: Annotated[int, typer.Option(help="Fit on at most so many rows, a seeded sample.", min=1)] = 200_000,
        seed: Seed = 0, as_json: Json = False) -> None:
    """Fit a quantizer to vectors and save it."""
    from codeword import catalog
    data = vectors(source)
    made = catalog.make(quantizer, data.dim)
    rows = fit_rows(data, limit, seed)
    started = time.perf_counter()
    made.fit(rows)
    made.save(out)
    summary = {"quantizer": quantizer, "file": str(out), "dim": made.dim, "rows": len(rows), "bits": made.nominal_bits,
               "bytes_per_vector": made.nominal_bits * made.dim / 8, "shared_bytes": made.shared_bytes, "fingerprint": made.fingerprint,
               "report": dict(made.report), "seconds": time.perf_counter() - started}
    emit(summary, as_json, lambda: pairs({
        "saved": f"{out} ({size(out.stat().st_size)}), fingerprint {made.fingerprint}",
        "fitted on": f"{count(len(rows), 'row')} of width {made.dim} in {summary['seconds']:.1f} s",
        "stores": f"{made.nominal_bits:.3f} bits a dimension, {summary['bytes_per_vector']:.1f} bytes a vector",
        **({"report": ", ".join(f"{key}={value}" for key, value in made.report.items())} if made.report else {})}))


def encode(quantizer: QuantizerFile, source: VectorsArgument, out: Output,
           resume: Annotated[bool, typer.Option("--resume", help="Continue an encode that was interrupted.")] = False,
           overwrite: Overwrite = False,
           dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, write nothing.")] = False,
           as_json: Json = False) -> None:
    """Encode vectors with a fitted quantizer. Finished parts wait in OUT.job until all are there; Ctrl-C loses none."""
    from codeword.io import jobs, objects, tensors
    folder = out.with_name(out.name + ".job")
    resume = resume and folder.exists()
    if not dry_run and not resume:  # a job that has begun was allowed to
        _check_new(out, overwrite)
    made = objects.load(quantizer)
    data = vectors(source, made.dim)
    step = max(8, UNIT_BYTES // (4 * made.dim) // 8 * 8)  # bit strings of units end at whole bytes, and are joined as they are
    units = [f"{start}-{min(len(data), start + step)}" for start in range(0, len(data), step)]
    if dry_run:
        return _dry_run(made, data, len(units), step, as_json)
    started = time.perf_counter()
    with jobs.Job.start(folder, "encode", config={"rows": len(data), "dim": data.dim, "dtype": str(data.dtype)},
                        resume=resume,
                        inputs={"quantizer": {"fingerprint": made.fingerprint},
                                **{f"vectors{i}": shard.path for i, shard in enumerate(data.shards)}}) as job:
        with progress("encode", len(units), as_json) as advance:
            def work(unit: str) -> Any:
                start, stop = (int(part) for part in unit.split("-"))
                block = data.check_finite(data[start:stop], start)
                codes = made.encode(block)
                advance(1)
                return objects.codes_to_parts(codes, made)
            ran = job.run(units, work)
        if ran.interrupted:
            note(f"{ran.before + ran.now} of {ran.total} parts are done; the same command with --resume continues")
            raise KeyboardInterrupt
        objects.join_codes(out, [partial(job.result, unit) for unit in units], made)
    shutil.rmtree(folder)
    seconds = time.perf_counter() - started
    per_vector = out.stat().st_size / len(data)
    summary = {"file": str(out), "rows": len(data), "bytes": out.stat().st_size,
               "bytes_per_vector": sum(spec.stop - spec.start for spec in tensors.read_header(out).specs.values()) / len(data),
               "fingerprint": made.fingerprint, "parts_resumed": ran.before, "seconds": seconds}
    emit(summary, as_json, lambda: pairs({
        "saved": f"{out} ({size(out.stat().st_size)}, {per_vector:.1f} bytes a vector with its header)",
        "encoded": f"{count(len(data), 'vector')} in {seconds:.1f} s"
                   + (f"; {ran.before} of {ran.total} parts were there" if ran.before else "")}))


def decode(quantizer: QuantizerFile,
           codes: Annotated[Path, typer.Argument(metavar="CODES", help="File written by codeword encode.", show_default=False)],
           out: Output, overwrite: Overwrite = False, as_json: Json = False) -> None:
    """Decode a codes file to vectors (.npy, float32)."""
    import numpy as np

    from codeword.io import files, objects
    if out.suffix != ".npy":
        raise CodewordError(f"--out is {out}; decoded vectors are written as .npy")
    _check_new(out, overwrite)
    made = objects.load(quantizer)
    read: Any = objects.load_codes(codes, made)
    read = type(read)(*(None if part is None else part.reshape(-1, *part.shape[read.indices.ndim - 1:]) for part in read))
    rows = len(read.indices)
    step = max(1, UNIT_BYTES // (4 * made.dim))

    def chunks(advance: Any) -> Iterator[bytes]:
        yield _npy_header(rows, made.dim)
        for start in range(0, rows, step):
            block: Any = type(read)(*(None if part is None else part[start:start + step] for part in read))
            advance(min(step, rows - start))
            yield np.ascontiguousarray(np.asarray(made.decode(block)), dtype="<f4").tobytes()

    with progress("decode", rows, as_json) as advance:
        files.write_file(out, chunks(advance))
    summary = {"file": str(out), "rows": rows, "dim": made.dim, "bytes": out.stat().st_size}
    emit(summary, as_json, lambda: pairs({"saved": f"{out}: {count(rows)} × {made.dim} float32 ({size(out.stat().st_size)})"}))


def _check_new(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise CodewordError(f"{out} exists; name a new file, or replace it with --overwrite")


def _npy_header(rows: int, dim: int) -> bytes:
    import io

    import numpy as np
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)})
    return head.getvalue()


def _dry_run(made: Any, data: Any, units: int, step: int, as_json: bool) -> None:
    """Time from one small block, memory and bytes from the shapes."""
    block = data[:min(len(data), max(256, 1 << 18 >> made.dim.bit_length()))]
    started = time.perf_counter()
    made.encode(block)
    seconds = (time.perf_counter() - started) / len(block) * len(data)
    stored = math.ceil(made.nominal_bits * made.dim * len(data) / 8)
    unpacked = len(data) * len(made.levels) * made.index_dtype.itemsize
    memory = 3 * 4 * min(step, len(data)) * made.dim + 2 * unpacked + stored
    emit({"rows": len(data), "parts": units, "seconds": seconds, "bytes": stored, "memory_bytes": memory}, as_json, lambda: pairs({
        "would write": f"{size(stored)} for {count(len(data), 'vector')}, in {count(units, 'part')}",
        "would take": f"about {seconds:.1f} s and {size(memory)} of memory"}))
