"""codeword import: indexes of other libraries as codeword's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from codeword.cli.show import Json, count, emit, pairs, size
from codeword.errors import CodewordError


def register(app: typer.Typer) -> None:
    room = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Read indexes of other libraries: the same codes, nothing encoded "
                       "again.", epilog="Example:  codeword import faiss vectors.faiss -o vectors")
    room.command(name="faiss", epilog="Example:  codeword import faiss vectors.faiss -o vectors    and then    "
                                      "codeword index search vectors/index queries.npy")(import_faiss)
    app.add_typer(room, name="import")


def import_faiss(source: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="File written by faiss.write_index: "
                                                        "IndexPQ, IndexScalarQuantizer, IndexRaBitQ, flat or IVF, behind a linear map or "
                                                        "an id map. faiss itself is not needed.")],
                 out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make; must not exist yet.")],
                 as_json: Json = False) -> None:
    """Read a faiss index file: a quantizer that decodes to what faiss reconstructs, the codes, and an index over them.

    OUT gets quantizer.cw and index, and codes.cw where the file has no lists."""
    from codeword.io import faiss, faiss_layout, objects
    if out.exists():
        raise CodewordError(f"{out} exists; name a new folder")
    read = faiss.load(source)
    found, quantizer, index = read.found, read.quantizer, read.index
    out.mkdir(parents=True)
    quantizer.save(out / "quantizer.cw")
    if read.codes is not None:
        objects.save_codes(out / "codes.cw", read.codes, quantizer)
    index.save(out / "index")
    layers = [faiss_layout.NAMES[kind] for kind in found.kinds]
    next_steps = [f"codeword index search {out / 'index'} queries.npy"]
    if read.codes is not None:
        next_steps.append(f"codeword decode {out / 'quantizer.cw'} {out / 'codes.cw'} -o decoded.npy")
    summary: dict[str, Any] = {"file": str(source), "faiss": layers, "kinds": list(found.kinds), "rows": found.rows, "dim": found.dim,
                               "metric": found.metric, "nlist": None if found.lists is None else index.lists,
                               "quantizer": quantizer.name, "bits": quantizer.nominal_bits, "fingerprint": quantizer.fingerprint,
                               "out": str(out), "index": str(out / "index"), "notes": list(read.notes), "next": next_steps}
    lists = "flat" if found.lists is None else count(index.lists, "list")
    written = ["quantizer.cw", *(["codes.cw"] if read.codes is not None else []), "index"]
    emit(summary, as_json, lambda: pairs({
        "found": f"{' > '.join(layers)}, {count(found.rows, 'vector')} of width {found.dim}, {found.metric}, {lists}",
        "became": f"{quantizer.name}, {quantizer.nominal_bits:.3f} bits a dimension, {size(quantizer.shared_bytes)} shared, "
                  f"fingerprint {quantizer.fingerprint}",
        "wrote": f"{', '.join(written)} in {out}",
        **{f"note {i + 1}": text for i, text in enumerate(read.notes)},
        **{("next" if i == 0 else "or"): text for i, text in enumerate(next_steps)}}))
