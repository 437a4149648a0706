"""RaBitQ: unbiased distance estimates with a known error from 1 to 9 bits a dimension (Gao, Long, SIGMOD 2024; Gao et al., SIGMOD 2025)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from codeword.claims.record import Check, Claim, Rule, Setting
from codeword.errors import Unsupported
from codeword.quantizers.pq import PQ
from codeword.quantizers.rabitq import RaBitQ

ROWS, QUERIES = 2000, 200


def _fitted(setting: Setting, code_bits: int, slack: float = 1.9) -> RaBitQ:
    return RaBitQ(dim=setting.train.shape[1], code_bits=code_bits, slack=slack, seed=setting.seed).fit(setting.train)


def _cosine(setting: Setting, code_bits: int) -> Tensor:
    """Cosine of each row's code with the row, both from the center; decoding only scales and rotates the code."""
    quantizer, rows = _fitted(setting, code_bits), setting.train[:ROWS]
    truth, coded = rows - quantizer.center, torch.as_tensor(quantizer.decode(quantizer.encode(rows))) - quantizer.center
    return torch.nn.functional.cosine_similarity(truth.double(), coded.double(), dim=1)


def one_bit_cosine(setting: Setting) -> float:
    """Mean cosine over its expectation sqrt(D/pi) 2 Gamma(D/2) / ((D - 1) Gamma((D - 1)/2))."""
    d = setting.train.shape[1]
    expected = math.sqrt(d / math.pi) * 2 * math.exp(math.lgamma(d / 2) - math.lgamma((d - 1) / 2)) / (d - 1)
    return float(_cosine(setting, 1).mean()) / expected


def mean_cosine(code_bits: int) -> Callable[[Setting], float]:
    return lambda setting: float(_cosine(setting, code_bits).mean())


def _pairs(setting: Setting, code_bits: int, slack: float = 1.9) -> tuple[Tensor, Tensor, Tensor]:
    """True squared distances, estimates and lower bounds of QUERIES x ROWS pairs, float64."""
    quantizer, rows, queries = _fitted(setting, code_bits, slack), setting.train[:ROWS], setting.test[:QUERIES]
    packed, query = quantizer.pack(quantizer.encode(rows)), quantizer.prepare(queries, "l2")
    coarse = queries.double().square().sum(1, keepdim=True)
    estimate, bound = (part.double() + coarse for part in quantizer.scan(packed, query, 0, len(rows)))
    return torch.cdist(queries.double(), rows.double()).square(), estimate, bound


def slope(setting: Setting) -> float:
    """Regression slope of estimated on true inner products <r, s> about the center, 1 bit."""
    quantizer = _fitted(setting, 1)
    truth, estimate, _ = _pairs(setting, 1)
    own = (setting.train[:ROWS] - quantizer.center).double().square().sum(1)
    their = (setting.test[:QUERIES] - quantizer.center).double().square().sum(1, keepdim=True)
    return _slope((own + their - truth) / 2, (own + their - estimate) / 2)


def slope_undivided(setting: Setting) -> float:
    """The same without the division by <o_, o>: the code's unit vector times |r|."""
    quantizer, rows = _fitted(setting, 1), setting.train[:ROWS]
    residual, queries = (rows - quantizer.center).double(), (setting.test[:QUERIES] - quantizer.center).double()
    coded = torch.as_tensor(quantizer.decode(quantizer.encode(rows))).double() - quantizer.center.double()
    naive = torch.nn.functional.normalize(coded, dim=1) * residual.norm(dim=1, keepdim=True)
    return _slope(queries @ residual.T, queries @ naive.T)


def _slope(truth: Tensor, estimate: Tensor) -> float:
    x, y = truth.flatten() - truth.mean(), estimate.flatten() - estimate.mean()
    return float((x * y).sum() / x.square().sum())


def violations(slack: float) -> Callable[[Setting], float]:
    """Share of pairs whose true distance lies below the lower bound of a 1-bit code."""
    def measure(setting: Setting) -> float:
        truth, _, bound = _pairs(setting, 1, slack)
        return float((truth < bound).double().mean())
    return measure


def _relative_error(setting: Setting, code_bits: int) -> float:
    truth, estimate, _ = _pairs(setting, code_bits)
    return float(((estimate - truth).abs() / truth).mean())


def error_per_bit(setting: Setting) -> float:
    """Worst ratio of mean relative error from B to B + 1 bits, B = 1..5."""
    errors = [_relative_error(setting, bits) for bits in range(1, 7)]
    return max(after / before for before, after in itertools.pairwise(errors))


def largest_error(setting: Setting) -> float:
    truth, estimate, _ = _pairs(setting, 1)
    return float(((estimate - truth).abs() / truth).max())


def mean_against_pq(setting: Setting) -> float:
    ours, theirs = _with_pq(setting)
    return float(ours.mean() / theirs.mean())


def largest_against_pq(setting: Setting) -> float:
    ours, theirs = _with_pq(setting)
    return float(ours.max() / theirs.max())


def _with_pq(setting: Setting) -> tuple[Tensor, Tensor]:
    """Relative errors of all pairs under 1-bit RaBitQ and under PQ with at least as many stored bits."""
    rows, queries = setting.train[:ROWS], setting.test[:QUERIES]
    pq = _pq(setting.train.shape[1], _fitted(setting, 1).nominal_bits, setting.seed).fit(setting.train)
    truth, estimate, _ = _pairs(setting, 1)
    theirs = torch.cdist(queries.double(), torch.as_tensor(pq.decode(pq.encode(rows))).double()).square()
    return (estimate - truth).abs() / truth, (theirs - truth).abs() / truth


def _pq(dim: int, bits: float, seed: int) -> PQ:
    """The smallest product quantizer with at least ``bits`` stored bits a dimension."""
    for total in range(math.ceil(bits * dim), 9 * dim):
        try:
            return PQ.for_bits(dim, total / dim, seed=seed)
        except Unsupported:
            continue
    raise Unsupported(f"no product quantizer of dim={dim} has {bits} bits a dimension or more")


CLAIM = Claim(
    name="rabitq",
    sentence="A random rotation, a sign (or a B-bit grid point) a dimension and two floats give an unbiased distance estimate with error "
             "O(2^-B / sqrt(D)); where PQ's largest relative error is about 100 %, that of a 1-bit code stays below 40 %.",
    checks=(
        Check("one_bit_cosine", "identity", "mean cosine of a 1-bit code over its closed form (0.7987 at D = 384)",
              Rule(0.995, 1.005), one_bit_cosine, seeds=3),
        Check("cosine_2_bits", "identity", "mean cosine of a 2-bit code", Rule(0.936, 0.942), mean_cosine(2), seeds=3),
        Check("cosine_4_bits", "identity", "mean cosine of a 4-bit code", Rule(0.9915, 0.9975), mean_cosine(4), seeds=3),
        Check("unbiased", "relation", "slope of estimated on true inner products, 1 bit", Rule(0.99, 1.01), slope),
        Check("division_needed", "relation", "the same slope without the division by <o_, o>: biased by the cosine",
              Rule(0.79, 0.81), slope_undivided),
        Check("bound_at_1.9", "relation", "share of pairs below a lower bound of 1.9 standard deviations (Gaussian: 2.87 %)",
              Rule(0.020, 0.037), violations(1.9)),
        Check("bound_at_3", "relation", "share of pairs below a lower bound of 3 standard deviations (Gaussian: 0.135 %)",
              Rule(high=0.003), violations(3.0)),
        Check("error_per_bit", "relation", "worst ratio of the mean relative error from B to B + 1 bits, B = 1..5", Rule(high=0.6),
              error_per_bit),
        Check("largest_error", "relation", "largest relative error of a 1-bit code (paper: below 40 %)", Rule(high=0.4), largest_error),
        Check("mean_error_against_pq", "relation",
              "mean relative error of a 1-bit code over that of PQ with at least as many stored bits", Rule(high=1.0), mean_against_pq),
        Check("largest_error_against_pq", "relation",
              "largest relative error of a 1-bit code over that of PQ with at least as many stored bits",
              Rule(high=0.4), largest_against_pq),
    ),
    notes="One centroid, the mean of the training rows. The rules for the cosines are the card's (.7987, .939, .9945 within .003). "
          "largest_error_against_pq fails: our side keeps the paper's 40 %, but on these embeddings PQ's largest error stays far "
          "below 100 % as well, since codebooks trained on the same rows serve every vector; what shows is PQ's bias, in the mean. "
          "largest_error and mean_error_against_pq were added when that had been seen, their values known: they explain, and are no test.",
)
