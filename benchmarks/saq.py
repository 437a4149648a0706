"""SAQ and CAQ beside RaBitQ, LVQ and rabitqlib: error at equal storage, and the time codes take. One thread.

    python benchmarks/saq.py ../shared/data/vectors [--quick] [--out results/saq.csv]

what        "error": mean |d2_est - d2| / d2 over all pairs of held-out queries and base rows, one centroid (the mean), squared L2.
            "assignment": microseconds of processor time a vector from rotated vectors to codes and side floats, transforms not counted;
            "encode": the whole of encode, transforms counted. Medians of five, ours and theirs in turn.
data, dim   minilm (sentence embeddings) or mnist (pixels)
ours        saq, caq, or saq-paper (64 dimensions a segment, two float32 for each, as in the paper: what our side information saves)
peer        rabitq, lvq, caq (this library), rabitqlib, rabitqlib-exact, rabitqlib-fast
code_bits   bits a dimension of the peer's code
peer_bits   bits a dimension that the peer stores, side information included; padding of its width too; ids not
ours_bits   what ours stores; for errors never more than peer_bits
peer_value, ours_value, ratio    the error or time of each, and ours over theirs
plan        SAQ's (dimensions x bits)
load        of the machine when measured (1 minute)

rabitqlib has no call for codes alone: an assignment of B bits is its build with one list minus its build with 1 bit, which rotates, takes
signs and packs too. Its decisions on signs are thus not counted, its packing of the other bits is. Our exact search is there as
"rabitq-exact".
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import rabitqlib
import torch
from torch import Tensor

from codeword import CAQ, LVQ, SAQ, RaBitQ
from codeword.parts.bit_plan import bit_plan, plan_bits
from codeword.parts.pca import pca

FIELDS = ("what", "data", "dim", "ours", "peer", "code_bits", "peer_bits", "ours_bits", "peer_value", "ours_value", "ratio", "plan", "load")
FITTED, BASE, QUERIES, TIMED, REPEATS = 10_000, 2_000, 200, 4_096, 5


def vectors(folder: Path, data: str) -> tuple[Tensor, Tensor]:
    """Rows to fit on, of which the first are the base, and queries that are not among them."""
    if data == "minilm":
        rows = np.load(folder / "minilm_sentences.f16.npy", mmap_mode="r")
    else:
        with np.load(folder / "mnist784.npz") as archive:
            rows = archive[archive.files[0]].reshape(60_000, -1)
    order = np.random.default_rng(0).permutation(len(rows))[:FITTED + QUERIES]
    chosen = torch.from_numpy(rows[np.sort(order)].astype(np.float32))[torch.from_numpy(np.argsort(np.argsort(order)))]
    return chosen[:FITTED].contiguous(), chosen[FITTED:].contiguous()


# ---------------------------------------------------------------------- error


def relative(estimate: Tensor, truth: Tensor) -> float:
    return float(((estimate - truth).abs() / truth).mean())


def scanned_error(quantizer: Any, base: Tensor, queries: Tensor, truth: Tensor) -> float:
    found = quantizer.scan(quantizer.pack(quantizer.encode(base)), quantizer.prepare(queries, "l2"), 0, len(base))[0]
    return relative(found.double() + queries.double().square().sum(1, keepdim=True), truth)


def lvq_error(lvq: LVQ, base: Tensor, queries: Tensor, truth: Tensor) -> float:
    values = torch.as_tensor(lvq.decode(lvq.encode(base)))
    return relative(torch.cdist(queries.double(), values.double()).square(), truth)


def library_error(rows: Tensor, base: Tensor, queries: Tensor, truth: Tensor, bits: int) -> float:
    index = rabitqlib.IvfIndex(base.shape[1], len(base), 1, bits, "l2")
    index.build(base.numpy(), rows.mean(0, keepdim=True).numpy(), np.zeros(len(base), dtype=np.uint32), 1, False)
    ids, found = (np.asarray(part) for part in index.search(queries.numpy(), len(base), 1, high_accuracy=True, num_threads=1))
    estimate = torch.empty(len(queries), len(base), dtype=torch.float64)
    estimate.scatter_(1, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(found.astype(np.float64)))
    return relative(estimate, truth)


def library_bits(dim: int, bits: int) -> float:
    """A multiple of 64 dimensions; 3 floats, and 2 more with more than one bit."""
    return (-(-dim // 64) * 64 * bits + 32 * (3 if bits == 1 else 5)) / dim


def paper_error(rows: Tensor, base: Tensor, queries: Tensor, truth: Tensor, total: float) -> tuple[float, float]:
    """Error and bits of SAQ with the paper's segments: multiples of 64, 64 bits each and one more norm."""
    saq, found = SAQ(dim=rows.shape[1], rate=total, granularity=64), pca(rows)
    plan = bit_plan(found.variances.numpy(), int(total * saq.dim) - 32, granularity=64, overhead=64)
    saq._learn(rows, None, found, plan)
    saq.fitted = True
    return scanned_error(saq, base, queries, truth), (plan_bits(plan, 64) + 32) / saq.dim


def error_rows(data: str, rows: Tensor, queries: Tensor, all_bits: list[int]) -> Iterator[dict]:
    base, dim = rows[:BASE].contiguous(), rows.shape[1]
    truth = torch.cdist(queries.double(), base.double()).square()
    for bits in all_bits:
        rabitq, lvq = RaBitQ(dim=dim, code_bits=bits).fit(rows), LVQ(dim=dim, code_bits=bits).fit(rows)
        caq = CAQ(dim=dim, code_bits=bits).fit(rows)
        exact = scanned_error(rabitq, base, queries, truth)
        peers = (("rabitq", rabitq.nominal_bits, exact), ("lvq", lvq.nominal_bits, lvq_error(lvq, base, queries, truth)),
                 ("rabitqlib", library_bits(dim, bits), library_error(rows, base, queries, truth, bits)))
        for peer, stored, error in peers:
            saq = SAQ(dim=dim, rate=stored).fit(rows)
            yield row("error", data, dim, "saq", peer, bits, stored, saq.nominal_bits, error, scanned_error(saq, base, queries, truth), saq)
        ours, spent = paper_error(rows, base, queries, truth, rabitq.nominal_bits)
        yield row("error", data, dim, "saq-paper", "rabitq", bits, rabitq.nominal_bits, spent, exact, ours)
        yield row("error", data, dim, "caq", "rabitq", bits, rabitq.nominal_bits, caq.nominal_bits, exact,
                  scanned_error(caq, base, queries, truth))


# ---------------------------------------------------------------------- time


def in_turn(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of the calling thread, medians; a round calls each once."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(REPEATS + 1):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            if repeat:
                times[name].append(time.thread_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def time_rows(data: str, rows: Tensor, all_bits: list[int]) -> Iterator[dict]:
    part, dim = rows[:TIMED].contiguous(), rows.shape[1]
    few = part[:TIMED // 8]  # of what takes long

    def build(x: Tensor, bits: int, fast: bool) -> Callable[[], object]:
        numbers, center, labels = x.numpy(), x.mean(0, keepdim=True).numpy(), np.zeros(len(x), dtype=np.uint32)
        return lambda: rabitqlib.IvfIndex(dim, len(x), 1, bits, "l2").build(numbers, center, labels, 1, fast)

    for bits in all_bits:
        rabitq, caq = RaBitQ(dim=dim, code_bits=bits).fit(rows), CAQ(dim=dim, code_bits=bits).fit(rows)
        saq = SAQ(dim=dim, rate=rabitq.nominal_bits).fit(rows)
        rotated, coordinates, turned = caq._rotated(part), saq._coordinates(part), caq._rotated(few)
        took = in_turn({
            "caq": lambda caq=caq, rotated=rotated: caq._assign(*rotated), "saq": lambda saq=saq, y=coordinates: saq._assign(*y),
            "exact": build(part, bits, False),
            "fast": build(part, bits, True), "signs": build(part, 1, True),
            "rabitq": lambda rabitq=rabitq, rotated=turned: rabitq._assign(*rotated),
            "caq encode": lambda caq=caq: caq.encode(part), "saq encode": lambda saq=saq: saq.encode(part)})
        each = {name: 1e6 * seconds / (len(few) if name == "rabitq" else len(part)) for name, seconds in took.items()}
        print("us a vector:", {name: round(value, 2) for name, value in each.items()})
        for ours, stored in (("caq", caq.nominal_bits), ("saq", saq.nominal_bits)):
            for peer, name in (("rabitqlib-exact", "exact"), ("rabitqlib-fast", "fast")):
                theirs = library_bits(dim, bits)
                yield row("assignment", data, dim, ours, peer, bits, theirs, stored, each[name] - each["signs"], each[ours])
                yield row("encode", data, dim, ours, peer, bits, theirs, stored, each[name], each[ours + " encode"])
            yield row("assignment", data, dim, ours, "rabitq-exact", bits, rabitq.nominal_bits, stored, each["rabitq"], each[ours])


def row(what: str, data: str, dim: int, ours: str, peer: str, bits: int, peer_bits: float, ours_bits: float, theirs: float, value: float,
        saq: SAQ | None = None) -> dict:
    plan = "" if saq is None else " ".join(f"{length}x{b}" for length, b in saq.plan)
    return dict(zip(FIELDS, (what, data, dim, ours, peer, bits, f"{peer_bits:.4f}", f"{ours_bits:.4f}", f"{theirs:.4g}", f"{value:.4g}",
                             f"{value / theirs:.4f}", plan, f"{os.getloadavg()[0]:.1f}"), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="2 and 4 bits only")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates = [2, 4] if options.quick else list(range(1, 9))
    found = []
    for data in ("minilm", "mnist"):
        rows, queries = vectors(options.folder, data)
        for produce in (error_rows(data, rows, queries, rates), time_rows(data, rows, [bits for bits in rates if bits > 1])):
            for one in produce:
                found.append(one)
                print(f"{one['what']:10} {data:6} {one['ours']:9} {one['peer']:15} {one['code_bits']} bits at {one['ours_bits']:>7} / "
                      f"{one['peer_bits']:>7}  {one['ours_value']:>9} / {one['peer_value']:>9} = {one['ratio']:>6}  {one['plan']}",
                      flush=True)
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)


if __name__ == "__main__":
    main()
