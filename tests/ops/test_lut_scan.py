"""lut_scan: layout, kernel equal to its definition on every instruction set, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from codeword import ops
from codeword.errors import ShapeError
from codeword.ops import dispatch, lut_blocks
from codeword.ops.lut_blocks import Blocks

BUILT = dispatch.native() is not None and hasattr(dispatch.native(), "lut_scan")
native = pytest.mark.skipif(not BUILT, reason="the native module is not built")
SIZES = (2, 3, 16, 17, 100, 256, 257, 1000)
ROWS = 416


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("books", [1, 3, 4, 7, 63])
def test_layout_is_a_bijection(size: int, books: int) -> None:
    indices = torch.randint(0, size, (96, books), generator=torch.Generator().manual_seed(size))
    codes = lut_blocks.pack_codes(indices, size)
    rows = torch.tensor([95, 0, 17, 31, 32, 17])
    assert len(codes) == 3
    assert torch.equal(lut_blocks.unpack_codes(codes, rows, books, size).to(torch.int64), indices[rows])


def test_layout_is_the_documented_one() -> None:
    indices = torch.zeros(64, 6, dtype=torch.int64)
    indices[32 + 5, 4], indices[32 + 16 + 5, 4] = 3, 12
    codes = lut_blocks.pack_codes(indices, 16)
    assert codes.shape == (2, 2, 64) and codes[1, 1, 4 * 5] == 3 | 12 << 4 and int(codes.sum()) == (3 | 12 << 4)
    indices[32 + 5, 4] = 200
    codes = lut_blocks.pack_codes(indices, 256)
    assert codes.shape == (2, 6, 32) and codes[1, 4, 5] == 200 and codes[1, 4, 21] == 12 and int(codes.sum(dtype=torch.int64)) == 212
    assert lut_blocks.pack_codes(indices, 257).dtype == torch.uint16


def problem(books: int, size: int, kind: str = "gaussian", terms: bool = True, queries: int = 5) -> tuple[Blocks, Tensor, Tensor, Tensor]:
    """Lists of different lengths, some visited by several queries; ``kind`` says what is hard about the tables."""
    g = torch.Generator().manual_seed(books * 1000 + size)
    codes = lut_blocks.pack_codes(torch.randint(0, size, (ROWS, books), generator=g), size)
    tables = torch.randn(queries, books, size, generator=g)
    row_terms = torch.randn(ROWS, generator=g) * math.sqrt(books)
    if kind == "ties":
        tables, row_terms = tables.round(), row_terms.round()
    elif kind == "constant":
        tables = tables[..., :1].expand_as(tables).contiguous()
    elif kind == "large":  # sums leave float32
        tables, row_terms = tables * 1e38, row_terms * 1e38
    elif kind == "tiny":
        tables, row_terms = tables * 1e-42, row_terms * 1e-42
    elif kind == "outlier":
        tables[:, books // 2, size // 2] = 1e9
    elif kind == "infinite terms":
        row_terms[::7], row_terms[3::50] = -torch.inf, torch.inf
        row_terms[5::90] = torch.nan
    elif kind == "offset":  # rounding errors of the sum exceed what tells rows apart
        tables, row_terms = tables * 1e-3 + 1e3, row_terms - 1e6
    elif kind == "terms":
        row_terms = row_terms * 1e6
    spans = torch.tensor([[0, 64], [64, 190], [192, ROWS - 3]]).expand(queries, 3, 2).clone()
    spans[2 % queries, 1] = torch.tensor([9, 4])  # empty
    return Blocks(codes, row_terms if terms else None, books, size), tables, spans, torch.randn(queries, 3, generator=g)


def check(blocks: Blocks, tables: Tensor, spans: Tensor, coarse: Tensor, k: int, allowed: Tensor | None) -> None:
    distance, rows = lut_blocks.reference(blocks, tables, spans, coarse, k, allowed)
    module = dispatch.native()
    assert module is not None
    for isa in module.runnable_isas():
        module.set_isa(isa)
        for num_threads in (1, 2, 3):
            found = lut_blocks._native(blocks, tables, spans, coarse, k, allowed, num_threads)
            assert torch.equal(found[1], rows) and torch.equal(found[0], distance), (isa, num_threads, k)
    module.set_isa("")


@native
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("books", [1, 4, 7, 63, 100, 257])
def test_kernel_equals_definition(books: int, size: int) -> None:
    some = torch.rand(ROWS, generator=torch.Generator().manual_seed(0)) < 0.3
    for terms in (False, True):
        for k, allowed in ((1, None), (10, some), (500, None)):
            check(*problem(books, size, terms=terms), k, allowed)


@native
@pytest.mark.parametrize("kind", ["ties", "constant", "large", "tiny", "outlier", "offset", "terms", "infinite terms"])
@pytest.mark.parametrize("size", [16, 256, 300])
@pytest.mark.parametrize("terms", [False, True])
def test_hard_tables(kind: str, size: int, terms: bool) -> None:
    for k in (1, 10):
        check(*problem(12, size, kind, terms), k, None)


@native
@pytest.mark.parametrize("queries", [1, 2, 7, 8, 9, 23])
@pytest.mark.parametrize("size", [16, 256])
def test_queries_that_share_their_rows(queries: int, size: int) -> None:
    blocks, tables, spans, coarse = problem(8, size, queries=queries)
    spans[:] = spans[0]
    check(blocks, tables, spans, coarse, 3, None)
    check(blocks, tables[:0], spans[:0], coarse[:0], 3, None)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    for forced in ("", "reference"):
        monkeypatch.setenv("CODEWORD_OPS", forced)
        blocks, tables, spans, coarse = problem(4, 16)
        for bad in ([0, ROWS + 1], [-32, 5], [16, 40]):
            wrong = spans.clone()
            wrong[0, 0] = torch.tensor(bad)
            with pytest.raises(ValueError, match="span"):
                ops.lut_scan(blocks, tables, wrong, coarse, 3, None, 1)
        with pytest.raises(ShapeError, match="allowed"):
            ops.lut_scan(blocks, tables, spans, coarse, 3, torch.ones(7, dtype=torch.bool), 1)
        with pytest.raises(ShapeError, match="k=0"):
            ops.lut_scan(blocks, tables, spans, coarse, 0, None, 1)
        with pytest.raises(ShapeError, match="tables"):
            ops.lut_scan(blocks, tables[:, :3], spans, coarse, 1, None, 1)


@native
@pytest.mark.parametrize(("books", "size", "dim"), [(1, 1, 1), (3, 7, 5), (7, 16, 4), (2, 63, 100), (5, 256, 3), (1, 257, 33)])
def test_tables_equal_their_definition(books: int, size: int, dim: int) -> None:
    g = torch.Generator().manual_seed(books + size)
    codebooks = torch.randn(books, dim, size, generator=g)
    squares = codebooks.double().square().sum(1)
    module = dispatch.native()
    assert module is not None
    for scale in (1.0, 1e25, 1e-30):
        queries = torch.randn(9, books, dim, generator=g) * scale
        for factor, first in ((-1.0, None), (-2.0, squares)):
            expected = lut_blocks.tables_reference(queries, codebooks, factor, first)
            for isa in module.runnable_isas():
                module.set_isa(isa)
                assert torch.equal(ops.lut_tables(queries, codebooks, factor, first), expected), isa
                assert torch.equal(ops.lut_tables(queries[4:5], codebooks, factor, first), expected[4:5]), isa
    module.set_isa("")


def test_tables_refuse() -> None:
    queries, codebooks = torch.randn(2, 3, 4), torch.randn(3, 4, 16)
    with pytest.raises(ShapeError, match="queries"):
        ops.lut_tables(queries[:, :2], codebooks, -1.0, None)
    with pytest.raises(ShapeError, match="factor"):
        ops.lut_tables(queries, codebooks, 0.3, None)
