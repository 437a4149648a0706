"""PQ: search equals the distances of decoded rows, flat and in lists, for every width of code; rows move without loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import codeword
from codeword.errors import FormatError, ShapeError, Unsupported
from codeword.ops import lut_blocks
from codeword.parts import lookup
from codeword.quantizer import Packed
from codeword.quantizers.pq import PQ

DIM = 24
SIZES = (2, 16, 17, 256, 300)


def fitted(size: int, books: int = 6, rows: int = 700) -> tuple[PQ, Tensor]:
    x = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(size)) + 0.5
    return PQ(dim=DIM, num_codebooks=books, codebook_size=size, iterations=3).fit(x), x


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_scan_is_the_distance_of_decoded_rows(size: int, metric: str) -> None:
    pq, x = fitted(size)
    queries, centroid = torch.randn(5, DIM), x[:22].repeat_interleave(32, 0)[:len(x)]
    for given in (None, centroid):
        codes = pq.encode(x, given=given)
        packed = pq.pack(codes, given)
        values = torch.as_tensor(pq.decode(codes, given=given)).double()
        c = torch.zeros_like(x) if given is None else given
        wanted = torch.cdist(queries.double(), values).square() if metric == "l2" else -queries.double() @ values.mT
        coarse = (queries[:, None] - c).double().square().sum(2) if metric == "l2" else -(queries.double() @ c.double().mT)
        distance, bound = pq.scan(packed, pq.prepare(queries, metric), 0, len(x))
        assert torch.equal(distance, bound)
        assert torch.allclose(distance.double() + coarse, wanted, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_a_flat_index_keeps_codes_only(size: int) -> None:
    pq, x = fitted(size)
    packed = pq.pack(pq.encode(x))
    assert set(packed.tensors) == {"codes"}
    each = {2: 4, 16: 4, 17: 6, 256: 6, 300: 12}[size]  # 6 books, a multiple of 4 for codes of 4 bits: 8 nibbles
    assert packed.tensors["codes"].nbytes == packed.rows * each


@pytest.mark.parametrize("size", SIZES)
def test_rows_move_without_loss(size: int) -> None:
    pq, x = fitted(size)
    for given in (None, x.mean(0).expand_as(x)):
        packed = pq.pack(pq.encode(x, given=given), given)
        order = torch.randperm(packed.rows, generator=torch.Generator().manual_seed(1))
        moved = pq.lay(pq.take(packed, order))
        back = pq.lay(pq.take(moved, torch.argsort(order)))
        assert back.rows == packed.rows and set(back.tensors) == set(packed.tensors)
        assert all(torch.equal(back.tensors[name], tensor) for name, tensor in packed.tensors.items())
        rows = torch.tensor([3, 699, 31, 32])
        assert torch.equal(torch.as_tensor(pq.unpack(packed, rows).indices).to(torch.int64),
                           torch.as_tensor(pq.encode(x, given=given).indices).to(torch.int64)[rows])


@pytest.mark.parametrize(("size", "nlist"), [(16, None), (16, 5), (256, None), (256, 5), (300, 5)])
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_index_agrees_with_the_plain_definition(size: int, nlist: int | None, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, x = fitted(size, rows=900)
    pq = PQ(dim=DIM, num_codebooks=6, codebook_size=size, iterations=3)
    index = codeword.Index(dim=DIM, metric=metric, quantizer=pq, nlist=nlist).fit(x)
    index.add(x[:600])
    index.add(x[600:])
    index.remove(np.arange(0, 900, 7))
    queries = torch.randn(9, DIM, generator=torch.Generator().manual_seed(3))
    for k in (1, 10, 400):
        found = index.search(queries, k=k, nprobe=3, num_threads=2)
        alone = [index.search(q, k=k, nprobe=3) for q in queries]
        monkeypatch.setenv("CODEWORD_OPS", "reference")
        plain = index.search(queries, k=k, nprobe=3)
        monkeypatch.setenv("CODEWORD_OPS", "")
        assert torch.equal(found.ids, plain.ids) and torch.equal(found.distances, plain.distances)
        assert torch.equal(found.ids, torch.stack([hits.ids for hits in alone]))


def test_tables_follow_the_codebooks() -> None:
    pq, x = fitted(16)
    queries = torch.randn(3, DIM)
    before = pq.prepare(queries, "l2").tables
    pq.fit(x * 2)
    fresh = PQ(dim=DIM, num_codebooks=6, codebook_size=16)
    fresh.load_state_dict(pq.state_dict())
    assert torch.equal(pq.prepare(queries, "l2").tables, fresh.prepare(queries, "l2").tables)
    assert not torch.equal(pq.prepare(queries, "l2").tables, before)
    books = lookup.books_of(pq.codebooks)
    assert lookup.books_of(pq.codebooks) is books
    count = len(lookup._BOOKS)
    del pq, books
    assert len(lookup._BOOKS) == count - 1
    with torch.inference_mode():
        made = torch.randn(2, 3, 4)
        assert torch.equal(lookup.books_of(made).turned, made.transpose(1, 2))


@pytest.mark.parametrize("size", [3, 100, 300])
def test_impossible_values_are_refused(size: int) -> None:
    pq, x = fitted(size)
    packed = pq.pack(pq.encode(x), torch.zeros_like(x))
    pq.check(packed)
    codes = packed.tensors["codes"].clone()
    codes.view(torch.uint8).view(-1)[:2] = 255
    with pytest.raises(ShapeError):
        pq.check(Packed(packed.tensors | {"codes": codes}, packed.rows))
    # and they cannot lead a kernel outside its tables before anybody looks
    inside = lut_blocks.unpack_codes(codes, torch.arange(packed.rows), pq.num_codebooks, size).to(torch.int64).clamp(max=size - 1)
    hits = [pq.search_spans(Packed(packed.tensors | {"codes": some}, packed.rows), pq.prepare(x[:1], "l2"),
                            torch.tensor([[[0, packed.rows]]]), torch.zeros(1, 1), packed.rows, None, 1)
            for some in (codes, lut_blocks.pack_codes(inside, size))]
    assert all(torch.equal(a, b) for a, b in zip(*hits, strict=True))
    with pytest.raises(ShapeError, match="row_terms"):
        pq.check(Packed(packed.tensors | {"row_terms": torch.full((packed.rows,), torch.nan)}, packed.rows))
    with pytest.raises(Unsupported, match="metric"):
        pq.prepare(x[:1], "cosine")


def test_files_of_the_earlier_layout_are_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, x = fitted(16)
    index = codeword.Index(dim=DIM, quantizer="pq:num_codebooks=6,codebook_size=16").fit(x)
    index.add(x)
    segment = index._views[0].segment if index._views else index._snapshot()[0].segment
    tensors = dict(segment.tensors)
    tensors["scan.indices"] = torch.zeros(segment.slots, 6, dtype=torch.uint8)
    del tensors["scan.codes"]
    segment.tensors = tensors
    index.save(tmp_path / "old.cw")
    with pytest.raises(FormatError, match="layout"):
        codeword.Index.load(tmp_path / "old.cw")
