"""additive_search: the best code where the beam holds all, never a worse one for more sweeps, and the kernel equal to its definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from codeword import ops
from codeword.errors import ShapeError
from codeword.ops import additive, dispatch


def tables(n: int, codebooks: int, size: int, seed: int = 0, *, scale: float = 1.0, ties: bool = False) -> tuple[Tensor, Tensor]:
    """terms (n, M, W) and gram (M, M, K, W) of random codebooks and rows; ``ties``: of small integers."""
    g = torch.Generator().manual_seed(seed)
    x, books = torch.randn(n, 9, generator=g), torch.randn(codebooks, size, 9, generator=g)
    if ties:
        x, books = (2 * x).round(), books.round()
    x, books = x.double() * scale, books.double() * scale
    fill = -size % additive.WIDTH
    half = books.square().sum(2) / 2
    terms = torch.nn.functional.pad((half - torch.einsum("nd,mkd->nmk", x, books)).float(), (0, fill), value=torch.inf)
    gram = torch.nn.functional.pad(torch.einsum("lid,mkd->mlik", books, books).float(), (0, fill))
    return terms, gram.contiguous()


def cost(terms: Tensor, gram: Tensor, codes: Tensor) -> Tensor:
    """float64 (n,) of codes (n, M)."""
    rows, total = torch.arange(len(codes)), torch.zeros(len(codes), dtype=torch.float64)
    codes = codes.to(torch.int64)
    for m in range(codes.shape[1]):
        total += terms[rows, m, codes[:, m]].double()
        for other in range(m):
            total += gram[m, other, codes[:, other], codes[:, m]].double()
    return total


@pytest.mark.parametrize(("codebooks", "size"), [(2, 8), (3, 5), (1, 33)])
def test_beam_that_holds_every_code_finds_the_best(codebooks: int, size: int) -> None:
    terms, gram = tables(50, codebooks, size)
    found = ops.additive_search(terms, gram, ops.empty_states(50, codebooks), filled=0, beam=size**codebooks)
    every = torch.tensor(list(itertools.product(range(size), repeat=codebooks)))
    best = torch.stack([cost(terms, gram, code.expand(50, -1)) for code in every]).amin(0)
    assert torch.allclose(cost(terms, gram, found.codes[:, 0]), best, rtol=0, atol=1e-5)
    assert torch.allclose(found.costs[:, 0], best, rtol=0, atol=1e-5)
    assert len(torch.unique(found.codes[0], dim=0)) == size**codebooks  # all of them, each once


def test_costs_are_those_of_the_codes_and_ascend() -> None:
    terms, gram = tables(40, 5, 20)
    found = ops.additive_search(terms, gram, ops.empty_states(40, 5), filled=0, beam=6, sweeps=3)
    for h in range(6):
        assert torch.allclose(cost(terms, gram, found.codes[:, h]), found.costs[:, h], rtol=0, atol=1e-4)
    assert bool((found.costs.diff(dim=1) >= 0).all())
    assert all(len(torch.unique(row, dim=0)) == 6 for row in found.codes)


@pytest.mark.parametrize("beam", [1, 4])
def test_sweeps_never_make_a_code_worse(beam: int) -> None:
    terms, gram = tables(60, 6, 16)
    codes = torch.randint(0, 16, (60, 1, 6), generator=torch.Generator().manual_seed(3)).to(torch.int32)
    before = cost(terms, gram, codes[:, 0])
    for sweeps in (1, 2, 4):
        start = ops.States(codes, before.unsqueeze(1))
        found = ops.additive_search(terms, gram, start, filled=6, beam=beam, sweeps=sweeps)
        after = cost(terms, gram, found.codes[:, 0])
        assert bool((after <= before + 1e-5).all()) and float(after.sum()) < float(before.sum()) - 10


def test_fewer_codes_than_the_beam() -> None:
    terms, gram = tables(7, 2, 2)
    for sweeps in (1, 3):
        found = ops.additive_search(terms, gram, ops.empty_states(7, 2), filled=0, beam=9, sweeps=sweeps)
        assert bool(torch.isfinite(found.costs[:, :2]).all())
        assert bool((found.codes[torch.isinf(found.costs)] == found.codes[:, :1].expand(-1, 9, -1)[torch.isinf(found.costs)]).all())


CASES = [(1, 1, 1, 1, 1), (7, 2, 2, 9, 3), (63, 3, 7, 4, 2), (100, 4, 63, 16, 2), (257, 2, 100, 5, 1), (130, 3, 257, 33, 2),
         (37, 9, 16, 8, 3)]


@pytest.mark.parametrize(("n", "codebooks", "size", "beam", "sweeps"), CASES)
@pytest.mark.parametrize("kind", ["normal", "ties", "tiny", "huge"])
def test_kernel_equals_definition(isa: str, kind: str, n: int, codebooks: int, size: int, beam: int, sweeps: int) -> None:
    terms, gram = tables(n, codebooks, size, ties=kind == "ties", scale={"tiny": 1e-18, "huge": 1e16}.get(kind, 1.0))
    g = torch.Generator().manual_seed(1)
    full = ops.States(torch.randint(0, size, (n, 1, codebooks), generator=g).to(torch.int32), torch.zeros(n, 1, dtype=torch.float64))
    for start, filled in ((ops.empty_states(n, codebooks), 0), (full, codebooks)):
        wanted = additive.reference(terms, gram, *start, filled, beam, sweeps)
        for threads in (1, 3):
            assert _same(_native(terms, gram, start, filled, beam, sweeps, threads), wanted)


def test_last_position_alone_continues_the_search(isa: str) -> None:
    terms, gram = tables(140, 3, 20)
    before = ops.additive_search(terms[:, :2].contiguous(), gram[:2, :2].contiguous(), ops.empty_states(140, 2), filled=0, beam=5)
    longer = ops.States(torch.nn.functional.pad(before.codes, (0, 1)), before.costs)
    step = ops.additive_search(terms[:, 2:].contiguous(), gram[2:], longer, filled=2, beam=5)
    assert _same(step, ops.additive_search(terms, gram, ops.empty_states(140, 3), filled=0, beam=5))


def test_a_row_does_not_depend_on_its_neighbours(isa: str) -> None:
    terms, gram = tables(300, 4, 33)
    whole = ops.additive_search(terms, gram, ops.empty_states(300, 4), filled=0, beam=4, sweeps=2)
    for row in (0, 127, 128, 299):
        alone = ops.additive_search(terms[row:row + 1], gram, ops.empty_states(1, 4), filled=0, beam=4, sweeps=2)
        assert torch.equal(alone.codes[0], whole.codes[row]) and torch.equal(alone.costs[0], whole.costs[row])


def test_refuses_other_inputs() -> None:
    terms, gram = tables(3, 2, 4)
    start = ops.empty_states(3, 2)
    with pytest.raises(ShapeError, match="multiple of 16"):
        ops.additive_search(terms[..., :4], gram, start, filled=0, beam=2)
    with pytest.raises(ShapeError, match="filled=1"):
        ops.additive_search(terms, gram, start, filled=1, beam=2)
    with pytest.raises(ShapeError, match="codes"):
        ops.additive_search(terms, gram, ops.States(start.codes + 4, start.costs), filled=2, beam=2)
    with pytest.raises(ShapeError, match="start"):
        ops.additive_search(terms, gram, ops.empty_states(3, 3), filled=0, beam=2)
    with pytest.raises(ShapeError, match="sweeps=0"):
        ops.additive_search(terms, gram, start, filled=0, beam=2, sweeps=0)


def test_rows_that_are_not_finite_get_codes_in_range(isa: str) -> None:
    terms, gram = tables(5, 3, 4)
    terms[1], terms[2, 0, :4] = torch.nan, torch.inf
    found = ops.additive_search(terms, gram, ops.empty_states(5, 3), filled=0, beam=3, sweeps=2)
    assert int(found.codes.min()) >= 0 and int(found.codes.max()) < 4
    clean = ops.additive_search(terms[3:], gram, ops.empty_states(2, 3), filled=0, beam=3, sweeps=2)
    assert torch.equal(found.codes[3:], clean.codes)


def _native(terms: Tensor, gram: Tensor, start: ops.States, filled: int, beam: int, sweeps: int, threads: int) -> tuple[Tensor, Tensor]:
    module = dispatch.native()
    assert module is not None
    codes = torch.zeros(len(terms), beam, gram.shape[1], dtype=torch.int32)
    costs = torch.zeros(len(terms), beam, dtype=torch.float64)
    codes[:, :1], costs[:, :1] = start.codes, start.costs
    module.additive_search(terms.numpy(), gram.numpy(), codes.numpy(), costs.numpy(), 1, filled, sweeps, threads)
    return codes, costs


def _same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1].view(torch.int64), b[1].view(torch.int64))


def test_what_padding_holds_never_becomes_a_code() -> None:
    terms, gram = tables(20, 3, 10)
    want = ops.additive_search(terms, gram, ops.empty_states(20, 3), filled=0, beam=4, sweeps=2)
    terms[..., 10:] = -torch.inf
    gram[..., 10:] = -1e30
    found = additive.additive_search(terms, gram, ops.empty_states(20, 3), filled=0, beam=4, sweeps=2)
    if dispatch.choice("additive_search") == "native":
        assert torch.equal(found.codes, want.codes)
    assert int(found.codes.max()) < 10
