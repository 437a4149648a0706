"""codeword import: indexes and quantizers of other libraries as codeword's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from codeword.cli.show import Json, count, emit, pairs, size
from codeword.errors import CodewordError


def register(app: typer.Typer) -> None:
    room = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Read indexes and quantizers of other libraries: the same "
                       "codes, nothing encoded again.", epilog="Example:  codeword import faiss vectors.faiss -o vectors")
    room.command(name="faiss", epilog="Example:  codeword import faiss vectors.faiss -o vectors    and then    "
                                      "codeword index search vectors/index queries.npy")(import_faiss)
    room.command(name="vector-quantize-pytorch", epilog="Example:  codeword import vector-quantize-pytorch model.safetensors --kind fsq "
                                                        "--levels 8x5x5x5 --prefix quantizer. -o fsq.cw")(import_vector_quantize_pytorch)
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


def import_vector_quantize_pytorch(
        source: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="State of VectorQuantize, ResidualVQ, FSQ, LFQ "
                                               "or SimVQ: a safetensors file, or weights that torch.save wrote (no code in it is run).")],
        out: Annotated[Path, typer.Option("--out", "-o", help="File to write; must not exist yet.")],
        kind: Annotated[str | None, typer.Option(help="vq, residual_vq, fsq, lfq or simvq; by default read off the names.")] = None,
        prefix: Annotated[str, typer.Option(help="Of the quantizer's names in a larger state, such as quantizer.")] = "",
        cosine: Annotated[bool | None, typer.Option("--cosine", help="vq, residual_vq: use_cosine_sim=True there.")] = None,
        learning: Annotated[str | None, typer.Option(help="vq, residual_vq: ema or gradient in further training.")] = None,
        heads: Annotated[int | None, typer.Option(help="vq: heads that share one codebook, where nothing is projected.")] = None,
        levels: Annotated[str | None, typer.Option(help="fsq: its levels, such as 8x5x5x5.")] = None,
        symmetric: Annotated[bool | None, typer.Option("--symmetric", help="fsq: preserve_symmetry=True there.")] = None,
        num_codebooks: Annotated[int | None, typer.Option(help="fsq, lfq: where nothing is projected.")] = None,
        scale: Annotated[float | None, typer.Option(help="lfq: codebook_scale there.")] = None,
        spherical: Annotated[bool | None, typer.Option("--spherical", help="lfq: spherical=True there.")] = None,
        activation: Annotated[str | None, typer.Option(help="simvq: between the layers of its transform: relu, gelu, silu, tanh.")] = None,
        as_json: Json = False) -> None:
    """Read a quantizer of vector-quantize-pytorch: the same indices and values. The package itself is not needed.

    A state does not say everything: name what it leaves open, as it was given there."""
    from codeword import compat
    if out.exists():
        raise CodewordError(f"{out} exists; name a new file")
    options = {"cosine": cosine, "learning": learning, "heads": heads, "levels": _levels(levels), "symmetric": symmetric,
               "num_codebooks": num_codebooks, "scale": scale, "spherical": spherical, "activation": activation}
    found = compat.convert(source, kind, prefix=prefix, **options)
    quantizer = found.quantizer
    quantizer.save(out)
    next_step = f"codeword encode {out} vectors.npy -o codes.cw"
    summary = {"file": str(source), "kind": found.kind, "quantizer": quantizer.name, "dim": quantizer.dim, "levels": list(quantizer.levels),
               "bits": quantizer.nominal_bits, "fingerprint": quantizer.fingerprint, "out": str(out), "notes": list(found.notes),
               "next": next_step}
    emit(summary, as_json, lambda: pairs({
        "found": f"{found.kind}, {count(len(quantizer.levels), 'token')} a vector of width {quantizer.dim}",
        "became": f"{quantizer.name}, {quantizer.nominal_bits:.3f} bits a dimension, {size(quantizer.shared_bytes)} shared, "
                  f"fingerprint {quantizer.fingerprint}",
        "wrote": str(out),
        **{f"note {i + 1}": text for i, text in enumerate(found.notes)},
        "next": next_step}))


def _levels(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.split("x")
    if not all(part.isdecimal() and len(part) < 5 for part in parts):
        raise CodewordError(f"--levels {text!r} is no list of levels; write them like 8x5x5x5")
    return [int(part) for part in parts]
