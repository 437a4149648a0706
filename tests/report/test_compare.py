"""The comparison end to end on tiny data: figures that can be checked by hand, rows left out with their reason, and its files."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from codeword.data import open_vectors
from codeword.errors import CodewordError, ShapeError
from codeword.report import bounds, compare, document, plot

RANDOM = np.random.default_rng(0)
X = (RANDOM.normal(size=(400, 8)) * [4, 3, 2, 1, 1, 0.5, 0.5, 0.25]).astype(np.float32)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> compare.Split:
    path = tmp_path_factory.mktemp("compare") / "x.npy"
    np.save(path, X)
    return compare.split(open_vectors(path), None, "l2", seed=1)


@pytest.fixture(scope="module")
def ref(split: compare.Split) -> compare.Reference:
    return compare.reference(split)


def test_rows_are_held_out(split: compare.Split) -> None:
    parts = [{row.tobytes() for row in part} for part in (split.fit, split.held_out, split.queries)]
    assert [len(part) for part in parts] == [280, 100, 20]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_the_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    v = open_vectors(tmp_path / "x.npy")
    one, two, three = (compare.split(v, None, "l2", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.fit, two.fit)
    assert not np.array_equal(one.held_out, three.held_out)


def test_plan_fills_in_rates() -> None:
    tasks = compare.plan(8, [1, 2.5], ["pq", "pq:bits={bits},seed=3", "vq-whole"])
    assert [task.spec for task in tasks] == ["pq:bits=1,iterations=10", "pq:bits=1,seed=3", "vq:codebook_size=256",
                                            "pq:bits=2.5,iterations=10", "pq:bits=2.5,seed=3", "vq:codebook_size=1048576"]
    assert compare.plan(384, [1], ["vq-whole"])[0].spec == "vq:codebook_size=2^384"
    for bits, names in (([], ["pq"]), ([0], ["pq"]), ([1], [])):
        with pytest.raises(CodewordError, match="at least one of each"):
            compare.plan(8, bits, names)


def test_figures_agree_with_their_definitions(split: compare.Split, ref: compare.Reference) -> None:
    from codeword import catalog
    (task,) = compare.plan(8, [2], ["vq:codebook_size=16"])
    task = task._replace(spec="pq:num_codebooks=4,codebook_size=16,iterations=3", bits=2.0)
    row = compare.measure(task, split, ref)
    quantizer = catalog.make(task.spec, 8).fit(split.fit)
    values = np.asarray(quantizer.decode(quantizer.encode(split.held_out)), dtype=np.float64)
    mean = split.fit.mean(axis=0, dtype=np.float64)
    error = np.square(split.held_out - values).sum()
    energy = np.square(split.held_out - mean).sum()
    assert row["left_out"] is None and row["bits"] == 2.0 and row["bytes_per_vector"] == 2.0
    assert row["relative_error"] == pytest.approx(error / energy, rel=1e-6)
    assert row["gap_db"] == pytest.approx(10 * np.log10(error / 100 / bounds.distortion(ref.spectrum, 2.0)), abs=1e-6)
    inner = split.queries.astype(np.float64) @ split.held_out.T.astype(np.float64)
    assert row["ip_error"] == pytest.approx(np.sqrt(np.square(split.queries @ values.T - inner).mean()) / inner.std(), rel=1e-3)
    true = np.square(split.queries[:, None].astype(np.float64) - split.held_out[None]).sum(-1).argsort(1)[:, :10]
    found = np.square(split.queries[:, None] - values[None]).sum(-1).argsort(1)[:, :10]
    assert row["recall"] == pytest.approx(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(true, found)]), abs=0.011)


def test_more_bits_are_better_and_nothing_beats_the_bound(split: compare.Split, ref: compare.Reference) -> None:
    rows = [compare.measure(task, split, ref) for task in compare.plan(8, [1, 2, 3], ["pq:bits={bits},iterations=5", "ecsq", "ecsq-pca"])]
    assert not [row for row in rows if row["left_out"]]
    for name in {row["quantizer"] for row in rows}:
        errors = [row["relative_error"] for row in rows if row["quantizer"] == name]
        assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2
    assert all(row["gap_db"] > -0.5 for row in rows)  # the data are Gaussian; 280 fit rows leave the figure a little loose


def test_an_exact_code_finds_everything(ref: compare.Reference, split: compare.Split) -> None:
    row = compare._figures(compare.Task("exact", "", 32.0), split, ref, 32.0, split.held_out, ref.products, ref.distances)
    assert row["relative_error"] == 0 and row["recall"] == 1 and row["ip_error"] == 0 and row["gap_db"] == -np.inf


def test_what_cannot_take_part_says_why(split: compare.Split, ref: compare.Reference) -> None:
    reasons = {task.label: compare.measure(task, split, ref)["left_out"] for task in compare.plan(
        8, [4], ["vq-whole", "nonsense", "pq:num_codebooks=3", "pq:num_codebooks=2,codebook_size=4", "fsq:bits={bits}"])}
    assert reasons["vq-whole"] == "one codebook for whole vectors would need 2^32 codewords"
    assert "unknown quantizer 'nonsense'" in reasons["nonsense"]
    assert "a divisor of dim" in reasons["pq:num_codebooks=3"]
    assert "stores 0.5 bits a dimension, too far from 4" in reasons["pq:num_codebooks=2,codebook_size=4"]
    assert "projected(fsq:bits=4)" in reasons["fsq:bits={bits}"]


def test_cosine_normalises_and_refuses_zero_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    data = compare.split(open_vectors(tmp_path / "x.npy"), None, "cosine")
    np.testing.assert_allclose(np.linalg.norm(data.held_out, axis=1), 1, rtol=1e-5)
    bad = X.copy()
    bad[:] = 0
    np.save(tmp_path / "z.npy", bad)
    with pytest.raises(ShapeError, match="is zero and has no direction"):
        compare.split(open_vectors(tmp_path / "z.npy"), None, "cosine")
    with pytest.raises(ShapeError, match="nothing to compare on"):
        compare.reference(compare.split(open_vectors(tmp_path / "z.npy"), None, "l2"))
    bad[:] = np.inf
    np.save(tmp_path / "i.npy", bad)
    with pytest.raises(ShapeError, match="NaN or infinity"):
        compare.split(open_vectors(tmp_path / "i.npy"), None, "l2")
    with pytest.raises(CodewordError, match="metric is 'l1'"):
        compare.split(open_vectors(tmp_path / "x.npy"), None, "l1")


def test_a_budget_leaves_out_what_would_not_fit(split: compare.Split, ref: compare.Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(compare.time, "monotonic", lambda: clock[0])

    def slow(task: compare.Task, *_: object) -> dict[str, object]:
        clock[0] += 6 if task.label == "slow" else 1
        return {"quantizer": task.label}

    monkeypatch.setattr(compare, "measure", slow)
    budget = compare.Budget(10)
    outcome = []
    for task in [compare.Task(name, name, rate) for rate in (1.0, 2.0, 3.0) for name in ("slow", "quick")]:
        refused = budget.refuses(task)
        outcome.append(refused["left_out"] if refused else "ran")
        if not refused:
            budget.measure(task, split, ref)
    assert outcome == ["ran", "ran", "it would exceed the budget of 10 s (about 12 s needed)", "ran",
                       "it would exceed the budget of 10 s (about 18 s needed)", "ran"]
    clock[0] = 11
    refused = budget.refuses(compare.Task("quick", "quick", 4.0))
    assert refused is not None and refused["left_out"] == "the budget of 10 s was spent before it"
    assert compare.Budget(None).refuses(compare.Task("slow", "slow", 1.0)) is None


@pytest.fixture(scope="module")
def summary(split: compare.Split, ref: compare.Reference) -> dict:
    rows = [compare.measure(task, split, ref) for task in compare.plan(8, [1, 2], ["pq:bits={bits},iterations=3", "ecsq", "nonsense"])]
    return {"data": {"vectors": "<x>.npy", "rows": 400, "dim": 8, "metric": "l2", "seed": 1, "fit_rows": 280, "held_out_rows": 100,
                     "queries": 20},
            "rows": rows, "bound": compare.curve(ref.spectrum, [1, 2]), "best": compare.best(rows), "versions": {"codeword": "0"}}


def test_files_of_a_comparison(summary: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = document.write(tmp_path, summary)
    assert {path.name for path in written} == {"results.csv", "results.json", "plot.svg", "plot.png", "report.html"}
    with (tmp_path / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 6 and table[2]["left_out"].startswith("unknown quantizer") and table[2]["recall"] == ""
    assert float(table[0]["relative_error"]) == pytest.approx(summary["rows"][0]["relative_error"], rel=1e-5)
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == summary["rows"]
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page and "currentColor" in page and "&lt;x&gt;.npy" in page and "<x>" not in page
    assert "unknown quantizer" in page and "prefers-color-scheme: dark" in page
    assert not re.search(r"""(src|href)=["'](?!#)|@import|url\((?!#)""", page)  # nothing from outside the page
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert plot.svg(summary["rows"], summary["bound"]) == plot.svg(summary["rows"], summary["bound"])


def test_best_names_quantizers_not_baselines(summary: dict) -> None:
    assert summary["best"] == {"1": {"error": "pq:bits={bits},iterations=3", "recall": "pq:bits={bits},iterations=3"},
                               "2": {"error": "pq:bits={bits},iterations=3", "recall": "pq:bits={bits},iterations=3"}}


def test_a_report_without_matplotlib_says_so(summary: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "available", lambda: False)
    assert {path.name for path in document.write(tmp_path, summary)} == {"results.csv", "results.json", "report.html"}
    assert "needs matplotlib" in (tmp_path / "report.html").read_text()


def test_labels_never_cover_each_other() -> None:
    for places in ([0.5] * 8, [0.0, 0.01, 0.5, 0.51, 0.52, 0.99, 1.0], [0.98] * 5, [0.02]):
        spread = plot._spread(places, 0.05)
        assert all(b - a > 0.0499 for a, b in itertools.pairwise(spread)) and spread[0] >= 0.02 - 1e-9 and spread[-1] <= 0.98 + 1e-9
