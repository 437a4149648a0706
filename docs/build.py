"""Writes every table of README.md and docs/ from results/*.csv. Tables stand between markers and are never typed.

    python docs/build.py            rewrite
    python docs/build.py --check    exit 1 where a file is out of date (a test runs this)
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from codeword.claims import run as claims  # noqa: E402


def rows(name: str) -> list[dict[str, str]]:
    with (ROOT / "results" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(head: Iterable[str], body: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(" --- " for _ in head) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in body]
    return "\n".join(lines)


def paper(row: dict[str, str]) -> str:
    return f"[{row['title']}](https://arxiv.org/abs/{row['arxiv']})"


def systems() -> str:
    """The README's table: every published system, its room, and the tier reached."""
    reached = claims.reached()
    built = sum(row["status"] != "planned" for row in reached)
    head = f"{built} of {len(reached)} re-checked so far; `codeword claims` prints the same.\n\n"
    return head + table(("system", "published", "room", "tier", "checks"),
                        ((paper(r), r["venue"], f"`{r['room']}/`", r["tier"] or "–", r["status"]) for r in reached))


def checks() -> str:
    """docs/claims.md: every check with its value, interval and verdict."""
    parts = []
    measured = {(r["system"], r["check"]): r for r in claims.read() if r["budget"] == "small"}
    for name in claims.available():
        claim = claims.load(name)
        system = next(r for r in claims.reached() if r["system"] == name)
        body = []
        for check in claim.checks:
            row = measured.get((name, check.name))
            stale = row is not None and row["rule_hash"] != check.rule_hash
            value = "not run" if row is None else "rule changed" if stale else f"{row['value']} [{row['low']}, {row['high']}]"
            verdict = "–" if row is None or stale else f"**{row['verdict']}**"
            body.append((check.name, check.tier, check.statement, check.rule, value, verdict))
        notes = f"\n\n{claim.notes}" if claim.notes else ""
        parts.append(f"## {system['title']} (`codeword reproduce {name}`)\n\n{claim.sentence}\n\n"
                     + table(("check", "tier", "statement", "rule", "mean [95 % interval]", "verdict"), body) + notes)
    return "\n\n".join(parts)


SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"systems": systems},
    "docs/claims.md": {"checks": checks},
}


def filled(text: str, sections: dict[str, Callable[[], str]]) -> str:
    for name, build in sections.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"markers {start} ... {end} are missing")
        text = f"{before}{start}\n{build()}\n{end}{after}"
    return text


def main() -> int:
    stale = []
    for name, sections in SECTIONS.items():
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = filled(old, sections)
        if new == old:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(new, encoding="utf-8")
    print("\n".join(f"{'out of date' if '--check' in sys.argv else 'written'}: {name}" for name in stale) or "up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    raise SystemExit(main())
