"""The index on disk: what is saved comes back, mapped or read; readers keep what they opened; damaged and foreign files are refused."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch

import codeword
from codeword.errors import CodewordError, FormatError
from codeword.io.folder import Folder
from codeword.io.tensors import read_tensors
from codeword.io.verify import verify
from codeword.search import index as index_module

from .support import blobs

DIM = 16
PQ = "pq:num_codebooks=8,codebook_size=11,iterations=3"
KINDS = [{"quantizer": PQ, "nlist": 4}, {"quantizer": "rabitq:code_bits=3", "nlist": 4, "metric": "cosine"},
         {"quantizer": "vq:codebook_size=9,iterations=3", "metric": "ip", "store": "float16"},
         {"quantizer": PQ, "rerank_quantizer": "rabitq:code_bits=6", "nlist": 3}]


def built(monkeypatch, **options):
    monkeypatch.setattr(index_module, "PENDING_ROWS", 64)
    x = blobs(260, DIM)
    index = codeword.Index(dim=DIM, **({"quantizer": PQ, "nlist": 4} | options)).fit(x)
    for rows in np.array_split(np.arange(250), 4)[:3]:  # two sealed segments and one that waits
        index.add(x[rows])
    index.add(x[200:230])
    index.remove([3, 70, 190, 201])
    return index, x


def same(a, b, x) -> None:
    for rerank in (0, 3) if a.reranks else (0,):
        left, right = a.search(x[:30], k=7, nprobe=3, rerank=rerank), b.search(x[:30], k=7, nprobe=3, rerank=rerank)
        np.testing.assert_array_equal(left.ids, right.ids)
        np.testing.assert_array_equal(left.distances, right.distances)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.reconstruct(a.ids), b.reconstruct(b.ids))
    assert len(a) == len(b) and a.breakdown() == b.breakdown()


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_saved_comes_back(options, mmap, tmp_path, monkeypatch):
    index, x = built(monkeypatch, **options)
    index.nprobe, index.rerank = 3, index.rerank and 2
    index.save(tmp_path / "a.cw")
    loaded = codeword.Index.load(tmp_path / "a.cw", mmap=mmap)
    same(index, loaded, x)
    for name in ("nprobe", "rerank", "metric", "nlist", "store", "seed"):
        assert getattr(loaded, name) == getattr(index, name)
    # It goes on where the saved one stopped, and both come to the same.
    for each in (index, loaded):
        each.add(x[230:])
        each.upsert(x[5:9], ids=[1, 2, 3, 4])
        each.remove([100])
    same(index, loaded, x)
    loaded.compact()
    np.testing.assert_array_equal(index.ids, loaded.ids)
    np.testing.assert_array_equal(index.reconstruct(index.ids), loaded.reconstruct(index.ids))


def test_the_same_index_gives_the_same_bytes_and_saving_again_writes_only_what_is_new(tmp_path, monkeypatch):
    index, x = built(monkeypatch)
    index.save(tmp_path / "a")
    index.save(tmp_path / "b")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b").iterdir()}
    index.add(x[230:])
    index.remove([10])
    index.save(tmp_path / "b")
    kept = [p.name for p in (tmp_path / "b").iterdir() if times.get(p.name) == p.stat().st_mtime_ns]
    assert sum(name.startswith("rows-") for name in kept) >= 2 and any(name.startswith("quantizer-") for name in kept)
    with pytest.raises(CodewordError, match="already holds an index"):
        index.save(tmp_path / "a")
    index.save(tmp_path / "a", overwrite=True)
    same(codeword.Index.load(tmp_path / "a"), codeword.Index.load(tmp_path / "b"), x)


def test_two_writers_cannot_lose_each_others_work(tmp_path, monkeypatch):
    index, x = built(monkeypatch)
    index.save(tmp_path / "a")
    one, two = (codeword.Index.load(tmp_path / "a") for _ in range(2))
    one.add(x[:1])
    one.save(tmp_path / "a")
    two.remove([0])
    with pytest.raises(CodewordError, match="changed by another writer"):
        two.save(tmp_path / "a")
    assert len(codeword.Index.load(tmp_path / "a")) == len(one)


@pytest.mark.parametrize("mmap", [False, True])
def test_changes_and_saves_do_not_disturb_readers(mmap, tmp_path, monkeypatch):
    index, x = built(monkeypatch, store="float32")
    index.save(tmp_path / "a")
    reader = codeword.Index.load(tmp_path / "a", mmap=mmap)
    want = index.search(x[:20], k=5)
    index.remove(np.arange(50, 60))
    index.add(x[230:])
    index.compact()
    index.save(tmp_path / "a")  # removes the files the reader has mapped
    got = reader.search(x[:20], k=5)
    np.testing.assert_array_equal(want.ids, got.ids)
    np.testing.assert_array_equal(want.distances, got.distances)
    reader.remove([0])
    assert len(codeword.Index.load(tmp_path / "a", mmap=mmap)) == len(index)


def test_one_file(tmp_path, monkeypatch):
    index, x = built(monkeypatch)
    index.export(tmp_path / "one.cwi")
    index.export(tmp_path / "two.cwi")
    assert (tmp_path / "one.cwi").read_bytes() == (tmp_path / "two.cwi").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.cwi", "two.cwi"]
    for mmap in (False, True):
        same(codeword.Index.load(tmp_path / "one.cwi", mmap=mmap), index, x)
    index.save(tmp_path / "a")
    with pytest.raises(FormatError) as error:
        codeword.load(tmp_path / "one.cwi")
    assert error.value.code == "kind"


def test_empty_and_unfitted_indexes(tmp_path):
    x = blobs(40, DIM)
    index = codeword.Index(dim=DIM, quantizer=PQ, nlist=3)
    index.save(tmp_path / "unfitted")
    loaded = codeword.Index.load(tmp_path / "unfitted")
    with pytest.raises(CodewordError):
        loaded.add(x)
    loaded.fit(x)
    index.fit(x)
    assert torch.equal(index.quantizer.codebooks, loaded.quantizer.codebooks)
    loaded.save(tmp_path / "unfitted")
    again = codeword.Index.load(tmp_path / "unfitted", mmap=True)
    assert len(again) == 0 and (again.search(x[0], k=2).ids == -1).all()
    again.add(x)
    assert again.search(x[7], k=1, nprobe=3).ids[0] >= 0


def damaged(folder, kind: str, change) -> None:
    """Rewrite one segment of a folder with its tensors changed, digests and manifest made to fit: only the content lies."""
    opened = Folder.open(folder)
    old = next(name for name in opened.segments if name.startswith(kind))
    tensors, header = read_tensors(folder / old)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    meta = json.loads(json.dumps(opened.meta))
    record = header["header"]
    change(tensors, record)
    new = opened.write_segment(kind, tensors, record)
    names = [new if name == old else name for name in opened.segments]
    opened.commit(json.loads(json.dumps(meta).replace(old, new)), names)


def _set(name, where, value):
    def change(tensors, header):
        tensors[name][where] = value
    return change


def _cast(name, dtype):
    def change(tensors, header):
        tensors[name] = tensors[name].to(dtype)
    return change


NOT_MAPPED = _set("vectors", 0, float("inf"))
LIES = [
    ("rows", _set("ids", 0, 10**9), "value"), ("rows", _set("ids", 1, -1), "value"), ("rows", _set("ids", 1, -5), "value"),
    ("rows", _set("starts", 0, 32), "value"), ("rows", _set("starts", 1, 2**62), "value"), ("rows", _set("counts", 0, -1), "value"),
    ("rows", _set("counts", 0, 2**62), "value"), ("rows", _set("scan.codes", (0, 0, 0), 0xBB), "value"),
    ("rows", _set("scan.row_terms", 0, float("nan")), "value"), ("rows", NOT_MAPPED, "value"),
    ("rows", _cast("ids", torch.int32), "dtype"), ("rows", lambda t, h: t.pop("ids"), "missing-key"),
    ("rows", lambda t, h: t.update(more=torch.zeros(3)), "unknown-key"), ("rows", lambda t, h: h.update(slots=64), "shape"),
    ("rows", lambda t, h: h.update(slots=2**60), "shape"), ("rows", lambda t, h: h.update(fingerprint="0" * 16), "fingerprint"),
    ("lists", _set("centroids", 0, float("nan")), "value"), ("lists", lambda t, h: t.update(centroids=torch.zeros(9, DIM)), "shape"),
    ("lists", _set("centroids", 0, 1.0), "fingerprint"), ("deleted", lambda t, h: t["bits"].fill_(255), "value"),
    ("deleted", lambda t, h: t.update(bits=t["bits"][:-1]), "shape"), ("quantizer", _set("codebooks", 0, 1.0), "fingerprint"),
]


@pytest.mark.parametrize(("kind", "change", "code"), LIES)
def test_lies_in_files_are_found(kind, change, code, tmp_path, monkeypatch):
    index, x = built(monkeypatch, store="float32")
    index.save(tmp_path / "a")
    damaged(tmp_path / "a", kind, change)
    with pytest.raises(FormatError) as error:
        codeword.Index.load(tmp_path / "a")
    assert error.value.code == code
    assert [finding.code for finding in verify(tmp_path / "a")] == [code]
    if change is NOT_MAPPED:
        return
    for _ in range(2):  # mapped: found on opening or on first use, and again on second use
        with pytest.raises(FormatError) as error:
            loaded = codeword.Index.load(tmp_path / "a", mmap=True)
            with contextlib.suppress(FormatError):
                loaded.search(x, k=5, nprobe=4, rerank=0)
            loaded.search(x, k=5, nprobe=4, rerank=0)
        assert error.value.code == code


def test_every_flipped_byte_is_found(tmp_path, monkeypatch):
    index, x = built(monkeypatch)
    index.save(tmp_path / "a")
    rng = np.random.default_rng(0)
    for path in sorted((tmp_path / "a").iterdir()):
        data = path.read_bytes()
        for place in rng.choice(len(data), 6, replace=False):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.integers(8)]) + data[place + 1:])
            with pytest.raises(FormatError):
                codeword.Index.load(tmp_path / "a")
            with pytest.raises(FormatError):
                codeword.Index.load(tmp_path / "a", mmap=True).search(x, k=3, nprobe=4)
        path.write_bytes(data)
    same(codeword.Index.load(tmp_path / "a"), index, x)


@pytest.mark.parametrize("change", [
    lambda m: m["config"].update(dim=8), lambda m: m["config"].update(metric="x"), lambda m: m["config"].update(extra=1),
    lambda m: m["config"].update(nlist=0), lambda m: m["config"].update(store="float16"), lambda m: m["state"].update(next_id=3),
    lambda m: m["state"].update(nprobe=0), lambda m: m["state"].update(fits=[1, 2]), lambda m: m["state"].update(fitted=False),
    lambda m: m["state"].update(residual=False), lambda m: m["parts"].update(lists=""), lambda m: m["parts"].update(quantizer="../x"),
    lambda m: m["parts"].pop("fine"), lambda m: m["segments"].append(m["segments"][0]), lambda m: m["segments"].append(3),
    lambda m: m["segments"][0].update(rows=m["parts"]["lists"]), lambda m: m["segments"][0].update(deleted=m["segments"][1]["rows"]),
])
def test_lies_in_the_manifest_are_found(change, tmp_path, monkeypatch):
    index, _ = built(monkeypatch)
    index.save(tmp_path / "a")
    opened = Folder.open(tmp_path / "a")
    meta = json.loads(json.dumps(opened.meta))
    change(meta)
    opened.commit(meta, opened.segments)
    with pytest.raises(FormatError):
        codeword.Index.load(tmp_path / "a")


def test_other_things_are_not_indexes(tmp_path):
    with pytest.raises(FormatError):
        codeword.Index.load(tmp_path)
    with pytest.raises(FormatError):
        codeword.Index.load(tmp_path / "nothing")
    pq = codeword.PQ(dim=DIM, num_codebooks=4, codebook_size=4).fit(blobs(20, DIM))
    pq.save(tmp_path / "pq.cw")
    with pytest.raises(FormatError) as error:
        codeword.Index.load(tmp_path / "pq.cw")
    assert error.value.code == "kind"
    Folder.create(tmp_path / "other", "shelf").commit({}, [])
    with pytest.raises(FormatError) as error:
        codeword.Index.load(tmp_path / "other")
    assert error.value.code == "kind"
