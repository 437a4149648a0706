"""The files of a comparison: results.csv, results.json, plot.svg, plot.png and report.html, which needs nothing but itself."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codeword.io import files
from codeword.report import plot
from codeword.report.compare import BASELINES, best

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("quantizer", "quantizer", "s"), ("bits", "bits/dim", ".3f"), ("relative_error", "rel. error", ".4f"), ("gap_db", "dB to bound", ".2f"),
    ("ip_error", "ip error", ".4f"), ("recall", "recall@10", ".3f"), ("bytes_per_vector", "bytes/vector", ".1f"),
    ("encode_per_second", "encode/s", "count"), ("decode_per_second", "decode/s", "count"), ("fit_seconds", "fit s", ".2f"),
)
"""Field of a row, title, format."""

MEANING = (
    ("bits/dim", "bits stored per dimension, side information such as norms and scales included"),
    ("rel. error", "squared error over the rows' energy around their mean"),
    ("dB to bound", "how far the error lies above the least that any code of these bits could reach on Gaussian data with the same "
                    "covariance (Shannon's rate-distortion bound by reverse water-filling); about 6 dB are one bit a dimension"),
    ("ip error", "root mean square error of inner products with the queries, over their standard deviation"),
    ("recall@10", "share of the true ten nearest held-out rows among the ten that the codes rank first"),
    ("ecsq, ecsq-pca", "entropy-coded scalar quantization with an ideal entropy coder, plain and along the principal axes: the strongest "
                       "baseline, but of variable length, so no row can be read on its own"),
    ("ecsq-coded", "the same along the principal axes with a real entropy coder and the step chosen on the fit rows: the bytes of a file"),
)


def cell(row: dict[str, Any], field: str, form: str) -> str:
    """One value as the table shows it."""
    value = row[field]
    if value is None:
        return "–"
    if form == "s":
        return str(value)
    if form == "count":
        digits = max(0, len(str(int(value))) - 3)
        return f"{round(value, -digits):,.0f}"
    return format(value, form)


def write(folder: Path, summary: dict[str, Any]) -> list[Path]:
    """Write all files of ``summary`` (data, rows, bound, best) into ``folder``, each atomically; returns their paths."""
    rows, bound = summary["rows"], summary["bound"]
    written = {"results.csv": _csv(rows).encode(), "results.json": (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode()}
    picture = ""
    if plot.available() and any(row["left_out"] is None for row in rows):
        picture = plot.svg(rows, bound)
        written |= {"plot.svg": ('<?xml version="1.0" encoding="utf-8"?>\n' + picture).encode(), "plot.png": plot.png(rows, bound)}
    written["report.html"] = page(summary, picture).encode()
    for name, data in written.items():
        files.write_file(folder / name, [data], durable=False)
    return [folder / name for name in written]


def page(summary: dict[str, Any], picture: str) -> str:
    """The report as one HTML page; ``picture`` is an inline SVG or empty."""
    data, rows = summary["data"], summary["rows"]
    best_lines = "".join(f"<li>at {html.escape(rate)} bits: least error <b>{html.escape(pair['error'])}</b>, highest recall "
                         f"<b>{html.escape(pair['recall'])}</b></li>" for rate, pair in best(rows).items())
    figure = (f"<figure>{picture}</figure>" if picture
              else "<p>No picture: it needs matplotlib, <code>pip install 'codeword[report]'</code>.</p>")
    out = [row for row in rows if row["left_out"] is not None]
    left_out = "".join(f"<li><b>{html.escape(row['quantizer'])}</b> at {row['rate']:g} bits: {html.escape(row['left_out'])}</li>"
                       for row in out)
    meaning = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in MEANING)
    return _PAGE.format(
        title=html.escape(f"Quantizers compared on {data['vectors']}"), style=_STYLE,
        data=html.escape(f"{data['fit_rows']:,} rows of width {data['dim']} to fit on, "
                         f"{data['held_out_rows']:,} held-out rows to measure on, "
                         f"{data['queries']:,} queries, metric {data['metric']}, seed {data['seed']}"),
        figure=figure, best=best_lines, tables="".join(_table(rows, rate) for rate in dict.fromkeys(row["rate"] for row in rows)),
        left_out=f"<h2>Left out, and why</h2><ul>{left_out}</ul>" if left_out else "", meaning=meaning,
        versions=html.escape(", ".join(f"{name} {value}" for name, value in summary["versions"].items())))


def _table(rows: Sequence[dict[str, Any]], rate: float) -> str:
    own = sorted((row for row in rows if row["rate"] == rate and row["left_out"] is None), key=lambda row: row["relative_error"])
    if not own:
        return ""
    heads = "".join(f"<th>{html.escape(title)}</th>" for _, title, _ in COLUMNS)
    body = ""
    for row in own:
        cells = "".join(f"<td>{html.escape(cell(row, field, form))}</td>" for field, _, form in COLUMNS)
        kind = " class=baseline" if row["quantizer"] in BASELINES else ""
        body += f'<tr title="{html.escape(row["spec"], quote=True)}"{kind}>{cells}</tr>'
    return f"<h3>{rate:g} bits a dimension</h3><div class=wide><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)
    return text.getvalue()


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --paper: #fff; --line: #d5d9de; --soft: #5b6570; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --paper: #15181c; --line: #343a41; --soft: #a0a9b3; --band: #1d2126; } }
body { color: var(--ink); background: var(--paper); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif;
       max-width: 68rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p.data, footer { color: var(--soft); } figure { margin: 1.2rem 0; } figure svg { width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { text-align: right; padding: .28rem .8rem; border-bottom: 1px solid var(--line); } th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; }
tbody tr:hover { background: var(--band); } tr.baseline td { color: var(--soft); font-style: italic; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; } dt { font-weight: 600; } dd { margin: 0; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .6rem; font-size: .85rem; }
"""

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
"""

_PAGE = _HEAD + """<p class="data">{data}</p>
{figure}
<h2>Best at each rate</h2>
<ul>{best}</ul>
<h2>All measurements</h2>
{tables}
{left_out}
<h2>What the columns mean</h2>
<dl>{meaning}</dl>
<footer>Measured on held-out rows by codeword compare; {versions}.</footer>
</body>
</html>
"""
