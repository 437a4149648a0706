"""Mechanism: the few operations that every quantizer rests on, each with one definition and several implementations.

``reference.py`` is the definition in plain torch and runs everywhere. Native kernels (csrc/) and Triton kernels must give the
same result in their declared class:

    exact       nearest  project  hadamard  rotate  pack  unpack  segment_sum      bit-equal to the reference
                bit_scan  segment_scan  grid_code  adjust_code  lut_scan
                bit_scan  grid_code  adjust_code  lut_scan
                bit_scan  grid_code  additive_search
                bit_scan  grid_code  lut_scan  lut_tables
                bit_scan  grid_code  e8_nearest
                bit_scan  segment_scan  grid_code  adjust_code  lut_scan  additive_search
"""

from __future__ import annotations

from codeword.ops.additive import States, additive_search, empty_states
from codeword.ops.adjust import adjust_code
from codeword.ops.bit_blocks import bit_scan
from codeword.ops.check import self_check
from codeword.ops.dispatch import available, choice, choices, native_info, num_threads
from codeword.ops.e8 import e8_nearest
from codeword.ops.functions import INDEX_DTYPES, Nearest, hadamard, nearest, pack, packed_bytes, project, rotate, segment_sum, unpack
from codeword.ops.functions import (
    INDEX_DTYPES,
    Nearest,
    SegmentSum,
    Tracker,
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
    "INDEX_DTYPES", "Nearest", "SegmentSum", "Tracker", "available", "bit_scan", "choice", "choices", "grid_code", "hadamard",
    "INDEX_DTYPES", "Nearest", "available", "bit_scan", "choice", "choices", "e8_nearest", "grid_code", "hadamard", "native_info",
    "nearest", "num_threads", "pack", "packed_bytes", "project", "rotate", "segment_sum", "self_check", "unpack",
    "INDEX_DTYPES", "Nearest", "adjust_code", "available", "bit_scan", "choice", "choices", "grid_code", "hadamard", "lut_scan",
    "lut_tables", "native_info", "nearest",
    "INDEX_DTYPES", "Nearest", "available", "bit_scan", "choice", "choices", "e8_nearest", "grid_code", "hadamard", "native_info", "nearest",
    "INDEX_DTYPES", "Nearest", "SegmentSum", "Tracker", "available", "bit_scan", "choice", "choices", "grid_code", "hadamard", "native_info", "nearest",
    "num_threads", "pack", "packed_bytes", "project", "rotate", "segment_sum", "self_check", "unpack",
    "INDEX_DTYPES", "Nearest", "States", "additive_search", "available", "bit_scan", "choice", "choices", "empty_states", "grid_code",
    "hadamard", "native_info", "nearest", "num_threads", "pack", "packed_bytes", "project", "rotate", "segment_sum", "self_check", "unpack",
    "INDEX_DTYPES", "Nearest", "States", "additive_search", "adjust_code", "available", "bit_scan", "choice", "choices", "empty_states",
    "grid_code", "hadamard", "lut_scan", "lut_tables", "native_info", "nearest", "num_threads", "pack", "packed_bytes", "project",
    "rotate", "segment_sum", "self_check", "unpack",
    "INDEX_DTYPES", "Nearest", "available", "bit_scan", "choice", "choices", "grid_code", "hadamard", "lut_scan", "lut_tables",
    "native_info", "nearest", "num_threads", "pack", "packed_bytes", "project", "rotate", "segment_sum", "self_check", "unpack",
]
