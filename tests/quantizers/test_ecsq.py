"""ECSQ and its coder: the theory's error, lengths that are what files take, streams that cannot be trusted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import codeword
from codeword import ECSQ, catalog
from codeword.errors import CodewordError, FormatError
from codeword.io import objects, verify
from codeword.parts import random, rans
from codeword.quantizer import EntropyCoded


def normal(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return random.normal(seed, n * dim, stream="ecsq tests").reshape(n, dim)


# ---------------------------------------------------------------------- the coder


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 300))
def test_coder_is_reversible(seed: int, models: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 50, models)
    tables = rans.Tables(np.concatenate([rans.frequencies(rng.random(n) ** 6) for n in sizes]), sizes)
    model = rng.integers(0, models, count)
    symbols = (rng.random(count) * sizes[model]).astype(np.int64)
    stream = tables.encode(symbols, model)
    assert (tables.decode(stream, model) == symbols).all()
    assert len(stream) * 8 <= 1.03 * tables.bits(symbols, model) + 0.03 * count + 48


@pytest.mark.parametrize("count", [8191, 8192, 16384, 100_000])
def test_coder_of_several_lanes_meets_the_entropy(count: int) -> None:
    frequency = rans.frequencies(np.exp(-0.5 * np.square((np.arange(21) - 10) / 2.0)))
    tables, model = rans.Tables(frequency, np.array([21])), np.zeros(count, np.int64)
    symbols = np.random.default_rng(1).choice(21, count, p=frequency / rans.TOTAL)
    stream = tables.encode(symbols, model)
    assert (tables.decode(stream, model) == symbols).all()
    assert 0 < len(stream) * 8 - tables.bits(symbols, model) < 0.004 * count + 32 * 16


def test_frequencies_are_whole_positive_and_complete() -> None:
    for counts in (np.ones(1), np.zeros(5), np.array([1e300, 0, 1]), np.random.default_rng(0).random(rans.TOTAL), np.arange(7)):
        found = rans.frequencies(counts)
        assert found.sum() == rans.TOTAL and found.min() >= 1
    assert (rans.frequencies(np.array([3, 1])) == [49152, 16384]).all()
    for bad in (np.array([]), np.ones(rans.TOTAL + 1), np.array([-1.0]), np.array([np.nan])):
        with pytest.raises(CodewordError):
            rans.frequencies(bad)


def test_bad_tables_and_symbols_are_refused() -> None:
    half = np.array([1 << 15, 1 << 15])
    for frequency, sizes in ((half, [1]), (half * 2, [2]), ([0, 1 << 16], [2]), (half, [2, 0]), (half, []), (np.zeros((2, 2)), [4])):
        with pytest.raises(CodewordError):
            rans.Tables(np.array(frequency), np.array(sizes))
    tables = rans.Tables(half, np.array([2]))
    for symbols, models in (([2], [0]), ([-1], [0]), ([0], [1]), ([0], [-1]), ([0, 1], [0])):
        with pytest.raises(CodewordError):
            tables.encode(np.array(symbols), np.array(models))


def test_damaged_streams_are_refused_or_give_symbols_of_the_tables() -> None:
    rng = np.random.default_rng(0)
    tables = rans.Tables(np.concatenate([rans.frequencies(rng.random(n)) for n in (3, 40)]), np.array([3, 40]))
    model = np.arange(500) % 2
    symbols = (rng.random(500) * tables.sizes[model]).astype(np.int64)
    stream, refused = tables.encode(symbols, model), 0
    tried = [stream[:n] for n in range(0, len(stream), 7)] + [np.concatenate((stream, np.zeros(n, np.uint8))) for n in (1, 2, 64)]
    for i in range(300):
        bad = stream.copy()
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        tried.append(bad if i % 2 else rng.integers(0, 256, len(stream), dtype=np.uint8))
    for bad in tried:
        try:
            found = tables.decode(bad, model)
            assert ((found >= 0) & (found < tables.sizes[model])).all()
        except FormatError:
            refused += 1
    assert refused >= 0.99 * len(tried)
    with pytest.raises(FormatError):
        tables.decode(stream, model[:499])


# ---------------------------------------------------------------------- the quantizer


# Entropy-coded uniform quantizers with bin means on N(0, 1): dB above the Shannon bound (Farvardin, Modestino 1984, approached from above).
@pytest.mark.parametrize(("rate", "most"), [(0.5, 1.0), (1, 1.48), (2, 1.62), (3, 1.62), (4, 1.62), (6, 1.66)])
def test_gaussian_error_is_the_known_one(rate: float, most: float) -> None:
    quantizer = ECSQ(dim=8, rate=rate).fit(normal(60000, 8))
    x = normal(40000, 8, seed=1)
    codes = quantizer.encode(x)
    error, bits = float(np.square(x - quantizer.decode(codes)).mean()), quantizer.bits(codes)
    assert bits == pytest.approx(rate, abs=0.02)
    assert 0 < 10 * np.log10(error) + 20 * bits * np.log10(2) < most


def test_spreads_share_bits_by_reverse_water_filling() -> None:
    spread = np.array([8, 4, 2, 1, 0.5, 0.25, 0.01, 0.001], np.float32)
    quantizer = ECSQ(dim=8, rate=2).fit(normal(20000, 8) * spread)
    error = np.square(normal(5000, 8, seed=1) * spread - quantizer.decode(quantizer.encode(normal(5000, 8, seed=1) * spread))).mean(0)
    assert np.allclose(error[:4], error[:4].mean(), rtol=0.25) and np.allclose(error[-2:], spread[-2:] ** 2, rtol=0.1)


@pytest.mark.parametrize("spec", ["ecsq:bits=1.5", "rotated(ecsq:bits=1.5)", "projected(ecsq:bits=1.5):map=pca"])
@pytest.mark.parametrize("rows", [1, 7, 500])
def test_counted_bits_are_what_files_take(tmp_path, spec: str, rows: int) -> None:
    x = normal(3000, 12) @ normal(12, 12, seed=9)
    quantizer = catalog.make(spec, 12).fit(x)
    assert isinstance(quantizer, EntropyCoded) and not isinstance(codeword.PQ(dim=4, num_codebooks=2), EntropyCoded)
    codes = quantizer.encode(torch.from_numpy(x[:rows]))
    tensors, _ = objects.codes_to_parts(codes, quantizer)
    assert set(tensors) == {"stream"} and quantizer.bits(codes) == 8 * tensors["stream"].numel() / (rows * 12)
    masked = codes._replace(lengths=torch.full((rows,), 12))
    assert quantizer.bits(masked) == quantizer.bits(codes) + 8 / 12
    objects.save_codes(tmp_path / "c.cw", codes, quantizer)
    again = objects.load_codes(tmp_path / "c.cw", quantizer)
    assert torch.equal(again.indices, codes.indices) and again.indices.dtype == codes.indices.dtype
    assert verify.verify(tmp_path / "c.cw") == []
    with pytest.raises(FormatError, match="entropy coded"):
        objects.load_codes(tmp_path / "c.cw")
    if rows == 500:
        assert quantizer.bits(codes) == pytest.approx(quantizer.nominal_bits, rel=0.03)
        assert quantizer.nominal_bits == pytest.approx(1.5, abs=0.01)
        assert quantizer.stored_bytes(rows) > tensors["stream"].numel()


def test_leading_shapes_lengths_and_no_rows_survive_a_file(tmp_path) -> None:
    quantizer = ECSQ(dim=6, rate=2).fit(normal(100, 6))
    for shape in ((2, 5, 6), (0, 6), (6,)):
        codes = quantizer.encode(torch.from_numpy(normal(10, 6)).flatten()[:int(np.prod(shape))].reshape(shape))
        codes = codes._replace(lengths=torch.full(shape[:-1], 6, dtype=torch.int32))
        objects.save_codes(tmp_path / "c.cw", codes, quantizer)
        again = objects.load_codes(tmp_path / "c.cw", quantizer)
        assert torch.equal(again.indices, codes.indices) and torch.equal(again.lengths, codes.lengths)


def test_hostile_files_are_refused(tmp_path) -> None:
    quantizer = ECSQ(dim=6, rate=2).fit(normal(100, 6))
    tensors, header = objects.codes_to_parts(quantizer.encode(torch.from_numpy(normal(50, 6))), quantizer)
    stream = tensors["stream"]
    bad = {
        "cut": ({"stream": stream[:-2]}, header), "longer": ({"stream": torch.cat((stream, stream))}, header),
        "other dtype": ({"stream": stream.to(torch.int8)}, header), "matrix": ({"stream": stream[:4].reshape(2, 2)}, header),
        "plain indices": ({"indices": stream}, header), "both": ({**tensors, "indices": stream}, header),
        "more rows": (tensors, {**header, "shape": [51]}), "many rows": (tensors, {**header, "shape": [1 << 40]}),
        "side": ({**tensors, "side": torch.zeros(50, 1)}, header), "other": (tensors, {**header, "fingerprint": "0" * 16}),
    }
    for name, (parts, head) in bad.items():
        with pytest.raises(FormatError):
            objects.codes_from_parts(parts, head, quantizer)
            pytest.fail(name)


def test_impossible_state_is_refused() -> None:
    quantizer = ECSQ(dim=3, rate=2).fit(normal(100, 3))
    for change in (lambda q: q.frequencies.__setitem__(0, 0), lambda q: q.frequencies.__setitem__(1, 7),
                   lambda q: q.step.fill_(-1.0), lambda q: q.lowest.fill_(1 << 60)):
        other = ECSQ(dim=3, rate=2).fit(normal(100, 3))
        change(other)
        with pytest.raises(FormatError):
            other.check_state()
    for bins in (None, [1, 2], [1, 2, 0], [1, 2, 1 << 20], [1, 2, True], "no"):
        with pytest.raises(FormatError):
            ECSQ(dim=3, rate=2).restore({**quantizer.structure, "bins": bins})
    for rate in (0, 11, 0.001):
        with pytest.raises(CodewordError):
            ECSQ(dim=3, rate=rate)


def test_few_or_equal_rows_and_outliers() -> None:
    equal = ECSQ(dim=4, rate=3).fit(np.ones((20, 4), np.float32))
    assert equal.levels == (1, 1, 1, 1) and (equal.decode(equal.encode(np.ones((2, 4), np.float32))) == 1).all()
    few = ECSQ(dim=4, rate=6).fit(normal(5, 4))
    assert few.report["reached_rate"] < 6
    x = normal(5000, 4)
    x[7, 2] = 1e12
    wild = ECSQ(dim=4, rate=8).fit(x)
    assert max(wild.levels) <= 4096 and np.isfinite(wild.decode(wild.encode(x))).all()


def test_weights_count_as_copies() -> None:
    x, weights = normal(400, 4), np.arange(400) % 3
    a, b = ECSQ(dim=4, rate=2).fit(x, weights=weights), ECSQ(dim=4, rate=2).fit(np.repeat(x, weights, axis=0))
    assert a.nominal_bits == pytest.approx(b.nominal_bits, abs=0.01) and float(a.step) == pytest.approx(float(b.step), rel=0.02)
