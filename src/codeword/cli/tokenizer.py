"""codeword tokenizer train, encode, decode, eval, report, features: from a folder of images to tokens and back."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codeword.cli.inputs import Seed, vectors
from codeword.cli.show import Json, count, emit, note, pairs, progress, size
from codeword.errors import CodewordError

if TYPE_CHECKING:
    from codeword.data.images import Images
    from codeword.tokenizers.frame import TrainedTokenizer

ImagesArgument = Annotated[str, typer.Argument(
    metavar="IMAGES", show_default=False,
    help="A folder of .png .jpg .webp .bmp (subfolders too), a .parquet file with a column of image bytes (FILE#COLUMN names it), an idx "
         "file (.gz too), a .npy array, or one image.")]
TokenizerArgument = Annotated[Path, typer.Argument(metavar="TOKENIZER", show_default=False,
                                                   help="Folder written by codeword tokenizer train, or the tokenizer.cw in it.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read, and list them.")]
Size = Annotated[int | None, typer.Option("--size", help="Scale and crop images to squares of this side; default: as trained.", min=1)]

ENCODE_ITEMS = 512
"""Images of one segment of token shards: what a kill loses at most."""


def register(app: typer.Typer) -> None:
    room = typer.Typer(no_args_is_help=True, rich_markup_mode=None,
                       help="Train an image tokenizer from a folder of images, and turn images into tokens and back.",
                       epilog="Example:  codeword tokenizer train photos/ -o tok    and then    "
                              "codeword tokenizer encode tok photos/ -o tokens")
    room.command(epilog="Example:  codeword tokenizer train photos/ --quantizer simvq --codebook-size 16384 --minutes 10 -o tok")(train)
    room.command(epilog="Example:  codeword tokenizer encode tok photos/ -o tokens --resume")(encode)
    room.command(epilog="Example:  codeword tokenizer decode tok tokens -o pictures")(decode)
    room.command("eval", epilog="Example:  codeword tokenizer eval tok held_out/")(evaluate)
    room.command(epilog="Example:  codeword tokenizer report tok held_out/ -o report.html")(report)
    room.command(epilog="Example:  codeword tokenizer features photos/ --codebook-size 16384 -o features.npy    and then    "
                        "codeword tokenizer train photos/ --quantizer projected_vq --codebook-size 16384 --features features.npy -o tok"
                 )(features)
    app.add_typer(room, name="tokenizer")


def train(source: ImagesArgument,
          out: Annotated[Path, typer.Option("--out", "-o", help="Job folder: checkpoint, log, samples, and tokenizer.cw in the end.")],
          quantizer: Annotated[str, typer.Option(help="Spec string, e.g. simvq, vq:learning=ema, fsq:grid=8x5x5x5.")] = "simvq",
          codebook_size: Annotated[int | None, typer.Option(help="Codewords; same as codebook_size= in the spec. [default: 16384]", min=1,
                                                            show_default=False)] = None,
          network: Annotated[str, typer.Option(help="Encoder and decoder: conv, vqgan, vit, factorized (FQGAN), dynamic (DQ-VAE), with "
                                              "options, e.g. dynamic:router=entropy,fraction=0.4.")] = "vqgan:width=16",
          dim: Annotated[int | None, typer.Option(help="Width of the latents. [default: 32; the length of the grid for fsq]", min=1,
                                                  show_default=False)] = None,
          image_size: Annotated[int | None, typer.Option("--size", help="Side of the training crops. [default: the images' own if all are "
                                                         "small squares, else 64]", min=4, show_default=False)] = None,
          channels: Annotated[int | None, typer.Option(help="1 grey, 3 colour; default: what the first image has.", min=1, max=3)] = None,
          valid: Annotated[str | None, typer.Option(help="Images to evaluate on; default: 2 % of IMAGES, at most 512, held out.")] = None,
          minutes: Annotated[float | None, typer.Option(help="Train at most so long, annealing included. [default: 10 unless --steps is "
                                                        "given]", min=0.01, show_default=False)] = None,
          steps: Annotated[int | None, typer.Option(help="Train so many steps.", min=1)] = None,
          batch_size: Annotated[int, typer.Option(help="Images a step, all devices together.", min=1)] = 64,
          learning_rate: Annotated[float, typer.Option(help="Peak learning rate of Adam.")] = 2e-3,
          schedule: Annotated[str, typer.Option(help="linear, cosine or constant: how the rate falls.")] = "linear",
          warmup: Annotated[int, typer.Option(help="Steps of rising rate, a tenth of the run at most.", min=0)] = 100,
          loss: Annotated[str, typer.Option(help="Weights of l1, l2, logit_laplace and perceptual, e.g. l2=4,perceptual=0.2.")] = "l2=4",
          gan: Annotated[float, typer.Option(help="Weight of the discriminator's approval; 0: no discriminator.", min=0)] = 0.0,
          discriminator: Annotated[str, typer.Option(help="patch or style.")] = "patch",
          gan_start: Annotated[float, typer.Option(help="Share of the run before the discriminator joins.", min=0, max=1)] = 0.3,
          representation: Annotated[float, typer.Option(min=0, help="Weight of a loss that ties the first codebook of factorized_vq to "
                                                             "features of the bundled network (FQGAN: 0.5, to CLIP's).")] = 0.0,
          frozen: Annotated[str | None, typer.Option("--features", show_default=False,
                                                     help="Frozen features of projected_vq, a row a codeword, as codeword tokenizer "
                                                          "features writes them. [default: centres of first latents]")] = None,
          ema: Annotated[float, typer.Option(help="Decay of the averaged weights.", min=0)] = 0.999,
          start: Annotated[str, typer.Option(help="data: fit the quantizer on first latents; random: as papers start it.")] = "data",
          precision: Annotated[str, typer.Option(help="32 or bf16.")] = "32",
          devices: Annotated[int, typer.Option(help="Devices to train on.", min=1)] = 1,
          accelerator: Annotated[str, typer.Option(help="auto, cpu, gpu, ...: where.")] = "auto",
          flip: Annotated[bool, typer.Option(help="Mirror half of the images.")] = True,
          eval_every: Annotated[int, typer.Option(help="Steps between looks at held-out images.", min=1)] = 200,
          tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard files.")] = False,
          skip_bad: SkipBad = False,
          resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT: same arguments, but --steps and "
                                                           "--minutes may grow.")] = False,
          dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, write nothing.")] = False,
          seed: Seed = 0, as_json: Json = False) -> None:
    """Train an image tokenizer. Ctrl-C saves; --resume continues."""
    from codeword.tokenizers.train import Limits, Settings
    from codeword.tokenizers.train import train as run
    images, held_out = _training_images(source, valid, channels, seed)
    side = image_size or _usual_size(images)
    spec = _spec(quantizer, codebook_size)
    settings = Settings(quantizer=spec, network=network, size=side, channels=images.channels, dim=dim or _usual_dim(spec),
                        batch_size=batch_size, learning_rate=learning_rate, shape=schedule, warmup=warmup, ema=ema, loss=loss,
                        gan=gan, discriminator=discriminator, gan_start=gan_start, representation=representation, start=start,
                        precision=precision, flip=flip, seed=seed).check()
    installed = None if frozen is None else vectors(frozen)[:]
    limits = Limits(steps=steps, minutes=minutes if minutes is not None or steps is not None else 10.0, eval_every=eval_every)
    if dry_run:
        return _train_estimate(images, held_out, settings, limits, installed, as_json)
    began = time.perf_counter()
    with progress("train", 1.0, as_json or os.environ.get("LOCAL_RANK", "0") != "0") as advance:
        done = [0.0]

        def watch(now: Any) -> None:
            share = now.step / now.total if now.total else 0.0
            advance(share - done[0])
            done[0] = share
            if now.row is not None and "valid_psnr" in now.row and not as_json:
                note(_step_line(now))
        outcome = run(images, held_out, settings, limits, out, resume=resume, skip_bad=skip_bad, devices=devices, accelerator=accelerator,
                      tensorboard=tensorboard, features=installed, watch=watch)
    if outcome.rank:  # the first rank speaks for all
        return
    if outcome.interrupted:
        note(f"stopped at step {outcome.steps}; the same command with --resume continues")
        raise KeyboardInterrupt
    last = outcome.rows[-1]
    summary = {"tokenizer": str(out / "tokenizer.cw"), "fingerprint": outcome.tokenizer.fingerprint, "steps": outcome.steps,
               "seconds": time.perf_counter() - began, "psnr": last.get("valid_psnr"), "usage": last["usage"], "bad": outcome.bad}
    emit(summary, as_json, lambda: pairs({
        "saved": f"{summary['tokenizer']}, fingerprint {summary['fingerprint']}",
        "trained": f"{count(outcome.steps, 'step')} of {count(settings.batch_size, 'image')} in {_duration(summary['seconds'])}",
        "held out": f"PSNR {last['valid_psnr']:.2f} dB" if "valid_psnr" in last else "not looked at",
        "codebook": f"{100 * last['usage']:.1f} % in use, perplexity {last['perplexity']:,.0f}, over the last steps",
        "stores": f"{outcome.tokenizer.bits_per_pixel:.3f} bits a pixel",
        **({"left out": _some(outcome.bad)} if outcome.bad else {}),
        "see": f"{out / 'samples'}, and codeword tokenizer report {out} IMAGES"}))


def _step_line(now: Any) -> str:
    row = now.row
    return (f"step {now.step:>6,} of {now.total:,}  {_duration(now.seconds):>8}  PSNR {row['valid_psnr']:.2f} dB  "
            f"loss {row['loss']:.4f}  {100 * row['usage']:.0f} % of the codebook in use")


def _train_estimate(images: Images, held_out: Images, settings: Any, limits: Any, installed: Any, as_json: bool) -> None:
    from codeword.tokenizers.train import estimate
    found = estimate(images, held_out, settings, limits, installed)
    emit(found, as_json, lambda: pairs({
        "would train": f"{count(found['parameters'], 'parameter')} on {count(len(images), 'image')} of {settings.size} × {settings.size}, "
                       f"holding {count(len(held_out))} out",
        "would take": f"{count(found['steps'], 'step')} of about {1000 * found['step_seconds']:.0f} ms: {_duration(found['seconds'])}, "
                      f"and {size(found['memory_bytes'])} of memory",
        "would write": f"{size(found['bytes'])}",
        "would store": f"{found['bits_per_pixel']:.3f} bits a pixel"}))


def encode(tokenizer: TokenizerArgument, source: ImagesArgument,
           out: Annotated[Path, typer.Option("--out", "-o", help="Folder of token shards to write.")],
           image_size: Size = None,
           whole: Annotated[bool, typer.Option("--whole", help="Encode whole images at their own sizes instead of square crops.")] = False,
           skip_bad: SkipBad = False,
           resume: Annotated[bool, typer.Option("--resume", help="Continue an encode that was interrupted.")] = False,
           dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, write nothing.")] = False,
           as_json: Json = False) -> None:
    """Turn images into token shards: a folder that generators read. Every segment that is done stays; Ctrl-C loses none."""
    from codeword.tokenizers import encoding
    from codeword.tokenizers.shards import TokenShards, TokenWriter
    if whole and image_size is not None:
        raise CodewordError("--whole keeps the images' own sizes; leave --size out")
    made = _tokenizer(tokenizer)
    images = _images(source, made)
    side = None if whole else image_size or made.size
    if dry_run:
        found = encoding.estimate(made, images, side)
        emit(found, as_json, lambda: pairs({
            "would write": f"{size(found['bytes'])} for {count(found['tokens'])} tokens of {count(len(images), 'image')}",
            "would take": f"about {_duration(found['seconds'])} and {size(found['memory_bytes'])} of memory"}))
        return
    writer = TokenWriter.start(out, fingerprint=made.fingerprint, signal="image", levels=made.quantizer.levels,
                               source={**images.identity, "size": side}, total=len(images), resume=resume)
    before, began = writer.consumed, time.perf_counter()
    with progress("encode", len(images), as_json) as advance:
        advance(before)
        interrupted = encoding.encode(made, images, writer, size=side, step=ENCODE_ITEMS, skip_bad=skip_bad, advance=advance)
    if interrupted:
        note(f"{writer.consumed} of {len(images)} images are encoded; the same command with --resume continues")
        raise KeyboardInterrupt
    shards, seconds = TokenShards(out), time.perf_counter() - began
    skipped = writer.skipped
    summary = {"shards": str(out), "images": len(shards), "tokens": shards.places, "bytes": shards.nbytes, "fingerprint": made.fingerprint,
               "images_resumed": before, "skipped": skipped, "seconds": seconds}
    emit(summary, as_json, lambda: pairs({
        "saved": f"{out}: {count(len(shards), 'image')}, {count(shards.places, 'token')} ({size(shards.nbytes)}), "
                 f"tokenizer {made.fingerprint}",
        "encoded": f"{count(len(images) - before, 'image')} in {_duration(seconds)}" + (f"; {count(before)} were there" if before else ""),
        **({"skipped": _some(skipped)} if skipped else {})}))


def decode(tokenizer: TokenizerArgument,
           shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder written by codeword tokenizer encode.",
                                                  show_default=False)],
           out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the PNG images.")],
           items: Annotated[str | None, typer.Option(help="Only these items: numbers, comma lists, ranges such as 0-9.")] = None,
           overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that has files already.")] = False,
           as_json: Json = False) -> None:
    """Turn token shards back into PNG images, named by their number and what they were called."""
    from codeword.io import files
    from codeword.report.tokenizer import png_bytes
    from codeword.tokenizers import encoding
    from codeword.tokenizers.shards import TokenShards
    made = _tokenizer(tokenizer)
    found = TokenShards(shards)
    if found.fingerprint != made.fingerprint:
        raise CodewordError(f"{shards} was encoded by tokenizer {found.fingerprint}; {tokenizer} is {made.fingerprint}")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise CodewordError(f"{out} has files already; name a new folder, or say --overwrite")
    rows = _items(items, len(found))
    files.make_folder(out)
    with progress("decode", len(rows), as_json) as advance:
        for row, image in encoding.decode(made, found, rows):
            files.write_file(out / encoding.picture_name(row, found.name(row)), [png_bytes(image)], durable=False)
            advance(1)
    emit({"folder": str(out), "images": len(rows)}, as_json, lambda: pairs({"saved": f"{count(len(rows), 'image')} in {out}"}))


def evaluate(tokenizer: TokenizerArgument, source: ImagesArgument, image_size: Size = None,
             limit: Annotated[int | None, typer.Option(help="Look at the first so many images only.", min=1)] = None,
             skip_bad: SkipBad = False, as_json: Json = False) -> None:
    """Measure a tokenizer on images: error, similarity, use of the codebook, bits."""
    from codeword.tokenizers.evaluate import evaluate as measure
    made = _tokenizer(tokenizer)
    images = _images(source, made)
    with progress("eval", min(len(images), limit or len(images)), as_json) as advance:
        found = measure(made, images, size=image_size or made.size, most=limit, skip_bad=skip_bad, advance=advance)
    emit(found.numbers, as_json, lambda: pairs(_evaluation_lines(found.numbers)))


def report(tokenizer: TokenizerArgument, source: ImagesArgument,
           out: Annotated[Path | None, typer.Option("--out", "-o", show_default=False,
                                                    help="HTML file to write. [default: report.html beside the tokenizer]")] = None,
           image_size: Size = None,
           limit: Annotated[int, typer.Option(help="Look at the first so many images only.", min=1)] = 2000,
           skip_bad: SkipBad = False, as_json: Json = False) -> None:
    """Write one HTML page: originals beside reconstructions, numbers, use and map of the codebook, curves of the training."""
    from codeword.io import files
    from codeword.report.tokenizer import page
    from codeword.tokenizers.evaluate import evaluate as measure
    from codeword.tokenizers.recorder import LOG, read_log
    made = _tokenizer(tokenizer)
    images = _images(source, made)
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    target = out or folder / "report.html"
    with progress("report", min(len(images), limit), as_json) as advance:
        found = measure(made, images, size=image_size or made.size, most=limit, skip_bad=skip_bad, advance=advance, keep=48)
    files.write_file(target, [page(made, found, read_log(folder / LOG), source).encode()], durable=False)
    emit({"report": str(target), **found.numbers}, as_json, lambda: pairs({"saved": str(target), **_evaluation_lines(found.numbers)}))


def features(source: ImagesArgument,
             codebook_size: Annotated[int, typer.Option(help="Centres to make: codewords of the quantizer that will have them.", min=1)],
             out: Annotated[Path, typer.Option("--out", "-o", help="The .npy file to write.")],
             image_size: Annotated[int | None, typer.Option("--size", help="Side of the crops. [default: as for train]", min=4,
                                                            show_default=False)] = None,
             by_class: Annotated[bool, typer.Option(help="Share the centres out among the classes, where images have labels.")] = True,
             seed: Seed = 0, as_json: Json = False) -> None:
    """Make the frozen features of VQGAN-LC: centres of what the bundled feature network sees in patches of images (in place of CLIP)."""
    import io

    import numpy as np

    from codeword.data.images import open_images
    from codeword.io import files
    from codeword.tokenizers.features import chosen, codebook_features
    if out.suffix != ".npy":
        raise CodewordError(f"--out is {out}; the name of a .npy file is needed")
    images = open_images(source)
    seen = len(chosen(images, codebook_size, seed))
    with progress("features", seen, as_json) as advance:
        found = codebook_features(images, codebook_size, size=image_size or _usual_size(images), by_class=by_class, seed=seed,
                                  advance=advance)
    data = io.BytesIO()
    np.save(data, found.numpy())
    files.write_file(out, [data.getvalue()])
    classes = len(np.unique(images.labels)) if by_class and images.labels is not None else None
    emit({"features": str(out), "shape": list(found.shape), "images": seen, "classes": classes, "network": "features-cifar10"}, as_json,
         lambda: pairs({"saved": f"{out}: {count(len(found), 'centre')}, {found.shape[1]} wide",
                        "made of": f"patches of {count(seen, 'image')} as features-cifar10 sees them"
                                   + (", each label's apart" if classes else "")}))


def _evaluation_lines(numbers: dict[str, Any]) -> dict[str, str]:
    from codeword.tokenizers.evaluate import MEANING
    return {line.name(numbers): line.show(numbers) for line in MEANING if numbers.get(line.key) is not None}


def _tokenizer(path: Path) -> TrainedTokenizer:
    from codeword.tokenizers.frame import load_tokenizer
    file = path / "tokenizer.cw" if path.is_dir() else path
    if path.is_dir() and not file.exists() and (path / "checkpoint.cw").exists():
        raise CodewordError(f"{path} holds a run that has not finished; continue it with codeword tokenizer train ... --resume")
    return load_tokenizer(file)


def _images(source: str, made: TrainedTokenizer) -> Images:
    from codeword.data.images import open_images
    return open_images(source, channels=made.channels)


def _items(text: str | None, total: int) -> list[int]:
    from codeword.cli.inputs import integers
    rows = list(range(total)) if text is None else integers([text], "item").tolist()
    if rows and max(rows) >= total:
        raise CodewordError(f"--items names item {max(rows)}; the shards have {total}, counted from 0")
    return rows


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _some(lines: list[str]) -> str:
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def _spec(quantizer: str, codebook_size: int | None) -> str:
    """The spec with --codebook-size put in, or the usual one for quantizers that need one."""
    from codeword import catalog
    name, inner, options = catalog.parse(quantizer)
    takes = "codebook_size" in catalog.parameters(catalog.quantizer_class(name).__init__) and not inner
    if codebook_size is not None and (not takes or "codebook_size" in options or "bits" in options):
        raise CodewordError(f"--codebook-size does not go with --quantizer {quantizer!r}, which "
                            f"{'says its size itself' if takes else 'has no argument of that name'}")
    if takes and "codebook_size" not in options and "bits" not in options:
        return f"{quantizer}{',' if ':' in quantizer else ':'}codebook_size={codebook_size or 16384}"
    return quantizer


def _usual_dim(spec: str) -> int:
    """One token a place: FSQ's grid says how wide that is, other quantizers take any width."""
    from codeword import catalog
    name, _, options = catalog.parse(spec)
    grid = options.get("grid")
    return len(grid) if name == "fsq" and isinstance(grid, list) else 32


def _training_images(source: str, valid: str | None, channels: int | None, seed: int) -> tuple[Images, Images]:
    from codeword.data.images import open_images
    images = open_images(source, channels=channels)
    if valid is not None:
        return images, open_images(valid, channels=images.channels)
    if len(images) < 2:
        raise CodewordError(f"{source} holds one image; name images to evaluate on with --valid")
    return images.split(max(1, min(512, len(images) // 50)), seed)


def _usual_size(images: Images) -> int:
    """The images' own side where the first few are small squares of one size that four divides, else 64."""
    shapes = {images[i].shape[:2] for i in range(min(8, len(images)))}
    (height, width), *others = shapes
    return height if not others and height == width and height <= 64 and height % 4 == 0 else 64
