"""Adapters for several codebooks, and the representation head of one of them."""

from __future__ import annotations

import math

import pytest
import torch

import codeword
from codeword import CodewordError, ShapeError
from codeword.nets.factorized import FactorizedEncoder, RepresentationHead

SMALL = dict(width=8, multipliers=[1, 1, 2])
QUANTIZER = "factorized_vq:num_codebooks=2,codebook_size=8,iterations=2"


@pytest.mark.parametrize("options", [dict(adapter="conv"), dict(adapter="conv", adapter_depth=0),
                                     dict(adapter="transformer", adapter_depth=2, adapter_heads=2, image_size=16)])
def test_adapters_are_apart(options: dict, g: torch.Generator):
    """Slice m comes from adapter m: a loss on it reaches the shared layers and that adapter, no other."""
    torch.manual_seed(0)
    encoder = FactorizedEncoder(1, 6, num_codebooks=3, **SMALL, **options)
    z = encoder(torch.rand(2, 1, 16, 16, generator=g))
    assert z.shape == (2, 6, 4, 4) and encoder.factor == 4
    z[:, 2:4].square().sum().backward()
    reached = [any(p.grad is not None and bool((p.grad != 0).any()) for p in adapter.parameters()) for adapter in encoder.adapters]
    assert reached == [False, True, False]
    assert all(p.grad is not None for p in encoder.trunk.parameters())


def test_representation_reaches_the_encoder_through_the_codes(g: torch.Generator):
    """The published release once lost this gradient: it must arrive in its own adapter and the trunk, not in the other adapter, not in
    the targets."""
    torch.manual_seed(0)
    encoder = FactorizedEncoder(1, 8, **SMALL)
    quantizer = codeword.make(QUANTIZER, 8)
    head = RepresentationHead(dim=8, target_dim=5, grid=4, part=1, width=8, heads=2)
    x, targets = torch.rand(6, 1, 16, 16, generator=g), torch.randn(6, 5, generator=g).requires_grad_()
    with torch.no_grad():
        quantizer.fit(encoder(x).permute(0, 2, 3, 1))
    loss = head(quantizer(encoder(x).permute(0, 2, 3, 1)).values, targets)
    loss.backward()
    grads = [[p.grad for p in part.parameters()] for part in (encoder.trunk, *encoder.adapters)]
    assert any(bool((grad != 0).any()) for grad in grads[0] if grad is not None)
    assert not any(bool((grad != 0).any()) for grad in grads[1] if grad is not None)
    assert any(bool((grad != 0).any()) for grad in grads[2] if grad is not None)
    assert targets.grad is None


def test_representation_is_learned(g: torch.Generator):
    """Six images with six targets: the loss falls from about 0.5 log 6 to its bound, where f_i is g_i less the mean target."""
    torch.manual_seed(0)
    head = RepresentationHead(dim=4, target_dim=6, grid=2, width=16, heads=2)
    values, targets = torch.randn(6, 2, 2, 4, generator=g), torch.eye(6)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    first = float(head(values, targets).detach())
    for _ in range(40):
        optimizer.zero_grad()
        loss = head(values, targets)
        loss.backward()
        optimizer.step()
    bound = 0.5 * math.log(1 + 5 * math.exp(-math.sqrt(5 / 6) - 1 / math.sqrt(30)))     # their cosines
    assert first == pytest.approx(0.5 * math.log(6), abs=0.2) and bound - 1e-6 <= float(loss.detach()) < bound + 0.05
    empty = head(values[:0], targets[:0])
    empty.backward()
    assert float(empty.detach()) == 0


def test_refusals():
    with pytest.raises(CodewordError, match="divide dim"):
        FactorizedEncoder(1, 7)
    with pytest.raises(CodewordError, match="image_size"):
        FactorizedEncoder(1, 8, adapter="transformer")
    with pytest.raises(CodewordError, match="part=2"):
        RepresentationHead(dim=8, target_dim=4, grid=2, part=2)
    with pytest.raises(ShapeError, match="2, 2, 8"):
        RepresentationHead(dim=8, target_dim=4, grid=2, width=8)(torch.rand(1, 3, 2, 8), torch.rand(1, 4))
