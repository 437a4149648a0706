"""Pyramid vector quantization for network weights (van der Ouderaa et al., arXiv 2410.16926; Fischer 1986): its exact laws, its rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from codeword import ops
from codeword.claims.record import Check, Claim, Rule, Setting
from codeword.parts import pyramid, random
from codeword.parts.lloyd import lloyd_levels, midpoints
from codeword.quantizers.e8 import E8
from codeword.quantizers.pvq import PVQ
from codeword.quantizers.rotated import Rotated

SCALAR = {2: 0.11748, 3: 0.034548}
"""Mean squared error of the best 4- and 8-level scalar quantizers of N(0, 1) (Max 1960)."""
GROUPS = {"smoke": 4000, "small": 20000, "paper": 20000}


def sizes(setting: Setting) -> float:
    """How many of three published pyramid sizes come out wrong."""
    known = {(4, 2): 32, (8, 4): 2816, (16, 8): 30316544}
    return float(sum(pyramid.sizes(d, pyramid.LIMIT - 1)[k - 1] != n for (d, k), n in known.items()))


def bijection(setting: Setting) -> float:
    """Indices of six whole pyramids that do not survive decoding and encoding, or decode outside their pyramid."""
    wrong = 0
    for group, pulses in ((1, 5), (2, 7), (3, 4), (4, 6), (8, 4), (6, 6)):
        counts, sums = pyramid.tables(group, pulses)
        every = torch.arange(pyramid.sizes(group, pyramid.LIMIT - 1)[pulses - 1])
        points = pyramid.point(every, counts, sums)
        wrong += int(((pyramid.number(points, counts, sums) != every) | (points.abs().sum(1) != pulses)).sum())
    return float(wrong)


def _gaussian_error(setting: Setting, bits: int, pulses: int, gain_bits: int) -> float:
    n = GROUPS[setting.budget]
    rows = torch.from_numpy(random.normal(setting.seed, 2 * n * 16, stream="claim gaussian")).reshape(2 * n, 16)
    train, test = rows[:n], rows[n:]
    quantizer = PVQ(dim=16, group=16, pulses=pulses, gain_bits=gain_bits).fit(train)
    assert quantizer.nominal_bits == bits
    return float((torch.as_tensor(quantizer.decode(quantizer.encode(test))) - test).square().mean())


def gaussian(bits: int, pulses: int, gain_bits: int, reference: float) -> Callable[[Setting], float]:
    return lambda setting: _gaussian_error(setting, bits, pulses, gain_bits) / reference


def e8_gaussian(setting: Setting) -> float:
    """Mean squared error of E8P at 2 bits on held-out N(0, 1) entries, its scale fitted on as many others."""
    n = GROUPS[setting.budget]
    rows = torch.from_numpy(random.normal(setting.seed, 2 * n * 16, stream="claim gaussian")).reshape(2 * n, 16)
    quantizer = E8(dim=16, code_bits=2).fit(rows[:n])
    assert quantizer.nominal_bits == 2
    return float((torch.as_tensor(quantizer.decode(quantizer.encode(rows[n:]))) - rows[n:]).square().mean())


def _scalar(train: Tensor, test: Tensor, bits: int) -> float:
    """Held-out squared error a value of a Lloyd-Max quantizer fitted to each dimension."""
    error = 0.0
    for j in range(train.shape[1]):
        levels = lloyd_levels(train[:, j].double(), 1 << bits)
        chosen = levels[torch.searchsorted(midpoints(levels), test[:, j].double())]
        error += float((chosen - test[:, j]).square().mean())
    return error / train.shape[1]


def on_vectors(setting: Setting) -> float:
    """Held-out error of rotated PVQ (D = 16) over Lloyd-Max a dimension on the same centred, rotated rows, both at 2 bits."""
    dim = setting.train.shape[1] // 16 * 16
    mean = setting.train[:, :dim].mean(0)  # weights have none; a scalar grid a dimension would take it for nothing
    train, test = setting.train[:, :dim] - mean, setting.test[:, :dim] - mean
    ours = Rotated(quantizer=PVQ(dim=dim, group=16, pulses=11, gain_bits=1), seed=setting.seed).fit(train)
    error = float((torch.as_tensor(ours.decode(ours.encode(test))) - test).square().mean())
    return error / _scalar(ops.rotate(train, ours.signs), ops.rotate(test, ours.signs), 2)


CLAIM = Claim(
    name="pvq_llm",
    sentence="After a random rotation, integer vectors of fixed L1 norm with a coarse gain code weights without a stored codebook or a "
             "search, and beat the best scalar grids (Llama-3-70B at 3.25 bits keeps 98 % of its accuracy).",
    checks=(
        Check("pyramid_sizes", "identity", "of N(4,2) = 32, N(8,4) = 2816, N(16,8) = 30316544, how many come out wrong",
              Rule(0.0, 0.0), sizes, seeds=1, needs_data=False),
        Check("bijection", "identity", "indices of six whole pyramids that decode wrongly", Rule(0.0, 0.0), bijection,
              seeds=1, needs_data=False),
        Check("gaussian_2_bits", "identity", "error on N(0,1) at 2 bits (D=16, K=11, 31 + 1 bits) over 0.1052",
              Rule(0.98, 1.02), gaussian(2, 11, 1, 0.1052), seeds=3, needs_data=False),
        Check("gaussian_3_bits", "identity", "error on N(0,1) at 3 bits (D=16, K=23, 45 + 3 bits) over 0.0272",
              Rule(0.98, 1.02), gaussian(3, 23, 3, 0.0272), seeds=3, needs_data=False),
        Check("below_scalar_2_bits", "relation", "error on N(0,1) over the best 4-level scalar quantizer's", Rule(high=0.92),
              gaussian(2, 11, 1, SCALAR[2]), needs_data=False),
        Check("below_scalar_3_bits", "relation", "error on N(0,1) over the best 8-level scalar quantizer's", Rule(high=0.82),
              gaussian(3, 23, 3, SCALAR[3]), needs_data=False),
        Check("e8p_gaussian", "identity",
              "error of E8P on N(0,1) at 2 bits (published: 0.089; other choices of its last 29 patterns: 0.092)",
              Rule(0.089, 0.093), e8_gaussian, needs_data=False),
        Check("e8p_below_pvq", "relation", "error of E8P on N(0,1) at 2 bits over 0.1052, that of PVQ", Rule(high=0.9),
              lambda setting: e8_gaussian(setting) / 0.1052, needs_data=False),
        Check("below_scalar_on_vectors", "relation",
              "held-out error of rotated PVQ over Lloyd-Max a dimension on the same centred, rotated rows, 2 bits",
              Rule(high=0.92), on_vectors),
    ),
    notes="The quantizer's own laws and its rate on vectors. Networks made of these codes (perplexity at equal bits, error feedback) are "
          "re-checked with the compression room's claims. below_scalar_on_vectors was first measured on rows with their mean, and failed "
          "in a trial at the smallest budget; both sides are centred now: weights have no mean, and a scalar grid gets one for nothing.",
)
