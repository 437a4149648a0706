"""CosineVQ: directions alone decide and are returned, gradients pass the normalisation, averages follow the direction of sums."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import codeword
from codeword.data import bundled
from codeword.errors import CodewordError
from codeword.parts.entropy import codebook_entropies
from codeword.quantizers.cosine_vq import TEMPERATURE


def small(**options) -> tuple[codeword.CosineVQ, torch.Tensor]:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2, 1, 1, 0.5, 0.1]) + 1
    return codeword.CosineVQ(**{"dim": 6, "codebook_size": 16, "iterations": 8, **options}).fit(x), x


def test_values_have_length_one_and_the_greatest_cosine() -> None:
    quantizer, x = small()
    values = quantizer.decode(quantizer.encode(x))
    torch.testing.assert_close(values.norm(dim=1), torch.ones(200))
    cosines = nn.functional.normalize(x.double(), dim=1) @ nn.functional.normalize(quantizer.codebook.detach().double(), dim=1).mT
    reached = (nn.functional.normalize(x.double(), dim=1) * values.double()).sum(1)
    torch.testing.assert_close(reached, cosines.amax(1), rtol=0, atol=1e-6)


def test_lengths_of_vectors_and_codewords_do_not_matter() -> None:
    quantizer, x = small()
    codes, values = quantizer.encode(x), quantizer(x).values
    lengths = 2.0 ** torch.arange(-100, 100).unsqueeze(1)
    assert torch.equal(quantizer.encode(x * lengths).indices, codes.indices)
    assert torch.equal(quantizer(x * lengths).values, values)
    with torch.no_grad():
        quantizer.codebook.mul_(2.0 ** torch.arange(16).unsqueeze(1))
    assert torch.equal(quantizer.encode(x).indices, codes.indices) and torch.equal(quantizer(x).values, values)


def test_the_gradient_goes_through_the_normalisation() -> None:
    quantizer, x = small(commitment=0.5)
    rows, g = x[:9].clone().requires_grad_(), torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    out = quantizer(rows)
    (out.loss + (out.values * g).sum()).backward()
    length = x[:9].norm(dim=1, keepdim=True)
    u = x[:9] / length
    total = g + 2 * 0.5 * (u - out.values.detach()) / 54
    torch.testing.assert_close(rows.grad, (total - u * (u * total).sum(1, keepdim=True)) / length)
    assert float((rows.grad * u).sum(1).abs().max()) < 1e-5   # the length gets none
    codewords = quantizer.codebook
    assert float((codewords.grad * codewords.detach()).sum(1).abs().max()) < 1e-5 and bool((codewords.grad != 0).any())


def test_few_and_many_rows_have_the_same_values_and_gradients() -> None:
    quantizer, x = small()
    results = []
    for rows in (x[:5], x[:5].repeat(8, 1)):
        quantizer.zero_grad()
        out = quantizer(rows)
        out.loss.backward()
        results.append((out.values[:5].detach(), quantizer.codebook.grad.clone()))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_entropy_term_is_its_definition() -> None:
    (plain, x), (quantizer, _) = small(), small(entropy=0.5)
    mask = torch.arange(200) % 3 > 0
    a, b = plain(x, mask=mask), quantizer(x, mask=mask)
    u, codebook = nn.functional.normalize(x[mask], dim=1), quantizer.effective().detach()
    p = torch.softmax(-torch.cdist(u.double(), codebook.double()).square() / TEMPERATURE, dim=1)
    sample, batch = torch.special.entr(p).sum(1).mean(), torch.special.entr(p.mean(0)).sum()
    assert float((b.loss - a.loss).detach()) == pytest.approx(0.5 * float(sample - batch), rel=1e-4)
    assert float(b.stats["sample_entropy"]) == pytest.approx(float(sample), rel=1e-3)
    b.loss.backward()
    assert int((quantizer.codebook.grad != 0).any(1).sum()) == 16   # all codewords take part, not the winners alone


def test_entropy_term_makes_choices_sure_and_even() -> None:
    sample, batch = [], []
    for weight in (0.0, 1.0):
        quantizer, x = small(entropy=weight)
        with torch.no_grad():
            quantizer.codebook.copy_(torch.randn(16, 6, generator=torch.Generator().manual_seed(3)) * 0.1 + quantizer.codebook[:1])
        rows = x.clone().requires_grad_()
        optimizer = torch.optim.Adam([rows, quantizer.codebook], lr=0.02)
        for _ in range(40):
            optimizer.zero_grad()
            quantizer(rows).loss.backward()
            optimizer.step()
        entropies = codebook_entropies(nn.functional.normalize(rows.detach(), dim=1), quantizer.effective().detach(), TEMPERATURE)
        sample.append(float(entropies[0]))
        batch.append(float(entropies[1]))
    assert sample[1] < 0.1 * sample[0] and sample[1] - batch[1] < sample[0] - batch[0]


def test_averages_follow_the_direction_of_the_sum() -> None:
    quantizer, x = small(learning="ema", decay=0.0, revival=0.0)
    quantizer.train()
    out = quantizer(x)
    index, old = out.codes.indices[:, 0].long(), quantizer.codebook.detach().clone()
    quantizer.update(out)
    u = nn.functional.normalize(x.double(), dim=1)
    for k in range(16):
        chosen = u[index == k]
        expected = nn.functional.normalize(chosen.sum(0), dim=0) if len(chosen) else old[k].double()
        torch.testing.assert_close(quantizer.codebook[k].detach().double(), expected, rtol=0, atol=1e-5)
    assert not quantizer.codebook.requires_grad
    torch.testing.assert_close(quantizer.codebook.detach().norm(dim=1), torch.ones(16))


def test_dead_codewords_are_moved_onto_directions_of_the_batch() -> None:
    quantizer, x = small(learning="ema", revival=0.5, decay=0.5)
    with torch.no_grad():
        quantizer.codebook[0] = -nn.functional.normalize(x.mean(0), dim=0)
        quantizer.codebook[1] = quantizer.codebook[0]   # ties go to 0
    quantizer.upkeep.start(quantizer.codebook)
    reports = [quantizer.update(quantizer(x)) for _ in range(4)]
    assert any(1 in report.get("revived", []) for report in reports)
    torch.testing.assert_close(quantizer.codebook.detach().norm(dim=1), torch.ones(16))


def test_a_row_of_zeros_is_coded_and_gets_no_gradient() -> None:
    quantizer, x = small()
    rows = torch.cat((x[:3], torch.zeros(1, 6))).requires_grad_()
    out = quantizer(rows)
    (out.loss + out.values.sum()).backward()
    assert bool(torch.isfinite(rows.grad).all()) and bool((rows.grad[3] == 0).all())
    alone = quantizer.encode(torch.zeros(1, 6)).indices
    assert torch.equal(alone, quantizer.encode(torch.tensor([[2.0, 0, 0, 0, 0, 0]])).indices)
    assert codeword.CosineVQ(dim=6, codebook_size=4).fit(torch.zeros(5, 6)).fitted


def test_gain_shape_brings_it_back_to_the_space_of_its_input() -> None:
    _, x = small()
    quantizer = codeword.make("gain_shape(cosine_vq:codebook_size=64):gain_bits=4", 6).fit(x)
    assert quantizer.input_space and not codeword.CosineVQ(dim=6, codebook_size=4).input_space
    assert float((quantizer.decode(quantizer.encode(x)) - x).square().sum() / x.square().sum()) < 0.1


def usage_in_an_autoencoder(cls: type, x: torch.Tensor, seed: int) -> float:
    """Share of the codebook in use over x after a short training of a small autoencoder of width 64 around it; N(0, 1) start."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 64))
    decoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, x.shape[1]))
    quantizer = cls(dim=64, codebook_size=128, iterations=0).fit(encoder(x).detach())
    with torch.no_grad():
        quantizer.codebook.copy_(torch.randn(128, 64))
    optimizer = torch.optim.Adam([*quantizer.parameters(), *encoder.parameters(), *decoder.parameters()], lr=2e-3)
    for step in range(60):
        batch = x[step % 8::8]
        out = quantizer(encoder(batch))
        optimizer.zero_grad()
        ((decoder(out.values) - batch).square().mean() + out.loss).backward()
        optimizer.step()
    return len(quantizer.encode(encoder(x).detach()).indices.unique()) / 128


def test_usage_rises_with_normalisation_at_width_64() -> None:
    x = torch.from_numpy(bundled().vectors[:1024].astype("float32"))
    x = (x - x.mean(0)) / x.std()
    for seed in range(2):
        plain, cosine = usage_in_an_autoencoder(codeword.VQ, x, seed), usage_in_an_autoencoder(codeword.CosineVQ, x, seed)
        assert cosine > 2 * plain, (plain, cosine)


@pytest.mark.parametrize("options", [{"codebook_size": 0}, {"dim": 0}, {"learning": "both"}, {"commitment": -0.1}, {"entropy": -1.0},
                                     {"iterations": -1}, {"decay": 1.0}, {"estimator": "ibq"}])
def test_bad_options(options: dict) -> None:
    with pytest.raises(CodewordError):
        codeword.CosineVQ(**{"dim": 4, "codebook_size": 4, **options})
