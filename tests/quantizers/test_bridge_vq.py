"""BridgeVQ: what the first step from zero moves, that nothing stays behind, who gets a gradient, and that baking changes nothing."""

from __future__ import annotations

import pytest
import torch

import codeword
from codeword.errors import CodewordError, NotFitted
from codeword.nets.bridge import Bridge
from codeword.quantizers.bridge_vq import _usual_group


def rows(n: int = 200) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2, 1, 1, 0.5, 0.1]) + 5


def small(steps: int = 20, **options) -> codeword.BridgeVQ:
    options = {"dim": 6, "codebook_size": 16, "group": 4, "width": 8, "steps": steps, "batch_size": 64, **options}
    return codeword.BridgeVQ(**options).fit(rows())


def error(quantizer: codeword.BridgeVQ, x: torch.Tensor) -> float:
    return float((quantizer.decode(quantizer.encode(x)) - x).square().mean())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_from_zero_the_first_step_moves_slot_zero_of_every_group_alone(optimizer: type) -> None:
    quantizer, x = small(0, spread=0.0), rows()
    before = quantizer.effective().detach()
    assert bool((before == before[0]).all())
    torch.testing.assert_close(before[0], x.mean(0))
    out = quantizer(x + 1)   # at the mean of these very rows the gradient would be zero
    assert bool((out.codes.indices == 0).all())   # ties go to the lowest
    out.loss.backward()
    assert bool((quantizer.raw.grad == 0).all())   # the last layer is zero: nothing reaches C yet
    optimizer(quantizer.parameters(), lr=0.1).step()
    moved = (quantizer.effective().detach() != before).any(1)
    assert moved.nonzero()[:, 0].tolist() == [0, 4, 8, 12]


def test_from_zero_every_slot_wakes_in_the_end() -> None:
    codebook = small(400, spread=0.0, learning_rate=3e-3).effective().detach()
    assert len(torch.unique(codebook, dim=0)) == 16


def test_gradients_reach_every_group_of_the_raw_codebook() -> None:
    quantizer = small()
    x = quantizer.decode(quantizer.encode(rows(1))).expand(5, 6) + 0.01
    out = quantizer(x)
    chosen = out.codes.indices.unique()
    out.loss.backward()
    groups = quantizer.raw.grad.abs().reshape(4, -1).amax(1)
    assert len(chosen) == 1 and bool((groups > 0).all())


def test_one_row_moves_every_codeword() -> None:
    quantizer = small()
    before = quantizer.effective().detach()
    quantizer(rows(1)).loss.backward()
    torch.optim.SGD(quantizer.parameters(), lr=0.1).step()
    assert bool((quantizer.effective().detach() != before).any(1).all())


def test_without_places_permuting_groups_permutes_the_codebook() -> None:
    torch.manual_seed(0)
    net = Bridge(codebook_size=24, dim=5, group=3, width=8, heads=2, places=False)
    torch.nn.init.normal_(net.expand.weight)
    codebook, order = torch.randn(24, 5), torch.randperm(8)

    def permuted(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(8, 3, 5)[order].reshape(24, 5)

    torch.testing.assert_close(net(permuted(codebook)), permuted(net(codebook)))
    with_places = Bridge(codebook_size=24, dim=5, group=3, width=8, heads=2)
    torch.nn.init.normal_(with_places.expand.weight)
    assert not torch.allclose(with_places(permuted(codebook)), permuted(with_places(codebook)), atol=1e-4)


def test_bridge_refuses_what_does_not_fit() -> None:
    for options in ({"group": 5}, {"group": 0}, {"dim": 0}, {"heads": 3}):
        with pytest.raises(CodewordError):
            Bridge(**{"codebook_size": 12, "dim": 4, "group": 3, "width": 8, "heads": 2, **options})
    with pytest.raises(CodewordError):
        Bridge(codebook_size=12, dim=4, group=3, width=8)(torch.zeros(12, 5))


def test_bake_is_bit_equal() -> None:
    quantizer, x = small().eval(), rows()
    baked = quantizer.bake()
    assert isinstance(baked, codeword.VQ) and baked.fitted
    codes = quantizer.encode(x)
    assert torch.equal(baked.encode(x).indices, codes.indices)
    assert torch.equal(baked.decode(codes), quantizer.decode(codes))
    assert torch.equal(baked(x).values, quantizer(x).values)
    metric = torch.diag(torch.arange(1.0, 7.0))
    assert torch.equal(baked.encode(x, metric=metric).indices, quantizer.encode(x, metric=metric).indices)
    with pytest.raises(NotFitted):
        codeword.BridgeVQ(dim=6, codebook_size=4).bake()


def test_modes_agree_up_to_rounding_and_both_have_gradients() -> None:
    quantizer, x = small(), rows(50)
    results = {}
    for training in (True, False):
        quantizer.train(training).zero_grad()
        out = quantizer(x)
        out.loss.backward()
        results[training] = (out.values.detach(), *(p.grad.clone() for p in quantizer.parameters()))
    for ours, theirs in zip(results[True], results[False], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_autocast_leaves_the_codebook_in_float32() -> None:
    quantizer, x = small().train(), rows(20)
    expected = quantizer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, codebook = quantizer(x), quantizer.effective()
    assert codebook.dtype == torch.float32 and torch.equal(codebook, quantizer.effective())
    assert torch.equal(out.values, expected.values) and torch.equal(out.loss, expected.loss)


def test_fit_does_not_care_about_offset_and_scale() -> None:
    x = rows()

    def fitted(y: torch.Tensor) -> codeword.BridgeVQ:
        return codeword.BridgeVQ(dim=6, codebook_size=16, group=4, width=8, steps=60, batch_size=64, seed=1).fit(y)

    codes = [fitted(x * scale).encode(x * scale).indices for scale in (1, 1024, 2**-20)]
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])
    assert error(fitted(x + 1000), x + 1000) == pytest.approx(error(fitted(x), x), rel=0.05)


def test_training_beats_its_own_start_and_comes_near_k_means() -> None:
    x = rows()
    errors = [error(small(steps), x) for steps in (0, 30, 300)]
    assert errors[2] < errors[1] < errors[0]
    plain = codeword.VQ(dim=6, codebook_size=16).fit(x)
    assert errors[2] < 1.3 * float((plain.decode(plain.encode(x)) - x).square().mean())


def test_all_rows_equal_are_met_exactly() -> None:
    x = torch.full((20, 6), 3.25)
    quantizer = codeword.BridgeVQ(dim=6, codebook_size=4, group=2, width=8, steps=3).fit(x)
    assert torch.equal(quantizer.decode(quantizer.encode(x)), x)


def test_the_usual_group() -> None:
    assert [_usual_group(size) for size in (1, 7, 12, 1024, 1000, 16384, 65536, 262144)] == [1, 7, 12, 16, 10, 16, 64, 256]
    assert codeword.BridgeVQ(dim=2, codebook_size=34).bridge.group == 2   # 17 is above 16


@pytest.mark.parametrize("options", [{"codebook_size": 0}, {"dim": 0}, {"group": 3}, {"group": 0}, {"width": 6}, {"width": 0},
                                     {"spread": -1.0}, {"steps": -1}, {"batch_size": 0}, {"learning_rate": 0.0},
                                     {"commitment": -0.1}, {"estimator": "ibq"}])
def test_bad_options(options: dict) -> None:
    with pytest.raises(CodewordError):
        codeword.BridgeVQ(**{"dim": 4, "codebook_size": 4, **options})
