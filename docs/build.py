"""Writes every table of README.md and docs/ from results/*.csv. Tables stand between markers and are never typed.

    python docs/build.py            rewrite
    python docs/build.py --check    exit 1 where a file is out of date (a test runs this)
"""

from __future__ import annotations

import csv
import statistics
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


def compare() -> str:
    """The README's comparison: a column a rate, best first by error at the highest rate."""
    found = [row for row in rows("compare") if row["relative_error"]]
    rates = sorted({row["rate"] for row in found}, key=float)
    cells = {(row["quantizer"], row["rate"]): row for row in found}
    names = sorted({row["quantizer"] for row in found}, key=lambda name: -float(cells.get((name, rates[-1]), {"recall": 0})["recall"]))

    def cell(name: str, rate: str) -> str:
        row = cells.get((name, rate))
        if row is None:
            return "–"
        return f"{100 * float(row['relative_error']):.3g} % · {float(row['gap_db']):.1f} dB · {float(row['recall']):.3f}"

    head = ("", *(f"{rate} bit{'s' if rate != '1' else ''}: error · gap · recall@10" for rate in rates), "bytes a vector", "spec")
    body = [(f"`{name}`", *(cell(name, rate) for rate in rates),
             " / ".join(f"{float(cells[name, rate]['bytes_per_vector']):.0f}" for rate in rates if (name, rate) in cells),
             f"`{cells[name, rates[-1]]['spec']}`") for name in names]
    return table(head, body)


def ivf() -> str:
    """Beside rabitqlib: for each code width the points nearest to round recalls, through the index."""
    found = [row for row in rows("ivf_rabitq") if row["through"] == "index" and row["ratio"]]
    body = []
    for bits in sorted({row["bits"] for row in found}, key=int):
        points = [row for row in found if row["bits"] == bits]
        for row in (points[0], points[len(points) // 2], points[-1]):
            body.append((bits, row["nprobe"], row["ours_recall"], row["theirs_recall"], f"{float(row['ours_qps']):,.0f}",
                         f"{float(row['theirs_qps']):,.0f}", f"**{float(row['ratio']):.2f}×**",
                         f"{row['ours_bytes']} / {row['theirs_bytes']}"))
    head = ("code bits", "nprobe", "recall, ours", "theirs", "queries/s, ours", "theirs", "speed at equal recall", "bytes, ours / theirs")
    return table(head, body)


def faiss() -> str:
    """Beside faiss: error and time of ours over theirs, means over the seeds that were run."""
    cells: dict[tuple[str, str, int], list[tuple[float, float, float]]] = {}
    for row in rows("product"):
        cells.setdefault((row["method"].upper(), "MNIST" if "mnist" in row["data"] else "MiniLM", int(row["bits"])), []).append(
            (ratio(row, "ours", "theirs"), ratio(row, "ours_fit", "theirs_fit"), ratio(row, "ours_encode", "theirs_encode")))
    for row in rows("additive"):
        cells.setdefault((row["quantizer"], "MNIST" if row["data"] == "mnist" else "MiniLM", int(row["bits_per_vector"])), []).append(
            (ratio(row, "ours_base", "theirs_base"), ratio(row, "ours_fit", "theirs_fit"), ratio(row, "ours_encode", "theirs_encode")))
    order = ["PQ", "OPQ", "RVQ", "AQ"]
    body = [(f"`{name.lower()}`", data, bits, *(f"{sum(column) / len(column):.{digits}f}" for column, digits in
                                               zip(zip(*found, strict=True), (4, 2, 2), strict=True)), len(found))
            for (name, data, bits), found in sorted(cells.items(), key=lambda item: (order.index(item[0][0]), *item[0][1:]))]
    return table(("quantizer", "vectors", "bits a vector", "error, ours / faiss", "fit time", "encode time", "seeds"), body)


def ratio(row: dict[str, str], ours: str, theirs: str) -> float:
    return float(row[ours]) / float(row[theirs])


def kernels() -> str:
    """Nearest codewords and k-means: time over that of the named thing in the same run."""
    body = [(f"`nearest`, {r['data']} {r['shape']}", r["isa"], "float32 matrix product", f"{float(r['ratio']):.2f}×")
            for r in rows("nearest") if r["isa"] in ("avx512", "avx2") and r["data"] != "near ties"
            and r["shape"].split(" with ")[1] in ("1024", "65536")]
    body += [(f"k-means, {r['data']} {r['shape']}", r["isa"], "faiss.Kmeans, to its final error", f"{float(r['ratio']):.2f}×")
             for r in rows("kmeans") if "slices" not in r["data"]]
    return table(("what", "instructions", "against", "time"), body)


def tokenizers() -> str:
    """Large codebooks inside an image tokenizer: error on unseen images and how many codewords serve."""
    found = sorted(rows("tokenizers"), key=lambda row: (row["device"], row["minutes"], float(row["error"])))
    body = [(f"`{row['quantizer']}`" + (" from U(±1/K)" if row["arm"] == "vq" else ""), f"{float(row['psnr']):.2f} dB",
             f"{float(row['ssim']):.3f}", f"{float(row['frechet']):.2f}", f"{100 * float(row['usage']):.1f} %",
             f"{float(row['perplexity']):,.0f}", row["steps"], f"{row['train_seconds']} s, {row['device']}") for row in found]
    return table(("quantizer", "PSNR", "SSIM", "Fréchet distance, features-cifar10", "codewords in use", "perplexity", "steps", "trained"),
                 body)


def job() -> str:
    """What the commands of a tokenizer take, one after the other."""
    seconds = {row["step"]: float(row["seconds"]) for row in rows("tokenizer_job")}
    return ("With the defaults, on two threads, from CIFAR-10's training images (`benchmarks/tokenizer_job.py`): "
            f"{seconds['train']:.0f} s of\ntraining, {seconds['encode']:.0f} s for the shards, {seconds['report']:.0f} s for a report on "
            f"test images; {seconds['all'] / 60:.1f} minutes together.")


def equal_bits() -> str:
    """Every learned quantizer and lattice in the same tokenizer at the same bits: means over seeds, best first."""
    arms: dict[str, list[dict[str, str]]] = {}
    for row in rows("equal_bits"):
        arms.setdefault(row["arm"], []).append(row)

    def mean(own: list[dict[str, str]], key: str) -> float:
        return statistics.fmean(float(row[key] or "nan") for row in own)

    body = []
    for own in sorted(arms.values(), key=lambda own: -mean(own, "psnr")):
        psnr = [float(row["psnr"]) for row in own]
        body.append((f"`{own[0]['quantizer']}`", f"{mean(own, 'psnr'):.2f} ± {statistics.stdev(psnr) if len(psnr) > 1 else 0:.2f} dB",
                     f"{100 * mean(own, 'usage'):.1f} %", f"{mean(own, 'perplexity'):,.0f}", f"{mean(own, 'step_ms'):.0f}",
                     f"{mean(own, 'quantizer_ms'):.1f}", f"{mean(own, 'quantizer_mib'):.0f}", len(own)))
    steps = "/".join(sorted({row["steps"] for own in arms.values() for row in own}))
    return table(("quantizer", f"PSNR after {steps} steps", "codewords in use", "perplexity", "training step, ms",
                  "of it the quantizer, ms", "its MiB", "seeds"), body)


def layers() -> str:
    """Training steps beside vector-quantize-pytorch: times as shares of the matrix product, memory, and both steps in milliseconds."""
    peers = {"VQ": "VectorQuantize learnable", "VQ ema": "VectorQuantize ema", "VQ rotation": "VectorQuantize rotation",
             "SimVQ": "SimVQ theirs", "RVQ": "ResidualVQ"}
    titles = {"VQ": "gradient", "VQ ema": "moving averages", "VQ rotation": "rotation trick, averages"}
    found = {(row["layer"], row["codebook_size"], row["num_codebooks"]): row for row in rows("layers")}

    def step(row: dict[str, str]) -> float:
        return 1000 * sum(float(row[part]) for part in ("forward", "backward", "update"))

    body = []
    for (name, size, books), row in found.items():
        if name in peers:
            peer = found.get((peers[name], size, books))
            theirs = (f"{step(peer):,.0f}", f"**{step(peer) / step(row):.0f}×**", f"{float(peer['peak_mib']):,.0f}") if peer else ("–",) * 3
            body.append((f"`{name.split()[0]}`" + (f", {titles[name]}" if name in titles else ""),
                         f"{int(size):,}" + (f" × {books}" if books != "1" else ""), f"{float(row['forward_ratio']):.2f}",
                         f"{float(row['backward_ratio']):.2f}", f"{step(row):.1f}", theirs[0], theirs[1],
                         f"{float(row['peak_mib']):.0f}", theirs[2]))
    head = ("layer", "codewords", "forward / product", "backward / product", "step, ms", "theirs, ms", "faster", "MiB", "theirs, MiB")
    return table(head, body)


def gpu() -> str:
    """Triton's exact nearest beside bare products of the same shape, on the same card in the same run."""
    found = [row for row in rows("nearest_gpu") if row["what"] in ("nearest", "matmul") and row["data"] != "start"]
    shapes = list(dict.fromkeys((int(row["n"]), int(row["d"]), int(row["k"])) for row in found))
    cells = {(int(row["n"]), int(row["d"]), int(row["k"]), row["way"], row["data"]): row for row in found}
    body = []
    for shape in sorted(shapes, key=lambda shape: (shape[1] != 64, shape[2], shape[0])):
        def show(way: str, data: str = "gaussian", key: str = "ms", shape: tuple[int, int, int] = shape) -> str:
            row = cells.get((*shape, way, data))
            return "–" if row is None else f"{float(row[key]):,.0f}" if key == "peak_mib" else f"{float(row[key]):.3g}"
        body.append((f"{shape[0]} × {shape[1]} with {shape[2]}", show("triton"), show("triton", "clustered"), show("tf32"),
                     show("float32"), show("blocks"), show("triton", key="peak_mib"), show("blocks", key="peak_mib")))
    device = found[0]["device"]
    return table((f"milliseconds on one {device}", "`nearest`, exact", "the same, clustered codewords", "TF32 product", "float32 product",
                  "distances in blocks", "MiB, `nearest`", "MiB, blocks"), body)


def places() -> str:
    from codeword.report.places import matrix
    found = matrix()
    notes = "\n".join(f"{note}  " for note in found["notes"])
    return table(("", *found["places"]), ((f"`{name}`", *cells) for name, cells in found["rows"].items())) + "\n\n" + notes


def demo() -> str:
    """What `codeword demo` printed after its comparison (which has a table of its own)."""
    text = (ROOT / "results" / "demo.txt").read_text(encoding="utf-8")
    return "```text\n" + text[text.index("An index of"):].rstrip() + "\n```"


SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"demo": demo, "layers": layers, "job": job, "tokenizers": tokenizers, "equal_bits": equal_bits, "compare": compare,
                  "ivf": ivf, "faiss": faiss, "kernels": kernels, "gpu": gpu, "places": places, "systems": systems},
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
