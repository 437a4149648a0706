"""Images from folders, Parquet, idx and arrays: what is read, what is refused and how it is named, crops that repeat."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from codeword.data import images as module
from codeword.data.images import Batches, decode, open_images, scale
from codeword.errors import CodewordError, FormatError, ShapeError

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, format=kind, **options)
    return data.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, i in (("b/10.png", 0), ("b/9.png", 1), ("a/x.bmp", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(PIXELS[i]).save(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    Image.fromarray(PIXELS[3]).save(tmp_path / ".hidden" / "z.png")
    return tmp_path


def test_a_folder_in_natural_order_with_its_classes(folder: Path) -> None:
    found = open_images(folder)
    assert found.names == ["a/x.bmp", "b/9.png", "b/10.png"] and found.classes == ["a", "b"] and found.channels == 3 and found.named
    assert found.labels is not None and found.labels.tolist() == [0, 1, 1]
    assert all(np.array_equal(found[i], PIXELS[j]) for i, j in enumerate((2, 1, 0)))
    assert open_images(folder, channels=1)[0].shape == (8, 8, 1)
    (folder / "top.png").write_bytes(encoded(PIXELS[4]))
    assert open_images(folder).labels is None


@pytest.mark.parametrize("wrapped", [False, True])
def test_parquet_with_labels(tmp_path: Path, wrapped: bool) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = [encoded(p) for p in PIXELS]
    column = pa.array([{"bytes": cell, "path": None} for cell in cells]) if wrapped else pa.array(cells)
    table = pa.table({"id": pa.array([b"x"] * 6), "image": column, "label": pa.array(range(6))})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    for place in (tmp_path / "t.parquet", tmp_path, f"{tmp_path / 't.parquet'}#image"):
        found = open_images(place)
        assert len(found) == 6 and all(np.array_equal(found[i], PIXELS[i]) for i in range(6)) and not found.named
        assert found.labels is not None and found.labels.tolist() == list(range(6))
    with pytest.raises(CodewordError, match="no column 'nothing'"):
        open_images(f"{tmp_path / 't.parquet'}#nothing")
    parquet.write_table(pa.table({"a": pa.array(cells), "b": pa.array(cells)}), tmp_path / "u.parquet")
    with pytest.raises(CodewordError, match=r"2 columns of bytes \(a, b\)"):
        open_images(tmp_path / "u.parquet")
    with pytest.raises(CodewordError, match="name the one that is meant"):
        open_images(tmp_path)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_idx_files_with_the_labels_beside_them(tmp_path: Path) -> None:
    grey = PIXELS[..., 0]
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(grey)))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(6, dtype=np.uint8))))
    found = open_images(path)
    assert found.channels == 1 and np.array_equal(found[5][..., 0], grey[5])
    assert found.labels is not None and found.labels.tolist() == list(range(6))
    assert np.array_equal(open_images(path, channels=3)[2], np.repeat(grey[2][..., None], 3, 2))


@pytest.mark.parametrize(("data", "code"), [
    (b"", "magic"), (idx(PIXELS[..., 0])[:-1], "truncated"), (idx(PIXELS[..., 0]) + b"x", "trailing"),
    (struct.pack(">BBBB3I", 0, 0, 8, 3, 1 << 31, 1 << 31, 1 << 31), "limit"),
    (struct.pack(">BBBB3I", 0, 0, 8, 3, 1 << 10, 1 << 10, 1 << 10), "truncated"),
    (struct.pack(">BBBB3I", 0, 0, 13, 3, 1, 1, 1), "magic"),
])
def test_idx_files_that_lie(tmp_path: Path, data: bytes, code: str) -> None:
    for name, stored in (("x-idx3-ubyte", data), ("x-idx3-ubyte.gz", gzip.compress(data))):
        (tmp_path / name).write_bytes(stored)
        with pytest.raises(FormatError) as error:
            open_images(tmp_path / name)
        assert error.value.code == code
    (tmp_path / "y-idx3-ubyte.gz").write_bytes(gzip.compress(idx(PIXELS[..., 0]))[:-9])
    with pytest.raises(FormatError):
        open_images(tmp_path / "y-idx3-ubyte.gz")


@pytest.mark.parametrize(("array", "shape"), [
    (PIXELS, (8, 8, 3)), (PIXELS[..., 0], (8, 8, 1)), (PIXELS.transpose(0, 3, 1, 2), (8, 8, 3)), (PIXELS[0, :7], (7, 8, 3)),
    (PIXELS / 255.0, (8, 8, 3)), ((PIXELS / 255).astype(np.float16), (8, 8, 3))])
def test_arrays(tmp_path: Path, array: np.ndarray, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", array)
    found = open_images(tmp_path / "x.npy")
    assert found[0].shape == shape and found[0].dtype == np.uint8
    assert np.array_equal(found[0][:7], (PIXELS[0] if shape[2] == 3 else PIXELS[0, ..., :1])[:7])


def test_arrays_that_are_no_images(tmp_path: Path) -> None:
    for array, wrong in ((PIXELS.astype(np.int32), FormatError), (PIXELS[0, 0], ShapeError), (PIXELS[..., :2], ShapeError),
                         (np.array([object()]), FormatError)):
        np.save(tmp_path / "x.npy", array, allow_pickle=True)
        with pytest.raises(wrong):
            open_images(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.full((2, 8, 8), 1.5))
    with pytest.raises(FormatError, match=r"image 1 of .* outside 0..1"):
        open_images(tmp_path / "x.npy")[1]


def test_transparency_orientation_depth_and_palettes() -> None:
    clear = np.zeros((4, 4, 4), np.uint8)
    assert (decode(encoded(clear), "x") == 255).all()
    assert decode(encoded(PIXELS[0, :, :, 0]), "x").shape == (8, 8, 1) and decode(encoded(PIXELS[0, :, :, 0]), "x", 3).shape == (8, 8, 3)
    deep = decode(encoded(PIXELS[0, :, :, 0].astype(np.uint16) << 8), "x")
    assert np.array_equal(deep[..., 0], PIXELS[0, :, :, 0])
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    assert decode(encoded(PIXELS[0, :4], "JPEG", exif=exif), "x").shape == (8, 4, 3)
    assert decode(encoded(PIXELS[0], "WEBP", lossless=True), "x").shape == (8, 8, 3)
    palette = io.BytesIO()
    Image.fromarray(PIXELS[0]).quantize(4).save(palette, format="PNG")
    assert decode(palette.getvalue(), "x").shape == (8, 8, 3)


def bomb() -> bytes:
    """A valid PNG header of 100,000 × 100,000 pixels, and nothing behind it."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(("data", "code"), [(b"", "magic"), (b"GIF89a" + bytes(40), "magic"), (encoded(PIXELS[0])[:-30], "value"),
                                            (bomb(), "limit"), (b"BM" + bytes(100), "value"), (b"%!PS-Adobe", "magic")],
                         ids=["empty", "gif", "cut", "bomb", "noise", "postscript"])
def test_bad_images_are_named(data: bytes, code: str) -> None:
    with pytest.raises(FormatError, match=r"holiday\.png") as error:
        decode(data, "holiday.png")
    assert error.value.code == code


def test_what_cannot_be_opened_says_what_is_meant(tmp_path: Path) -> None:
    for path, what in ((tmp_path / "none", "there is no"), (tmp_path, "holds no images")):
        with pytest.raises(CodewordError, match=what):
            open_images(path)
    (tmp_path / "x.tiff").write_bytes(b"x")
    with pytest.raises(CodewordError, match=r"'\.tiff'"):
        open_images(tmp_path / "x.tiff")
    with pytest.raises(CodewordError, match="channels is 2"):
        open_images(tmp_path, channels=2)


def test_scaling_keeps_the_shape() -> None:
    same = PIXELS[0]
    assert scale(same, 8) is same
    assert scale(PIXELS[0][:, :4], 8).shape == (16, 8, 3) and scale(PIXELS[0, :, :, :1], 4).shape == (4, 4, 1)
    assert (scale(np.full((9, 30, 3), 77, np.uint8), 6) == 77).all()


# ---------------------------------------------------------------------- batches


def source(tmp_path: Path, array: np.ndarray = PIXELS) -> module.Images:
    np.save(tmp_path / "x.npy", array)
    return open_images(tmp_path / "x.npy")


def test_batch_t_depends_on_the_seed_and_t_alone(tmp_path: Path) -> None:
    images = source(tmp_path)
    batches = Batches(images, size=4, batch_size=2, seed=3)
    later = [batches.batch(t) for t in range(7)]
    for t in (6, 0, 3):
        assert torch.equal(Batches(images, size=4, batch_size=2, seed=3).batch(t), later[t])
    stream = batches.stream(2)
    assert all(torch.equal(next(stream), later[t]) for t in range(2, 7))
    stream.close()  # type: ignore[attr-defined]
    assert any(not torch.equal(Batches(images, size=4, batch_size=2, seed=4).batch(t), later[t]) for t in range(3))
    assert later[0].shape == (2, 3, 4, 4) and later[0].dtype == torch.uint8


def test_a_pass_shows_each_image_once(tmp_path: Path) -> None:
    images = source(tmp_path, np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3))
    batches = Batches(images, size=8, batch_size=2)
    passes = [sorted(int(x) for t in range(3) for x in batches.batch(3 * epoch + t)[:, 0, 0, 0]) for epoch in range(3)]
    assert passes == [list(range(6))] * 3
    parts = [[Batches(images, size=8, batch_size=5, rank=rank, world=2).batch(0)[:, 0, 0, 0].tolist() for rank in range(2)]]
    whole = Batches(images, size=8, batch_size=5).batch(0)[:, 0, 0, 0].tolist()
    assert parts[0][0] == whole[::2] and parts[0][1] == whole[1::2]


def test_crops_and_flips_come_from_the_image(tmp_path: Path) -> None:
    wide = RNG.integers(0, 256, (1, 4, 40, 3), dtype=np.uint8)
    batches = Batches(source(tmp_path, wide), size=4, batch_size=1)
    places, mirrored = set(), 0
    for t in range(60):
        crop = batches.batch(t)[0].permute(1, 2, 0).numpy()
        found = [(left, flip) for left in range(37) for flip in (False, True)
                 if np.array_equal(wide[0, :, left:left + 4][:, ::-1] if flip else wide[0, :, left:left + 4], crop)]
        assert len(found) == 1
        places.add(found[0][0])
        mirrored += found[0][1]
    assert len(places) > 15 and 15 < mirrored < 45
    plain = Batches(source(tmp_path, wide[:, :, :4]), size=4, batch_size=1, flip=False)
    assert all(np.array_equal(plain.batch(t)[0].permute(1, 2, 0).numpy(), wide[0, :, :4]) for t in range(5))


def test_bad_files_stop_or_are_listed(folder: Path) -> None:
    (folder / "a" / "broken.png").write_bytes(encoded(PIXELS[0])[:60])
    images = open_images(folder)
    with pytest.raises(FormatError, match=r"a/broken\.png"):
        Batches(images, size=8, batch_size=4).batch(0)
    batches = Batches(images, size=8, batch_size=4, skip_bad=True)
    assert len(batches.batch(0)) == 3 and [bad.name for bad in batches.bad.values()] == ["a/broken.png"]
    assert len(batches.batch(1)) == 3 and len(batches.bad) == 1


def test_nothing_is_cached_beyond_the_room(tmp_path: Path) -> None:
    batches = Batches(source(tmp_path), size=8, batch_size=6, cache_bytes=2 * 8 * 8 * 3)
    first = batches.batch(0)
    assert sum(image is not None for image in batches._cache) == 2
    assert torch.equal(first, batches.batch(0))


def test_splits_are_whole_and_repeat(tmp_path: Path) -> None:
    rest, held = source(tmp_path).split(2, seed=5)
    again = source(tmp_path).split(2, seed=5)[1]
    assert len(rest) == 4 and held.names == again.names and not set(rest.names) & set(held.names)
    with pytest.raises(CodewordError, match="cannot be held out"):
        source(tmp_path).split(6)
