"""Mechanism: the few operations that every quantizer rests on, each with one definition and several implementations.

``reference.py`` is the definition in plain torch and runs everywhere. Native kernels (csrc/) and Triton kernels must give the
same result in their declared class:

    exact       everything that decides a code or a distance: nearest  project  hadamard  rotate  pack  unpack  segment_sum
                grid_code  adjust_code  additive_search  e8_nearest  the pyramid ops  fsq_round  fsq_curve  bit_scan  segment_scan
                lut_scan  lut_tables: bit-equal to the reference
"""

from __future__ import annotations

from codeword.ops import searcher
from codeword.ops.additive import States, additive_search, empty_states
from codeword.ops.adjust import adjust_code
from codeword.ops.bit_blocks import bit_scan
from codeword.ops.check import self_check
from codeword.ops.dispatch import available, choice, choices, native_info, num_threads
from codeword.ops.e8 import e8_nearest
from codeword.ops.fsq import fsq_curve, fsq_round
from codeword.ops.functions import (
    INDEX_DTYPES,
    Nearest,
    SegmentSum,
    Tracker,
    gather,
    hadamard,
    nearest,
    pack,
    packed_bytes,
    project,
    rotate,
    segment_sum,
    unpack,
)
from codeword.ops.grid import grid_code
from codeword.ops.lut_blocks import lut_scan, lut_tables

__all__ = [
    "INDEX_DTYPES", "Nearest", "SegmentSum", "States", "Tracker", "additive_search", "adjust_code", "available", "bit_scan", "choice",
    "choices", "e8_nearest", "empty_states", "fsq_curve", "fsq_round", "gather", "grid_code", "hadamard", "lut_scan", "lut_tables",
    "native_info", "nearest", "num_threads", "pack", "packed_bytes", "project", "rotate", "searcher", "segment_sum", "self_check",
    "unpack",
]
