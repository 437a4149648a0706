"""Every kind of file gives the rows that were written, whole or in parts, as one file or as shards."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeword.data import Vectors, open_vectors
from codeword.data.vectors import choose_rows
from codeword.errors import CodewordError, FormatError, ShapeError

ROWS, DIM = 57, 7
X = np.arange(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM) / 8 - 3


def write_vecs(path: Path, x: np.ndarray) -> None:
    with path.open("wb") as file:
        for row in x:
            file.write(struct.pack("<i", len(row)) + row.tobytes())


def write(path: Path, x: np.ndarray) -> np.ndarray:
    """Write ``x`` in the format of the ending; returns the values as that format holds them."""
    kind = path.suffix
    if kind == ".npy":
        np.save(path, x)
    elif kind == ".npz":
        np.savez(path, vectors=x, note=np.zeros(3))
    elif kind in (".fvecs", ".bvecs", ".ivecs"):
        x = (x if kind == ".fvecs" else x.astype(np.uint8) if kind == ".bvecs" else x.astype("<i4"))
        write_vecs(path, x)
    elif kind == ".safetensors":
        from safetensors.numpy import save_file
        save_file({"vectors": x, "bias": np.zeros(3, np.float32)}, path)
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.feather as feather
        import pyarrow.parquet as parquet
        column = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), DIM)
        table = pa.table({"id": np.arange(len(x)), "vectors": column})
        if kind == ".parquet":
            parquet.write_table(table, path, row_group_size=10)
        elif kind == ".feather":
            feather.write_feather(table, path, chunksize=9)
        elif kind == ".ipc":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=11)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=11)
    return x


KINDS = (".npy", ".npz", ".fvecs", ".bvecs", ".ivecs", ".safetensors", ".parquet", ".feather", ".ipc", ".arrow")


@pytest.fixture(params=KINDS)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Vectors, np.ndarray]:
    path = tmp_path / f"x{request.param}"
    x = write(path, X)
    return open_vectors(path), x


def test_rows_come_back(stored: tuple[Vectors, np.ndarray]) -> None:
    v, x = stored
    assert v.shape == x.shape and v.dtype == x.dtype and len(v) == ROWS and v.dim == DIM and v.nbytes == x.nbytes
    np.testing.assert_array_equal(v[:], x)
    np.testing.assert_array_equal(np.asarray(v), x)


def test_indexing_agrees_with_numpy(stored: tuple[Vectors, np.ndarray]) -> None:
    v, x = stored
    mask = np.arange(ROWS) % 3 == 0
    for item in (0, -1, 12, slice(3, 50), slice(50, 3), slice(None, None, 4), slice(-5, None), slice(40, 2, -3), [5, 3, 3, 56], [], mask,
                 np.array([-1, 0]), np.int64(4)):
        expected = x[item] if not (isinstance(item, list) and not item) else x[:0]
        got = v[item]
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, expected)
    for wrong in (57, -58, [0, 57]):
        with pytest.raises(IndexError, match=r"outside 0\.\.56"):
            v[wrong]
    for wrong in ("a", [0.5], np.zeros((2, 2), int), np.zeros(3, bool)):
        with pytest.raises(ShapeError):
            v[wrong]  # type: ignore[index]


def test_blocks_cover_all_rows_once_and_random_reads_do_not_disturb_them(stored: tuple[Vectors, np.ndarray]) -> None:
    v, x = stored
    seen = []
    for start, block in v.blocks(10, start=4):
        assert start == 4 + sum(map(len, seen)) and len(block) <= 10
        seen.append(np.array(block))
        np.testing.assert_array_equal(v[[50, 1]], x[[50, 1]])
    np.testing.assert_array_equal(np.concatenate(seen), x[4:])


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, ROWS - 1), max_size=40))
def test_any_rows_of_a_stream(rows: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path_factory.getbasetemp() / "stream.parquet"
    if not path.exists():
        write(path, X)
    v = open_vectors(path)
    np.testing.assert_array_equal(v[rows], X[rows] if rows else X[:0])


def test_dtypes_and_orders_of_npy(tmp_path: Path) -> None:
    for dtype in ("<f2", "<f4", "<f8", ">f4", "u1", "i1", "<i2", "<u8", ">i8"):
        x = np.arange(12).reshape(4, 3).astype(dtype)
        np.save(tmp_path / "x.npy", x)
        v = open_vectors(tmp_path / "x.npy")
        assert v.dtype == x.dtype
        np.testing.assert_array_equal(v[1:3], x[1:3])
    fortran = np.asfortranarray(X)
    np.save(tmp_path / "f.npy", fortran)
    np.testing.assert_array_equal(open_vectors(tmp_path / "f.npy")[5:9], X[5:9])
    np.save(tmp_path / "none.npy", X[:0])
    assert open_vectors(tmp_path / "none.npy").shape == (0, DIM) and list(open_vectors(tmp_path / "none.npy").blocks()) == []


def test_compressed_npz_and_choice_of_array(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "two.npz", train=X, test=X[:5] + 1)
    np.testing.assert_array_equal(open_vectors(f"{tmp_path / 'two.npz'}#test")[:], X[:5] + 1)
    np.testing.assert_array_equal(open_vectors(tmp_path / "two.npz", key="train")[:], X)
    with pytest.raises(CodewordError, match=r"2 arrays of rows .test, train."):
        open_vectors(tmp_path / "two.npz")
    with pytest.raises(CodewordError, match="has no array 'rest'; it has test, train"):
        open_vectors(f"{tmp_path / 'two.npz'}#rest")


def test_an_uncompressed_npz_is_mapped_in_place(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", other=np.zeros(1000), vectors=X)
    mapped = open_vectors(tmp_path / "x.npz").mapped
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, X)


def test_bfloat16_tensors_are_exact(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"w": x}, tmp_path / "x.safetensors")
    v = open_vectors(tmp_path / "x.safetensors")
    assert v.dtype == np.float32
    np.testing.assert_array_equal(v[[3, 1]], x.float().numpy()[[3, 1]])


def test_lists_of_one_width_and_extension_types(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet
    parquet.write_table(pa.table({"v": X.tolist()}), tmp_path / "lists.parquet")
    v = open_vectors(tmp_path / "lists.parquet")
    assert v.dtype == np.float64
    np.testing.assert_array_equal(v[:], X)
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [DIM]),
                                            pa.FixedSizeListArray.from_arrays(X.reshape(-1), DIM))
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("v", tensor.type)])) as writer:
        writer.write_batch(pa.record_batch([tensor], names=["v"]))
    np.testing.assert_array_equal(open_vectors(tmp_path / "t.arrow")[:], X)


def test_a_sliced_arrow_batch_keeps_its_rows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    column = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), DIM)
    with pa.OSFile(str(tmp_path / "s.arrow"), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("v", column.type)])) as writer:
        writer.write_batch(pa.record_batch([column.slice(5, 9)], names=["v"]))
    np.testing.assert_array_equal(open_vectors(tmp_path / "s.arrow")[:], X[5:14])


# ---------------------------------------------------------------- shards


def test_a_folder_of_shards_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for i, part in enumerate(np.array_split(X, 12)):
        np.save(tmp_path / f"part-{i}.npy", part)
    (tmp_path / "README.md").write_text("ignored")
    np.save(tmp_path / ".hidden.npy", X)
    v = open_vectors(tmp_path)
    assert v.shape == X.shape and v.mapped is None and len(v.shards) == 12
    np.testing.assert_array_equal(v[:], X)
    np.testing.assert_array_equal(v[[56, 0, 30, 0]], X[[56, 0, 30, 0]])
    np.testing.assert_array_equal(np.concatenate([block for _, block in v.blocks(13)]), X)
    np.testing.assert_array_equal(open_vectors(f"{tmp_path}/part-1*.npy")[:],
                                  np.concatenate(np.array_split(X, 12)[1:2] + np.array_split(X, 12)[10:]))


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    np.save(tmp_path / "a0.npy", X)
    np.save(tmp_path / "a1.npy", X[:, :4])
    with pytest.raises(ShapeError, match=r"a1.npy has rows of width 4; .*a0.npy before it has 7"):
        open_vectors(tmp_path)
    np.save(tmp_path / "a1.npy", X.astype(np.float64))
    with pytest.raises(FormatError, match="float64") as caught:
        open_vectors(tmp_path)
    assert caught.value.code == "dtype"
    write_vecs(tmp_path / "q.fvecs", X)
    with pytest.raises(CodewordError, match=r"mixes \.fvecs, \.npy"):
        open_vectors(tmp_path)


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(CodewordError, match="holds no file of vectors"):
        open_vectors(tmp_path)
    with pytest.raises(CodewordError, match="no file matches"):
        open_vectors(tmp_path / "*.npy")
    with pytest.raises(FormatError, match="cannot be read: No such file"):
        open_vectors(tmp_path / "x.npy")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(CodewordError, match=r"ending '.csv'; .npy, .npz"):
        open_vectors(tmp_path / "x.csv")


# ---------------------------------------------------------------- samples


def test_samples_are_seeded_distinct_and_in_order(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    v = open_vectors(tmp_path / "x.npy")
    a, b, c = v.sample(20, seed=1), v.sample(20, seed=1), v.sample(20, seed=2)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c) and (np.diff(a[:, 0]) > 0).all()
    np.testing.assert_array_equal(v.sample(1000), X)


def test_rows_of_a_huge_file_are_chosen_in_little_memory() -> None:
    rows = choose_rows(10**12, 5000, seed=3)
    assert len(np.unique(rows)) == 5000 and rows.min() >= 0 and rows.max() < 10**12
    np.testing.assert_array_equal(rows, choose_rows(10**12, 5000, seed=3))
    assert abs(rows.mean() / 10**12 - 0.5) < 0.02
    dense = choose_rows(1 << 23, 1 << 20, seed=0)
    assert len(np.unique(dense)) == 1 << 20


def test_non_finite_rows_are_named_by_file_and_row(tmp_path: Path) -> None:
    for i in range(2):
        part = X[:10].copy()
        part[4, 2] = np.nan if i else 1.0
        np.save(tmp_path / f"p{i}.npy", part)
    v = open_vectors(tmp_path)
    with pytest.raises(ShapeError, match=r"row 4 of .*p1.npy has NaN or infinity"):
        for start, block in v.blocks(7):
            v.check_finite(block, start)


def test_quantizers_take_mapped_vectors(tmp_path: Path) -> None:
    from codeword.quantizers.pq import PQ
    x = np.random.default_rng(0).normal(size=(80, 8)).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    mapped = open_vectors(tmp_path / "x.npy").mapped
    assert isinstance(mapped, np.memmap)
    one, two = (PQ(dim=8, num_codebooks=2, codebook_size=4, iterations=2).fit(rows) for rows in (mapped, x))
    np.testing.assert_array_equal(one.encode(mapped).indices, two.encode(x).indices)
