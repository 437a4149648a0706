"""PVQ: counts, bijection and rates are exact; errors are those of the theory; the greedy projection is near the best point."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import codeword
from codeword import PVQ, CodewordError, Unsupported, make, ops
from codeword.parts import pyramid, random
from codeword.parts.lloyd import lloyd_levels, midpoints
from codeword.quantizer import Codes

BUNDLED = Path(codeword.__file__).parent / "data" / "bundled"
SMALL = [(1, 1), (1, 7), (2, 1), (2, 9), (3, 5), (4, 4), (5, 3), (6, 3), (8, 2)]


def _points(group: int, pulses: int) -> list[tuple[int, ...]]:
    """The pyramid by brute force."""
    return [y for y in itertools.product(range(-pulses, pulses + 1), repeat=group) if sum(map(abs, y)) == pulses]


def _gaussian(groups: int, group: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(random.normal(seed, groups * group, stream="test pvq")).reshape(groups, group)


# ---------------------------------------------------------------------- counting and numbering


@pytest.mark.parametrize(("group", "pulses", "count"), [(4, 2, 32), (8, 4, 2816), (16, 8, 30316544)])
def test_known_counts(group: int, pulses: int, count: int) -> None:
    assert pyramid.sizes(group, 1 << 62)[pulses - 1] == count


@pytest.mark.parametrize(("group", "pulses"), [*SMALL, (16, 53), (32, 21), (64, 12), (256, 8)])
def test_counts_follow_the_closed_form(group: int, pulses: int) -> None:
    closed = sum(2**i * math.comb(group, i) * math.comb(pulses - 1, i - 1) for i in range(1, min(group, pulses) + 1))
    assert pyramid.sizes(group, pyramid.LIMIT - 1)[pulses - 1] == closed


@pytest.mark.parametrize(("group", "bits_per_entry", "pulses", "rate", "width"), [
    (8, 2, 6, 1.840, 15), (8, 3, 16, 2.982, 24), (8, 4, 36, 3.990, 32), (16, 2, 12, 1.983, 32), (16, 3, 27, 2.975, 48),
])
def test_published_rates(group: int, bits_per_entry: int, pulses: int, rate: float, width: int) -> None:
    sizes = pyramid.sizes(group, 1 << (group * bits_per_entry))
    assert len(sizes) == pulses  # the largest pyramid within the rate
    assert math.log2(sizes[-1]) / group == pytest.approx(rate, abs=6e-4)
    quantizer = PVQ(dim=group, group=group, pulses=pulses, gain_bits=0)
    assert quantizer.widths == (width,) and quantizer.nominal_bits == width / group


@pytest.mark.parametrize(("group", "pulses"), SMALL)
def test_numbering_is_a_bijection(group: int, pulses: int) -> None:
    tables = pyramid.tables(group, pulses)
    count = pyramid.sizes(group, 1 << 40)[pulses - 1]
    points = pyramid.point(torch.arange(count), *tables)
    assert {tuple(y) for y in points.tolist()} == set(_points(group, pulses))
    assert torch.equal(pyramid.number(points, *tables), torch.arange(count))


def test_numbering_counts_what_stands_before() -> None:
    # Fischer's order: 0 first, then +1, -1, +2, -2, ... at each coordinate.
    tables = pyramid.tables(2, 2)
    assert pyramid.point(torch.arange(8), *tables).tolist() == [[0, 2], [0, -2], [1, 1], [1, -1], [-1, 1], [-1, -1], [2, 0], [-2, 0]]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_numbering_round_trip_of_large_pyramids(data: st.DataObject) -> None:
    group = data.draw(st.sampled_from([2, 3, 5, 8, 16, 24, 31, 32, 64, 100]))
    pulses = data.draw(st.integers(1, min(len(pyramid.sizes(group, pyramid.LIMIT - 1)), 200)))
    count = pyramid.sizes(group, pyramid.LIMIT - 1)[pulses - 1]
    index = torch.tensor([*data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=5)), 0, count - 1])
    tables = pyramid.tables(group, pulses)
    points = pyramid.point(index, *tables)
    assert bool((points.abs().sum(1) == pulses).all())
    assert torch.equal(pyramid.number(points, *tables), index)


@pytest.mark.parametrize("group", [2, 3, 8, 16, 32, 64, 256])
def test_the_largest_pyramids_do_not_overflow(group: int) -> None:
    pulses = len(pyramid.sizes(group, pyramid.LIMIT - 1))
    counts, sums = pyramid.tables(group, pulses)
    # Python's integers against the int64 that wraps silently.
    row = [[1] + [0] * pulses]
    for _ in range(1, group):
        new = [1]
        for k in range(1, pulses + 1):
            new.append(row[-1][k] + new[k - 1] + row[-1][k - 1])
        row.append(new)
    assert counts.tolist() == row and bool((counts >= 0).all()) and bool((sums >= 0).all())
    extreme = torch.zeros(2, group, dtype=torch.int64)
    extreme[0, -1], extreme[1, 0] = pulses, -pulses  # the first and the last number
    count = pyramid.sizes(group, pyramid.LIMIT - 1)[-1]
    assert pyramid.number(extreme, counts, sums).tolist() == [0, count - 1]


# ---------------------------------------------------------------------- projection


@pytest.mark.parametrize(("group", "pulses"), [(2, 3), (3, 4), (4, 4), (5, 3), (6, 2)])
def test_greedy_projection_is_near_the_best_point(group: int, pulses: int) -> None:
    x = _gaussian(200, group).double()
    every = torch.tensor(_points(group, pulses), dtype=torch.float64)
    best = ((x @ every.mT) / every.norm(dim=1)).max(1).values
    points, gain = pyramid.project(x.float(), pulses)
    cosine, limit = gain / x.float().double().norm(dim=1), best / x.norm(dim=1)
    assert bool((points.abs().sum(1) == pulses).all())
    assert float((limit - cosine).max()) < 0.03 and float((limit - cosine).mean()) < 0.002
    assert float((cosine >= limit - 1e-6).double().mean()) > 0.85


def test_projection_of_special_groups() -> None:
    x = torch.tensor([[0.0, 0, 0, 0], [-0.0, 0, 0, 0], [float("nan"), 1, 0, 0], [1, float("inf"), 0, 0],
                      [1, 1, 1, 1], [0, 0, -5, 0], [1e-45, 0, 0, -1e-45], [3e38, -3e38, 0, 0], [1, 2, 3, 4]])
    points, gain = pyramid.project(x, 5)
    first = [5, 0, 0, 0]
    assert points[:4].tolist() == [first, first, first, first] and gain[:4].tolist() == [0, 0, 0, 0]
    assert points[4].tolist() == [2, 1, 1, 1]  # ties go to the lower place
    assert points[5].tolist() == [0, 0, -5, 0] and float(gain[5]) == 5.0
    assert points[6].abs().sum() == 5 and points[7].tolist() == [3, -2, 0, 0]
    assert bool(torch.isfinite(gain).all()) and bool((gain >= 0).all())


def test_projection_keeps_signs_and_scale() -> None:
    x = _gaussian(64, 16)
    points, gain = pyramid.project(x, 11)
    assert bool(((points == 0) | (points.sign() == x.sign())).all())
    scaled, larger = pyramid.project(x * 4, 11)
    assert torch.equal(points, scaled) and torch.equal(gain * 4, larger)
    assert torch.equal(pyramid.project(-x, 11)[0], -points)


def test_gain_is_the_least_squares_one() -> None:
    x = _gaussian(50, 8)
    points, gain = pyramid.project(x, 6)
    direction = points.double() / points.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(gain, (x.double() * direction).sum(1), rtol=1e-14, atol=0)


# ---------------------------------------------------------------------- errors on Gaussian data


FREE = [(8, 4, 0.163), (8, 6, 0.087), (8, 8, 0.053), (16, 8, 0.153), (16, 12, 0.0825), (16, 16, 0.050), (32, 16, 0.149)]


@pytest.mark.parametrize(("group", "pulses", "expected"), FREE)
def test_error_with_the_ideal_gain(group: int, pulses: int, expected: float) -> None:
    x = _gaussian(65536 // group, group)
    _, gain = pyramid.project(x, pulses)
    assert float((x.double().square().sum(1) - gain.square()).mean()) / group == pytest.approx(expected, rel=0.025)


@pytest.mark.parametrize(("bits", "group", "pulses", "gain_bits", "expected"), [
    (2.0, 8, 6, 1, 0.1071), (2.0, 16, 11, 1, 0.1052), (2.25, 8, 7, 1, 0.0876), (2.25, 16, 14, 1, 0.0743),
    (3.0, 8, 13, 2, 0.0286), (3.0, 16, 23, 3, 0.0272), (3.25, 16, 28, 3, 0.0191),
])
def test_error_with_coded_gain(bits: float, group: int, pulses: int, gain_bits: int, expected: float) -> None:
    x = _gaussian(65536 // group, group)
    quantizer = PVQ(dim=group, group=group, pulses=pulses, gain_bits=gain_bits)
    assert quantizer.nominal_bits == bits
    values = quantizer.fit(x).decode(quantizer.encode(x))
    assert float((values - x).double().square().mean()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("bits", "scalar", "gain"), [(2, 0.1175, 0.08), (3, 0.0345, 0.18)])
def test_beats_the_best_scalar_quantizer(bits: int, scalar: float, gain: float) -> None:
    train, test = _gaussian(6144, 16), _gaussian(2048, 16, seed=1)
    quantizer = make(f"pvq:bits={bits}", 16).fit(train)
    error = float((quantizer.decode(quantizer.encode(test)) - test).square().mean())
    levels = lloyd_levels(train.flatten(), 1 << bits)
    best = levels[torch.searchsorted(midpoints(levels), test.flatten().double())]
    reached = float((best - test.flatten()).square().mean())
    assert reached == pytest.approx(scalar, rel=0.03)
    assert quantizer.nominal_bits == bits and error < (1 - gain) * reached


def test_error_falls_with_pulses_and_with_gain_bits() -> None:
    x = _gaussian(1024, 16)

    def error(pulses: int, gain_bits: int) -> float:
        quantizer = PVQ(dim=16, group=16, pulses=pulses, gain_bits=gain_bits).fit(x)
        return float((quantizer.decode(quantizer.encode(x)) - x).square().mean())

    by_pulses = [error(pulses, 8) for pulses in (1, 2, 4, 8, 16, 32, 38)]
    by_gain = [error(11, gain_bits) for gain_bits in (0, 1, 2, 4, 8)]
    assert by_pulses == sorted(by_pulses, reverse=True) and by_gain == sorted(by_gain, reverse=True)


def test_dial_takes_the_best_split() -> None:
    # The splits that the paper's successor and our simulations find best at D=16: 31+1, 35+1, 45+3 and 49+3 bits.
    best = {2: (11, 1), 2.25: (14, 1), 3: (23, 3), 3.25: (28, 3)}
    for bits, split in best.items():
        quantizer = PVQ.for_bits(16, bits)
        assert (quantizer.group, quantizer.pulses, quantizer.gain_bits) == (16, *split)
    x = _gaussian(200, 48)
    for bits in (1, 2, 4):
        quantizer = PVQ.for_bits(48, bits)
        error = float((quantizer.fit(x).decode(quantizer.encode(x)) - x).square().mean())
        for group, gain_bits in ((48, 0), (24, 1), (16, 1), (12, 3), (8, 2)):
            sizes = pyramid.sizes(group, 1 << max(0, min(63 - gain_bits, int(bits * group) - gain_bits)))
            if sizes and (sizes[-1] << gain_bits) < pyramid.LIMIT:
                other = PVQ(dim=48, group=group, pulses=len(sizes), gain_bits=gain_bits)
                assert error < 1.03 * float((other.fit(x).decode(other.encode(x)) - x).square().mean()), (bits, group, gain_bits)


# ---------------------------------------------------------------------- the quantizer


def test_two_bits_of_sixteen_entries_are_one_word() -> None:
    quantizer = PVQ(dim=32, group=16, pulses=11, gain_bits=1)
    codes = quantizer.fit(_gaussian(64, 32)).encode(_gaussian(8, 32))
    assert codes.indices.dtype == torch.uint32 and codes.indices.shape == (8, 2) and codes.indices.nbytes == 64
    assert quantizer.bits(codes) == 2.0


def test_decode_is_gain_times_direction() -> None:
    quantizer = PVQ(dim=16, group=8, pulses=5, gain_bits=2)
    x = _gaussian(32, 16)
    values = quantizer.fit(x).decode(quantizer.encode(x)).reshape(-1, 8)
    norms = values.double().norm(dim=1)
    level = quantizer.gains.double().repeat(32, 1)
    assert bool(((norms.unsqueeze(1) - level).abs().min(1).values < 1e-6).all())
    ratio = values.double() / norms.unsqueeze(1)
    points, _ = pyramid.project(x.reshape(-1, 8), 5)
    torch.testing.assert_close(ratio, points.double() / points.double().norm(dim=1, keepdim=True), rtol=1e-6, atol=1e-7)


def test_levels_are_learned_for_each_group() -> None:
    x = _gaussian(256, 16) * torch.tensor([1.0] * 8 + [10.0] * 8)
    quantizer = PVQ(dim=16, group=8, pulses=6, gain_bits=1).fit(x)
    ratio = quantizer.gains[1] / quantizer.gains[0]
    assert bool(((ratio > 9) & (ratio < 11)).all())


def test_zero_group_takes_the_lowest_level() -> None:
    quantizer = PVQ(dim=8, group=8, pulses=3, gain_bits=2).fit(_gaussian(64, 8))
    value = quantizer.decode(quantizer.encode(torch.zeros(1, 8)))
    expected = torch.zeros(1, 8)
    expected[0, 0] = quantizer.gains[0, 0]
    assert torch.equal(value, expected)
    zeros = PVQ(dim=8, group=8, pulses=3, gain_bits=2).fit(torch.zeros(4, 8))
    assert bool((zeros.decode(zeros.encode(torch.zeros(4, 8))) == 0).all())


def test_every_code_decodes_and_comes_back() -> None:
    quantizer = PVQ(dim=4, group=4, pulses=3, gain_bits=2).fit(_gaussian(500, 4))
    codes = torch.arange(quantizer.levels[0]).unsqueeze(1)
    values = quantizer.decode(Codes(codes))
    assert bool((quantizer.encode(values).indices.to(torch.int64) == codes).all())


@pytest.mark.parametrize("arguments", [
    {"dim": 16, "group": 5, "pulses": 2}, {"dim": 16, "group": 0, "pulses": 2}, {"dim": 16, "group": 32, "pulses": 2},
    {"dim": 16, "group": 16, "pulses": 0}, {"dim": 16, "group": 16, "pulses": 58, "gain_bits": 1}, {"dim": 64, "group": 64, "pulses": 43},
    {"dim": 16, "group": 16, "pulses": 4, "gain_bits": 9}, {"dim": 16, "group": 16, "pulses": 4, "gain_bits": -1},
    {"dim": 2, "group": 2, "pulses": 1 << 13},
])
def test_constructor_refuses(arguments: dict) -> None:
    with pytest.raises(CodewordError):
        PVQ(**arguments)


def test_dial_at_its_ends() -> None:
    with pytest.raises(Unsupported, match="no pyramid"):
        PVQ.for_bits(16, 0.01)
    assert PVQ.for_bits(1, 4).nominal_bits == 4  # a sign and eight levels
    assert PVQ.for_bits(7, 2).group == 7 and PVQ.for_bits(127, 4).nominal_bits <= 4
    assert 0.2 < PVQ.for_bits(384, 0.25).nominal_bits <= 0.25


@pytest.mark.parametrize(("bits", "gain"), [(2, 0.08), (3, 0.18)])
def test_beats_the_best_scalar_quantizer_on_rotated_embeddings(bits: int, gain: float) -> None:
    x = torch.from_numpy(np.load(BUNDLED / "base.f16.npy", mmap_mode="r")[:900].astype(np.float32))
    signs = torch.from_numpy(random.signs(0, 4 * 384)).reshape(4, 384)
    y = ops.rotate(x - x[:600].mean(0), signs)
    train, test = y[:600], y[600:]
    levels = lloyd_levels(train.flatten(), 1 << bits)
    scalar = (levels[torch.searchsorted(midpoints(levels), test.double())] - test).square().mean()
    pvq = make(f"pvq:bits={bits}", 384).fit(train)
    error = (pvq.decode(pvq.encode(test)) - test).double().square().mean()
    assert pvq.nominal_bits == bits and float(error) < (1 - gain) * float(scalar)
