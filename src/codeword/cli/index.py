"""codeword index build, add, remove, search, tune, info: a compressed index in a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codeword.cli.inputs import Seed, VectorsArgument, fit_rows, ids_file, integers, vectors
from codeword.cli.show import Json, count, emit, note, pairs, progress, rounded, size
from codeword.errors import CodewordError, ShapeError

if TYPE_CHECKING:
    import numpy as np

    from codeword.data import Vectors
    from codeword.search.index import Index

IndexFolder = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder written by codeword index build.", show_default=False)]
Ids = Annotated[Path | None, typer.Option(help="Ids of the rows: .npy, or .txt with one a line. Default: the next free numbers.")]
K = Annotated[int, typer.Option("-k", help="Neighbours to find.", min=1)]
Threads = Annotated[int, typer.Option(help="Threads; the answer does not depend on them.", min=1)]
Base = Annotated[str | None, typer.Option(help="The vectors that were indexed, for exact neighbours to measure recall against.",
                                          show_default=False)]
BaseIds = Annotated[Path | None, typer.Option("--base-ids", help="Ids of the rows of --base, where these are not 0, 1, 2, ...; rows that "
                                              "are not in the index are passed over.", show_default=False)]
Truth = Annotated[str | None, typer.Option(help="True neighbours (.ivecs or .npy of ids, a row a query) instead of --base.",
                                           show_default=False)]


def register(app: typer.Typer) -> None:
    room = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build, change and search a compressed index.",
                       epilog="Example:  codeword index build base.npy -o base.index")
    room.command(epilog="Example:  codeword index build base.npy -o base.index --metric cosine --quantizer rabitq:bits=4 --nlist 64")(build)
    room.command(epilog="Example:  codeword index add base.index more.npy")(add)
    room.command(epilog="Example:  codeword index remove base.index 17 200-299")(remove)
    room.command(epilog="Example:  codeword index search base.index queries.npy -k 10 --nprobe 16")(search)
    room.command(epilog="Example:  codeword index tune base.index queries.npy --base base.npy --recall 0.95")(tune)
    room.command(epilog="Example:  codeword index info base.index")(info)
    app.add_typer(room, name="index")


def build(source: VectorsArgument,
          out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make; must not exist yet.")],
          metric: Annotated[str, typer.Option(help="l2, ip or cosine.")] = "l2",
          quantizer: Annotated[str, typer.Option(help="Spec string of the codes.")] = "rabitq:code_bits=4",
          nlist: Annotated[int | None, typer.Option(help="Inverted lists; none: a flat index.", min=1)] = None,
          rerank: Annotated[str | None,
                            typer.Option(help="Spec of a second, finer code, or 'float16' / 'float32' to keep the vectors.")] = None,
          ids: Ids = None,
          limit: Annotated[int, typer.Option(help="Fit on at most so many rows, a seeded sample.", min=1)] = 200_000,
          seed: Seed = 0, as_json: Json = False) -> None:
    """Fit an index to vectors, add them all, and save it."""
    from codeword.search.index import Index
    if out.exists():
        raise CodewordError(f"{out} exists; name a new folder, or use 'codeword index add'")
    data = vectors(source)
    numbers = None if ids is None else ids_file(ids, len(data))
    kept: dict[str, Any] = {} if rerank is None else {"store": rerank} if rerank in ("float16", "float32") else {"rerank_quantizer": rerank}
    index = Index(dim=data.dim, metric=metric, quantizer=quantizer, nlist=nlist, seed=seed, **kept)
    started = time.perf_counter()
    index.fit(fit_rows(data, limit, seed))
    fitted = time.perf_counter()
    _add(index, data, numbers, as_json)
    index.save(out)
    done = time.perf_counter()
    summary = {"index": str(out), "vectors": len(index), "dim": data.dim, "metric": metric, "quantizer": quantizer,
               "nlist": None if nlist is None else index.lists, "bytes_per_vector": index.bytes_per_vector, "bytes": index.breakdown(),
               "fit_seconds": fitted - started, "add_seconds": done - fitted, "report": dict(index.report)}
    lists = "flat" if nlist is None else count(index.lists, "list")
    if nlist is not None and index.lists < nlist:
        lists += f" instead of {nlist:,}, as there are no more rows to fit on"
    ratio = index.bytes_per_vector / (4 * data.dim)
    emit(summary, as_json, lambda: pairs({
        "saved": f"{out}: {count(len(index), 'vector')} of width {data.dim}, {metric}, {quantizer}, {lists}",
        "stores": f"{index.bytes_per_vector:.1f} bytes a vector with ids and padding, "
                  + (f"{1 / ratio:.1f} times less" if ratio <= 1 else f"{ratio:.1f} times more") + " than float32; "
                  + f"{size(index.breakdown()['shared'])} shared",
        "took": f"{fitted - started:.1f} s to fit, {done - fitted:.1f} s to add and save"}))


def add(index: IndexFolder, source: VectorsArgument, ids: Ids = None,
        replace: Annotated[bool, typer.Option("--replace", help="An id that is stored already replaces its row.")] = False,
        as_json: Json = False) -> None:
    """Add vectors to an index."""
    loaded = _load(index)
    data = vectors(source, loaded.dim)
    before = len(loaded)
    numbers = _add(loaded, data, None if ids is None else ids_file(ids, len(data)), as_json, replace)
    loaded.save(index)
    emit({"index": str(index), "added": len(data), "vectors": len(loaded), "first_id": int(numbers[0]), "last_id": int(numbers[-1])},
         as_json,
         lambda: pairs({"added": f"{count(len(data), 'vector')}, ids {numbers[0]} to {numbers[-1]}",
                        "index": f"{count(before)} before, {count(len(loaded))} now"}))


def remove(index: IndexFolder,
           ids: Annotated[list[str] | None, typer.Argument(metavar="IDS...", help="Numbers, comma lists, ranges such as 10-19.",
                                                           show_default=False)] = None,
           ids_from: Annotated[Path | None, typer.Option("--ids", help="Ids in a file: .npy, or .txt with one a line.")] = None,
           ignore_missing: Annotated[bool, typer.Option("--ignore-missing", help="Unknown ids are no error.")] = False,
           as_json: Json = False) -> None:
    """Remove vectors from an index by id."""
    if (ids is None or not ids) == (ids_from is None):
        raise CodewordError("ids are needed once: as arguments, or in a file with --ids")
    numbers = ids_file(ids_from) if ids_from is not None else integers(ids or [], "id")
    loaded = _load(index)
    removed = loaded.remove(numbers, missing="ignore" if ignore_missing else "error")
    loaded.save(index)
    emit({"index": str(index), "removed": removed, "vectors": len(loaded)}, as_json,
         lambda: pairs({"removed": f"{count(removed, 'vector')}; {count(len(loaded))} left"}))


def search(index: IndexFolder, queries: VectorsArgument, k: K = 10,
           nprobe: Annotated[int | None, typer.Option(help="Lists visited; default: what tune or the index has set.", min=1)] = None,
           rows: Annotated[str | None, typer.Option(help="Search for these rows of the queries only, e.g. 0,5-9.",
                                                    show_default=False)] = None,
           texts: Annotated[Path | None, typer.Option(help="Text of each indexed id, one a line, shown with the hits.")] = None,
           query_texts: Annotated[Path | None, typer.Option(help="Text of each query, one a line.")] = None,
           base: Base = None, base_ids: BaseIds = None, truth: Truth = None,
           out: Annotated[Path | None,
                          typer.Option("--out", "-o", help="Write all ids and distances (.npz) instead of showing them.")] = None,
           threads: Threads = 1, as_json: Json = False) -> None:
    """Find the nearest indexed vectors of each query; with --base or --truth also the recall."""
    import numpy as np
    loaded = _load(index)
    data = vectors(queries, loaded.dim)
    names = _texts(query_texts, len(data))
    lines = _texts(texts, None)
    chosen = np.arange(len(data)) if rows is None else integers([rows], "row")
    if chosen.max() >= len(data):
        raise ShapeError(f"row {chosen.max()} was asked for; {queries} has {len(data)} rows")
    known = _truth(loaded, data, base, base_ids, truth, k, as_json)
    wanted = np.asarray(data[chosen])
    loaded.search(wanted[:1], k, nprobe, num_threads=threads)  # what is prepared once is not the queries' time
    started = time.perf_counter()
    distances, ids = loaded.search(wanted, k, nprobe, num_threads=threads)
    seconds = time.perf_counter() - started
    summary: dict[str, Any] = {"index": str(index), "queries": len(wanted), "k": k, "seconds": seconds,
                               "queries_per_second": len(wanted) / seconds,
                               "bytes_per_vector": loaded.bytes_per_vector}
    if known is not None:
        from codeword.search.tune import recall_at
        summary["recall"] = float(recall_at(ids, known[chosen], k).mean())
    if out is not None:
        _write_hits(out, distances, ids)
        summary["file"] = str(out)
    else:
        summary["hits"] = [{"row": int(row), "ids": ids[i], "distances": distances[i]} for i, row in enumerate(chosen)]
    emit(summary, as_json, lambda: _show_hits(summary, names, lines))


def tune(index: IndexFolder, queries: VectorsArgument,
         recall: Annotated[float, typer.Option(help="Share of the true neighbours to find.", min=0.0, max=1.0)] = 0.95,
         k: K = 10, base: Base = None, base_ids: BaseIds = None, truth: Truth = None, as_json: Json = False) -> None:
    """Set nprobe and re-ranking to the cheapest that reach a recall: chosen on one half of the queries, reported on the other."""
    loaded = _load(index)
    data = vectors(queries, loaded.dim)
    known = _truth(loaded, data, base, base_ids, truth, k, as_json)
    if known is None:
        raise CodewordError("tune needs the true neighbours: --base VECTORS, or --truth FILE")
    report = loaded.tune(data[:], known[:, :k], recall=recall, k=k)
    loaded.save(index)
    emit(report._asdict(), as_json, lambda: pairs({
        "set": f"nprobe={report.nprobe}" + (f", rerank={report.rerank}" if report.rerank else ""),
        "recall": f"{report.recall:.3f} ± {report.standard_error:.3f} at {k} on {report.queries[1]} held-out queries "
                  f"({report.tuned_recall:.3f} on the {report.queries[0]} it was chosen on)",
        **({} if report.reached else {"note": f"no setting reaches {recall}; the best one is set"})}))


def info(index: IndexFolder, as_json: Json = False) -> None:
    """Say what an index holds and what its bytes are for."""
    loaded = _load(index)
    parts = loaded.breakdown()
    summary = {"index": str(index), "vectors": len(loaded), "dim": loaded.dim, "metric": loaded.metric,
               "nlist": None if loaded.nlist is None else loaded.lists,
               "quantizer": loaded.quantizer.name, "bits": loaded.quantizer.nominal_bits, "nprobe": loaded.nprobe, "rerank": loaded.rerank,
               "segments": loaded.segments, "bytes_per_vector": loaded.bytes_per_vector, "bytes": parts}

    def show() -> None:
        pairs({"vectors": f"{count(len(loaded))} of width {loaded.dim}, {loaded.metric}, in {count(loaded.segments, 'segment')}",
               "codes": f"{loaded.quantizer!r}",
               "lists": f"{loaded.lists}, {min(loaded.nprobe, loaded.lists)} visited" if loaded.nlist else "none (flat)",
               "bytes a vector": f"{loaded.bytes_per_vector:.1f}, of which " + ", ".join(
                   f"{name} {value / max(1, len(loaded)):.1f}" for name, value in parts.items() if name != "shared" and value),
               "shared": size(parts["shared"])})

    emit(summary, as_json, show)


# ---------------------------------------------------------------------- inside


def _load(path: Path) -> Index:
    from codeword.search.index import Index
    return Index.load(path)


def _add(index: Index, data: Vectors, ids: np.ndarray | None, quiet: bool, replace: bool = False) -> np.ndarray:
    """Add in blocks; nothing is saved before all rows are in."""
    import numpy as np
    numbers = []
    with progress("add", len(data), quiet) as advance:
        for start, block in data.blocks():
            data.check_finite(block, start)
            some = None if ids is None else ids[start:start + len(block)]
            numbers.append(index.add(block, ids=some, on_duplicate="replace" if replace else "error"))
            advance(len(block))
    return np.concatenate(numbers)


def _texts(path: Path | None, rows: int | None) -> list[str] | None:
    from codeword.data import read_sentences
    return None if path is None else read_sentences(path, rows)


def _truth(index: Index, queries: Vectors, base: str | None, base_ids: Path | None, truth: str | None, k: int,
           quiet: bool) -> np.ndarray | None:
    """(queries, >= k) true ids, from a file or by exact search in the base."""
    import numpy as np
    if base is not None and truth is not None:
        raise CodewordError("--base and --truth say the same; one of them is needed")
    if base_ids is not None and base is None:
        raise CodewordError("--base-ids names the rows of --base, which is not given")
    if truth is not None:
        known = vectors(truth)
        if known.dtype.kind not in "iu" or len(known) < len(queries) or known.dim < k:
            raise ShapeError(f"{truth} holds {known.dtype} of shape {known.shape}; at least ({len(queries)}, {k}) integer ids are needed")
        return np.asarray(known[:len(queries)])
    if base is None:
        return None
    from codeword.search.truth import exact_search
    data = vectors(base, index.dim)
    numbers = _base_numbers(index, base, len(data), base_ids)
    indexed = np.isin(numbers, index.ids)
    wanted = queries[:]
    best: tuple[np.ndarray, np.ndarray] | None = None
    with progress("exact search", len(data), quiet) as advance:
        for start, block in data.blocks():
            some = indexed[start:start + len(block)]
            advance(len(block))
            if not some.any():
                continue
            distances, ids = exact_search(block if some.all() else block[some], wanted, min(k, len(index)), index.metric,
                                          ids=numbers[start:start + len(block)][some])
            if best is not None:
                distances, ids = np.concatenate([best[0], distances], 1), np.concatenate([best[1], ids], 1)
                order = np.argsort(distances, axis=1, kind="stable")[:, :k]
                distances, ids = np.take_along_axis(distances, order, 1), np.take_along_axis(ids, order, 1)
            best = (distances, ids)
    return None if best is None else best[1]


def _base_numbers(index: Index, base: str, rows: int, given: Path | None) -> np.ndarray:
    """Ids of the base's rows: their numbers, if the index holds exactly these, or those ``given``, if they cover the index."""
    import numpy as np
    stored = index.ids
    if given is None:
        if not np.array_equal(stored, np.arange(rows)):
            raise CodewordError(f"the index holds {count(len(stored), 'id')}{f' {stored[0]}..{stored[-1]}' if len(stored) else ''}, which "
                                f"are not the row numbers 0..{rows - 1} of {base}; name the ids of its rows with --base-ids, or give "
                                "--truth")
        return np.arange(rows)
    numbers = ids_file(given, rows)
    if len(np.unique(numbers)) < rows:
        raise CodewordError(f"{given} has an id twice; each row of {base} needs its own")
    missing = np.setdiff1d(stored, numbers)
    if len(missing):
        raise CodewordError(f"{given} lacks id {missing[0]}, which the index holds; recall needs the ids of all its rows")
    return numbers


def _write_hits(path: Path, distances: Any, ids: Any) -> None:
    import io

    import numpy as np

    from codeword.io import files
    if path.suffix != ".npz":
        raise CodewordError(f"--out is {path}; hits are written as .npz")
    data = io.BytesIO()
    np.savez(data, distances=np.asarray(distances), ids=np.asarray(ids))
    files.write_file(path, [data.getvalue()])


def _show_hits(summary: dict[str, Any], names: list[str] | None, lines: list[str] | None) -> None:
    shown = 20
    hits = summary.get("hits", [])
    for hit in hits[:shown]:
        title = f"query {hit['row']}" + (f": {names[hit['row']]}" if names else "")
        rows = [(f"{distance:.4f}", str(int(number)), lines[number] if lines is not None and 0 <= number < len(lines) else "")
                for number, distance in zip(hit["ids"], hit["distances"]) if number >= 0]
        print(title)
        for distance, number, text in rows:
            print(f"  {distance:>9}  {number:>7}  {text}".rstrip())
    if len(hits) > shown:
        note(f"{len(hits) - shown} more queries were searched; --rows chooses, --out or --json gives all")
    found = f"{count(summary['queries'], 'query')} in {1000 * summary['seconds']:.1f} ms, {rounded(summary['queries_per_second'])} a second"
    pairs({"searched": found, "index": f"{summary['bytes_per_vector']:.1f} bytes a vector",
           **({f"recall@{summary['k']}": f"{summary['recall']:.3f}"} if "recall" in summary else {}),
           **({"saved": summary["file"]} if "file" in summary else {})})
