"""Mechanism: the few operations that every quantizer rests on, each with one definition and several implementations.

``reference.py`` is the definition in plain torch and runs everywhere. Native kernels (csrc/) and Triton kernels must give the
same result in their declared class:

    exact       nearest  project  hadamard  rotate  pack  unpack  segment_sum      bit-equal to the reference
                bit_scan  grid_code
"""

from __future__ import annotations

from codeword.ops.bit_blocks import bit_scan
from codeword.ops.check import self_check
from codeword.ops.dispatch import available, choice, choices, native_info, num_threads
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

__all__ = [
    "INDEX_DTYPES", "Nearest", "SegmentSum", "Tracker", "available", "bit_scan", "choice", "choices", "grid_code", "hadamard",
    "native_info", "nearest", "num_threads", "pack", "packed_bytes", "project", "rotate", "segment_sum", "self_check", "unpack",
]
