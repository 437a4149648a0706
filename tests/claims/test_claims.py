"""The runner on its own, and every claim at its smallest budget: a check must run, and an identity must hold there already."""

from __future__ import annotations

import math

import pytest
import torch

from codeword import catalog
from codeword.claims import run
from codeword.claims.record import Check, Claim, Rule, Setting, interval
from codeword.errors import CodewordError


def test_verdicts_are_taken_on_the_whole_interval():
    rule = Rule(0.9, 1.1)
    assert rule.verdict(0.95, 1.05) == "holds"
    assert rule.verdict(1.2, 1.3) == "fails"
    assert rule.verdict(1.0, 1.2) == "inconclusive"
    assert rule.verdict(math.nan, math.nan) == "fails"
    assert Rule(0.0, 0.0).verdict(0.0, 0.0) == "holds" and Rule(0.0, 0.0).verdict(1e-9, 1e-9) == "fails"


def test_interval_is_students():
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and high - mean == pytest.approx(4.303 / math.sqrt(3), rel=1e-6) and mean - low == pytest.approx(high - mean)
    assert interval([0.5]) == (0.5, 0.5, 0.5)


def test_relations_need_three_seeds_and_a_known_tier():
    with pytest.raises(CodewordError):
        Check("x", "relation", "s", Rule(), lambda s: 0.0, seeds=2)
    with pytest.raises(CodewordError):
        Check("x", "opinion", "s", Rule(), lambda s: 0.0)


def test_a_changed_rule_voids_old_rows(monkeypatch: pytest.MonkeyPatch):
    def claim(high: float) -> Claim:
        return Claim("rabitq", "s", (Check("c", "identity", "t", Rule(high=high), lambda s: 0.5, seeds=1, needs_data=False),))
    monkeypatch.setattr(run, "available", lambda: ["rabitq"])
    monkeypatch.setattr(run, "load", lambda name: claim(1.0))
    rows = run.reproduce("rabitq", data=torch.randn(50, 4))
    assert rows[0]["verdict"] == "holds"
    state = {row["system"]: row for row in run.reached(rows)}
    assert state["rabitq"]["tier"] == "identity" and state["rabitq"]["status"] == "1 holds" and state["jpq"]["status"] == "planned"
    monkeypatch.setattr(run, "load", lambda name: claim(2.0))
    assert {r["system"]: r for r in run.reached(rows)}["rabitq"]["status"] == "not run"


def test_rows_are_replaced_not_repeated(tmp_path, monkeypatch: pytest.MonkeyPatch):
    values = iter((0.5, 3.0))
    claim = Claim("rabitq", "s", (Check("c", "identity", "t", Rule(high=1.0), lambda s: next(values), seeds=1, needs_data=False),))
    monkeypatch.setattr(run, "available", lambda: ["rabitq"])
    monkeypatch.setattr(run, "load", lambda name: claim)
    path = tmp_path / "claims.csv"
    for verdict in ("holds", "fails"):
        run.write(run.reproduce("rabitq", data=torch.randn(50, 4)), path)
        rows = run.read(path)
        assert len(rows) == 1 and rows[0]["verdict"] == verdict


def test_errors_say_what_is_known():
    with pytest.raises(CodewordError, match="unknown system"):
        run.load("nothing")
    planned = next(s.name for s in catalog.SYSTEMS if s.name not in run.available())
    with pytest.raises(CodewordError, match="not built yet"):
        run.load(planned)
    with pytest.raises(CodewordError, match="budget"):
        run.reproduce("rabitq", budget="huge")
    with pytest.raises(CodewordError, match="at least 40"):
        run.reproduce("rabitq", data=torch.randn(8, 4))


def test_every_claim_names_a_system_and_its_checks_are_distinct():
    for name in run.available():
        claim = run.load(name)
        assert claim.name == name == catalog.system(name).name
        assert len({check.name for check in claim.checks}) == len(claim.checks) > 0


@pytest.mark.parametrize("name", run.available())
def test_identities_hold_at_the_smallest_budget(name: str):
    """One seed, data of 32 dimensions. Laws about a statistic get the slack that so few rows need; exact laws get none."""
    claim = run.load(name)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(600, 32, generator=generator)
    setting = Setting(rows[:500], rows[500:], "smoke", 0)
    for check in claim.checks:
        if check.tier != "identity" or check.name.startswith(("cosine", "gaussian")):
            continue
        value = check.measure(setting)
        slack = 0.05 if check.name == "one_bit_cosine" else 0.0
        assert check.rule.low - slack <= value <= check.rule.high + slack, (check.name, value)


def test_a_tier_needs_all_its_checks_and_all_below(monkeypatch: pytest.MonkeyPatch):
    def check(name: str, tier: str, value: float) -> Check:
        return Check(name, tier, "s", Rule(high=1.0), lambda s: value, needs_data=False)

    def tier(*checks: Check) -> str:
        monkeypatch.setattr(run, "available", lambda: ["simvq"])
        monkeypatch.setattr(run, "load", lambda name: Claim("simvq", "s", checks))
        return {r["system"]: r["tier"] for r in run.reached(run.reproduce("simvq", data=torch.randn(50, 4)))}["simvq"]

    assert tier(check("a", "identity", 0.0), check("b", "relation", 0.0)) == "relation"
    assert tier(check("a", "identity", 0.0), check("b", "relation", 2.0)) == "identity"
    assert tier(check("a", "identity", 2.0), check("b", "relation", 0.0)) == ""
    assert tier(check("a", "identity", 0.0), check("b", "identity", 2.0)) == ""
    assert tier(check("b", "relation", 0.0)) == "relation"


def test_other_data_reach_no_tier(monkeypatch: pytest.MonkeyPatch):
    claim = Claim("simvq", "s", (Check("a", "identity", "s", Rule(high=1.0), lambda s: 0.0, seeds=1),))
    monkeypatch.setattr(run, "available", lambda: ["simvq"])
    monkeypatch.setattr(run, "load", lambda name: claim)
    rows = run.reproduce("simvq", data=torch.randn(50, 4), data_name="mine.npy")
    assert {r["system"]: r["tier"] for r in run.reached(rows)}["simvq"] == ""
