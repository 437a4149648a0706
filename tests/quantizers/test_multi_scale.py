"""Multi-scale codes of maps: resampling against torch's own, one scale is VQ, prefixes, gradients, exactness over any batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import codeword
from codeword.errors import CodewordError, Unsupported
from codeword.quantizers.multi_scale import MultiScale


def maps(n: int, h: int, w: int, c: int, seed: int = 0) -> Tensor:
    """Smooth random maps (n, h w c)."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.nn.functional.interpolate(torch.randn(n, c, 2, 2, generator=g), size=(h, w), mode="bilinear", align_corners=True)
    return (coarse + 0.2 * torch.randn(n, c, h, w, generator=g)).permute(0, 2, 3, 1).flatten(1)


def small(**options: object) -> MultiScale:
    return MultiScale(**{"dim": 48, "size": [4, 4], "scales": [1, 2, 4], "codebook_size": 16, "steps": 20, "iterations": 5, **options})


@pytest.mark.parametrize(("size", "scales"), [([4, 4], [1, 2, 4]), ([5, 7], [1, 2, 3, 5]), ([16, 16], [1, 3, 5, 13, 16]), ([6, 3], [2, 6])])
def test_resampling_is_torchs(size: list[int], scales: list[int]) -> None:
    quantizer = MultiScale(dim=2 * size[0] * size[1], size=size, scales=scales, codebook_size=2)
    x = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0))
    for s, grid in enumerate(quantizer.grids):
        ours = quantizer._shrunk(x.permute(0, 2, 3, 1), s).reshape(3, *grid, 2).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, torch.nn.functional.adaptive_avg_pool2d(x, grid))
        grown = quantizer._grown(ours.permute(0, 2, 3, 1), s).permute(0, 3, 1, 2)
        torch.testing.assert_close(grown, torch.nn.functional.interpolate(ours, size=tuple(size), mode="bilinear", align_corners=False))


def test_the_mix_is_a_convolution() -> None:
    quantizer = small()
    with torch.no_grad():
        quantizer.mix.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    kernel = quantizer.mix[2].reshape(3, 3, 3, 3).permute(0, 3, 1, 2)  # (out, kh, kw, in) -> (out, in, kh, kw)
    ours = quantizer._grown(x.permute(0, 2, 3, 1), 2).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, x + torch.nn.functional.conv2d(x, kernel, padding=1), rtol=1e-4, atol=1e-4)


def test_one_scale_without_training_is_vq_place_by_place() -> None:
    x = maps(40, 3, 3, 2)
    ours = MultiScale(dim=18, size=[3, 3], scales=[3], codebook_size=8, steps=0, iterations=5).fit(x)
    vq = codeword.VQ(dim=2, codebook_size=8)
    with torch.no_grad():
        vq.codebook.copy_(ours.codebook)
    vq.restore({"fitted": True})
    codes = ours.encode(x)
    assert torch.equal(codes.indices, vq.encode(x.reshape(40, 9, 2)).indices.squeeze(-1))
    assert torch.equal(ours.decode(codes), vq.decode(vq.encode(x.reshape(40, 9, 2))).flatten(1))


def test_every_scale_lowers_the_error_and_prefixes_decode() -> None:
    x = maps(150, 4, 4, 3)
    quantizer = small().fit(x)
    codes = quantizer.encode(x)
    assert codes.indices.shape == (150, 1 + 4 + 16)
    errors = [float((torch.as_tensor(quantizer.decode(codes._replace(lengths=torch.full((150,), used)))) - x).square().sum())
              for used in (0, 1, 5, 21)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.25 * errors[0]
    cut = quantizer.truncate(codes, 5 * 4 / 48)
    assert bool((cut.lengths == 5).all()) and bool((cut.indices[:, 5:] == 0).all())
    assert float((torch.as_tensor(quantizer.decode(cut)) - x).square().sum()) == pytest.approx(errors[2])
    with pytest.raises(Unsupported, match="first scale"):
        quantizer.truncate(codes, 0.05)


def test_training_helps_and_moves_codebook_and_mix() -> None:
    x, held = maps(300, 4, 4, 3), maps(100, 4, 4, 3, seed=1)
    error = {}
    for steps in (0, 150):
        quantizer = small(steps=steps).fit(x)
        error[steps] = float((torch.as_tensor(quantizer.decode(quantizer.encode(held))) - held).square().mean())
        assert bool((quantizer.mix != 0).any()) == (steps > 0)
    assert error[150] < error[0]


def test_units_do_not_matter() -> None:
    x = maps(60, 4, 4, 3)
    plain, tiny = small().fit(x), small().fit(x * 2.0**-20)
    assert torch.equal(plain.encode(x).indices, tiny.encode(x * 2.0**-20).indices)
    zero = small().fit(torch.zeros(10, 48))
    assert bool((torch.as_tensor(zero.decode(zero.encode(torch.zeros(10, 48)))) == 0).all())


def test_gradients_of_the_input_and_of_the_parameters() -> None:
    x = maps(20, 4, 4, 3).requires_grad_()
    quantizer = small().fit(maps(60, 4, 4, 3)).train()
    out = quantizer(x)
    (grad,) = torch.autograd.grad(out.values.square().sum() / 2, x, retain_graph=True)
    assert torch.equal(grad, out.values.detach())
    codes = torch.as_tensor(quantizer.encode(x.detach()).indices).long()
    partial = [torch.as_tensor(quantizer.decode(codeword.Codes(codes, None, torch.full((20,), end)))) for end in (1, 5, 21)]
    expected = sum(0.25 * 2 * (x.detach() - total) / x.numel() / 3 for total in partial)
    (grad,) = torch.autograd.grad(out.loss, x, retain_graph=True)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-7)
    out.loss.backward()
    assert bool((quantizer.codebook.grad != 0).any()) and bool((quantizer.mix.grad != 0).any())


def test_bad_arguments() -> None:
    for options in ({"size": [4]}, {"size": [4, 5]}, {"size": [0, 4]}, {"size": [300, 1]}, {"scales": []}, {"scales": [1, 2]},
                    {"scales": [2, 1, 4]}, {"scales": [0, 4]}, {"scales": [4, 4]}, {"codebook_size": 1}, {"steps": -1},
                    {"learning_rate": 0.0}, {"commitment": -1.0}, {"iterations": 0}):
        with pytest.raises(CodewordError):
            small(**options)
    with pytest.raises(Unsupported):
        MultiScale.for_bits(48, 1)
