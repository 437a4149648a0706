"""Exact codes: the same alone, in a batch, in any order, on any number of threads; and honest counts of their bits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from subjects import Subject, join, same, state, take

from codeword import ops
from codeword.errors import ShapeError, Unsupported
from codeword.io.objects import codes_to_parts
from codeword.parts.arrays import unsigned_dtype
from codeword.quantizer import Codes, Progressive

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_codes_do_not_depend_on_the_batch(subject: Subject, chunk: int) -> None:
    quantizer, x = subject.fitted(), subject.rows()
    parts = [quantizer.encode(x[start:start + chunk]) for start in range(0, len(x), chunk)]
    assert same(join(parts), quantizer.encode(x))


def test_codes_can_be_written_into_arrays_of_the_caller(subject: Subject, tmp_path) -> None:
    quantizer, x = subject.fitted(), subject.rows()
    want = quantizer.encode(x)
    files = [None if part is None else np.memmap(tmp_path / name, part.dtype, "w+", shape=part.shape)
             for name, part in zip(("indices", "side"), want[:2], strict=True)]
    out = Codes(*files)
    assert quantizer.encode(x, out=out) is out
    for name, part in zip(("indices", "side"), want[:2], strict=True):
        assert part is None or (tmp_path / name).read_bytes() == part.tobytes()
    narrow = out._replace(indices=np.zeros((len(x), len(quantizer.levels) + 1), want.indices.dtype))
    other = out._replace(indices=np.zeros(want.indices.shape, np.float32))
    turned = out._replace(indices=np.zeros(want.indices.shape[::-1], want.indices.dtype).T)
    lengths = out._replace(lengths=np.zeros(len(x), np.int32))
    locked = out._replace(indices=np.broadcast_to(want.indices[:1, :1], want.indices.shape))
    for wrong in (narrow, other, lengths, locked, *([turned] if min(want.indices.shape) > 1 else [])):
        with pytest.raises(ShapeError, match="encode"):
            quantizer.encode(x, out=wrong)


def test_codes_do_not_depend_on_order(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.rows()
    order = np.argsort(np.arange(len(x)) * 31 % 97)
    assert same(quantizer.encode(x[order]), take(quantizer.encode(x), order))


def test_values_do_not_depend_on_the_batch(subject: Subject) -> None:
    quantizer = subject.fitted()
    codes = quantizer.encode(subject.rows())
    whole = quantizer.decode(codes)
    for chunk in (1, 7):
        parts = [quantizer.decode(take(codes, slice(start, start + chunk))) for start in range(0, len(whole), chunk)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_codes_do_not_depend_on_threads(subject: Subject, threads) -> None:
    """On as many rows as torch needs to cut its own operations in parts (32,768 values)."""
    quantizer, x, results = subject.fitted(), subject.rows(), []
    many = np.tile(x, (-(-40000 // x.size), 1))
    for count in (1, 2):
        threads(count)
        results.append(quantizer.encode(many))
    assert same(*results)
    assert same(take(results[0], slice(len(many) - len(x), len(many))), quantizer.encode(x))


def test_codes_reference_equals_native(subject: Subject, monkeypatch) -> None:
    if "native" not in ops.available():
        pytest.skip("the native module is not built here")
    quantizer, x = subject.fitted(), subject.rows()
    native = quantizer.encode(x)
    values = quantizer.decode(native)
    monkeypatch.setenv("CODEWORD_OPS", "reference")
    assert same(quantizer.encode(x), native)
    assert quantizer.decode(native).tobytes() == values.tobytes()


def test_concurrent_encodes_equal_sequential_ones(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.rows()
    expected = quantizer.encode(x)
    with ThreadPoolExecutor(4) as pool:
        assert all(same(codes, expected) for codes in pool.map(quantizer.encode, [x] * 8))


def test_codes_survive_autocast(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.tensor()
    expected = quantizer.encode(x)
    values = quantizer.decode(expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(quantizer.encode(x), expected)
        assert torch.equal(quantizer.decode(expected), values)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casting_the_module_changes_nothing(subject: Subject, cast: str) -> None:
    quantizer, x = subject.fitted(), subject.tensor()
    before, expected = state(quantizer), quantizer.encode(x)
    getattr(quantizer, cast)()
    assert state(quantizer) == before and same(quantizer.encode(x), expected)


def test_a_cast_of_the_surrounding_network_changes_nothing(subject: Subject) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, subject.dim), subject.fitted())
    before = state(network[1])
    network.to(torch.bfloat16)
    assert state(network[1]) == before and network[0].weight.dtype == torch.bfloat16


def test_encode_and_decode_change_nothing(subject: Subject) -> None:
    quantizer = subject.fitted()
    before = state(quantizer)
    quantizer.decode(quantizer.encode(subject.rows()))
    assert state(quantizer) == before


def test_train_and_eval_encode_alike(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.rows()
    assert same(quantizer.train().encode(x), quantizer.eval().encode(x))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (1, 1, 2), (0,), (2, 0)])
def test_leading_shapes(subject: Subject, lead: tuple[int, ...]) -> None:
    quantizer, count = subject.fitted(), int(np.prod(lead))
    flat = subject.rows(max(count, 1))[:count] if lead else subject.rows(1)
    codes = quantizer.encode(flat.reshape(*lead, subject.dim))
    assert codes.indices.shape == (*lead, len(quantizer.levels))
    assert (codes.side is None) == (quantizer.side_count == 0)
    if codes.side is not None:
        assert codes.side.shape == (*lead, quantizer.side_count)
    assert quantizer.decode(codes).shape == (*lead, subject.dim)
    assert codes.indices.tobytes() == quantizer.encode(flat).indices.tobytes()


def test_indices_are_small_unsigned_and_below_their_levels(subject: Subject) -> None:
    quantizer = subject.fitted()
    codes = quantizer.encode(subject.tensor())
    assert codes.indices.dtype == quantizer.index_dtype == unsigned_dtype(max(quantizer.levels))
    assert bool((codes.indices.to(torch.int64) < torch.tensor(quantizer.levels)).all())
    assert codes.side is None or codes.side.dtype == quantizer.side_dtype


@pytest.mark.parametrize("shape", ["vector", "rows", "number"])
def test_given_is_an_offset(subject: Subject, shape: str) -> None:
    quantizer, x = subject.fitted(), subject.rows(12)
    given = {"vector": subject.rows(1, seed=4)[0], "rows": subject.rows(12, seed=4), "number": np.float32(0.5)}[shape]
    codes = quantizer.encode(x, given=given)
    assert same(codes, quantizer.encode(x - given))
    assert quantizer.decode(codes, given=given).tobytes() == (quantizer.decode(codes) + given).tobytes()


def test_bad_given_is_refused(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.rows(4)
    codes = quantizer.encode(x)
    for given in (np.zeros(subject.dim + 1, np.float32), np.zeros((5, subject.dim), np.float32), np.full(subject.dim, np.nan),
                  np.zeros((2, 4, subject.dim), np.float32), "zero", [[1.0], [1.0, 2.0]], np.zeros(subject.dim, complex)):
        with pytest.raises(ShapeError):
            quantizer.encode(x, given=given)
        with pytest.raises(ShapeError):
            quantizer.decode(codes, given=given)


def test_metric_is_honoured_or_refused(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.rows()
    eye = np.eye(subject.dim)
    if not quantizer.takes_metric:
        with pytest.raises(Unsupported):
            quantizer.encode(x, metric=eye)
        return
    plain = quantizer.encode(x)
    assert same(quantizer.encode(x, metric=eye), plain)
    heavy = eye.copy()
    heavy[1, 1] = 1e4
    error = [np.square(quantizer.decode(codes) - x)[:, 1].mean() for codes in (plain, quantizer.encode(x, metric=heavy))]
    assert error[1] < error[0]
    for bad in (eye[:-1], -eye, eye * np.nan, np.triu(np.ones_like(eye)), eye[0], "l2"):
        with pytest.raises(ShapeError):
            quantizer.encode(x, metric=bad)


@pytest.mark.parametrize("rows", [1, 3, 8, 96])
def test_counted_bits_equal_stored_bytes(subject: Subject, rows: int) -> None:
    quantizer = subject.fitted()
    codes = quantizer.encode(subject.tensor(rows))
    packed = ops.pack(codes.indices.to(torch.int64), quantizer.widths)
    stored = packed.numel() + (0 if codes.side is None else codes.side.numel() * codes.side.element_size())
    assert quantizer.stored_bytes(rows) == stored
    assert quantizer.bits(codes) == 8 * stored / (rows * subject.dim)
    assert torch.equal(ops.unpack(packed, quantizer.widths, rows), codes.indices.to(torch.int64))
    whole = torch.full((rows,), len(quantizer.levels), dtype=torch.int32)
    counted = [codes, codes._replace(lengths=whole), codes._replace(lengths=whole * (torch.arange(rows) % 2).int())]  # the last is masked
    if isinstance(quantizer, Progressive):
        counted.append(quantizer.truncate(codes, quantizer.nominal_bits * 0.75))
        assert bool((counted[-1].lengths < whole).all())
    for one in counted:
        tensors, _ = codes_to_parts(one, quantizer)
        assert quantizer.bits(one) == 8 * sum(t.numel() * t.element_size() for t in tensors.values()) / (rows * subject.dim)


def test_nominal_bits_count_everything(subject: Subject) -> None:
    quantizer = subject.fitted()
    index_bits = sum(int(np.ceil(np.log2(level))) if level > 1 else 0 for level in quantizer.levels)
    side_bits = 8 * quantizer.side_count * torch.empty(0, dtype=quantizer.side_dtype).element_size()
    assert quantizer.nominal_bits == (index_bits + side_bits) / subject.dim
    codes = quantizer.encode(subject.rows(64))
    assert quantizer.nominal_bits <= quantizer.bits(codes) < quantizer.nominal_bits + 8 / (64 * subject.dim)


def test_shared_bytes_count_the_state(subject: Subject) -> None:
    quantizer = subject.fitted()
    read = {key: content for key, (_, _, content) in state(quantizer)["tensors"].items() if "upkeep" not in key.split(".")}  # not averages
    assert quantizer.shared_bytes == sum(len(content) for content in read.values())
