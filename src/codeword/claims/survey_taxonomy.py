"""The survey's taxonomy (Discrete Tokenization for Multimodal LLMs, TPAMI, arXiv 2507.22920): laws of its families, as far as built."""

from __future__ import annotations

from collections.abc import Callable

import torch

from codeword.claims import survey_families
from codeword.claims.record import Check, Claim, Rule, Setting
from codeword.parts import random
from codeword.quantizer import Codes, Quantizer
from codeword.quantizers.aq import AQ
from codeword.quantizers.fsq import FSQ
from codeword.quantizers.opq import OPQ
from codeword.quantizers.pq import PQ
from codeword.quantizers.product import Product
from codeword.quantizers.residual import Residual
from codeword.quantizers.rvq import RVQ
from codeword.quantizers.vq import VQ

GRIDS = ([8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 6, 5], [2, 2, 2, 2])
SIZE = {"smoke": 16, "small": 256, "paper": 256}
Kind = Callable[..., Quantizer]
BOOKS = 4
RELATION_SIZE = {"smoke": 16, "small": 64, "paper": 256}
"""Codewords of each of the four codebooks that are compared at equal bits: about as many training rows a codeword as the card's 16,000
rows have with 256, since codebooks of the full width overfit first."""


def fsq_round_trip(setting: Setting) -> float:
    """Codes of the survey's level lists that decode, then encode, to another code."""
    wrong = 0
    for grid in GRIDS:
        fsq = FSQ(dim=len(grid), grid=grid)
        every = torch.arange(fsq.levels[0]).unsqueeze(1)
        z = _preimage(fsq, torch.as_tensor(fsq.decode(Codes(every))))
        wrong += int((torch.as_tensor(fsq.encode(z).indices).to(torch.int64) != every).sum())
    return float(wrong)


def _preimage(fsq: FSQ, values: torch.Tensor) -> torch.Tensor:
    """z that the grid points ``values`` come from: the bounded form b(z) inverted in float64."""
    v = values.double()
    bounded = (v * fsq.steps.double() + fsq.offset.double()) / fsq.span.double()
    z = torch.atanh(bounded.clamp(-1 + 1e-9, 1 - 1e-9)) - fsq.shift.double()
    return z.float()


def product_is_pq(setting: Setting) -> float:
    """Share of held-out rows coded differently by PQ and by a product of VQs with the same seeds."""
    dim, books = setting.train.shape[1], 4
    size = SIZE[setting.budget]
    train = setting.train[:2000]
    pq = PQ(dim=dim, num_codebooks=books, codebook_size=size, iterations=5, seed=setting.seed).fit(train)
    parts = [VQ(dim=dim // books, codebook_size=size, iterations=5, seed=random.part_seed(setting.seed, m)) for m in range(books)]
    product = Product(quantizers=parts).fit(train)
    ours, theirs = (torch.as_tensor(quantizer.encode(setting.test).indices) for quantizer in (pq, product))
    return float(ours.ne(theirs).any(1).float().mean())


def residual_gain(setting: Setting) -> float:
    """Largest ratio of training error after a stage to the error before it (a stage may never hurt what it was fitted on)."""
    dim, size = setting.train.shape[1], SIZE[setting.budget]
    train = setting.train[:2000]
    stages = [VQ(dim=dim, codebook_size=size, iterations=5, seed=random.part_seed(setting.seed, i)) for i in range(4)]
    rvq = Residual(quantizers=stages).fit(train)
    codes = rvq.encode(train)
    last, worst = float(train.square().sum()), 0.0
    for used in range(1, 5):
        lengths = torch.full((len(train),), used, dtype=torch.int32)
        error = float((torch.as_tensor(rvq.decode(codes._replace(lengths=lengths))) - train).square().sum())
        worst, last = max(worst, error / last), error
    return worst


def _ratio(setting: Setting, ours: Kind, theirs: Kind, own: dict[str, int], other: dict[str, int]) -> float:
    """Held-out squared error of one quantizer over that of another, equal bits, training rows and seed."""
    errors = []
    for kind, options in ((ours, own), (theirs, other)):
        quantizer = kind(dim=setting.train.shape[1], num_codebooks=BOOKS, codebook_size=RELATION_SIZE[setting.budget],
                         seed=1000 * setting.seed, **options).fit(setting.train)
        left = setting.test - torch.as_tensor(quantizer.decode(quantizer.encode(setting.test)))
        errors.append(float(left.double().square().sum()))
    return errors[0] / errors[1]


def opq_against_pq(setting: Setting) -> float:
    return _ratio(setting, OPQ, PQ, {}, {})


def rvq_against_pq(setting: Setting) -> float:
    return _ratio(setting, RVQ, PQ, {"beam": 1}, {})


def beam_against_greedy(setting: Setting) -> float:
    return _ratio(setting, RVQ, RVQ, {"beam": 8}, {"beam": 1})


def aq_against_beam(setting: Setting) -> float:
    return _ratio(setting, AQ, RVQ, {}, {"beam": 8})


AT_MOST_ONE = Rule(high=1.0)

CLAIM = Claim(
    name="survey_taxonomy",
    sentence="Eight families of discrete tokenizers (VQ, RVQ, PQ, AQ, FSQ, LFQ, BSQ, GART) share one interface and their defining laws "
             "hold exactly; at equal bits OPQ and RVQ lose less than PQ, a beam less than greedy RVQ, and AQ less than that.",
    checks=(
        Check("fsq_round_trip", "identity", "codes of five level lists that do not survive decode and encode",
              Rule(0.0, 0.0), fsq_round_trip, seeds=1, needs_data=False),
        Check("product_is_pq", "identity", "share of rows coded differently by PQ and a product of VQs", Rule(0.0, 0.0), product_is_pq),
        Check("residual_never_hurts", "identity", "worst ratio of training error after a residual stage to before", Rule(high=1.0),
              residual_gain),
        Check("opq_pq", "relation", "held-out error of OPQ over PQ, 4 codebooks of equal size", AT_MOST_ONE, opq_against_pq),
        Check("rvq_pq", "relation", "held-out error of greedy RVQ over PQ, 4 codebooks of equal size", AT_MOST_ONE, rvq_against_pq),
        Check("beam_greedy", "relation", "held-out error of RVQ with beam 8 over greedy RVQ, 4 codebooks of equal size", AT_MOST_ONE,
              beam_against_greedy),
        Check("aq_beam", "relation", "held-out error of AQ over RVQ with beam 8, 4 codebooks of equal size", AT_MOST_ONE, aq_against_beam),
        *survey_families.CHECKS,
    ),
    notes="The bundled vectors have fewer training rows than the card's experiment, so its codebooks have 64 codewords instead of 256. "
          "GART's graph stands in for a knowledge graph: the most frequent words of the bundled sentences, an edge where one follows "
          "another at distance 1, 2 or 3, the distance being its type.",
)
