"""Runs claims, keeps their rows, and says which tier each system has reached."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import pkgutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from codeword import catalog
from codeword.claims.record import FIELDS, TIERS, Check, Claim, Row, Setting, interval
from codeword.errors import CodewordError

if TYPE_CHECKING:
    from torch import Tensor

    from codeword.claims.record import Pictures
    from codeword.data.images import Images

BUDGETS = {"smoke": (1000, 100), "small": (7000, 1000), "paper": (1 << 62, 1000)}
"""Training and held-out rows of each budget. smoke: seconds, for the tests. small: at most ten minutes on two cores.
paper: all rows given, for those who have the paper's data and hardware."""

BUNDLED, BUNDLED_IMAGES, SYNTHETIC = "bundled sentences", "bundled images", "synthetic"
COUNTED = (BUNDLED, BUNDLED_IMAGES, SYNTHETIC)
"""Names of the data that count towards a system's tier."""

_NOT_CLAIMS = ("autoencoder", "record", "run", "survey_families", "vector_autoencoder")


def available() -> list[str]:
    """Systems that have a claim to re-check."""
    import codeword.claims as room
    return sorted(module.name for module in pkgutil.iter_modules(room.__path__) if module.name not in _NOT_CLAIMS)


def load(name: str) -> Claim:
    """The claim of one system. CodewordError where the system is unknown, or known but not built yet."""
    system = catalog.system(name)
    if name not in available():
        raise CodewordError(f"{system.title} is in the catalog but not built yet; claims exist for {', '.join(available())}")
    return importlib.import_module(f"codeword.claims.{name}").CLAIM


def reproduce(name: str, *, budget: str = "small", data: Tensor | None = None, data_name: str | None = None,
              images: Pictures | None = None, images_name: str | None = None, only: tuple[str, ...] = (),
              progress: Callable[[Check, int], None] | None = None, done: Callable[[Row], None] | None = None) -> list[Row]:
    """Measure every check of a claim and return its rows. ``data`` (n, dim) replaces the bundled vectors, ``images`` the bundled images.

    Held-out rows are the last ones. ``progress(check, seed)`` is called before each measurement, ``done(row)`` after each check."""
    claim = load(name)
    if budget not in BUDGETS:
        raise CodewordError(f"budget {budget!r} is unknown; {', '.join(BUDGETS)} are allowed")
    checks = [check for check in claim.checks if not only or check.name in only]
    if not checks:
        raise CodewordError(f"{name} has no check {', '.join(only)}; it has {', '.join(c.name for c in claim.checks)}")
    train, test = _split(data, budget)
    if images is None and any(check.on == "images" for check in checks):
        images = bundled_pictures()
    names = {"vectors": data_name or BUNDLED, "images": images_name or BUNDLED_IMAGES}
    rows = []
    for check in checks:
        start = time.perf_counter()
        values = [_measure(check, Setting(train, test, budget, seed, images), progress) for seed in range(check.seeds)]
        mean, low, high = interval(values)
        rows.append({
            "system": name, "check": check.name, "tier": check.tier, "statement": check.statement, "rule": str(check.rule),
            "value": f"{mean:.6g}", "low": f"{low:.6g}", "high": f"{high:.6g}", "seeds": check.seeds,
            "verdict": check.rule.verdict(low, high), "rule_hash": check.rule_hash,
            "data": names[check.on] if check.needs_data else SYNTHETIC, "budget": budget, **_versions(),
            "seconds": f"{time.perf_counter() - start:.1f}",
        })
        if done is not None:
            done(rows[-1])
    return rows


def _measure(check: Check, setting: Setting, progress: Callable[[Check, int], None] | None) -> float:
    if progress is not None:
        progress(check, setting.seed)
    return float(check.measure(setting))


def bundled_pictures() -> Pictures:
    """The images that come with the package (data/bundled_images/README.md)."""
    from codeword.data.bundle import IMAGES
    return pictures(IMAGES / "train-images-idx3-ubyte.gz", IMAGES / "t10k-images-idx3-ubyte.gz")


def pictures(train: Path, test: Path | None = None) -> Pictures:
    """All images at ``train`` (whatever ``open_images`` reads, of one size) and those at ``test``; without it a sixth is held out."""
    import numpy as np
    import torch

    from codeword.claims.record import Pictures
    from codeword.data.images import open_images
    def stacked(images: Images) -> tuple[Tensor, Tensor | None]:
        arrays = [images[i] for i in range(len(images))]
        sizes = {array.shape for array in arrays}
        if len(sizes) > 1:
            raise CodewordError(f"{images.source} holds images of {len(sizes)} sizes; a claim needs one size")
        labels = None if images.labels is None else torch.from_numpy(np.asarray(images.labels))
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous(), labels

    first = open_images(train)
    rest = open_images(test) if test is not None else None
    if rest is None:
        first, rest = first.split(max(1, len(first) // 6))
    (x, y), (held_x, held_y) = stacked(first), stacked(rest)
    return Pictures(x, held_x, y, held_y)


def _split(data: Tensor | None, budget: str) -> tuple[Tensor, Tensor]:
    import torch
    if data is None:
        from codeword.data import bundled
        data = torch.from_numpy(bundled().vectors.astype("float32"))
    limit, held_out = BUDGETS[budget]
    held_out = min(held_out, len(data) // 4)
    if held_out < 10:
        raise CodewordError(f"data has {len(data)} rows; at least 40 are needed to hold some out")
    return data[:-held_out][:limit].float(), data[-held_out:].float()


def _versions() -> dict[str, str]:
    import torch

    import codeword
    return {"codeword": codeword.__version__, "torch": torch.__version__, "commit": _commit()}


def _commit() -> str:
    """Short commit of a source checkout ("+" where it has changes); "release" in an installed package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return "release"
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False).stdout.strip()
    return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--", "src", "csrc") else "")


# ---------------------------------------------------------------------- results


def read(path: Path | None = None) -> list[Row]:
    """Rows of a claims file (default: the one of this release); none where there is no file."""
    path = path or default_path()
    if path is None or not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def default_path() -> Path | None:
    """results/claims.csv of a source checkout, else the copy that was installed with the package."""
    checkout = Path(__file__).parents[3] / "results" / "claims.csv"
    if (Path(__file__).parents[3] / "pyproject.toml").exists():
        return checkout
    installed = Path(__file__).with_name("claims.csv")
    return installed if installed.exists() else None


def write(rows: list[Row], path: Path) -> None:
    """Replace the rows of the same system, check, data and budget in ``path``; others stay. Sorted, so diffs are small."""
    from codeword.io.files import write_file
    key = ("system", "check", "data", "budget")
    table = {tuple(row[k] for k in key): row for row in (*read(path), *rows)}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table[k] for k in sorted(table))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, [text.getvalue().encode()])


def reached(rows: list[Row] | None = None) -> list[dict[str, str]]:
    """One row per published system: the tier it reached, and how many of its checks hold, fail or are open. A tier is reached when all
    checks of it and of those below hold, on bundled data; rows whose rule has changed since do not count."""
    rows = read() if rows is None else rows
    table = []
    built = set(available())
    for system in catalog.SYSTEMS:
        current = {check.name: check for check in load(system.name).checks} if system.name in built else {}
        valid = [r for r in rows if r["system"] == system.name and r["check"] in current and r["rule_hash"] == current[r["check"]].rule_hash
                 and r["budget"] != "smoke" and r["data"] in COUNTED]
        holding = {r["check"] for r in valid if r["verdict"] == "holds"}
        counts = {v: sum(r["verdict"] == v for r in valid) for v in ("holds", "fails", "inconclusive")}
        table.append({
            "system": system.name, "title": system.title, "venue": system.venue, "arxiv": system.arxiv, "room": system.room,
            "tier": _tier(current, holding),
            "status": "planned" if not current else ", ".join(f"{n} {v}" for v, n in counts.items() if n) or "not run",
        })
    return table


def _tier(checks: dict[str, Check], holding: set[str]) -> str:
    """The highest tier all of whose checks, and those of every tier below, hold."""
    reached = ""
    for tier in TIERS:
        names = {check.name for check in checks.values() if check.tier == tier}
        if names - holding:
            break
        reached = tier if names else reached
    return reached
