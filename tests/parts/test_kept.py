"""What is kept follows every way of writing into its sources, and is made once otherwise."""

from __future__ import annotations

import copy

import torch

from codeword.parts.kept import Kept


def test_made_again_only_where_a_source_changed() -> None:
    kept, calls = Kept(), []
    a, b = torch.nn.Parameter(torch.zeros(3)), torch.ones(2)

    def value() -> torch.Tensor:
        def make() -> torch.Tensor:
            calls.append(1)
            return a.sum() + b.sum()
        return kept((a, b), make)

    assert float(value()) == 2 and float(value()) == 2 and len(calls) == 1 and not value().requires_grad
    a.data += 1
    assert float(value()) == 5
    a.detach().numpy()[:] = 2
    assert float(value()) == 8
    b.mul_(3)
    assert float(value()) == 12 and len(calls) == 4
    b.mul_(1)
    assert float(value()) == 12 and len(calls) == 4
    twin = copy.deepcopy(kept)
    assert float(twin((a, b), lambda: torch.tensor(-1.0))) == 12
    a.data -= 1
    assert float(twin((a, b), lambda: torch.tensor(-1.0))) == -1


def test_other_shapes_and_counts_are_changes() -> None:
    kept = Kept()
    two, three = torch.zeros(2), torch.zeros(3)
    for i, sources in enumerate([(two,), (three,), (three, two), (three.double(), two)]):
        assert int(kept(sources, lambda i=i: torch.tensor(i))) == i
