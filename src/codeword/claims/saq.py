"""SAQ: bits where the variance is, codes by adjustment instead of search (Li et al., SIGMOD 2026)."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from codeword import ops
from codeword.claims.record import Check, Claim, Rule, Setting
from codeword.parts import random
from codeword.parts.threads import one_thread
from codeword.quantizers.caq import CAQ
from codeword.quantizers.lvq import LVQ
from codeword.quantizers.rabitq import RaBitQ
from codeword.quantizers.saq import SAQ

ROWS, QUERIES, TIMED = 2000, 200, 512
BITS = (1, 2, 4, 8)

# ---------------------------------------------------------------------- identities


def plan_rises(setting: Setting) -> float:
    """The largest rise in bits from one segment to the next, over plans of 0.5 to 8 bits and 64 bits a vector."""
    dim = setting.train.shape[1]
    plans = [SAQ(dim=dim, rate=bits + 64 / dim, seed=setting.seed).fit(setting.train).plan for bits in (0.5, 1.0, 2.0, 4.0, 8.0)]
    return max(max((after[1] - before[1] for before, after in pairwise(plan)), default=0) for plan in plans)


def least_gain(setting: Setting) -> float:
    """The least change of a code's cosine by six rounds, over rows and bits."""
    rows = _rotated(setting, CAQ(dim=setting.train.shape[1], code_bits=4, seed=setting.seed).fit(setting.train))
    changes = []
    for bits in (2, 4, 8):
        before, after = (_cosine(ops.adjust_code(rows, [rows.shape[1]], [bits], rounds)[1]) for rounds in (0, 6))
        changes.append(float((after - before).min()))
    return min(changes)


def sign_share(setting: Setting) -> float:
    """Share of rows whose 1-bit CAQ code is RaBitQ's sign code."""
    rows, dim = setting.train[:ROWS], setting.train.shape[1]
    codes = [torch.as_tensor(cls(dim=dim, code_bits=1, seed=setting.seed).fit(setting.train).encode(rows).indices) for cls in (CAQ, RaBitQ)]
    return float((codes[0] == codes[1]).all(1).double().mean())


def _rotated(setting: Setting, caq: CAQ) -> Tensor:
    return ops.rotate(setting.train[:ROWS] - caq.center, caq.signs)


def _cosine(sums: Tensor) -> Tensor:
    product, square, norm = sums[:, 0].unbind(1)
    return product / (square * norm).sqrt().clamp(min=1e-300)


# ---------------------------------------------------------------------- error


def _estimates(quantizer: Any, setting: Setting) -> tuple[Tensor, Tensor]:
    """Estimated and true squared distances of QUERIES x ROWS pairs, float64."""
    rows, queries = setting.train[:ROWS], setting.test[:QUERIES]
    found = quantizer.scan(quantizer.pack(quantizer.encode(rows)), quantizer.prepare(queries, "l2"), 0, len(rows))[0]
    return found.double() + queries.double().square().sum(1, keepdim=True), torch.cdist(queries.double(), rows.double()).square()


def _relative(estimate: Tensor, truth: Tensor) -> float:
    return float(((estimate - truth).abs() / truth.clamp(min=1e-300)).mean())


def slope(setting: Setting) -> float:
    """Regression slope of SAQ's estimated on true squared distances, 4 bits."""
    estimate, truth = _estimates(SAQ(dim=setting.train.shape[1], rate=4.0, seed=setting.seed).fit(setting.train), setting)
    x, y = (truth - truth.mean()).flatten(), (estimate - estimate.mean()).flatten()
    return float((x * y).sum() / x.square().sum())


def against_rabitq(setting: Setting) -> float:
    """Worst ratio of the mean relative errors, SAQ with exactly the storage of RaBitQ at 1, 2, 4 and 8 bits."""
    ratios, dim = [], setting.train.shape[1]
    for bits in BITS:
        rabitq = RaBitQ(dim=dim, code_bits=bits, seed=setting.seed).fit(setting.train)
        saq = SAQ(dim=dim, rate=rabitq.nominal_bits, seed=setting.seed).fit(setting.train)
        ratios.append(_relative(*_estimates(saq, setting)) / _relative(*_estimates(rabitq, setting)))
    return max(ratios)


def on_a_steep_spectrum(setting: Setting) -> float:
    """The same on synthetic rows whose variances fall as those of pixels do: axis i has the share 1/(i+1)^2, along random axes."""
    dim, count = 256, 4000
    seed = 1000 + setting.seed
    values = torch.from_numpy(random.normal(seed, (count + QUERIES) * dim, stream="steep")).reshape(-1, dim)
    values = values / torch.arange(1, dim + 1)
    turned = ops.rotate(values, torch.from_numpy(random.signs(seed, 4 * dim, stream="steep axes")).reshape(4, dim))
    return against_rabitq(Setting(turned[:count], turned[count:], setting.budget, setting.seed))


def against_lvq(setting: Setting) -> float:
    """Worst ratio of the mean relative errors, SAQ with exactly the storage of LVQ at 1, 2, 4 and 8 bits."""
    ratios, dim, rows, queries = [], setting.train.shape[1], setting.train[:ROWS], setting.test[:QUERIES]
    for bits in BITS:
        lvq = LVQ(dim=dim, code_bits=bits).fit(setting.train)
        saq = SAQ(dim=dim, rate=lvq.nominal_bits, seed=setting.seed).fit(setting.train)
        estimate, truth = _estimates(saq, setting)
        values = torch.as_tensor(lvq.decode(lvq.encode(rows)))
        ratios.append(_relative(estimate, truth) / _relative(torch.cdist(queries.double(), values.double()).square(), truth))
    return max(ratios)


def against_exact(code_bits: int) -> Callable[[Setting], float]:
    """Mean relative error of CAQ with six rounds over RaBitQ's with the exact search."""
    def measure(setting: Setting) -> float:
        dim = setting.train.shape[1]
        errors = [_relative(*_estimates(cls(dim=dim, code_bits=code_bits, seed=setting.seed).fit(setting.train), setting))
                  for cls in (CAQ, RaBitQ)]
        return errors[0] / errors[1]
    return measure


def adjustment(setting: Setting) -> float:
    """Noise that six rounds leave of that of the paper's start, the 2-bit grid that just reaches the largest entry."""
    rows = _rotated(setting, CAQ(dim=setting.train.shape[1], code_bits=2, seed=setting.seed).fit(setting.train))
    steps = rows.abs().amax(1, keepdim=True).double() / 2
    before, after = (_cosine(ops.adjust_code(rows, [rows.shape[1]], [2], rounds, steps)[1]) for rounds in (0, 6))
    return float(((1 / after.square() - 1).mean() / (1 / before.square() - 1).mean()).sqrt())


def seconds_against_exact(setting: Setting) -> float:
    """Processor time from rotated rows to codes of 4 bits, six rounds over the exact search; one thread, medians of five."""
    dim, rows = setting.train.shape[1], setting.train[:TIMED]
    caq, rabitq = (cls(dim=dim, code_bits=4, seed=setting.seed).fit(setting.train) for cls in (CAQ, RaBitQ))
    times: dict[str, list[float]] = {"caq": [], "rabitq": []}
    with one_thread():
        turned = caq._rotated(rows)
        for _ in range(6):
            for name, quantizer in (("caq", caq), ("rabitq", rabitq)):
                start = time.thread_time()
                quantizer._assign(*turned)
                times[name].append(time.thread_time() - start)
    return sorted(times["caq"][1:])[2] / sorted(times["rabitq"][1:])[2]


CLAIM = Claim(
    name="saq",
    sentence="After PCA, segments with bits by dynamic programming and codes by coordinate adjustment have 1.8 to 5.4 times less error "
             "than RaBitQ at equal bits (4 bits; at most 0.7 and 0.3 of it on embeddings and pixels by the card), and codes as good as "
             "the exact search's take a fraction of its time (84.7 times less at 9 bits).",
    checks=(
        Check("plan_falls", "identity", "largest rise in bits from one segment to the next", Rule(high=0), plan_rises),
        Check("adjustment_never_hurts", "identity", "least change of a code's cosine by six rounds (2, 4, 8 bits)", Rule(low=-1e-12),
              least_gain),
        Check("one_bit_is_signs", "identity", "share of 1-bit codes that are the sign code", Rule(1.0, 1.0), sign_share),
        Check("unbiased", "relation", "slope of SAQ's estimated on true squared distances, 4 bits", Rule(0.99, 1.01), slope),
        Check("error_against_rabitq", "relation", "worst ratio of mean relative errors at RaBitQ's storage, 1, 2, 4, 8 bits",
              Rule(high=0.7), against_rabitq),
        Check("error_against_rabitq_steep", "relation",
              "the same on synthetic rows with a pixel-like spectrum, variances 1/i^2 (card: pixels)",
              Rule(high=0.3), on_a_steep_spectrum, needs_data=False),
        Check("error_against_lvq", "relation", "worst ratio of mean relative errors at LVQ's storage, 1, 2, 4, 8 bits", Rule(high=0.7),
              against_lvq),
        Check("caq_against_exact_2", "relation", "mean relative error of CAQ over the exact search's, 2 bits", Rule(0.99, 1.03),
              against_exact(2)),
        Check("caq_against_exact_4", "relation", "the same with 4 bits", Rule(0.99, 1.03), against_exact(4)),
        Check("caq_against_exact_8", "relation", "the same with 8 bits", Rule(0.99, 1.03), against_exact(8)),
        Check("adjustment_gain", "relation", "noise that six rounds leave of the paper's start, 2 bits (card: .0150/.0189)",
              Rule(high=0.85), adjustment),
        Check("seconds_against_exact", "relation", "processor time of assigning 4-bit codes, CAQ over our exact search", Rule(high=0.5),
              seconds_against_exact),
    ),
    notes="One centroid, the mean of the training rows; all stored bits count, side information too. No pixels are bundled: the "
          "spectrum stands in for them, results/saq.csv has MNIST. The error ratios had been seen once when these rules were written "
          "down; the rules are the card's.",
)
