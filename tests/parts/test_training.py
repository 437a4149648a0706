"""Schedules of the learning rate, the clipped gradient, and units in which data of any scale train alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from codeword.errors import CodewordError
from codeword.parts.moments import standardised
from codeword.parts.training import linear_fall, minimise, warm_hold_fall


def test_warm_hold_fall() -> None:
    schedule = warm_hold_fall(0.1, 0.3)
    assert [schedule(done) for done in (0, 0.05, 0.1, 0.37, 1.0)] == pytest.approx([0.005, 0.5025, 1, 1, 0.01])
    assert schedule((0.37 + 1) / 2) == pytest.approx((1 + 0.01) / 2)
    assert [linear_fall(done) for done in (0, 0.25, 1)] == [1, 0.75, 0]


def test_minimise_follows_schedule_and_clip() -> None:
    moves = []

    def run(**options) -> list[float]:
        parameter = nn.Parameter(torch.zeros(1))
        before, moves[:] = 0.0, []

        def loss(batch: torch.Tensor) -> torch.Tensor:
            nonlocal before
            moves.append(float(parameter.detach()) - before)
            before = float(parameter.detach())
            return 100 * parameter.sum() + 0 * batch.sum()

        minimise(loss, [parameter], torch.zeros(4, 1), steps=4, batch_size=4, learning_rate=0.5, seed=0, **options)
        return [*moves[1:], float(parameter.detach()) - before]

    # A constant gradient: Adam moves by the rate itself.
    assert run() == pytest.approx([-0.5, -0.375, -0.25, -0.125], rel=1e-4)
    assert run(schedule=lambda done: 0.5, betas=(0.5, 0.5)) == pytest.approx([-0.25] * 4, rel=1e-4)
    # Clipped to the size of Adam's epsilon, the same gradient moves half as far.
    assert run(schedule=lambda done: 1.0, clip=1e-8) == pytest.approx([-0.25] * 4, rel=1e-3)


def test_standardised_rows() -> None:
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3]) + 50
    scaled, mean, length = standardised(x, None, "x")
    torch.testing.assert_close(scaled * length + mean.float(), x, rtol=1e-5, atol=1e-4)
    assert float(scaled.square().sum(1).mean()) == pytest.approx(1, rel=1e-4) and float(scaled.mean(0).abs().max()) < 1e-4
    equal, mean, length = standardised(torch.full((5, 2), 3.25), None, "x")
    assert length == 0 and mean.tolist() == [3.25, 3.25] and bool((equal == 0).all())
    with pytest.raises(CodewordError):
        standardised(torch.tensor([[3e38], [-3e38], [-3e38]]), None, "x")
