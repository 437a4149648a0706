"""pack and unpack: the documented bit string, in every width and index type."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codeword import ops
from codeword.errors import ShapeError
from codeword.ops import reference

from .conftest import equal


def random_indices(rows: int, widths: list[int], seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    bits = (torch.randint(0, 1 << 62, (rows, len(widths)), generator=g) << 1) | torch.randint(0, 2, (rows, len(widths)), generator=g)
    return bits & torch.tensor([(1 << w) - 1 for w in widths], dtype=torch.int64)


def python_bits(indices: torch.Tensor, widths: list[int]) -> bytes:
    """The bit string as one Python integer."""
    stream, filled = 0, 0
    for row in indices.tolist():
        for value, width in zip(row, widths):
            stream |= value << filled
            filled += width
    return stream.to_bytes((filled + 7) // 8, "little")


def test_known_bytes() -> None:
    assert ops.pack(torch.tensor([[1, 2, 3], [0, 3, 1]]), [1, 2, 3]).tolist() == [0b01_0_011_10_1 & 255 | 0b1000_0000, 0b0011]
    assert ops.pack(torch.tensor([[0x1234]]), [16]).tolist() == [0x34, 0x12]
    assert ops.pack(torch.zeros(4, 0, dtype=torch.int64), []).tolist() == []
    assert ops.pack(torch.zeros(0, 2, dtype=torch.int64), [3, 4]).tolist() == []
    assert ops.packed_bytes(3, [3, 4]) == 3


@given(st.lists(st.integers(0, 63), max_size=9), st.integers(0, 20), st.integers(0, 2**30))
@settings(max_examples=60, deadline=None)
def test_round_trip_and_definition(widths: list[int], rows: int, seed: int) -> None:
    indices = random_indices(rows, widths, seed)
    packed = ops.pack(indices, widths)
    assert packed.numpy().tobytes() == python_bits(indices, widths)
    assert equal(packed, reference.pack(indices, widths))
    assert equal(ops.unpack(packed, widths, rows), indices) and equal(reference.unpack(packed, widths, rows), indices)


@pytest.mark.parametrize("width", [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 31, 32, 33, 63])
def test_equal_widths(isa: str, threads: int, width: int) -> None:
    for rows, positions in [(1, 1), (7, 3), (65, 9), (1000, 7), (63, 100)]:
        widths = [width] * positions
        indices = random_indices(rows, widths)
        want = reference.pack(indices, widths)
        for dtype in ops.INDEX_DTYPES:
            if width <= torch.iinfo(dtype).max.bit_length():
                assert equal(ops.pack(indices.to(dtype), widths), want), dtype
                assert equal(ops.unpack(want, widths, rows, dtype), indices.to(dtype)), dtype


def test_mixed_widths_over_many_chunks(isa: str, threads: int) -> None:
    widths = [3, 0, 11, 8, 1, 63, 16]
    indices = random_indices(40001, widths)
    packed = ops.pack(indices, widths)
    assert equal(packed, reference.pack(indices, widths)) and equal(ops.unpack(packed, widths, 40001), indices)


@pytest.mark.parametrize("width", [0, 1, 2, 3, 4, 8, 16, 63])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_an_index_that_does_not_fit(width: int, dtype: torch.dtype) -> None:
    for value in (1 << width, -1):
        if not torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max:
            continue
        indices = torch.zeros(50, 3).to(dtype)
        indices[37, 1] = value
        with pytest.raises(ShapeError, match="does not fit"):
            ops.pack(indices, [width] * 3)


def test_refusals() -> None:
    data = torch.zeros(2, dtype=torch.uint8)
    for call in (lambda: ops.pack(torch.zeros(2, 2, dtype=torch.int64), [1]), lambda: ops.pack(torch.zeros(2, 1, dtype=torch.int64), [64]),
                 lambda: ops.pack(torch.zeros(2, 1), [3]), lambda: ops.unpack(data, [8], 3), lambda: ops.unpack(data.float(), [8], 2),
                 lambda: ops.unpack(data, [9], 1, torch.uint8), lambda: ops.unpack(data, [8], 2, torch.float32),
                 lambda: ops.unpack(data, [-1], 2), lambda: ops.unpack(data, [8], -2)):
        with pytest.raises(ShapeError):
            call()
