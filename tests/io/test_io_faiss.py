"""faiss files: every value as faiss has it, and every damage refused by name. Needs no faiss; where there is one, larger indexes are
compared with it as well."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import faiss_golden
import numpy as np
import pytest

import codeword
from codeword.cli import main
from codeword.errors import FormatError
from codeword.io import faiss, faiss_layout, objects

HOME = Path(__file__).parent / "golden" / "faiss-1.15"
FILES = sorted(HOME.glob("*.faiss"), key=lambda path: path.name)
NAMES = [path.stem for path in FILES]
TURNED = 5e-7
"""Of the largest value: what a float32 product with an orthonormal matrix may round away."""


def known(path: Path) -> dict[str, np.ndarray]:
    with np.load(path.with_suffix(".npz")) as data:
        return dict(data)


def check(read: faiss.Imported, ids: np.ndarray, vectors: np.ndarray, values: np.ndarray) -> None:
    """``read`` holds what faiss reconstructs as ``values``: to the bit but for linear maps; finer where RaBitQ has more than one bit."""
    found = read.found
    decoded = [np.asarray(read.index.reconstruct(ids))]
    if read.codes is not None:
        decoded.append(np.asarray(read.quantizer.decode(read.codes)))
    for mine in decoded:
        assert mine.dtype == np.float32 and mine.shape == values.shape
        if isinstance(found.coder, faiss_layout.Signs) and found.coder.bits > 1:
            centre = centre_of(found, vectors)
            residual, shifted = vectors - centre, mine - centre
            np.testing.assert_array_equal(shifted > 0, values - centre > 0)  # the first bit, which is all that faiss reconstructs from
            np.testing.assert_allclose((residual * shifted).sum(1), np.square(residual).sum(1), rtol=1e-5)
            assert np.square(mine - vectors).sum() < np.square(values - vectors).sum()
        elif any(transform.matrix is not None for transform in found.transforms):
            np.testing.assert_allclose(mine, values, rtol=0, atol=TURNED * np.abs(values).max())
        else:
            np.testing.assert_array_equal(mine, values)


def centre_of(found: faiss_layout.Found, vectors: np.ndarray) -> np.ndarray:
    """What RaBitQ's residuals are relative to, float64 (n, dim) or (dim,)."""
    if found.lists is None:
        return found.coder.center.astype(np.float64)
    centroids = found.lists.centroids.astype(np.float64)
    return centroids[np.square(vectors[:, None] - centroids).sum(2).argmin(1)]


@pytest.mark.parametrize("name", NAMES)
def test_decodes_as_faiss_reconstructs(name):
    read = faiss.load(HOME / f"{name}.faiss")
    want = known(HOME / f"{name}.npz")
    assert read.found.rows == len(want["ids"]) == len(read.index)
    assert sorted(want["ids"]) == read.index.ids.tolist()
    check(read, want["ids"], want["vectors"], want["values"])


@pytest.mark.parametrize("name", NAMES)
def test_is_found_saved_and_grows(name, tmp_path):
    """The index is one like any other: it finds its own rows, survives a save, and takes new vectors."""
    read = faiss.load(HOME / f"{name}.faiss")
    want = known(HOME / f"{name}.npz")
    read.index.save(tmp_path / "index")
    again = codeword.Index.load(tmp_path / "index")
    np.testing.assert_array_equal(again.reconstruct(want["ids"]), read.index.reconstruct(want["ids"]))
    values = np.asarray(again.reconstruct(want["ids"]))
    hits = again.search(values, 1, nprobe=again.lists)
    if read.found.metric == "l2":  # the nearest decoded value is its own, or one equal to it
        np.testing.assert_allclose(again.reconstruct(hits.ids[:, 0]), values, atol=1e-4 * np.abs(values).max())
    again.add(want["vectors"][:2])
    assert len(again) == len(want["ids"]) + 2
    objects.save(read.quantizer, tmp_path / "quantizer.cw")
    assert objects.load(tmp_path / "quantizer.cw").fingerprint == read.quantizer.fingerprint


@pytest.mark.parametrize("name", ["pq", "ivf_pq", "rabitq4", "opq_ivf_pq", "idmap_pq", "centre_rabitq", "pca_pq"])
def test_every_prefix_is_refused(name):
    data = (HOME / f"{name}.faiss").read_bytes()
    for length in range(len(data)):
        with pytest.raises(FormatError) as refused:
            faiss_layout.parse(data[:length], "prefix")
        assert refused.value.code in ("truncated", "shape"), length
    with pytest.raises(FormatError, match=r"\[trailing\]"):
        faiss_layout.parse(data + b"\0", "longer")


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bits_are_refused_or_read(name):
    """No bit of the fields can make a reader fail otherwise than by name; code bytes may change and still be codes."""
    data = (HOME / f"{name}.faiss").read_bytes()
    for at in range(0, len(data), 1 if len(data) < 600 else 3):
        broken = bytearray(data)
        broken[at] ^= 1 << at % 8
        try:
            read = faiss.convert(faiss_layout.parse(bytes(broken), "flipped"), "flipped")
        except FormatError as error:
            assert error.code != "internal"
        else:
            assert np.isfinite(read.index.reconstruct(read.index.ids)).all()


def header(dim: int = 8, rows: int = 1, trained: int = 1, metric: int = 1) -> bytes:
    return struct.pack("<iqqqBi", dim, rows, 1 << 20, 1 << 20, trained, metric)


HUGE = struct.pack("<Q", 1 << 62)

HOSTILE = {
    "nothing": (b"", "truncated"),
    "letters": (b"\0\1\2\3", "magic"),
    "another index": (b"IHNf" + header(), "kind"),
    "wide": (b"IxPq" + header(dim=1 << 20), "limit"),
    "negative width": (b"IxPq" + header(dim=-4), "value"),
    "negative rows": (b"IxPq" + header(rows=-1), "value"),
    "many rows": (b"Ixrq" + header(rows=1 << 60) + struct.pack("<QQiQ", 8, 9, 1, 9 << 60), "truncated"),
    "another metric": (b"IxPq" + header(metric=4), "kind"),
    "untrained": (b"IxPq" + header(trained=0), "value"),
    "a flag of 7": (b"IxPq" + header(trained=7), "limit"),
    "slices": (b"IxPq" + header() + struct.pack("<QQQ", 8, 3, 8), "value"),
    "wide codes": (b"IxPq" + header() + struct.pack("<QQQ", 8, 2, 40), "limit"),
    "a huge codebook": (b"IxPq" + header() + struct.pack("<QQQ", 8, 2, 8) + HUGE, "shape"),
    "a codebook that is not there": (b"IxPq" + header(dim=65536) + struct.pack("<QQQQ", 65536, 1, 16, 1 << 32), "truncated"),
    "another width inside": (b"IxSQ" + header() + struct.pack("<iifQQ", 0, 0, 0, 16, 16), "shape"),
    "a type to come": (b"IxSQ" + header() + struct.pack("<iifQQ", 99, 0, 0, 8, 8), "kind"),
    "codes of no bits": (b"IxSQ" + header() + struct.pack("<iifQQ", 9, 0, 0, 8, 8), "kind"),
    "a huge map": (b"IxPT" + header() + struct.pack("<i", 1) + b"LTra\0" + HUGE, "truncated"),
    "many maps": (b"IxPT" + header() + struct.pack("<i", 1 << 30), "limit"),
    "a map to come": (b"IxPT" + header() + struct.pack("<i", 1) + b"HRot", "kind"),
    "many lists": (b"IwPQ" + header() + struct.pack("<QQ", 1 << 40, 1) + b"IxF2" + header(), "limit"),
    "lists by a graph": (b"IwPQ" + header() + struct.pack("<QQ", 3, 1) + b"IHNf" + header(), "kind"),
    "a tower": (b"".join(b"IxMp" + header() for _ in range(100)), "limit"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(name):
    data, code = HOSTILE[name]
    with pytest.raises(FormatError) as refused:
        faiss_layout.parse(data, "hostile")
    assert refused.value.code == code


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FormatError, match=r"\[file\]"):
            faiss.load(path)
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match=r"\[empty\]"):
        faiss.load(tmp_path / "empty")


def test_values_that_cannot_be_are_refused():
    data = (HOME / "pq.faiss").read_bytes()
    at = 4 + 33 + 24 + 8
    for bad in (np.nan, np.inf):
        with pytest.raises(FormatError, match=r"\[value\]"):
            faiss_layout.parse(data[:at] + struct.pack("<f", bad) + data[at + 4:], "nan")
    data = (HOME / "idmap_pq.faiss").read_bytes()
    for ids in (struct.pack("<q", 5000), struct.pack("<q", -1)):  # the first id again, and none
        with pytest.raises(FormatError, match=r"\[value\]"):
            faiss.convert(faiss_layout.parse(data[:-8] + ids, "ids"), "ids")
    data = (HOME / "pca_pq.faiss").read_bytes()
    found = faiss_layout.parse(data, "map")
    whitened = found.transforms[0]._replace(matrix=found.transforms[0].matrix * 2)
    with pytest.raises(FormatError, match="orthonormal"):
        faiss.convert(found._replace(transforms=(whitened,)), "map")


@pytest.mark.parametrize("name", ["opq", "ivf_rabitq1"])
def test_the_command(name, tmp_path, capsys):
    assert main(["import", "faiss", str(HOME / f"{name}.faiss"), "--out", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == faiss_golden.ROWS and said["faiss"][-1] in faiss_layout.NAMES.values()
    assert main(["verify", *(str(path) for path in (tmp_path / "out").iterdir())]) == 0
    assert (tmp_path / "out" / "codes.cw").exists() == (said["nlist"] is None)
    assert main(["import", "faiss", str(HOME / f"{name}.faiss"), "--out", str(tmp_path / "out")]) == 2
    shutil.rmtree(tmp_path / "out")
    capsys.readouterr()
    assert main(["import", "faiss", str(HOME / f"{name}.faiss"), "--out", str(tmp_path / "out")]) == 0
    assert "codeword index search" in capsys.readouterr().out


# ---------------------------------------------------------------------- beside faiss


@pytest.mark.parametrize("dim", [8, 12, 32, 100])
def test_agrees_with_an_installed_faiss(dim, tmp_path):
    peer = pytest.importorskip("faiss")
    for name, index in faiss_golden.indexes(dim, lists=5).items():
        ids, vectors, values = faiss_golden.fill(name, index, dim, count=150)
        peer.write_index(index, str(tmp_path / "one.faiss"))
        check(faiss.load(tmp_path / "one.faiss"), ids, vectors, values)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_several_bits_of_rabitq_are_those_faiss_searches_with(metric, tmp_path):
    """faiss's estimates are |q - c|^2 + |r|^2 - 2 <q - c, x^ - c> (l2) and <q, c> + <r, c> + <q - c, x^ - c> (ip): x^ is ours."""
    peer = pytest.importorskip("faiss")
    dim, kind = 32, peer.METRIC_L2 if metric == "l2" else peer.METRIC_INNER_PRODUCT
    index = peer.IndexRaBitQ(dim, kind, 4)
    x, q = faiss_golden.rows(200, dim), faiss_golden.rows(5, dim, seed=3)
    index.train(x)
    index.add(x)
    peer.write_index(index, str(tmp_path / "one.faiss"))
    read = faiss.load(tmp_path / "one.faiss")
    centre, values = read.quantizer.center.double().numpy(), np.asarray(read.quantizer.decode(read.codes)).astype(np.float64)
    shifted, residual = values - centre, x - centre
    products = (q - centre) @ shifted.T
    if metric == "l2":
        want = np.square(q - centre).sum(1)[:, None] + np.square(residual).sum(1) - 2 * products
    else:
        want = (q @ centre)[:, None] + residual @ centre + products
    parameters = peer.RaBitQSearchParameters()
    parameters.qb = 0
    distances, ids = index.search(q, 200, params=parameters)
    found = np.take_along_axis(want, ids, 1)
    full = np.abs(found - distances) <= 1e-4 * np.abs(want).max()
    assert full[:, :10].all()
