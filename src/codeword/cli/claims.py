"""codeword claims, codeword reproduce: which published claims were re-checked here, and the checks themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codeword.claims import run
from codeword.claims.record import Check
from codeword.cli.show import emit, note, progress, table


def show_claims(as_json: bool) -> None:
    """Every published system with the tier it reached and the verdicts of its checks."""
    rows = run.reached()
    built = sum(row["status"] != "planned" for row in rows)
    emit({"systems": rows, "built": built, "total": len(rows)}, as_json, lambda: table(
        ("system", "paper", "room", "tier", "checks"),
        [(row["system"], f"{row['title']}, {row['venue']}", row["room"], row["tier"] or "-", row["status"]) for row in rows],
        notes=(f"{built} of {len(rows)} systems are built. codeword reproduce NAME measures one again.",)))


def show_reproduction(name: str, *, budget: str, data: str | None, images: Path | None, save: Path | None, as_json: bool) -> None:
    """Measure the checks of ``name``, print them, and add the rows to ``save``."""
    import torch
    claim = run.load(name)
    vectors, data_name = None, None
    if data is not None:
        from codeword.data import open_vectors
        found = open_vectors(data)
        limit = sum(run.BUDGETS.get(budget, (0, 0)))
        vectors, data_name = torch.as_tensor(found[max(0, len(found) - limit):]).float(), Path(data).name
    if not as_json:
        print(f"{claim.sentence}\n")
    steps = sum(check.seeds for check in claim.checks)
    with progress(f"reproduce {name}", steps, quiet=as_json) as advance:
        rows = run.reproduce(name, budget=budget, data=vectors, data_name=data_name, images=run.pictures(images) if images else None,
                             images_name=images.name if images else None, progress=lambda check, seed: advance(1),
                             done=lambda row: run.write([row], save) if save is not None else None)
    emit({"system": name, "budget": budget, "rows": rows, "saved": str(save) if save else None}, as_json, lambda: table(
        ("check", "tier", "rule", "value", "95 % interval", "verdict"),
        [(r["check"], r["tier"], r["rule"], _short(r["value"]), f"{_short(r['low'])} .. {_short(r['high'])}", r["verdict"]) for r in rows],
        notes=_explained(claim.checks, rows, claim.notes)))
    if save is not None:
        note(f"{len(rows)} rows written to {save}")


def _short(text: Any) -> str:
    return f"{float(text):.4g}"


def _explained(checks: tuple[Check, ...], rows: list[run.Row], notes: str) -> list[str]:
    """What each check measured, then the claim's own notes."""
    seconds = sum(float(row["seconds"]) for row in rows)
    data = ", ".join(sorted({str(row["data"]) for row in rows}))
    lines = [f"{check.name}: {check.statement}." for check in checks]
    return [*lines, *(["", notes] if notes else []), f"{seconds:.0f} seconds, data: {data}."]
