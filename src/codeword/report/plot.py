"""The rate-distortion picture of a comparison (matplotlib, the extra ``report``), as SVG that follows the page's light or dark theme.

Left: relative error against the bits really stored, with the Shannon bound of the matched Gaussian; lower is better. Right: recall
against bytes a vector; higher is better. Colours are those of Okabe and Ito, told apart by every kind of colour vision; each series
also has its own marker and its name beside its last point.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from codeword.errors import Unsupported

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
_INK = "#123456"
"""Stands for the text colour while drawing; becomes currentColor in the SVG."""


def svg(rows: Sequence[dict[str, Any]], bound: Sequence[tuple[float, float]]) -> str:
    """The picture as one <svg> element without external resources. Raises Unsupported without matplotlib."""
    data = io.BytesIO()
    _draw(rows, bound, _INK, data, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = data.getvalue().decode()
    return text[text.index("<svg"):].replace(_INK, "currentColor")


def png(rows: Sequence[dict[str, Any]], bound: Sequence[tuple[float, float]]) -> bytes:
    """The picture on white, for documents."""
    data = io.BytesIO()
    _draw(rows, bound, "#222222", data, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return data.getvalue()


def available() -> bool:
    """Whether matplotlib is installed."""
    import importlib.util
    return importlib.util.find_spec("matplotlib") is not None


def _draw(rows: Sequence[dict[str, Any]], bound: Sequence[tuple[float, float]], ink: str, target: io.BytesIO, **options: Any) -> None:
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Unsupported("plots need matplotlib, the extra 'report': pip install 'codeword[report]'") from None
    settings = {"svg.fonttype": "none", "svg.hashsalt": "codeword", "font.family": "sans-serif", "font.size": 10.5, "text.color": ink,
                "axes.edgecolor": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink, "axes.linewidth": 0.8}
    with rc_context(settings):  # type: ignore[arg-type]
        figure = Figure(figsize=(11, 4.9), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(wspace=0.09)  # type: ignore[union-attr]
        left, right = figure.subplots(1, 2)
        series = _series(rows)
        _error_panel(left, series, bound, ink)
        _recall_panel(right, series, ink)
        figure.savefig(target, **options)


def _series(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str, bool, list[dict[str, Any]]]]:
    """(name, colour, marker, baseline, rows by rate) in the order of the table."""
    from codeword.report.compare import BASELINES
    names = [name for name in dict.fromkeys(row["quantizer"] for row in rows)
             if any(row["quantizer"] == name and row["left_out"] is None for row in rows)]
    found, place = [], 0
    for name in names:
        own = sorted((row for row in rows if row["quantizer"] == name and row["left_out"] is None), key=lambda row: row["bits"])
        if name in BASELINES:
            found.append((name, "#7F7F7F", "x" if name == BASELINES[0] else "+", True, own))
        else:
            found.append((name, COLOURS[place % 7], MARKERS[place % len(MARKERS)], False, own))
            place += 1
    return found


def _error_panel(axes: Axes, series: list[Any], bound: Sequence[tuple[float, float]], ink: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
    axes.plot([rate for rate, _ in bound], [error for _, error in bound], color=ink, linewidth=1.6)
    middle = bound[len(bound) // 3]
    axes.annotate("Shannon bound", middle, textcoords="offset points", xytext=(-8, -6), ha="right", va="top", color=ink, fontsize=9.5)
    ends = []
    for name, colour, marker, baseline, rows in series:
        x, y = [row["bits"] for row in rows], [row["relative_error"] for row in rows]
        _line(axes, x, y, colour, marker, baseline)
        ends.append((x[-1], y[-1], name, colour))
    axes.set_yscale("log")
    axes.set_xlabel("bits stored per dimension")
    axes.set_ylabel("squared error, share of the rows' energy")
    axes.set_title("Error: lower is better", loc="left", fontsize=11.5, fontweight="bold")
    axes.set_xlim(0, 1.24 * max(rate for rate, _ in bound))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.yaxis.set_minor_locator(NullLocator())
    _finish(axes, ink)
    _label_ends(axes, ends, log=True)


def _recall_panel(axes: Axes, series: list[Any], ink: str) -> None:
    ends, top, low = [], 0.0, 1.0
    for name, colour, marker, baseline, rows in series:
        x, y = [row["bytes_per_vector"] for row in rows], [row["recall"] for row in rows]
        _line(axes, x, y, colour, marker, baseline)
        ends.append((x[-1], y[-1], name, colour))
        top, low = max(top, *x), min(low, *y)
    axes.set_xlabel("bytes stored per vector")
    axes.set_ylabel("recall@10 on held-out rows")
    axes.set_title("Search: higher is better", loc="left", fontsize=11.5, fontweight="bold")
    axes.set_xlim(0, 1.24 * top)
    axes.set_ylim(max(0.0, low - 0.06), 1.01)
    _finish(axes, ink)
    _label_ends(axes, ends, log=False)


def _line(axes: Axes, x: list[float], y: list[float], colour: str, marker: str, baseline: bool) -> None:
    axes.plot(x, y, color=colour, marker=marker, markersize=7 if baseline else 5.5, linewidth=1.3 if baseline else 1.8,
              linestyle=(0, (4, 2.5)) if baseline else "-", zorder=2 if baseline else 3)


def _finish(axes: Axes, ink: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color=ink, alpha=0.13, linewidth=0.7)
    axes.tick_params(which="both", length=3)


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]], log: bool) -> None:
    """Names right of the last points, moved apart so that none covers another."""
    measure = math.log10 if log else float
    low, high = (measure(end) for end in axes.get_ylim())
    right = max((x for x, *_ in ends), default=1.0)
    places = sorted(((measure(y) - low) / (high - low), x, y, name, colour) for x, y, name, colour in ends)
    spaced = _spread([place for place, *_ in places], 0.052)
    for at, (_, x, y, name, colour) in zip(spaced, places):
        axes.annotate(name, (x, y), xycoords="data", xytext=(right * 1.035, at), textcoords=("data", "axes fraction"), va="center",
                      color=colour, fontsize=9.5, fontweight="bold",
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4})


def _spread(places: list[float], gap: float) -> list[float]:
    """Ascending places moved as little as keeps them ``gap`` apart and inside 0.02..0.98: neighbours too close become one block
    around their mean, and blocks that meet are joined."""
    blocks: list[list[float]] = []
    for place in places:
        blocks.append([place])
        while len(blocks) > 1 and _start(blocks[-1], gap) < _start(blocks[-2], gap) + gap * len(blocks[-2]):
            last = blocks.pop()
            blocks[-1] += last
    out = [_start(block, gap) + gap * i for block in blocks for i in range(len(block))]
    for i in range(len(out)):
        out[i] = max(out[i], 0.02 + gap * i)
    for i in range(len(out)):
        out[-1 - i] = min(out[-1 - i], 0.98 - gap * i)
    return out


def _start(block: list[float], gap: float) -> float:
    return sum(block) / len(block) - gap * (len(block) - 1) / 2
