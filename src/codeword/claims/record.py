"""What a claim is: a sentence with the paper's number, rules fixed before the measurement, and the experiment that measures.

A file ``claims/<system>.py`` holds one ``CLAIM``. Each of its checks measures one number per seed; the rule decides on the 95 %
interval of those numbers, never on the best one:

    holds         the whole interval satisfies the rule
    fails         the whole interval violates it
    inconclusive  the rule's edge lies inside the interval

The hash of a rule covers everything that could bend a verdict (statement, rule, tier, seeds, data), so a changed rule voids old rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codeword.errors import CodewordError

if TYPE_CHECKING:
    from torch import Tensor

TIERS = ("identity", "relation", "parity", "number")
"""identity: an exact law holds. relation: the ordering on small real data. parity: equal to the official code's output on committed
vectors. number: the paper's own setting."""

# Student's t, 97.5 %, by degrees of freedom; beyond ten the normal value is within 12 %.
_T = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Rule:
    """``low <= value <= high``; infinite where a side is free."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if self.low == self.high:
            return f"= {self.low:g}"
        if math.isinf(self.low):
            return f"<= {self.high:g}"
        if math.isinf(self.high):
            return f">= {self.low:g}"
        return f"{self.low:g} .. {self.high:g}"

    def verdict(self, low: float, high: float) -> str:
        """Of the interval [low, high]. A NaN satisfies nothing."""
        if math.isnan(low) or math.isnan(high):
            return "fails"
        if self.low <= low and high <= self.high:
            return "holds"
        if high < self.low or low > self.high:
            return "fails"
        return "inconclusive"


@dataclass(frozen=True)
class Pictures:
    """Images for checks on trained networks: uint8 (n, channels, height, width), and their labels (n,) or None."""

    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None


@dataclass(frozen=True)
class Setting:
    """What an experiment gets: training rows, held-out rows (float32), the budget's name, the seed of this run, and images where a check
    is made on them."""

    train: Tensor
    test: Tensor
    budget: str
    seed: int
    pictures: Pictures | None = None


SOURCES = ("vectors", "images")


@dataclass(frozen=True)
class Check:
    """One number and its rule. ``measure(setting)`` returns the number of one seed; ``needs_data`` False: it makes its own input; ``on``:
    which of SOURCES it is made on."""

    name: str
    tier: str
    statement: str
    rule: Rule
    measure: Callable[[Setting], float]
    seeds: int = 3
    needs_data: bool = True
    on: str = "vectors"

    def __post_init__(self) -> None:
        if self.on not in SOURCES:
            raise CodewordError(f"check {self.name!r} is on {self.on!r}; {', '.join(SOURCES)} are known")
        if self.tier not in TIERS or self.seeds < 1 or (self.tier != "identity" and self.seeds < 3):
            raise CodewordError(f"check {self.name!r} has tier {self.tier!r} and {self.seeds} seeds; "
                                f"a tier of {', '.join(TIERS)} and at least three seeds (identity: one) are needed")

    @property
    def rule_hash(self) -> str:
        terms = (self.name, self.tier, self.statement, repr(self.rule), self.seeds, self.needs_data,
                 *(() if self.on == "vectors" else (self.on,)))
        return hashlib.sha256(json.dumps(terms).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Claim:
    """``name`` of the system in the catalog, its central ``sentence`` with the paper's number, and the checks."""

    name: str
    sentence: str
    checks: tuple[Check, ...]
    notes: str = ""
    """What a reader of the verdict should know: substitutes, departures, what was found when a check fails."""


def interval(values: list[float]) -> tuple[float, float, float]:
    """(mean, low, high): Student's 95 % interval of the mean over seeds; a single value is its own interval."""
    mean = statistics.fmean(values)
    if len(values) == 1 or min(values) == max(values):
        return mean, mean, mean
    half = _T[min(len(values) - 1, len(_T) - 1)] * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


Row = dict[str, Any]
FIELDS: tuple[str, ...] = ("system", "check", "tier", "statement", "rule", "value", "low", "high", "seeds", "verdict", "rule_hash",
          "data", "budget", "codeword", "torch", "commit", "seconds")
"""Columns of results/claims.csv."""
