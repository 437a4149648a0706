"""FactorizedVQ: the product of its cosine codebooks plus one term, which turns them apart; what reaches the encoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import codeword
from codeword.errors import CodewordError, ShapeError, Unsupported
from codeword.parts import random
from codeword.parts.alignment import disentangle, info_nce


def rows(n: int = 200, dim: int = 12) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=g) @ torch.randn(4, dim, generator=g) + 0.3 * torch.randn(n, dim, generator=g)


def made(**options) -> codeword.FactorizedVQ:
    return codeword.FactorizedVQ(**{"dim": 12, "num_codebooks": 3, "codebook_size": 8, "iterations": 5, **options})


def test_codes_and_values_are_those_of_separate_cosine_codebooks() -> None:
    quantizer, x = made(seed=4).fit(rows()), rows()
    parts = [codeword.CosineVQ(dim=4, codebook_size=8, iterations=5, entropy=0.03, seed=random.part_seed(4, m)).fit(x[:, 4 * m:4 * m + 4])
             for m in range(3)]
    codes = [part.encode(x[:, 4 * m:4 * m + 4]) for m, part in enumerate(parts)]
    assert torch.equal(quantizer.encode(x).indices, torch.cat([c.indices for c in codes], 1))
    assert torch.equal(quantizer.decode(quantizer.encode(x)), torch.cat([p.decode(c) for p, c in zip(parts, codes, strict=True)], 1))
    torch.testing.assert_close(torch.stack([v.norm(dim=1) for v in quantizer.split(quantizer(x).values)]), torch.ones(3, 200))


def test_the_loss_is_the_sum_of_its_parts_and_the_disentangling_term() -> None:
    x, mask = rows(), torch.arange(200) % 4 > 0
    quantizer = made(disentangle=0.7).fit(x)
    out = quantizer(x, mask=mask)
    values = quantizer(x[mask]).values
    apart = disentangle(quantizer.split(values))
    alone = sum(part(own, mask=mask).loss for part, own in zip(quantizer.inner, quantizer.split(x), strict=True))
    torch.testing.assert_close(out.loss, alone + 0.7 * apart)
    torch.testing.assert_close(out.stats["disentangle"], apart.detach())


def mean_squared_cosine(weight: float, seed: int) -> tuple[float, float]:
    """(cos^2 between the two codebooks' choices, error) after training a small autoencoder."""
    torch.manual_seed(seed)
    encoder, decoder = nn.Linear(12, 8), nn.Linear(8, 12)
    quantizer, x = codeword.FactorizedVQ(dim=8, codebook_size=16, disentangle=weight, iterations=5), rows(512)
    quantizer.fit(encoder(x).detach())
    optimizer = torch.optim.Adam([*quantizer.parameters(), *encoder.parameters(), *decoder.parameters()], lr=5e-3)
    for step in range(60):
        batch = x[step % 4::4]
        out = quantizer(encoder(batch))
        optimizer.zero_grad()
        ((decoder(out.values) - batch).square().mean() + out.loss).backward()
        optimizer.step()
    with torch.no_grad():
        out = quantizer(encoder(x))
        return float(out.stats["disentangle"]), float((decoder(out.values) - x).square().mean() / x.square().mean())


def test_disentangling_lowers_the_squared_cosine() -> None:
    for seed in range(2):
        (without, plain), (with_it, turned) = mean_squared_cosine(0.0, seed), mean_squared_cosine(1.0, seed)
        assert with_it < 0.5 * without and turned < 1.5 * plain


def test_the_gradient_of_a_representation_loss_reaches_its_own_half_of_the_encoder() -> None:
    torch.manual_seed(0)
    encoder, head, x = nn.Linear(12, 8), nn.Linear(4, 5), rows(30)
    quantizer = codeword.FactorizedVQ(dim=8, codebook_size=8).fit(encoder(x).detach())
    semantic = quantizer.split(quantizer(encoder(x)).values)[1]
    info_nce(head(semantic), torch.randn(30, 5)).backward()
    assert bool((encoder.weight.grad[4:].abs().amax(1) > 0).all()) and bool((encoder.weight.grad[:4] == 0).all())


def test_averages_move_every_codebook_and_reports_name_it() -> None:
    x = rows()
    quantizer = made(learning="ema").fit(x).train()
    before = [part.codebook.detach().clone() for part in quantizer.inner]
    quantizer.update(quantizer(x + torch.linspace(0, 3, 12)))
    assert all(not torch.equal(part.codebook, old) for part, old in zip(quantizer.inner, before, strict=True))


def test_bits_are_shared_out() -> None:
    quantizer = codeword.FactorizedVQ.for_bits(8, 2)
    assert quantizer.codebook_size == 256 and quantizer.nominal_bits == 2
    assert codeword.make("factorized_vq:bits=1,num_codebooks=4", 16).codebook_size == 16
    for dim, bits, count in ((8, 5, 2), (9, 2, 2), (8, 0.25, 4), (8, 1, 3)):
        with pytest.raises(Unsupported):
            codeword.FactorizedVQ.for_bits(dim, bits, num_codebooks=count)


@pytest.mark.parametrize("options", [{"num_codebooks": 0}, {"num_codebooks": 5}, {"num_codebooks": 257, "dim": 257}, {"codebook_size": 0},
                                     {"disentangle": -0.1}, {"entropy": -0.1}, {"learning": "x"}, {"estimator": "x"}])
def test_bad_options(options: dict) -> None:
    with pytest.raises(CodewordError):
        made(**options)


def test_split_refuses_other_widths() -> None:
    with pytest.raises(ShapeError):
        made().split(torch.zeros(3, 11))
