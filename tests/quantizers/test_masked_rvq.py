"""Masked-channel residual codes: values stay in their channels, the first layer is a product code, layers are dropped honestly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import codeword
from codeword.errors import CodewordError, Unsupported
from codeword.quantizer import Codes


def rows(n: int = 120, dim: int = 9, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.5, 2, dim)


def test_the_papers_shares() -> None:
    quantizer = codeword.MaskedRVQ(dim=128)
    assert quantizer.cuts == ((42, 43, 43), *((128,),) * 5) and quantizer.levels == (1024,) * 8
    assert codeword.MaskedRVQ.for_bits(128, 80 / 128).cuts == quantizer.cuts and quantizer.nominal_bits == 80 / 128


def test_masked_values_are_zero_outside_of_their_channels() -> None:
    quantizer = codeword.MaskedRVQ(dim=7, masked=3, layers=1, codebook_size=5, iterations=3).fit(rows(dim=7))
    shares = [slice(0, 2), slice(2, 4), slice(4, 7)]
    codes = torch.randint(5, (40, 4), generator=torch.Generator().manual_seed(0))
    before = torch.zeros(40, 7)
    for used, share in enumerate(shares, 1):
        values = torch.as_tensor(quantizer.decode(Codes(codes, None, torch.full((40,), used))))
        added = values - before
        assert bool((added[:, share] != 0).any()) and bool((values[:, share.stop:] == 0).all())
        added[:, share] = 0
        assert bool((added == 0).all())
        before = values


def test_the_first_layer_is_a_product_code_and_the_rest_residual() -> None:
    x = rows()
    quantizer = codeword.MaskedRVQ(dim=9, masked=3, layers=2, codebook_size=8, iterations=4, seed=3).fit(x)
    product = codeword.PQ(dim=9, num_codebooks=3, codebook_size=8, iterations=4, seed=3).fit(x)
    codes = quantizer.encode(x)
    assert torch.equal(codes.indices[:, :3], product.encode(x).indices)
    three = torch.as_tensor(quantizer.decode(codes._replace(lengths=torch.full((120,), 3))))
    assert torch.equal(three, torch.as_tensor(product.decode(product.encode(x))))
    rest = codeword.RVQ(dim=9, num_codebooks=2, codebook_size=8, iterations=4, beam=1).fit(x - three)
    with torch.no_grad():
        rest.codebooks.copy_(quantizer.codebooks[1:])
    assert torch.equal(codes.indices[:, 3:], rest.encode(x - three).indices)
    torch.testing.assert_close(torch.as_tensor(quantizer.decode(codes)), three + torch.as_tensor(rest.decode(rest.encode(x - three))))


def test_one_masked_codebook_is_rvq() -> None:
    x = rows()
    ours = codeword.MaskedRVQ(dim=9, masked=1, layers=2, codebook_size=8, iterations=4).fit(x)
    theirs = codeword.RVQ(dim=9, num_codebooks=3, codebook_size=8, iterations=4, beam=1).fit(x)
    assert torch.equal(ours.codebooks, theirs.codebooks) and torch.equal(ours.encode(x).indices, theirs.encode(x).indices)


def test_every_token_lowers_the_error() -> None:
    x = rows(300)
    quantizer = codeword.MaskedRVQ(dim=9, masked=3, layers=3, codebook_size=8, iterations=5).fit(x)
    codes = quantizer.encode(x)
    errors = [float((torch.as_tensor(quantizer.decode(codes._replace(lengths=torch.full((300,), used)))) - x).square().sum())
              for used in range(7)]
    assert errors == sorted(errors, reverse=True)
    cut = quantizer.truncate(codes, 4 * 3 / 9)
    assert bool((cut.lengths == 4).all()) and float((torch.as_tensor(quantizer.decode(cut)) - x).square().sum()) == pytest.approx(errors[4])
    with pytest.raises(Unsupported):
        quantizer.truncate(codes, 2 / 9)


def test_dropped_layers_are_missing_from_values_losses_and_averages() -> None:
    x = rows(64).reshape(16, 4, 9).clone().requires_grad_()
    quantizer = codeword.MaskedRVQ(dim=9, masked=3, layers=3, codebook_size=8, iterations=4, dropout=0.75).fit(rows()).train()
    torch.manual_seed(0)
    out = quantizer(x)
    lengths = torch.as_tensor(out.codes.lengths)
    assert bool((lengths == lengths[:, :1]).all()) and set(lengths.flatten().tolist()) == {3, 4, 5, 6}  # an item's rows share their number
    assert torch.equal(out.values.detach(), torch.as_tensor(quantizer.decode(out.codes)))
    for p in range(6):
        assert float(out.stats[f"codebooks.{p}.counts"].sum()) == int((lengths > p).sum())
    full = quantizer.eval()(x)
    assert full.codes.lengths is None and float(full.stats["error"]) < float(out.stats["error"])
    assert float(out.loss.detach()) < float(full.loss.detach())
    (grad,) = torch.autograd.grad(out.values.square().sum() / 2, x)
    assert torch.equal(grad, out.values.detach())
    quantizer.train().update(out)


def test_dropout_respects_masks_and_needs_no_rows() -> None:
    quantizer = codeword.MaskedRVQ(dim=9, masked=3, layers=3, codebook_size=8, iterations=4).fit(rows()).train()
    mask = torch.tensor([[True, False], [True, True]])
    out = quantizer(rows(4).reshape(2, 2, 9), mask=mask)
    assert bool((torch.as_tensor(out.codes.lengths)[~mask] == 0).all()) and bool((torch.as_tensor(out.codes.lengths)[mask] >= 3).all())
    assert float(out.stats["codebooks.0.counts"].sum()) == 3
    for empty in (torch.zeros(0, 9), torch.zeros(3, 0, 9)):
        assert float(quantizer(empty).loss) == 0.0
    assert quantizer(rows(1)[0]).values.shape == (9,)


def test_dropout_compiles() -> None:
    quantizer = codeword.MaskedRVQ(dim=9, masked=3, layers=2, codebook_size=8, iterations=2).fit(rows()).train()
    torch._dynamo.reset()
    out = torch.compile(quantizer, backend="aot_eager", fullgraph=True)(rows(8).requires_grad_())
    (out.values.sum() + out.loss).backward()
    assert torch.equal(out.values.detach(), torch.as_tensor(quantizer.decode(out.codes)))


def test_bad_arguments() -> None:
    for options in ({"masked": 0}, {"masked": 10}, {"layers": -1}, {"dropout": 1.1}, {"codebook_size": 1}, {"learning": "sgd"},
                    {"commitment": -0.1}, {"iterations": 0}, {"layers": 5000}):
        with pytest.raises(CodewordError):
            codeword.MaskedRVQ(dim=9, **options)
    with pytest.raises(Unsupported):
        codeword.MaskedRVQ.for_bits(3, 1)
