"""e8_nearest: the codebook is E8P, the kernel is its definition, ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codeword import ops
from codeword.errors import ShapeError
from codeword.ops import dispatch, e8


def samples(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    fine = e8.integers(1.03 * x)
    points = torch.from_numpy(e8.points()).int()[torch.randint(0, e8.POINTS, (n,), generator=torch.Generator().manual_seed(seed))]
    return {"normal": fine, "quarters": fine // 1024 * 1024, "halves": fine // 2048 * 2048, "eighths": fine // 512 * 512,
            "far": (20 * fine).clamp(-e8.LIMIT, e8.LIMIT), "zero": torch.zeros_like(fine), "points": points * 1024,
            "corner": torch.full_like(fine, e8.LIMIT), "one axis": fine * torch.eye(8, dtype=torch.int32)[3]}


def test_codebook_is_e8p() -> None:
    points = e8.points().astype(np.int64)
    assert points.shape == (65536, 8) and len(np.unique(points, axis=0)) == 65536
    shift = np.where((points[:, :1] - 2) % 4 == 1, 1, -1)  # quarters of half-integers are 2 mod 4
    unshifted = points - shift
    assert (unshifted % 4 == 2).all() and (unshifted.sum(1) % 8 == 0).all()  # half-integers of even sum
    square = np.square(unshifted).sum(1)
    assert square.max() == 16 * 12 and (np.unique(square) % 32 == 0).all()
    patterns = e8.patterns()
    norms = np.square(patterns).sum(1) / 16
    assert (norms <= 10).sum() == 227 and (norms == 12).sum() == 29 and len(np.unique(patterns, axis=0)) == 256
    # Each pattern: 2^7 sign choices, both shifts; together half of them are down.
    assert (np.abs(unshifted).reshape(256, 256, 8) == patterns[:, None]).all() and (shift > 0).sum() == 32768
    # The parity of the low byte says the shift.
    parity = np.array([bin(b).count("1") % 2 for b in range(256)])
    assert ((shift.reshape(256, 256) < 0) == parity).all()


def test_reference_is_brute_force() -> None:
    x = e8.integers(1.03 * torch.randn(40, 8, generator=torch.Generator().manual_seed(1)))
    distance = torch.cdist(x.double() / e8.UNIT, torch.from_numpy(e8.points()).double() / 4, compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(e8.reference(x), distance.argmin(1))


@pytest.mark.skipif(dispatch.native() is None or not hasattr(dispatch.native(), "e8_nearest"), reason="the native module is not built")
@pytest.mark.parametrize("n", [0, 1, 7, 63, 100, 257])
def test_native_equals_reference(n: int) -> None:
    module = dispatch.native()
    try:
        for name, x in samples(n, seed=n).items():
            expected = e8.reference(x[:60])  # a second for a thousand rows
            for isa in module.runnable_isas():
                module.set_isa(isa)
                for threads in (1, 2):
                    out = torch.empty(n, dtype=torch.int64)
                    module.e8_nearest(x.numpy(), e8.patterns().T.astype(np.float32, order="C"), out.numpy(), threads)
                    assert torch.equal(out[:60], expected), (name, isa)
                    assert bool(((out >= 0) & (out < e8.POINTS)).all())
    finally:
        module.set_isa("")


def test_points_are_their_own_nearest() -> None:
    every = torch.arange(0, e8.POINTS, 61 if dispatch.choice("e8_nearest") == "reference" else 1)
    assert torch.equal(ops.e8_nearest(torch.from_numpy(e8.points())[every].int() * 1024), every)


def test_bad_arguments() -> None:
    for bad in (torch.zeros(3, 7, dtype=torch.int32), torch.zeros(3, 8), torch.zeros(8, dtype=torch.int32),
                torch.full((2, 8), e8.LIMIT + 1, dtype=torch.int32)):
        with pytest.raises(ShapeError):
            ops.e8_nearest(bad)
    assert int(e8.integers(torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])).abs().max()) == e8.LIMIT
    module = dispatch.native()
    if module is not None and hasattr(module, "e8_nearest"):
        out, good = np.zeros(2, np.int64), e8.patterns().T.astype(np.float32, order="C")
        for x, patterns in ((np.full((2, 8), 1 << 20, np.int32), good), (np.zeros((2, 8), np.int32), good + 1),
                            (np.zeros((2, 7), np.int32), good), (np.zeros((2, 8), np.float32), good)):
            with pytest.raises(ValueError):
                module.e8_nearest(x, patterns, out, 1)
