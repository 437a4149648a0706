"""Encoders, decoders, discriminators: shapes, gradients, layouts, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from codeword import CodewordError, ShapeError
from codeword.nets import vit
from codeword.nets.patchgan import PatchDiscriminator, adaptive_weight, hinge_loss
from codeword.nets.style_discriminator import StyleDiscriminator, gradient_penalty
from codeword.nets.vqgan import ConvDecoder, ConvEncoder, group_norm

CONV = [
    dict(width=8),
    dict(width=7, multipliers=[1, 3], blocks=2),
    dict(width=6, multipliers=[2], attention=True),
    dict(width=5, multipliers=[1, 1, 2, 2], attention=True),
]


def build(kind: str, channels: int, dim: int, config: dict) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    config = json.loads(json.dumps(config))
    if kind == "conv":
        return ConvEncoder(channels, dim, **config), ConvDecoder(channels, dim, **config)
    return vit.ViTEncoder(channels, dim, **config), vit.ViTDecoder(channels, dim, **config)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind, config", [*(("conv", c) for c in CONV), ("vit", dict(image_size=16, patch=4, width=12, depth=2, heads=3))])
def test_shapes_and_gradients(kind: str, config: dict, channels: int, g: torch.Generator):
    """JSON arguments; the latent grid is the image's over ``factor``; every parameter gets a gradient after one step away from the start
    (second convolutions begin at zero), an empty batch passes, layouts in memory do not matter."""
    encoder, decoder = build(kind, channels, 5, config)
    x = torch.rand(2, channels, 16, 16, generator=g)
    z = encoder(x)
    side = 16 // encoder.factor
    assert z.shape == (2, 5, side, side)
    assert decoder(z).shape == x.shape
    with torch.no_grad():
        for p in [*encoder.parameters(), *decoder.parameters()]:
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    out = decoder(encoder(x))
    (out - x).square().mean().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in [*encoder.parameters(), *decoder.parameters()])
    assert decoder.last.shape[0] in (channels, channels * encoder.factor ** 2)
    assert encoder(x[:0]).shape == (0, 5, side, side) and decoder(z[:0]).shape == (0, channels, 16, 16)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(decoder(encoder(last)), out, atol=1e-5)


def test_batches_do_not_matter(g: torch.Generator):
    encoder, decoder = build("conv", 3, 4, CONV[3])
    x = torch.rand(3, 3, 16, 16, generator=g)
    assert torch.allclose(decoder(encoder(x))[1:2], decoder(encoder(x[1:2])), atol=1e-5)


def test_convolutions_take_any_size(g: torch.Generator):
    encoder, decoder = build("conv", 1, 4, CONV[0])
    assert decoder(encoder(torch.rand(1, 1, 28, 12, generator=g))).shape == (1, 1, 28, 12)


def test_state_round_trip(g: torch.Generator, tmp_path: Path):
    from safetensors.torch import load_file, save_file
    config = dict(image_size=8, patch=4, width=8, depth=1, heads=2)
    encoder, _ = build("vit", 1, 4, config)
    save_file(encoder.state_dict(), str(tmp_path / "state.safetensors"))
    again = vit.ViTEncoder(1, 4, **config)
    again.load_state_dict(load_file(str(tmp_path / "state.safetensors")))
    x = torch.rand(2, 1, 8, 8, generator=g)
    assert torch.equal(again(x), encoder(x))


@pytest.mark.parametrize("width", [1, 2, 3, 7, 12, 48, 64, 100, 320])
def test_groups_fit_any_width(width: int):
    norm = group_norm(width)
    assert width % norm.num_groups == 0 and (norm.num_groups == 1 or width // norm.num_groups >= 4)
    assert group_norm(128).num_groups == 32


def test_patches_are_a_permutation(g: torch.Generator):
    x = torch.rand(2, 3, 8, 8, generator=g)
    tokens = vit.to_patches(x, 4)
    assert torch.equal(tokens[0, 1].reshape(3, 4, 4), x[0, :, :4, 4:])
    assert torch.equal(vit.from_patches(tokens, 3, 4, 2), x)
    assert torch.equal(vit.to_grid(tokens, 2)[:, :, 1, 0], tokens[:, 2])


def test_refusals():
    with pytest.raises(CodewordError, match="multipliers"):
        ConvEncoder(3, 4, multipliers=[])
    with pytest.raises(CodewordError, match="width=0"):
        ConvDecoder(3, 4, width=0)
    with pytest.raises(ShapeError, match="4 divides"):
        ConvEncoder(3, 4, width=4)(torch.rand(1, 3, 10, 8))
    with pytest.raises(CodewordError, match="divides image_size"):
        vit.ViTEncoder(3, 4, image_size=10, patch=4)
    with pytest.raises(ShapeError, match="needed"):
        vit.ViTDecoder(3, 4, image_size=8, patch=4, width=4, depth=0, heads=1)(torch.rand(1, 4, 3, 3))
    with pytest.raises(ShapeError, match="sides of at least 12"):
        PatchDiscriminator(3, width=4)(torch.rand(1, 3, 11, 12))
    with pytest.raises(CodewordError, match="image_size >= 8"):
        StyleDiscriminator(3, image_size=4)


# ---------------------------------------------------------------------- discriminators


DISCRIMINATORS = [lambda: PatchDiscriminator(1, width=4), lambda: PatchDiscriminator(1, width=4, depth=1),
                  lambda: StyleDiscriminator(1, image_size=28, width=4, penalty=0.1, penalty_every=2)]


@pytest.mark.parametrize("make", DISCRIMINATORS)
def test_discriminators_tell_apart(make, g: torch.Generator):
    """Trained on bright against dark noise they end up certain, their losses low; images get gradient from the generator's loss only."""
    torch.manual_seed(0)
    network = make()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for step in range(25):
        real, fake = (torch.rand(8, 1, 28, 28, generator=g) * 0.5 + shift for shift in (0.4, 0.0))
        fake.requires_grad_()
        loss, stats = network.discriminator_loss(real, fake, step)
        optimizer.zero_grad()
        loss.backward()
        assert fake.grad is None
        optimizer.step()
        losses.append(float(loss.detach()))
    assert stats["real_logit"] > stats["fake_logit"] and losses[-1] < 0.6 * losses[1]
    network.generator_loss(fake).backward()
    assert bool((fake.grad != 0).any())
    assert bool(network.generator_loss(real) < network.generator_loss(fake))


def test_hinge_known_values():
    assert float(hinge_loss(torch.tensor([1.5, 1.0]), torch.tensor([-2.0]))) == 0
    assert float(hinge_loss(torch.zeros(3), torch.zeros(2))) == 1.0
    assert float(hinge_loss(torch.tensor([0.5]), torch.tensor([3.0]))) == pytest.approx(0.25 + 2)


def test_adaptive_weight_is_the_ratio_of_gradients():
    w = nn.Parameter(torch.tensor([3.0, -1.0]))
    loss, adversary = (w * torch.tensor([3.0, 4.0])).sum(), (w * torch.tensor([0.0, 0.1])).sum()
    weight = adaptive_weight(loss, adversary, w)
    assert float(weight) == pytest.approx(5 / (0.1 + 1e-4)) and not weight.requires_grad
    assert float(adaptive_weight(loss, 0 * adversary, w, limit=7.0)) == 7.0
    (loss + weight * adversary).backward()                                              # graphs are still there
    assert w.grad is not None


def test_gradient_penalty_of_a_linear_function(g: torch.Generator):
    x = torch.rand(5, 1, 2, 2, generator=g).requires_grad_()
    a = torch.tensor([1.0, 2.0, 2.0, 4.0])
    assert float(gradient_penalty(x.flatten(1) @ a, x)) == pytest.approx(25.0)


def test_penalty_is_lazy_and_weighed_up(g: torch.Generator):
    """R1 is there at multiples of ``penalty_every`` only, weighed by it, and it can be differentiated."""
    torch.manual_seed(0)
    network = StyleDiscriminator(1, image_size=8, width=4, penalty=3.0, penalty_every=4)
    real, fake = torch.rand(4, 1, 8, 8, generator=g), torch.rand(4, 1, 8, 8, generator=g)
    due, with_penalty = network.discriminator_loss(real, fake, 8)
    plain, without = network.discriminator_loss(real, fake, 9)
    assert "r1" not in without
    assert float((due - plain).detach()) == pytest.approx(0.5 * 3.0 * 4 * float(with_penalty["r1"]), rel=1e-4)
    due.backward()
    assert all(p.grad is not None for p in network.parameters())


def test_style_discriminator_sees_sameness(g: torch.Generator):
    """One more channel says how alike the images of a group are: the same image has another logit among copies than among others."""
    torch.manual_seed(0)
    network = StyleDiscriminator(1, image_size=8, width=4)
    x = torch.rand(4, 1, 8, 8, generator=g)
    copies = x[:1].expand(4, -1, -1, -1)
    assert bool((network(x)[0] - network(copies)[0]).abs() > 1e-6)
    assert network(x[:0]).shape == (0,) and network(x[:3]).shape == (3,)
