"""FQGAN: two or three codebooks in place of a large one, pushed apart (Bai et al., 2024). The tokenizer's quantizer only."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from codeword.claims import autoencoder
from codeword.claims.record import Check, Claim, Rule, Setting
from codeword.claims.vector_autoencoder import Outcome, fitted, trained
from codeword.parts import random
from codeword.parts.alignment import disentangle, info_nce
from codeword.quantizer import Codes
from codeword.quantizers.cosine_vq import CosineVQ
from codeword.quantizers.factorized_vq import FactorizedVQ

SIZE = {"smoke": 16, "small": 64, "paper": 1024}
"""Codewords of each codebook."""
WIDTH = 16


def _fitted(setting: Setting) -> tuple[FactorizedVQ, Tensor]:
    rows = setting.train[:512, :16].contiguous()
    return FactorizedVQ(dim=16, codebook_size=32, iterations=5, seed=setting.seed).fit(rows), setting.test[:, :16].contiguous()


def separate(setting: Setting) -> float:
    """Share of held-out rows coded otherwise by two separate cosine codebooks, seeded s and s + 1."""
    quantizer, rows = _fitted(setting)
    train = setting.train[:512, :16]
    halves = [CosineVQ(dim=8, codebook_size=32, iterations=5, seed=random.part_seed(setting.seed, m)).fit(train[:, 8 * m:8 * m + 8])
              for m in range(2)]
    alone = torch.cat([torch.as_tensor(half.encode(rows[:, 8 * m:8 * m + 8]).indices) for m, half in enumerate(halves)], dim=1)
    return float(torch.as_tensor(quantizer.encode(rows).indices).ne(alone).any(1).float().mean())


def loss_is_sum(setting: Setting) -> float:
    """Relative deviation of the loss from the sum of both codebooks' losses and 0.1 times the mean squared cosine."""
    quantizer, rows = _fitted(setting)
    with torch.no_grad():
        out = quantizer(rows)
        parts = sum(float(part(own).loss) for part, own in zip(quantizer.inner, quantizer.split(rows), strict=True))
        expected = parts + 0.1 * float(disentangle(quantizer.split(out.values)))
    return abs(float(out.loss) - expected) / abs(expected)


def representation_gradient(setting: Setting) -> float:
    """Share of the encoder's outputs that feed the supervised codebook and get a gradient from the representation loss, less the share of
    the others that do."""
    quantizer, rows = _fitted(setting)
    target = torch.from_numpy(random.normal(setting.seed, len(rows) * 5, stream="targets")).reshape(-1, 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        encoder, head = nn.Linear(16, 16), nn.Linear(8, 5)
    info_nce(head(quantizer.split(quantizer(encoder(rows)).values)[1]), target).backward()
    assert encoder.weight.grad is not None
    reached = (encoder.weight.grad != 0).any(1).float()
    return float(reached[8:].mean() - reached[:8].mean())


@lru_cache(maxsize=16)  # an arm serves several checks
def _trained(setting: Setting, weight: float) -> Outcome:
    quantizer = FactorizedVQ(dim=WIDTH, codebook_size=SIZE[setting.budget], disentangle=weight, iterations=5, seed=setting.seed)
    return trained(quantizer, setting, fitted)


def _cosine(outcome: Outcome) -> float:
    return float(outcome.last.stats["disentangle"])


def squared_cosine(setting: Setting) -> float:
    return _cosine(_trained(setting, 0.1)) / _cosine(_trained(setting, 0.0))


def price(setting: Setting) -> float:
    return _trained(setting, 0.1).error / _trained(setting, 0.0).error


def usage(setting: Setting) -> float:
    return _trained(setting, 0.1).usage


def error_over_one(setting: Setting) -> float:
    one = CosineVQ(dim=WIDTH // 2, codebook_size=SIZE[setting.budget], entropy=0.03, iterations=5, seed=setting.seed)
    return _trained(setting, 0.1).error / trained(one, setting, fitted).error


def _tokenizer(setting: Setting, weight: float) -> autoencoder.Arm:
    return autoencoder.arm(setting, f"factorized_vq:codebook_size={SIZE[setting.budget]},disentangle={weight}", dim=WIDTH)


def cosine_on_images(setting: Setting) -> float:
    """The mean over held-out images of the squared cosine between the two codewords of a place, with over without."""
    assert setting.pictures is not None
    images = setting.pictures.test[:256]

    def squared(arm: autoencoder.Arm) -> float:
        quantizer = arm.tokenizer.quantizer
        assert isinstance(quantizer, FactorizedVQ)
        codes = arm.tokenizer.encode(images).indices.flatten(0, 1)
        return float(disentangle(quantizer.split(torch.as_tensor(quantizer.decode(Codes(codes))))))
    return squared(_tokenizer(setting, 0.1)) / squared(_tokenizer(setting, 0.0))


def price_on_images(setting: Setting) -> float:
    return _tokenizer(setting, 0.1).error / _tokenizer(setting, 0.0).error


CLAIM = Claim(
    name="fqgan",
    sentence="Two codebooks of 16,384 codes, told apart by a disentangling and a representation loss, reach rFID 0.94 at 28 bits a "
             "position where one of 16,384 reaches 2.19 at 14 bits (ImageNet 256 x 256; one 3.71, two 2.00, both losses 1.66).",
    checks=(
        Check("separate_codebooks", "identity", "share of held-out rows coded otherwise by two separate cosine codebooks", Rule(0.0, 0.0),
              separate),
        Check("loss_is_sum", "identity", "relative deviation of the loss from its parts", Rule(high=1e-5), loss_is_sum),
        Check("representation_gradient", "identity", "share of the supervised codebook's inputs that the representation loss reaches, less "
              "the share of the others'", Rule(1.0, 1.0), representation_gradient),
        Check("squared_cosine", "relation", "mean squared cosine of the two choices with the disentangling loss (0.1) over without",
              Rule(high=0.5), squared_cosine),
        Check("price", "relation", "held-out error of the autoencoder with the disentangling loss over without", Rule(high=1.05), price),
        Check("usage", "relation", "least usage of the two codebooks of 64, entropy term 0.03", Rule(low=0.8), usage),
        Check("cosine_on_images", "relation", "squared cosine of the two codewords of a place on held-out images, image tokenizer with the "
              "disentangling loss (0.1) over without", Rule(high=0.5), cosine_on_images, on="images"),
        Check("price_on_images", "relation", "held-out reconstruction error of the same", Rule(high=1.05), price_on_images, on="images"),
        Check("error_over_one", "relation", "held-out error of two codebooks over one of the same size, at twice the bits", Rule(high=1.0),
              error_over_one),
    ),
    notes="On images: small convolutional tokenizers, 1,000 steps on 28 x 28 images (7 x 7 tokens), without the representation loss. "
          "On vectors an autoencoder of sentence embeddings stands in for one of images. The published gain is not at equal bits, nor is "
          "error_over_one; nothing in the paper promises one at equal bits. In the first "
          "measurement the disentangling loss lowered the squared cosine to 0.58 of its value (three seeds), not surely to half. "
          "The generator (FAR) is not part of this claim.",
)
