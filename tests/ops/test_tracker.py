"""Tracker: the same result as nearest from call to call, however the codebook moves and the rows are cut into blocks."""

from __future__ import annotations

import itertools

import pytest
import torch

from codeword import ops
from codeword.errors import ShapeError

from .conftest import equal, pairs

MOVES = ("a little", "one far", "not at all", "permuted", "all far", "not finite", "again finite", "a little", "a little")


def moved(codebook: torch.Tensor, how: str, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(codebook.shape, generator=g)
    codebook = codebook.clone()
    if how == "a little":
        return codebook + 0.02 * codebook.nan_to_num(0, 0, 0).std() * noise
    if how == "one far":
        codebook[len(codebook) // 2] *= -7
    elif how == "permuted":
        codebook = codebook[torch.randperm(len(codebook), generator=g)]
    elif how == "all far":
        codebook = codebook + 1000
    elif how == "not finite":
        codebook[3, 0] = torch.nan
    elif how == "again finite":
        codebook = codebook.nan_to_num(1.0) - 1000
    return codebook


@pytest.mark.parametrize("distribution", ["gaussian", "duplicates", "integers", "1e30", "1e-20", "subnormal", "zeros", "far codeword",
                                          "far row", "offset", "not finite"])
@pytest.mark.parametrize("shape", [(300, 257, 13), (101, 1000, 33), (257, 130, 100)])
def test_every_call_is_nearest(isa: str, distribution: str, shape: tuple[int, int, int]) -> None:
    x, codebook = pairs(distribution, *shape)
    tracker = ops.Tracker(len(x), always=True)
    for turn, how in enumerate(MOVES):
        tracker.move(codebook)
        cut = (0, 100, len(x)) if turn != 4 else (0, 100)  # a block that misses a call starts anew
        for start, stop in itertools.pairwise(cut):
            got, want = tracker.nearest(x[start:stop], start), ops.nearest(x[start:stop], codebook)
            assert equal(got.indices, want.indices) and equal(got.distances, want.distances), (turn, how)
        codebook = moved(codebook, how, turn)


def test_clustered_rows_that_hardly_move(isa: str, threads: int) -> None:
    g = torch.Generator().manual_seed(5)
    codebook = torch.randn(700, 40, generator=g)
    x = codebook[torch.randint(0, 700, (2000,), generator=g)] + 0.3 * torch.randn(2000, 40, generator=g)
    tracker = ops.Tracker(len(x), always=True)
    for turn in range(6):
        tracker.move(codebook)
        got, want = tracker.nearest(x), ops.nearest(x, codebook)
        assert equal(got.indices, want.indices) and equal(got.distances, want.distances)
        codebook = codebook + 0.05 * torch.randn(codebook.shape, generator=g)
        if turn == 3:  # ties with lower and higher indices
            codebook[:350] = codebook[350:]


@pytest.mark.parametrize("shape", [(300, 256, 24), (300, 200, 700)])  # one that is searched anew, one that is tracked
def test_where_tracking_pays_or_not_the_result_is_nearest(shape: tuple[int, int, int]) -> None:
    x, codebook = pairs("gaussian", *shape)
    tracker = ops.Tracker(len(x))
    for turn in range(3):
        tracker.move(codebook)
        got, want = tracker.nearest(x), ops.nearest(x, codebook)
        assert equal(got.indices, want.indices) and equal(got.distances, want.distances)
        codebook = moved(codebook, "a little", turn)


def test_wrong_blocks_are_refused() -> None:
    tracker = ops.Tracker(10, always=True)
    tracker.move(torch.randn(300, 20, generator=torch.Generator().manual_seed(0)))
    if tracker.native:
        with pytest.raises(ShapeError, match="Tracker got"):
            tracker.nearest(torch.zeros(5, 20), 6)


def test_a_codebook_that_its_owner_writes_into_is_seen_to_move() -> None:
    x, codebook = pairs("gaussian", 2000, 300, 16)
    tracker = ops.Tracker(len(x), always=True)
    for row in range(4):
        tracker.move(codebook)
        assert torch.equal(tracker.nearest(x, 0).indices, ops.nearest(x, codebook).indices)
        codebook[200] = x[row]
