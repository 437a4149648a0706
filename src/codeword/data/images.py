"""Images from wherever they lie, as uint8 arrays of (height, width, channels), decoded when they are asked for.

    x = open_images("photos/")                  # .png .jpg .jpeg .webp .bmp, subfolders too; folders of one level are classes
    x = open_images("train.parquet")            # a column of image bytes, or of {bytes, path}; #NAME names it; labels are kept
    x = open_images("train-images-idx3-ubyte.gz"), open_images("digits.npy"), open_images("one.png")
    len(x), x[7].shape, x.names[7], x.labels[7]

Opening reads names and headers only. A file that cannot be decoded is a FormatError that names it; whoever wants to go on without it
says so (``skip_bad`` of the batches below) and finds it in ``bad``. Only four decoders of pillow are ever reached, and only for
images of at most MAX_PIXELS, whatever their header claims.

``Batches`` gives square crops for training: batch number t under a seed is a pure function of (seed, t), so a run that was stopped
continues with the batches it would have seen. Every image is decoded and scaled once; what fits into ``cache_bytes`` stays in memory.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from codeword.errors import CodewordError, FormatError, ShapeError, Unsupported
from codeword.parts import random

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Decoders of pillow that may run; its rarer ones have the worse record."""
MAX_PIXELS = 1 << 26
MAX_BYTES = 1 << 28
"""Largest encoded image."""
MAX_ARRAY = 1 << 34
"""Most bytes that a compressed idx file may unfold to."""
COLUMN_BYTES = 1 << 32
"""Encoded images of a Parquet file are held in memory up to here."""
FEW_FILES = 16
"""So many files are identified by what is in them."""
LABELS = ("label", "labels", "class", "fine_label", "target", "y", "coarse_label")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM")


class Images:
    """A read-only sequence of images. ``names`` one an image (``named``: they are names of files, not just numbers); ``labels`` int64
    (n,) or None; ``classes`` names of the labels or None; ``channels`` 1 (grey) or 3 (colour): all images are given so."""

    def __init__(self, read: Callable[[int], np.ndarray], names: Sequence[str], *, source: str, channels: int,
                 labels: np.ndarray | None = None, classes: Sequence[str] | None = None, files: Sequence[Path] = (),
                 named: bool = False) -> None:
        self._read, self.names, self.source, self.channels = read, names, source, channels
        self.labels, self.classes, self.files, self.named = labels, classes, tuple(files), named

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> np.ndarray:
        """uint8 (height, width, channels). Raises FormatError naming the image where it cannot be decoded."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} is outside 0..{len(self) - 1} of {self.source}")
        return self._read(int(i) % len(self))

    def __repr__(self) -> str:
        return f"Images({self.source!r}, {len(self)} images, channels={self.channels})"

    def take(self, rows: np.ndarray) -> Images:
        """Some of the images, in the order of ``rows``."""
        rows = np.asarray(rows, np.int64)
        names = [str(self.names[i]) for i in rows.tolist()]
        return Images(lambda i: self._read(int(rows[i])), names, source=self.source, channels=self.channels,
                      labels=None if self.labels is None else self.labels[rows], classes=self.classes, files=self.files, named=self.named)

    def split(self, held_out: int, seed: int = 0) -> tuple[Images, Images]:
        """(the rest, ``held_out`` images chosen by the seed), both in their old order."""
        if not 0 < held_out < len(self):
            raise CodewordError(f"{held_out} images cannot be held out of the {len(self)} of {self.source}")
        chosen = random.choice(seed, len(self), held_out, stream="held out images")
        mask = np.zeros(len(self), bool)
        mask[chosen] = True
        return self.take(np.flatnonzero(~mask)), self.take(np.flatnonzero(mask))

    @property
    def identity(self) -> dict[str, Any]:
        """What stands for these images in a job's record: few files by their contents, many by names and sizes; and how many images
        they hold."""
        import hashlib

        from codeword.io import jobs
        found: dict[str, Any] = {"channels": self.channels, "files": len(self.files), "images": len(self)}
        if len(self.files) <= FEW_FILES:
            return {**found, "contents": {path.name: jobs._identity(path) for path in self.files}}
        listing = hashlib.sha256("".join(f"{path.name}/{path.stat().st_size}\n" for path in self.files).encode())
        return {**found, "listing_sha256": listing.hexdigest()}


def open_images(path: str | Path, *, channels: int | None = None) -> Images:
    """The images at ``path``; ``channels`` 1 or 3, by default what the first of them has. Raises CodewordError where there are none,
    FormatError where a file is not what its name says, Unsupported where a package is missing."""
    if channels not in (None, 1, 3):
        raise CodewordError(f"channels is {channels}; 1 (grey) and 3 (colour) are read")
    text, key = str(path), None
    if "#" in text and not Path(text).exists():
        text, _, key = text.rpartition("#")
    place = Path(text)
    if not place.exists():
        raise CodewordError(f"there is no {text}; a folder of images, an image, or a .parquet, .npy or idx file is needed")
    found = _folder(place, key, channels) if place.is_dir() else _file(place, key, channels)
    if not len(found):
        raise CodewordError(f"{text} holds no images")
    return found


# ---------------------------------------------------------------------- where images lie


def _folder(folder: Path, key: str | None, channels: int | None) -> Images:
    paths = sorted((p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
                    and not any(part.startswith(".") for part in p.relative_to(folder).parts)), key=lambda p: _natural(p, folder))
    if paths:
        labels, classes = _folder_labels(paths, folder)
        return _encoded(lambda i: _bytes(paths[i]), [p.relative_to(folder).as_posix() for p in paths], str(folder), channels,
                        labels=labels, classes=classes, files=paths, named=True)
    tables = sorted((p for p in folder.iterdir() if p.suffix.lower() == ".parquet"), key=lambda p: _natural(p, folder))
    if len({re.sub(r"\d+", "", p.stem) for p in tables}) == 1:
        return _parquet(tables, key, channels, str(folder))
    others = [p.name for p in sorted(folder.iterdir()) if p in tables or p.suffix.lower() in (".npy", ".gz") or "ubyte" in p.name]
    if others:
        raise CodewordError(f"{folder} has no image files, but {', '.join(others[:6])}; name the one that is meant")
    raise CodewordError(f"{folder} holds no images ({', '.join(SUFFIXES)}) and no Parquet file of images")


def _file(path: Path, key: str | None, channels: int | None) -> Images:
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return _encoded(lambda i: _bytes(path), [path.name], str(path), channels, files=[path], named=True)
    if suffix == ".parquet":
        return _parquet([path], key, channels, str(path))
    if suffix == ".npy":
        return _array(_npy(path), path, channels, None)
    if "ubyte" in path.name or suffix == ".gz":
        return _array(_idx(path, 3), path, channels, _idx_labels(path))
    raise CodewordError(f"{path} has the ending {suffix!r}; {', '.join((*SUFFIXES, '.parquet', '.npy'))} and idx files are read")


def _natural(path: Path, folder: Path) -> list[Any]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.relative_to(folder).as_posix())]


def _folder_labels(paths: Sequence[Path], folder: Path) -> tuple[np.ndarray | None, list[str] | None]:
    """Classes where every image lies in a subfolder of the first level, and there are at least two such."""
    parts = [p.relative_to(folder).parts for p in paths]
    classes = sorted({part[0] for part in parts})
    if any(len(part) != 2 for part in parts) or len(classes) < 2:
        return None, None
    numbers = {name: i for i, name in enumerate(classes)}
    return np.array([numbers[part[0]] for part in parts], np.int64), classes


def _encoded(data: Callable[[int], bytes], names: Sequence[str], source: str, channels: int | None, **more: Any) -> Images:
    """Images that pillow decodes; the first one decides between grey and colour where nobody else did."""
    wanted = 3 if channels is None else channels
    if channels is None and len(names):
        with contextlib.suppress(FormatError):  # it will be named when it is read
            wanted = decode(data(0), f"{names[0]} of {source}").shape[2]
    return Images(lambda i: decode(data(i), f"{names[i]} of {source}", wanted), names, source=source, channels=wanted, **more)


def _bytes(path: Path) -> bytes:
    from codeword.io import files
    return files.read_bytes(path, MAX_BYTES)


def _parquet(paths: Sequence[Path], key: str | None, channels: int | None, source: str) -> Images:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise Unsupported("Parquet files need pyarrow, the extra 'data': pip install 'codeword[data]'") from None
    cells: list[Any] = []
    labels: list[np.ndarray] = []
    total = 0
    for path in paths:
        try:
            file = parquet.ParquetFile(path, memory_map=True)
            column = _image_column(pa, file.schema_arrow, path, key)
            label = next((name for name in LABELS if name in file.schema_arrow.names
                          and pa.types.is_integer(file.schema_arrow.field(name).type)), None)
            for group in range(file.num_row_groups):
                total += file.metadata.row_group(group).total_byte_size
                if total > COLUMN_BYTES:
                    raise FormatError("limit", f"{source} has more than {COLUMN_BYTES >> 30} GiB of images; unpack them into a folder")
                table = file.read_row_group(group, columns=[column] + ([label] if label else []))
                cells += [_binary(pa, chunk) for chunk in table.column(column).chunks if len(chunk)]
                if label:
                    labels.append(table.column(label).to_numpy().astype(np.int64))
        except CodewordError:
            raise
        except Exception as error:
            raise FormatError("header", f"{path} cannot be read: {str(error)[:200]}") from None
    starts = np.cumsum([0] + [len(chunk) for chunk in cells])

    def data(i: int) -> bytes:
        chunk = int(np.searchsorted(starts, i, side="right")) - 1
        value = cells[chunk][i - int(starts[chunk])].as_buffer()
        if value is None:
            raise FormatError("value", f"row {i} of {source} has no image")
        return value.to_pybytes()

    whole = np.concatenate(labels) if labels else None
    return _encoded(data, [f"row {i}" for i in range(int(starts[-1]))], source, channels,
                    labels=whole if whole is not None and len(whole) == starts[-1] else None, files=paths)


def _image_column(pa: Any, schema: Any, path: Path, key: str | None) -> str:
    def holds(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds(kind.field("bytes").type)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [field.name for field in schema if holds(field.type)]
    if key is not None:
        if key not in found:
            raise CodewordError(f"{path} has no column {key!r} of image bytes; it has {', '.join(found) or 'none'}")
        return key
    named = [name for name in ("image", "img") if name in found] or found
    if len(named) != 1:
        raise CodewordError(f"{path} has {len(found)} columns of bytes ({', '.join(found) or 'none'}); name one as {path.name}#NAME")
    return named[0]


def _binary(pa: Any, chunk: Any) -> Any:
    values = chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
    values.validate(full=True)
    return values


def _npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise FormatError("header", f"{path} cannot be read: {str(error)[:200]}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fu" or (array.dtype.kind == "u" and array.dtype != np.uint8):
        raise FormatError("dtype", f"{path} holds {getattr(array, 'dtype', 'no array')}; uint8, or floats from 0 to 1, are needed")
    if array.ndim == 3:
        return array[None] if array.shape[2] == 3 and array.shape[0] != array.shape[1] else array[..., None]
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return array
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array.transpose(0, 2, 3, 1)
    raise ShapeError(f"{path} holds an array of shape {array.shape}; (n, height, width), (n, height, width, channels) or "
                     "(n, channels, height, width) with 1 or 3 channels is needed")


def _idx(path: Path, axes: int) -> np.ndarray:
    """An idx file of uint8 (LeCun's format): 0, 0, 8, axes, then one big-endian size an axis, then the values."""
    try:
        with (gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")) as file:
            head = file.read(4 + 4 * axes)
            if len(head) < 4 + 4 * axes or head[:2] != b"\0\0" or head[2] != 8 or head[3] != axes:
                raise FormatError("magic", f"{path} is not an idx file of bytes with {axes} axes")
            shape = struct.unpack(f">{axes}I", head[4:])
            need = int(np.prod(shape, dtype=object))
            if need > MAX_ARRAY:
                raise FormatError("limit", f"{path} declares {need} bytes; at most {MAX_ARRAY} are read")
            parts, got = [], 0
            while block := file.read(min(1 << 24, need + 1 - got)):  # as much as is there, never what the header claims
                parts.append(block)
                got += len(block)
    except (OSError, EOFError) as error:
        raise FormatError("truncated" if isinstance(error, EOFError) else "file", f"{path} cannot be read: {error}") from None
    if got != need:
        short = got < need
        raise FormatError("truncated" if short else "trailing", f"{path} declares {need} bytes and has {'fewer' if short else 'more'}")
    return np.frombuffer(b"".join(parts), np.uint8).reshape(shape)[..., *([None] if axes == 3 else [])]


def _idx_labels(path: Path) -> np.ndarray | None:
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    return _idx(beside, 1).astype(np.int64) if beside != path and beside.exists() else None


def _array(array: np.ndarray, path: Path, channels: int | None, labels: np.ndarray | None) -> Images:
    if min(array.shape[1:]) < 1 or array.shape[1] * array.shape[2] > MAX_PIXELS:
        raise ShapeError(f"{path} holds images of {array.shape[1]} × {array.shape[2]}; 1 to {MAX_PIXELS} pixels are allowed")
    if labels is not None and len(labels) != len(array):
        raise ShapeError(f"{path} has {len(array)} images, and the labels beside it are {len(labels)}")
    wanted = channels or array.shape[3]

    def read(i: int) -> np.ndarray:
        image = np.asarray(array[i])
        if image.dtype != np.uint8:
            if not bool((np.isfinite(image) & (image >= 0) & (image <= 1)).all()):
                raise FormatError("value", f"image {i} of {path} has values outside 0..1; floating-point images are read as 0..1")
            image = np.rint(image.astype(np.float32) * 255).astype(np.uint8)
        return image if image.shape[2] == wanted else image.repeat(3, 2) if wanted == 3 else _grey(image)

    return Images(read, [f"image {i}" for i in range(len(array))], source=str(path), channels=wanted, labels=labels, files=[path])


def _grey(image: np.ndarray) -> np.ndarray:
    """Luma of ITU-R 601, in integers: what pillow computes."""
    r, g, b = (image[..., c].astype(np.uint32) for c in range(3))
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16).astype(np.uint8)[..., None]


# ---------------------------------------------------------------------- decoding and scaling


def pillow() -> Any:
    """pillow's Image module. Raises Unsupported where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise Unsupported("image files need pillow, the extra 'media': pip install 'codeword[media]'") from None
    return Image


def decode(data: bytes, name: str, channels: int | None = None) -> np.ndarray:
    """uint8 (height, width, 1 or 3) of an encoded image, upright, transparency over white. Raises FormatError that says ``name``."""
    Image = pillow()
    from PIL import ImageOps
    if not data.startswith(_MAGIC):
        raise FormatError("magic", f"{name} is no PNG, JPEG, WebP or BMP image")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise FormatError("limit", f"{name} has {image.width} × {image.height} pixels; at most {MAX_PIXELS} are decoded")
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits a sample
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
            if "A" in image.mode or "transparency" in image.info:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            grey = channels == 1 or (channels is None and image.mode in ("1", "L"))
            array = np.asarray(image.convert("L" if grey else "RGB"))
    except (FormatError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise FormatError("limit", f"{name} has more pixels than the {MAX_PIXELS} that are decoded") from None
    except Exception as error:  # pillow's decoders raise whatever they like on damaged data
        raise FormatError("value", f"{name} cannot be decoded: {str(error)[:160] or type(error).__name__}") from None
    return array[..., None] if array.ndim == 2 else array


def scale(image: np.ndarray, short: int) -> np.ndarray:
    """The image with its shorter side at ``short`` (Lanczos, antialiased), uint8; itself where it is so already."""
    height, width = image.shape[:2]
    if min(height, width) == short:
        return image
    Image = pillow()
    ratio = short / min(height, width)
    size = (max(short, round(width * ratio)), max(short, round(height * ratio)))
    flat = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    out = np.asarray(flat.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
    return out[..., None] if out.ndim == 2 else out


def centre(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle ``height`` × ``width`` pixels."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top:top + height, left:left + width]


class Bad(NamedTuple):
    """An image that was left out, and why."""

    name: str
    reason: str


class Batches:
    """Square crops of ``size`` pixels for training. ``batch(t)`` is uint8 (b, channels, size, size) of the t-th batch: passes in their own
    seeded order, of whole batches; the shorter side is scaled to ``size``, the crop along the longer one and, with ``flip``, left and
    right are drawn. Ranks take every ``world``-th image of each batch. ``skip_bad``: images that cannot be decoded are left out of their
    batch and listed in ``bad``; otherwise the first is an error."""

    def __init__(self, images: Images, *, size: int, batch_size: int, seed: int = 0, flip: bool = True, skip_bad: bool = False,
                 cache_bytes: int = 2 << 30, rank: int = 0, world: int = 1) -> None:
        if size < 1 or batch_size < 1:
            raise CodewordError(f"batches of {batch_size} images of {size} pixels cannot be made; both must be at least 1")
        self.images, self.size, self.seed, self.flip, self.skip_bad = images, size, seed, flip, skip_bad
        self.batch_size = min(batch_size, len(images))
        self.rank, self.world = rank, world
        self.bad: dict[int, Bad] = {}
        self._cache: list[np.ndarray | None] = [None] * len(images)
        self.cache_bytes, self._room = cache_bytes, cache_bytes
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def batch(self, t: int) -> Tensor:
        """Batch number ``t`` >= 0 (this rank's part)."""
        return self._make(t, self._rows(t))

    def stream(self, start: int, threads: int = 2) -> Iterator[Tensor]:
        """Batches ``start``, start + 1, ... for ever, the next ones decoded by ``threads`` while one is used."""
        with ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
            waiting: deque[Any] = deque()
            t = start
            try:
                while True:
                    while len(waiting) <= threads:
                        waiting.append(pool.submit(self._make, t, self._rows(t)))
                        t += 1
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    @property
    def per_pass(self) -> int:
        """Batches of one pass over the images."""
        return max(1, len(self.images) // self.batch_size)

    def _rows(self, t: int) -> np.ndarray:
        epoch, place = divmod(t, self.per_pass)
        if self._order[0] != epoch:
            self._order = (epoch, random.permutation(self.seed, len(self.images), stream=f"images pass {epoch}"))
        return self._order[1][place * self.batch_size:(place + 1) * self.batch_size][self.rank::self.world]

    def _make(self, t: int, rows: np.ndarray) -> Tensor:
        import torch
        draws = random.bits(self.seed, 2 * self.batch_size, stream=f"crops {t}").reshape(-1, 2)[self.rank::self.world]
        out = np.empty((len(rows), self.size, self.size, self.images.channels), np.uint8)
        n = 0
        for row, (where, mirror) in zip(rows.tolist(), draws.tolist()):
            image = self._image(row)
            if image is None:
                continue
            top, left = where % (image.shape[0] - self.size + 1), where % (image.shape[1] - self.size + 1)
            crop = image[top:top + self.size, left:left + self.size]
            out[n] = crop[:, ::-1] if self.flip and mirror >> 63 else crop
            n += 1
        return torch.from_numpy(out[:n]).permute(0, 3, 1, 2)

    def _image(self, row: int) -> np.ndarray | None:
        known = self._cache[row]
        if known is not None or row in self.bad:
            return known
        try:
            image = scale(self.images[row], self.size)
        except FormatError as error:
            if not self.skip_bad:
                raise
            self.bad[row] = Bad(self.images.names[row], str(error))
            return None
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._cache[row] = np.ascontiguousarray(image)
        return image
