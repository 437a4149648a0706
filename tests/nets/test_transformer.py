"""The transformer block: what permutations, causes, padding and places do to it, and attention against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from codeword.errors import CodewordError, ShapeError
from codeword.nets.transformer import Attention, Transformer, rotate_by_place, unstarted


def made(**options) -> Transformer:
    torch.manual_seed(0)
    return Transformer(**{"width": 8, "heads": 2, "depth": 2, "hidden": 12, **options}).eval()


def tokens(b: int = 2, n: int = 6) -> torch.Tensor:
    return torch.randn(b, n, 8, generator=torch.Generator().manual_seed(1))


def test_attention_is_its_definition() -> None:
    torch.manual_seed(0)
    attention, x = Attention(width=8, heads=2), tokens()
    q, k, v = (part.reshape(2, 6, 2, 4).transpose(1, 2) for part in attention.to_qkv(x).split(8, dim=2))
    weights = torch.softmax(q @ k.mT / math.sqrt(4), dim=-1)
    torch.testing.assert_close(attention(x), attention.out((weights @ v).transpose(1, 2).reshape(2, 6, 8)))


def test_without_places_a_permutation_of_tokens_permutes_the_output() -> None:
    net, x, order = made(), tokens(), torch.randperm(6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(net(x)[:, order], net(x[:, order]))
    net = made(rotary=True)
    assert not torch.allclose(net(x)[:, order], net(x[:, order]), atol=1e-3)


def test_causal_outputs_do_not_see_what_follows() -> None:
    net, x = made(causal=True, rotary=True), tokens()
    changed = x.clone()
    changed[:, 4:] *= -1  # not + 1, which the norms would take off again
    torch.testing.assert_close(net(x)[:, :4], net(changed)[:, :4])
    assert not torch.allclose(net(x)[:, 4:], net(changed)[:, 4:], atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_has_no_influence(causal: bool) -> None:
    net, x = made(causal=causal), tokens()
    mask = torch.ones(2, 6, dtype=torch.bool)
    torch.testing.assert_close(net(x, mask=mask), net(x))
    mask[0, 4:] = False
    mask[1] = False
    out = net(x, mask=mask)
    torch.testing.assert_close(out[:1, :4], net(x[:1, :4]))
    assert bool(torch.isfinite(out).all())


def test_rotary_angles_keep_lengths_and_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(3)).expand(2, 9, 8)
    q, k = rotate_by_place(q), rotate_by_place(k)
    torch.testing.assert_close(q.norm(dim=1), q[:1].norm(dim=1).expand(9))
    products = q @ k.mT
    torch.testing.assert_close(products[1:, 1:], products[:-1, :-1])
    assert not torch.allclose(products[0, 1:], products[0, :-1], atol=1e-3)


def test_dropout_acts_in_training_only() -> None:
    net, x = made(dropout=0.5), tokens()
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


def test_unstarted_modules_are_zero_and_draw_nothing() -> None:
    before = torch.get_rng_state()
    net = unstarted(lambda: Transformer(width=8, heads=2, depth=1, affine=False))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(bool((p == 0).all()) and p.device.type == "cpu" for p in net.parameters())
    assert {name.rpartition(".")[2] for name, _ in net.named_parameters()} == {"weight", "bias"}
    assert not any("norm" in name for name, _ in net.named_parameters())
    with torch.device("meta"):
        assert next(unstarted(lambda: Transformer(width=8, heads=2, depth=1)).parameters()).device.type == "meta"


def test_bad_arguments_and_shapes() -> None:
    for options in ({"heads": 3}, {"width": 0}, {"depth": -1}, {"dropout": 1.0}, {"hidden": 0}, {"width": 6, "heads": 2, "rotary": True}):
        with pytest.raises(CodewordError):
            made(**options)
    for x, mask in ((torch.zeros(2, 3, 7), None), (torch.zeros(3, 8), None), (torch.zeros(2, 3, 8), torch.ones(2, 4, dtype=torch.bool))):
        with pytest.raises(ShapeError):
            made()(x, mask=mask)
