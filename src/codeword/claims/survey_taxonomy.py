"""The survey's taxonomy (Discrete Tokenization for Multimodal LLMs, TPAMI, arXiv 2507.22920): laws of its families, as far as built."""

from __future__ import annotations

import torch

from codeword.claims.record import Check, Claim, Rule, Setting
from codeword.quantizer import Codes
from codeword.quantizers.fsq import FSQ
from codeword.quantizers.pq import PQ
from codeword.quantizers.product import Product
from codeword.quantizers.residual import Residual
from codeword.quantizers.vq import VQ

GRIDS = ([8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 6, 5], [2, 2, 2, 2])
SIZE = {"smoke": 16, "small": 256, "paper": 256}


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
    parts = [VQ(dim=dim // books, codebook_size=size, iterations=5, seed=setting.seed + m) for m in range(books)]
    product = Product(quantizers=parts).fit(train)
    ours, theirs = (torch.as_tensor(quantizer.encode(setting.test).indices) for quantizer in (pq, product))
    return float(ours.ne(theirs).any(1).float().mean())


def residual_gain(setting: Setting) -> float:
    """Largest ratio of training error after a stage to the error before it (a stage may never hurt what it was fitted on)."""
    dim, size = setting.train.shape[1], SIZE[setting.budget]
    train = setting.train[:2000]
    stages = [VQ(dim=dim, codebook_size=size, iterations=5, seed=setting.seed + i) for i in range(4)]
    rvq = Residual(quantizers=stages).fit(train)
    codes = rvq.encode(train)
    last, worst = float(train.square().sum()), 0.0
    for used in range(1, 5):
        lengths = torch.full((len(train),), used, dtype=torch.int32)
        error = float((torch.as_tensor(rvq.decode(codes._replace(lengths=lengths))) - train).square().sum())
        worst, last = max(worst, error / last), error
    return worst


CLAIM = Claim(
    name="survey_taxonomy",
    sentence="Eight families of discrete tokenizers (VQ, RVQ, PQ, AQ, FSQ, LFQ, BSQ, GART) share one interface; their defining laws hold "
             "exactly.",
    checks=(
        Check("fsq_round_trip", "identity", "codes of five level lists that do not survive decode and encode",
              Rule(0.0, 0.0), fsq_round_trip, seeds=1, needs_data=False),
        Check("product_is_pq", "identity", "share of rows coded differently by PQ and a product of VQs", Rule(0.0, 0.0), product_is_pq),
        Check("residual_never_hurts", "identity", "worst ratio of training error after a residual stage to before", Rule(high=1.0),
              residual_gain),
    ),
    notes="VQ, RVQ, PQ and FSQ are built; the laws of AQ, LFQ, BSQ and GART and the comparisons at equal bits come with those quantizers.",
)
