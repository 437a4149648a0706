"""Pictures of a tokenizer: originals beside what came back, curves of its training, who uses which codeword, and one page of it all.

The sheet is pillow's work (the extra ``media``), the plots matplotlib's (``report``), in the colours of ``plot.py``.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codeword.errors import Unsupported
from codeword.report.document import _HEAD, _STYLE
from codeword.report.plot import _INK, COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from codeword.report.usage import UsageMeter
    from codeword.tokenizers.evaluate import Look
    from codeword.tokenizers.frame import TrainedTokenizer

GAP = 6
"""Pixels between pairs of a sheet; half as many within."""
PICTURE = 96
"""Small images are enlarged by whole factors to about this side."""


def sheet_array(originals: np.ndarray, reconstructions: np.ndarray, fine: np.ndarray | None = None, *,
                across: int = 8) -> np.ndarray:
    """uint8 (height, width, 3): rows of originals (n, h, w, c), each with its reconstruction below, and below that, where ``fine``
    (n, cells, cells) bool says which cells have fine tokens, the original again with the others dimmed."""
    factor = max(1, PICTURE // max(originals.shape[1:3]))
    rows = [_colour(originals, factor), _colour(reconstructions, factor)]
    if fine is not None:
        rows.append(_lit(rows[0], fine))
    gap = np.full((GAP // 2, rows[0].shape[2], 3), 255, np.uint8)
    pairs = [np.concatenate([part for image in images for part in (image, gap)][:-1]) for images in zip(*rows)]
    lines = []
    for start in range(0, len(pairs), across):
        row = pairs[start:start + across]
        row += [np.full_like(pairs[0], 255)] * (min(across, len(pairs)) - len(row))
        sides = ((GAP, GAP), (GAP // 2, GAP // 2), (0, 0))
        lines.append(np.concatenate([np.pad(pair, sides, constant_values=255) for pair in row], axis=1))
    return np.concatenate(lines)


def _lit(images: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Coarse cells pale and towards blue, so that black and white ones show too."""
    across = images.shape[2] // fine.shape[2]
    light = fine.repeat(across, 1).repeat(across, 2)[..., None]
    return np.where(light, images, (0.35 * images + 0.65 * np.array([70, 95, 150])).astype(np.uint8))


def png_bytes(image: np.ndarray) -> bytes:
    """uint8 (height, width, 1 or 3) as PNG."""
    from codeword.data.images import pillow
    data = io.BytesIO()
    pillow().fromarray(image[..., 0] if image.shape[2] == 1 else np.ascontiguousarray(image)).save(data, format="PNG")
    return data.getvalue()


def curves_png(rows: Sequence[dict[str, float]]) -> bytes:
    """Losses, held-out PSNR, usage and rate over the steps, on white."""
    return _png(_curves(rows, "#222222"))


def usage_png(meter: UsageMeter) -> bytes:
    """Hits of the codewords in falling order, on white."""
    return _png(_usage(meter, "#222222"))


def curves_svg(rows: Sequence[dict[str, float]]) -> str:
    return _svg(_curves(rows, _INK))


def usage_svg(meter: UsageMeter) -> str:
    return _svg(_usage(meter, _INK))


def map_svg(codewords: np.ndarray, counts: np.ndarray) -> str:
    """The codewords (n, dim) along their two principal axes, coloured by how often they are chosen."""
    return _svg(_map(codewords, counts, _INK))


def page(tokenizer: TrainedTokenizer, found: Look, rows: Sequence[dict[str, float]], source: str) -> str:
    """The report as one HTML page that needs nothing but itself: what was measured, sheets of images, plots."""
    from codeword.tokenizers.evaluate import MEANING
    numbers = "".join(f"<tr><td>{html.escape(line.name(found.numbers))}</td><td>{html.escape(line.show(found.numbers))}</td>"
                      f"<td>{html.escape(line.meaning)}</td></tr>" for line in MEANING if found.numbers.get(line.key) is not None)
    levels, about = tokenizer.quantizer.levels, tokenizer.about
    trained = f"{about['steps']:,} steps in {about['seconds'] / 60:.1f} minutes" if {"steps", "seconds"} <= about.keys() else "unknown"
    grid = "×".join(str(math.ceil(side / tokenizer.factor)) for side in found.originals.shape[1:3])
    if "fine" in found.numbers:
        grid = "{tokens:.1f} ({tokens_least:.0f} to {tokens_most:.0f})".format(**found.numbers)
    facts = {"quantizer": _describe(tokenizer.quantizer), "network": tokenizer.network,
             "tokens": f"{grid} an image of {found.originals.shape[2]}×{found.originals.shape[1]}, "
                       f"{sum(tokenizer.quantizer.widths)} bits each"
                       + (f", and {found.fine[0].size} bits for the map of fine cells" if found.fine is not None else ""),
             "trained": trained, "fingerprint": tokenizer.fingerprint}
    listed = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in facts.items())
    pictures = base64.b64encode(png_bytes(sheet_array(found.originals, found.reconstructions, found.fine,
                                                      across=12 if found.originals.shape[1] <= 96 else 4))).decode()
    codewords = _codewords(tokenizer)
    chart = (f"<figure>{map_svg(codewords, found.meter.histogram())}</figure>" if codewords is not None else
             f"<p>No map: a code of this quantizer has {len(levels)} positions of at most {max(levels):,} symbols, not one list of "
             "codewords that could be drawn.</p>")
    curves = f"<h2>Training</h2><figure>{curves_svg(rows)}</figure>" if rows else ""
    bad = "".join(f"<li>{html.escape(line)}</li>" for line in found.bad)
    return _PAGE.format(
        title=html.escape(f"Image tokenizer on {source}"), style=_STYLE + _MORE_STYLE, facts=listed, numbers=numbers, pictures=pictures,
        shown=len(found.originals), lit=_LIT if found.fine is not None else "", curves=curves, usage=usage_svg(found.meter), map=chart,
        bad=f"<h2>Images that could not be read</h2><ul>{bad}</ul>" if bad else "")


def _describe(quantizer: Any) -> str:
    shown = ", ".join(f"{key}={value}" for key, value in quantizer.config.items() if not hasattr(value, "forward") and key != "seed")
    return f"{quantizer.name} ({shown})"


def _codewords(tokenizer: TrainedTokenizer) -> np.ndarray | None:
    """(K, dim) of a quantizer whose code is one index into at most 2^17 codewords, else None."""
    import torch

    from codeword.quantizer import Codes
    quantizer = tokenizer.quantizer
    if len(quantizer.levels) != 1 or quantizer.levels[0] > 1 << 17:
        return None
    return torch.as_tensor(quantizer.decode(Codes(torch.arange(quantizer.levels[0]).unsqueeze(1)))).cpu().numpy()


# ---------------------------------------------------------------------- the plots


def _curves(rows: Sequence[dict[str, float]], ink: str) -> Figure:
    figure, axes = _figure(1, 3, (11, 3.1), ink)
    panels = (("losses", (("l1", "l1"), ("l2", "l2"), ("quantizer", "quantizer's loss"), ("perceptual", "perceptual"),
                          ("discriminator", "discriminator"), ("representation", "representation")), True),
              ("held-out images", (("valid_psnr", "PSNR, dB"),), False),
              ("codebook", (("usage", "codewords in use"), ("perplexity_share", "perplexity / codewords")), False))
    for axis, (title, lines, log) in zip(axes, panels):
        for place, (key, label) in enumerate(lines):
            points = [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key]) and (not log or row[key] > 0)]
            if points:
                axis.plot(*zip(*points), color=COLOURS[place], label=label, linewidth=1.7, markersize=3.5,
                          marker="o" if len(points) < 25 else "")
        if log:
            axis.set_yscale("log")
        if title == "codebook":
            axis.set_ylim(0, 1.03)
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=9, labelcolor=ink)
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axis.set_xlabel("step")
        _finish(axis, ink)
    return figure


def _usage(meter: UsageMeter, ink: str) -> Figure:
    figure, (axis,) = _figure(1, 1, (6.2, 3.4), ink)
    levels = meter.levels
    for place, level in enumerate(levels[:8]):
        own = np.sort(meter._counts[place])[::-1].astype(float)
        used = own[own > 0]
        if len(used):
            axis.plot(np.arange(1, len(used) + 1) / level, used / own.sum() * level, color=COLOURS[place % len(COLOURS)], linewidth=1.8,
                      label=f"position {place + 1}" if len(levels) > 1 else None)
    axis.axhline(1, color=ink, linewidth=0.8, linestyle=(0, (4, 3)))
    axis.annotate("all equally often", (1, 1), xytext=(-4, 4), textcoords="offset points", ha="right", color=ink, fontsize=9)
    axis.set_yscale("log")
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axis.set_xlabel("codewords, the most used first")
    axis.set_ylabel("hits, times the mean")
    if len(levels) > 1:
        axis.legend(frameon=False, fontsize=9, labelcolor=ink)
    _finish(axis, ink)
    return figure


def _map(codewords: np.ndarray, counts: np.ndarray, ink: str) -> Figure:
    figure, (axis,) = _figure(1, 1, (6.2, 4.6), ink)
    centred = codewords.astype(np.float64) - codewords.mean(0)
    _, _, basis = np.linalg.svd(centred if len(centred) <= 4096 else centred[:: len(centred) // 4096], full_matrices=False)
    flat = centred @ basis[:2].T if basis.shape[0] > 1 else np.c_[centred @ basis[:1].T, np.zeros(len(centred))]
    share = counts / max(1, counts.sum()) * len(counts)
    order = np.argsort(share, kind="stable")
    dead = share[order] == 0
    size = float(np.clip(6000 / len(counts), 2, 40))
    axis.scatter(*flat[order][dead].T, s=size, color="#9aa3ad", alpha=0.45, linewidths=0, rasterized=True)
    points = axis.scatter(*flat[order][~dead].T, s=size, c=np.log2(share[order][~dead]), cmap="viridis", linewidths=0, rasterized=True)
    bar = figure.colorbar(points, ax=axis, shrink=0.85)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{2.0 ** value:.3g}×")
    bar.set_label("hits, times the mean (grey: never chosen)")
    axis.set_xlabel("first principal axis of the codewords")
    axis.set_ylabel("second")
    _finish(axis, ink)
    return figure


def _figure(rows: int, columns: int, size: tuple[float, float], ink: str) -> tuple[Figure, list[Any]]:
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Unsupported("plots need matplotlib, the extra 'report': pip install 'codeword[report]'") from None
    settings = {"svg.fonttype": "none", "svg.hashsalt": "codeword", "font.size": 10.0, "text.color": ink, "axes.edgecolor": ink,
                "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink, "axes.linewidth": 0.8}
    with rc_context(settings):  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        return figure, list(np.ravel(figure.subplots(rows, columns)))


def _finish(axis: Any, ink: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, which="major", color=ink, alpha=0.13, linewidth=0.7)
    axis.tick_params(which="both", length=3)


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    return data.getvalue()


def _svg(figure: Figure) -> str:
    from matplotlib import rc_context
    data = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "codeword"}):
        figure.savefig(data, format="svg", dpi=160, transparent=True, metadata={"Date": None, "Creator": None})
    text = data.getvalue().decode()
    return text[text.index("<svg"):].replace(_INK, "currentColor")


def _colour(images: np.ndarray, factor: int) -> np.ndarray:
    images = images.repeat(factor, 1).repeat(factor, 2)
    return images.repeat(3, 3) if images.shape[3] == 1 else images



_MORE_STYLE = """
td:last-child { text-align: left; color: var(--soft); white-space: normal; } td:nth-child(2) { font-weight: 600; }
img { max-width: 100%; height: auto; image-rendering: pixelated; border-radius: 4px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1.5rem; align-items: start; }
"""

_LIT = ", and below that once more, its coarse cells in pale blue"

_PAGE = _HEAD + """<dl>{facts}</dl>
<h2>Numbers</h2>
<div class="wide"><table><tbody>{numbers}</tbody></table></div>
<h2>Images</h2>
<p class="data">The first {shown} images, each above what its tokens decode to{lit}.</p>
<figure><img alt="originals above reconstructions" src="data:image/png;base64,{pictures}"></figure>
<h2>Codebook</h2>
<div class="two"><figure>{usage}</figure>{map}</div>
{curves}
{bad}
<footer>Written by codeword tokenizer report.</footer>
</body>
</html>
"""
