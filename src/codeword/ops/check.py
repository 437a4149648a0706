"""Does the compiled module still compute what it is defined to compute, on this processor? ``codeword doctor`` asks.

The tests compare far more; this takes milliseconds and needs nothing but the installed package, so that a user with a new processor,
a new compiler or a new torch can tell in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from codeword.ops import additive, adjust, bit_blocks, dispatch, e8, fsq, functions, grid, lut_blocks, pyramid, reference, segment_blocks


def self_check() -> dict[str, bool]:
    """Whether each op of the compiled module gives the bits of the reference on small inputs; {} where none is in use."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(65, 100, generator=generator)
    codebook = torch.randn(57, 100, generator=generator)
    codebook[7] = codebook[3]
    x[5], x[6, 0] = codebook[7], torch.nan
    many = torch.cat((x, -x, x.flip(0)))  # enough rows and codewords for each way nearest has
    books = (codebook, torch.cat((codebook, codebook + 1)), codebook[:, :4].contiguous())
    signs = torch.where(torch.rand(4, 100, generator=generator) < 0.5, -1.0, 1.0)
    labels = torch.randint(0, 9, (65,), generator=generator)
    widths = [1, 3, 8, 13, 63]
    indices = torch.randint(0, 1 << 62, (65, 5), generator=generator) & torch.tensor([(1 << w) - 1 for w in widths])
    packed = reference.pack(indices, widths)
    magnitudes = torch.randint(0, grid.TOP, (5, 100), generator=generator, dtype=torch.int32)
    scan, cut = bit_blocks.example(generator), segment_blocks.example(generator)
    constants = torch.full((3, 2), 0.3, dtype=torch.float64)
    cut_query = (x[:5, :70].contiguous(), x[:5], x[:5, 0].contiguous(), x[:5, 1], ((40, 5), (30, 1)), constants, True)
    tables = lut_blocks.example(generator)
    slices = x[:4, :98].reshape(4, 7, 14), codebook[:, :98].reshape(7, 14, 57), -2.0, None
    sixteens = x[:, :96].reshape(-1, 16).contiguous()
    # Two coordinates with three pulses: N and S as parts/pyramid.py makes them.
    triangle = (torch.tensor([[1, 0, 0, 0], [1, 2, 2, 2]]), torch.tensor([[1, 1, 1, 0], [1, 3, 5, 0]]))
    numbers = torch.arange(12)
    signed = pyramid.reference_point(numbers, *triangle)
    eights = torch.randint(-3 * e8.UNIT, 3 * e8.UNIT, (40, 8), generator=generator, dtype=torch.int32) // 256 * 256

    levels = [8, 5, 2, 40, 5]
    grid_edges = torch.linspace(-2, 2, 40).repeat(5, 1), torch.linspace(-1, 1, 5), torch.full((5,), 2.0), torch.full((5,), 3.0), levels
    tokens = x.reshape(-1, 5)
    curve = torch.tanh(tokens), tokens, torch.linspace(1, 2, 5), torch.linspace(0, 1, 5)
    terms, gram = torch.randn(65, 3, 16, generator=generator), torch.randn(3, 3, 16, 16, generator=generator)
    start = additive.empty_states(65, 3)

    cases: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "nearest": (lambda: tuple(functions.nearest(many[:, :book.shape[1]].contiguous(), book) for book in books),
                    lambda: tuple(reference.nearest(many[:, :book.shape[1]].contiguous(), book) for book in books)),
        "project": (lambda: functions.project(x, codebook), lambda: reference.project(x, codebook)),
        "hadamard": (lambda: functions.hadamard(x[:, :64]), lambda: reference.hadamard(x[:, :64])),
        "rotate": (lambda: functions.rotate(x, signs), lambda: reference.rotate(x, signs)),
        "pack": (lambda: functions.pack(indices, widths), lambda: packed),
        "unpack": (lambda: functions.unpack(packed, widths, 65), lambda: indices),
        "grid_code": (lambda: grid.grid_code(magnitudes, 8), lambda: grid.reference(magnitudes, 8)),
        "adjust_code": (lambda: adjust.adjust_code(x, [60, 40], [3, 9], 4), lambda: adjust.reference(x, [60, 40], [3, 9], 4)),
        "pyramid_project": (lambda: pyramid.project(sixteens, 9), lambda: pyramid.reference_project(sixteens, 9)),
        "pyramid_number": (lambda: pyramid.number(signed, *triangle), lambda: pyramid.reference_number(signed, *triangle)),
        "pyramid_point": (lambda: pyramid.point(numbers, *triangle), lambda: pyramid.reference_point(numbers, *triangle)),
        "e8_nearest": (lambda: e8.e8_nearest(eights), lambda: e8.reference(eights)),
        "fsq_round": (lambda: fsq.fsq_round(tokens, *grid_edges), lambda: fsq.reference_round(tokens, *grid_edges)),
        "fsq_curve": (lambda: fsq.fsq_curve(*curve), lambda: fsq.reference_curve(*curve)),
        "bit_query": (lambda: bit_blocks.prepare(x[:5], codebook[0], signs, 5, 1.9, True)[:4],
                      lambda: bit_blocks.prepare_reference(x[:5], codebook[0], signs, 5, 1.9, True)[:4]),
        "bit_scan": (lambda: bit_blocks.bit_scan(*scan, 1), lambda: bit_blocks.reference(*scan)),
        "segment_query": (lambda: segment_blocks.prepare(*cut_query)[:4], lambda: segment_blocks.prepare_reference(*cut_query)[:4]),
        "segment_scan": (lambda: segment_blocks.segment_scan(*cut, 1), lambda: segment_blocks.reference(*cut)),
        "lut_scan": (lambda: lut_blocks.lut_scan(*tables, 1), lambda: lut_blocks.reference(*tables)),
        "lut_tables": (lambda: lut_blocks.lut_tables(*slices), lambda: lut_blocks.tables_reference(*slices)),
        "additive_search": (lambda: additive.additive_search(terms, gram, start, filled=0, beam=5, sweeps=2),
                            lambda: additive.reference(terms, gram, *start, 0, 5, 2)),
        "segment_sum": (lambda: functions.segment_sum(x, labels, 9), lambda: reference.segment_sum(x, labels, 9)),
    }
    return {op: _same(got(), want()) for op, (got, want) in cases.items() if dispatch.choice(op) == "native"}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(torch.isnan(a), torch.isnan(b)) and \
            torch.equal(a.nan_to_num(), b.nan_to_num())
    return all(_same(p, q) for p, q in zip(a, b, strict=True))
