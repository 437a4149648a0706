"""Truncated, corrupted and hostile files: FormatError or ShapeError naming the file; no crash, no memory that a header claims."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from codeword.data import open_vectors, read_sentences
from codeword.errors import CodewordError, FormatError, ShapeError

X = np.arange(40, dtype=np.float32).reshape(10, 4)


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin1")
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text + data


def good(shape: str = "(10, 4)", descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


DATA = X.tobytes()
BAD_NPY = {
    "empty file": (b"", "empty"),
    "other magic": (b"PK\x03\x04" + bytes(100), "magic"),
    "cut magic": (b"\x93NUM", "magic"),
    "cut before header": (b"\x93NUMPY\x01\x00\x40", "truncated"),
    "cut inside header": (npy(good())[:40], "truncated"),
    "header length beyond the file": (b"\x93NUMPY\x01\x00\xff\x20" + b" " * 50, "truncated"),
    "header of a gigabyte": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 30) + b" " * 50, "limit"),
    "unknown version": (npy(good(), DATA, (9, 0)), "version"),
    "data cut": (npy(good(), DATA[:-1]), "truncated"),
    "data too long": (npy(good(), DATA + b"\0"), "trailing"),
    "claims a petabyte": (npy(good("(10000000000000, 4)"), DATA), "truncated"),
    "product overflows 64 bits": (npy(good("(9223372036854775807, 4)"), DATA), "truncated"),
    "pickled objects": (npy(good(descr="'|O'"), pickle.dumps([1])), "dtype"),
    "structured rows": (npy(good(descr="[('a', '<f4')]"), DATA), "dtype"),
    "strings": (npy(good(descr="'<U4'"), DATA), "dtype"),
    "complex": (npy(good(descr="'<c8'"), DATA), "dtype"),
    "booleans": (npy(good(descr="'|b1'"), DATA), "dtype"),
    "code in the header": (npy("__import__('os').system('true')", DATA), "header"),
    "no dictionary": (npy("[1, 2]", DATA), "header"),
    "extra key": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10, 4), 'x': 1}", DATA), "header"),
    "unknown dtype": (npy(good(descr="'<f3'"), DATA), "header"),
    "shape of booleans": (npy(good("(True, 4)"), DATA), "header"),
    "deep nesting": (npy("(" * 9000), "header"),
    "null bytes": (npy("\0" * 60, DATA), "header"),
}
BAD_SHAPES = {"one axis": "(40,)", "three axes": "(10, 2, 2)", "no axis": "()", "width zero": "(10, 0)", "negative": "(-10, 4)",
              "too wide": "(0, 2000000)"}


@pytest.mark.parametrize("name", BAD_NPY)
def test_bad_npy(name: str, tmp_path: Path) -> None:
    data, code = BAD_NPY[name]
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        open_vectors(path)
    assert caught.value.code == code and "x.npy" in str(caught.value)


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_bad_shapes(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy(good(BAD_SHAPES[name]), DATA))
    with pytest.raises(CodewordError, match=r"x.npy"):
        open_vectors(tmp_path / "x.npy")


def test_every_truncation_of_every_kind_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file
    np.save(tmp_path / "a.npy", X)
    np.savez(tmp_path / "a.npz", x=X)
    np.savez_compressed(tmp_path / "b.npz", x=X)
    (tmp_path / "a.fvecs").write_bytes(b"".join(struct.pack("<i", 4) + row.tobytes() for row in X))
    save_file({"x": X}, tmp_path / "a.safetensors")
    kinds = ["a.npy", "a.npz", "b.npz", "a.fvecs", "a.safetensors"]
    for kind in kinds:
        whole = (tmp_path / kind).read_bytes()
        cut = tmp_path / f"cut-{kind}"
        for size in range(0, len(whole), 1 if len(whole) < 400 else 7):
            if kind == "a.fvecs" and size and size % 20 == 0:
                continue  # a whole number of rows is a whole file
            cut.write_bytes(whole[:size])
            with pytest.raises(FormatError):
                open_vectors(cut)


def test_truncated_and_corrupted_arrow_files_are_refused_or_give_rows_of_the_right_shape(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet
    table = pa.table({"v": pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 4)})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    random = np.random.default_rng(0)
    for kind in ("a.parquet", "a.arrow"):
        whole = (tmp_path / kind).read_bytes()
        bad = tmp_path / f"bad-{kind}"
        for size in range(0, len(whole), 29):
            bad.write_bytes(whole[:size])
            with pytest.raises(FormatError):
                open_vectors(bad)[:]
        for _ in range(150):
            data = bytearray(whole)
            data[random.integers(len(data))] ^= 1 << random.integers(8)
            bad.write_bytes(data)
            try:
                got = open_vectors(bad)[:]
            except (CodewordError, IndexError):
                continue
            assert got.ndim == 2  # Arrow files have no digests: a flipped bit in a value cannot be seen


BAD_VECS = {
    "cut in the first width": (b"\x04\x00", "truncated"),
    "width zero": (struct.pack("<i", 0) * 4, None),
    "negative width": (struct.pack("<i", -5) + bytes(100), None),
    "width of a gigabyte": (struct.pack("<i", 1 << 30) + bytes(100), None),
    "cut row": (struct.pack("<i", 4) + X[0].tobytes() + struct.pack("<i", 4) + X[1].tobytes()[:-3], "truncated"),
    "last row of another width": (struct.pack("<i", 4) + X[0].tobytes() + struct.pack("<i", 5) + X[1].tobytes(), "shape"),
}


@pytest.mark.parametrize("name", BAD_VECS)
def test_bad_fvecs(name: str, tmp_path: Path) -> None:
    data, code = BAD_VECS[name]
    (tmp_path / "x.fvecs").write_bytes(data)
    with pytest.raises(FormatError if code else ShapeError, match=r"x\.fvecs") as caught:
        open_vectors(tmp_path / "x.fvecs")
    assert getattr(caught.value, "code", None) == code


def test_a_wrong_width_inside_a_file_is_found_when_its_row_is_read(tmp_path: Path) -> None:
    data = bytearray(b"".join(struct.pack("<i", 4) + row.tobytes() for row in X))
    data[20 * 6] = 9
    (tmp_path / "x.fvecs").write_bytes(data)
    v = open_vectors(tmp_path / "x.fvecs")
    np.testing.assert_array_equal(v[:6], X[:6])
    for read in (lambda: v[2:8], lambda: v[[9, 6]]):
        with pytest.raises(FormatError, match=r"row 6 of .*x.fvecs declares width 9; the first row has 4"):
            read()


def test_bad_npz(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(FormatError, match=r"not a readable \.npz"):
        open_vectors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"hello")
    with pytest.raises(FormatError) as caught:
        open_vectors(path)
    assert caught.value.code == "magic"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy(good(descr="'|O'"), pickle.dumps([1])))
    with pytest.raises(FormatError) as caught:
        open_vectors(f"{path}#a")
    assert caught.value.code == "dtype"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", b"hello")
    with pytest.raises(CodewordError, match="0 arrays of rows"):
        open_vectors(path)


def test_a_flipped_bit_in_a_compressed_member_is_found(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=X)
    data = bytearray((tmp_path / "x.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        info = archive.infolist()[0]
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0x10
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(FormatError):
        open_vectors(tmp_path / "x.npz")


def test_headers_allocate_nothing(tmp_path: Path) -> None:
    """A bomb of 64 MiB in 64 KiB whose header declares four rows, and a header that declares a terabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(good("(4, 4)"), bytes(64 << 20)))
        archive.writestr("y.npy", npy(good("(100000000000, 4)"), bytes(1 << 20)))
    (tmp_path / "bomb.npz").write_bytes(buffer.getvalue())
    tracemalloc.start()
    for key in "xy":
        with pytest.raises(FormatError):
            open_vectors(tmp_path / "bomb.npz", key=key)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_bad_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"

    def store(header: object, data: bytes = DATA) -> None:
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)

    for header in ({"x": {"dtype": "F32", "shape": [10, 4], "data_offsets": [0, 99999]}},
                   {"x": {"dtype": "F32", "shape": [99, 4], "data_offsets": [0, 160]}},
                   {"x": {"dtype": "F32", "shape": [10, 4], "data_offsets": [8, 168]}}, [1], {"x": 5}):
        store(header)
        with pytest.raises(FormatError, match="not a readable safetensors"):
            open_vectors(path)
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(FormatError):
        open_vectors(path)
    store({"x": {"dtype": "BOOL", "shape": [40, 4], "data_offsets": [0, 160]}})
    with pytest.raises(FormatError) as caught:
        open_vectors(path)
    assert caught.value.code == "dtype"
    store({"x": {"dtype": "F32", "shape": [10, 4], "data_offsets": [0, 160]}})
    with pytest.raises(CodewordError, match="has no tensor 'y'; it has x"):
        open_vectors(path, key="y")


def test_nulls_and_ragged_rows_are_named(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet
    for name, rows, message in (("null", [[1.0, 2.0], None, [3.0, 4.0]], "row 1 of .* is null"),
                                ("ragged", [[1.0, 2.0], [1.0, 2.0], [3.0]], "row 2 of .* has 1 values; the rows before it have 2"),
                                ("value", [[1.0, 2.0], [1.0, None]], "row 1 of .* has a null value")):
        parquet.write_table(pa.table({"v": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / f"{name}.parquet")
        with pytest.raises(FormatError, match=message):
            open_vectors(tmp_path / f"{name}.parquet")[:]
    parquet.write_table(pa.table({"a": [1, 2]}), tmp_path / "none.parquet")
    with pytest.raises(CodewordError, match="0 columns of lists of numbers"):
        open_vectors(tmp_path / "none.parquet")
    parquet.write_table(pa.table({"a": [[1.0]], "b": [[2.0]]}), tmp_path / "two.parquet")
    with pytest.raises(CodewordError, match=r"2 columns of lists of numbers .a, b."):
        open_vectors(tmp_path / "two.parquet")
    assert open_vectors(f"{tmp_path / 'two.parquet'}#b")[0, ] == 2.0


def test_missing_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(CodewordError, match=r"pyarrow, the extra 'data': pip install 'codeword\[data\]'"):
        open_vectors(tmp_path / "x.parquet")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_folders_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(FormatError, match="not a regular file"):
        open_vectors(tmp_path / "x.npy")


def test_sentences(tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_bytes("one\r\ntwo\u2028still two\nthree".encode())
    assert read_sentences(path) == ["one", "two\u2028still two", "three"] and read_sentences(path, 3)[2] == "three"
    with pytest.raises(ShapeError, match="3 lines for 4 vectors"):
        read_sentences(path, 4)
    path.write_bytes(b"fine\nfine\nb\xffad\n")
    with pytest.raises(FormatError, match=r"line 3 of .* is not UTF-8"):
        read_sentences(path)
