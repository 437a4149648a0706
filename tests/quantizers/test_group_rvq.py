"""Group-residual codes: the two quantizers they are at their ends, order of streams, prefixes, gradients of every layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import codeword
from codeword.errors import CodewordError, Unsupported
from codeword.quantizer import Codes


def rows(n: int = 120, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.5, 2, dim)


def test_one_group_is_rvq() -> None:
    x = rows()
    ours = codeword.GroupRVQ(dim=6, groups=1, layers=3, codebook_size=8, iterations=4, seed=5).fit(x)
    theirs = codeword.RVQ(dim=6, num_codebooks=3, codebook_size=8, iterations=4, seed=5, beam=1).fit(x)
    assert torch.equal(ours.codebooks, theirs.codebooks)
    y = [x.clone().requires_grad_() for _ in range(2)]
    a, b = (quantizer.train()(own) for quantizer, own in zip((ours, theirs), y, strict=True))
    assert torch.equal(a.values, b.values) and torch.equal(a.codes.indices, b.codes.indices)
    torch.testing.assert_close(a.loss, b.loss)
    for out in (a, b):
        (out.values.square().sum() + out.loss).backward()
    torch.testing.assert_close(y[0].grad, y[1].grad)
    torch.testing.assert_close(ours.codebooks.grad, theirs.codebooks.grad)


def test_one_layer_is_pq() -> None:
    x = rows()
    ours = codeword.GroupRVQ(dim=6, groups=3, layers=1, codebook_size=8, iterations=4, seed=5).fit(x)
    theirs = codeword.PQ(dim=6, num_codebooks=3, codebook_size=8, iterations=4, seed=5).fit(x)
    assert torch.equal(ours.encode(x).indices, theirs.encode(x).indices)
    assert torch.equal(ours.decode(ours.encode(x)), theirs.decode(theirs.encode(x)))


def test_groups_are_coded_apart_and_streams_run_layer_by_layer() -> None:
    """Two RVQs of the halves, interleaved: (layer 1, group 1), (layer 1, group 2), (layer 2, group 1), ..."""
    x = rows()
    whole = codeword.GroupRVQ(dim=6, groups=2, layers=3, codebook_size=8, iterations=4, seed=0).fit(x)
    codes = torch.as_tensor(whole.encode(x).indices).long()
    for g in range(2):
        half = codeword.RVQ(dim=3, num_codebooks=3, codebook_size=8, beam=1, iterations=4).fit(x[:, :3])
        with torch.no_grad():
            half.codebooks.copy_(whole.codebooks[:, :, 3 * g:3 * g + 3])
        part = x[:, 3 * g:3 * g + 3].contiguous()
        assert torch.equal(codes[:, g::2], torch.as_tensor(half.encode(part).indices).long())
        assert torch.equal(torch.as_tensor(whole.decode(Codes(codes)))[:, 3 * g:3 * g + 3], torch.as_tensor(half.decode(half.encode(part))))


def test_every_layer_lowers_the_error_and_any_prefix_decodes() -> None:
    x = rows(300)
    quantizer = codeword.GroupRVQ(dim=6, groups=2, layers=3, codebook_size=8, iterations=6).fit(x)
    codes, errors = quantizer.encode(x), []
    for used in range(7):
        values = torch.as_tensor(quantizer.decode(codes._replace(lengths=torch.full((300,), used, dtype=torch.int32))))
        errors.append(float((values - x).square().sum()))
        assert used < 1 or used % 2 == 0 or bool((values[:, 3:] == 0).all()) == (used == 1)
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * errors[0]


def test_truncate_keeps_whole_layers() -> None:
    x = rows(20)
    quantizer = codeword.GroupRVQ(dim=6, groups=2, layers=3, codebook_size=8, iterations=2).fit(x)
    codes = quantizer.encode(x)
    for bits, kept in ((3.0, 6), (2.9, 4), (2.0, 4), (1.99, 2), (1.0, 2)):
        cut = quantizer.truncate(codes, bits)
        assert torch.equal(cut.lengths, torch.full((20,), kept, dtype=torch.int32)) and bool((cut.indices[:, kept:] == 0).all())
        assert torch.equal(quantizer.decode(cut), quantizer.decode(codes._replace(lengths=cut.lengths)))
    with pytest.raises(Unsupported, match="first layer takes 1"):
        quantizer.truncate(codes, 0.99)


def test_the_encoder_gets_its_decoders_gradient_once_and_every_commitment() -> None:
    x = rows(30).requires_grad_()
    quantizer = codeword.GroupRVQ(dim=6, groups=2, layers=3, codebook_size=8, iterations=2).fit(rows()).train()
    out = quantizer(x)
    (grad,) = torch.autograd.grad(out.values.square().sum() / 2, x, retain_graph=True)
    assert torch.equal(grad, out.values.detach())
    # d/dx of beta mean (r_l - sg q_l)^2 summed over layers, with r_l = x - what was coded before
    left, expected = x.detach(), torch.zeros(30, 6)
    codes = torch.as_tensor(quantizer.encode(x.detach()).indices).long()
    for layer in range(3):
        chosen = torch.cat([quantizer.codebooks[layer, codes[:, 2 * layer + g], 3 * g:3 * g + 3] for g in range(2)], dim=1).detach()
        expected += 0.25 * 2 * (left - chosen) / left.numel()
        left = left - chosen
    (grad,) = torch.autograd.grad(out.loss, x)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("estimator", ["rotation", "diveq_detached"])
def test_estimators_act_once_on_the_sum(estimator: str) -> None:
    x = rows(30).requires_grad_()
    quantizer = codeword.GroupRVQ(dim=6, groups=2, layers=2, codebook_size=8, iterations=2, estimator=estimator).fit(rows()).train()
    plain = codeword.GroupRVQ(dim=6, groups=2, layers=2, codebook_size=8, iterations=2).fit(rows()).train()
    out = quantizer(x)
    assert torch.equal(out.values, plain(x).values)
    out.values.sum().backward()
    assert not torch.equal(x.grad, torch.ones_like(x))
    moved = quantizer.codebooks.grad is not None and bool((quantizer.codebooks.grad != 0).any())
    assert moved == (estimator == "diveq_detached")


def test_averages_follow_the_data_by_hand() -> None:
    """One update with decay d: c = ((1 - d) sum + d N m) / ((1 - d) count + d N n) of shares n = 1/K, m = c/K, N tokens."""
    x = rows(40)
    quantizer = codeword.GroupRVQ(dim=6, groups=2, layers=2, codebook_size=4, iterations=2, learning="ema", revival=0.0).fit(x).train()
    before, y = quantizer.codebooks.detach().clone(), rows(40, seed=1)
    out = quantizer(y)
    quantizer.update(out)
    index = torch.as_tensor(out.codes.indices).long()
    part, first = y[:, 3:], before[0, :, 3:]  # layer 1, group 2
    for k in range(4):
        mine = part[index[:, 1] == k]
        top = 0.01 * mine.double().sum(0) + 0.99 * 40 * first[k].double() / 4
        torch.testing.assert_close(quantizer.codebooks[0, k, 3:].double(), top / (0.01 * len(mine) + 0.99 * 40 / 4), rtol=1e-4, atol=1e-5)
    assert not quantizer.codebooks.requires_grad and bool((quantizer.codebooks != before).any())


def test_dead_codewords_are_revived_and_reported() -> None:
    quantizer = codeword.GroupRVQ(dim=4, groups=2, layers=1, codebook_size=4, iterations=2, revival=0.5).fit(rows(50, 4)).train()
    with torch.no_grad():
        quantizer.codebooks[0, 3, 2:] = 1e3
    reports = [quantizer.update(quantizer(rows(50, 4, seed))) for seed in range(100)]
    assert any(3 in report["codebooks.1"]["revived"] for report in reports if "codebooks.1" in report)
    assert float(quantizer.codebooks.detach().abs().max()) < 100


def test_dial_and_bad_arguments() -> None:
    quantizer = codeword.GroupRVQ.for_bits(512, 40 / 512)
    assert (quantizer.groups, quantizer.layers, quantizer.codebook_size) == (2, 2, 1024) and quantizer.nominal_bits == 40 / 512
    assert codeword.GroupRVQ.for_bits(16, 1).layers == 2
    for options in ({"groups": 4}, {"groups": 0}, {"layers": 0}, {"layers": 2000}, {"codebook_size": 1}, {"learning": "adam"},
                    {"commitment": -1.0}, {"iterations": 0}, {"revival": 1.0}, {"estimator": "gumbel"}):
        with pytest.raises(CodewordError):
            codeword.GroupRVQ(dim=6, **options)
    with pytest.raises(Unsupported):
        codeword.GroupRVQ.for_bits(5, 1)
