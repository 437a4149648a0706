"""The tensor file: all dtypes and shapes, the same bytes, alignment, the public package, memory maps; and canonical JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import warnings
from pathlib import Path

import io_samples
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codeword.errors import CodewordError, FormatError
from codeword.io import canonical, tensors


def equal(a, b) -> bool:
    a, b = (torch.from_numpy(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) else x for x in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and a.reshape(-1).view(torch.uint8).equal(b.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("mmap", [False, True])
def test_round_trip_of_every_dtype(mmap, tmp_path):
    given = io_samples.some_tensors()
    tensors.write_tensors(tmp_path / "t.cw", given, io_samples.HEADER)
    found, header = tensors.read_tensors(tmp_path / "t.cw", mmap=mmap)
    assert header == io_samples.HEADER and set(found) == set(given) and list(found) == sorted(given)
    assert all(equal(found[name], given[name]) for name in given)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(tensors._TORCH.values())), st.lists(st.integers(0, 5), max_size=4)), max_size=6),
       st.recursive(st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) |
                    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc\"é", max_size=3), inner, max_size=3), max_leaves=8))
def test_round_trip_of_anything(tmp_path_factory, specs, extra):
    path = tmp_path_factory.mktemp("t") / "t.cw"
    given = {f"t{i}": torch.randint(0, 2, shape).to(getattr(torch, kind)) for i, (kind, shape) in enumerate(specs)}
    digest = tensors.write_tensors(path, given, {"extra": extra})
    found, header = tensors.read_tensors(path)
    assert header == {"extra": extra} and all(equal(found[name], given[name]) for name in given)
    known = tensors.verify_file(path)
    assert known.digest == digest and known == tensors.read_header(path)
    assert all(spec.start % 64 == 0 for spec in known.specs.values())
    data = path.read_bytes()
    assert (8 + int.from_bytes(data[:8], "little")) % 4096 == 0
    tensors.write_tensors(path, dict(reversed(given.items())), {"extra": extra})
    assert path.read_bytes() == data


def test_the_public_package_reads_the_file(tmp_path):
    given = io_samples.some_tensors()
    tensors.write_tensors(tmp_path / "t.cw", given, io_samples.HEADER)
    found = safetensors.torch.load_file(tmp_path / "t.cw")
    assert {name for name in found if not name.startswith("_pad.")} == set(given)
    assert all(equal(found[name], given[name]) for name in given)
    with safetensors.safe_open(tmp_path / "t.cw", framework="pt") as file:
        assert list(file.metadata()) == ["codeword"]
        assert json.loads(file.metadata()["codeword"])["header"] == io_samples.HEADER


def test_files_of_the_public_package_are_refused_politely(tmp_path):
    safetensors.torch.save_file({"x": torch.zeros(3)}, tmp_path / "t.safetensors")
    with pytest.raises(FormatError, match="none of codeword's") as found:
        tensors.read_tensors(tmp_path / "t.safetensors")
    assert found.value.code == "kind"


def test_strided_transposed_readonly_and_big_endian_memory(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    readonly = base.copy()
    readonly.flags.writeable = False
    given = {"a": base[::2, ::-1], "b": base.T, "c": readonly, "d": base.astype(">f4"), "e": torch.from_numpy(base).T[1:],
             "f": torch.zeros(3).expand(2, 3), "g": torch.nn.Parameter(torch.ones(2)), "h": np.asfortranarray(base), "i": base[:, 2]}
    tensors.write_tensors(tmp_path / "t.cw", given, {})
    found, _ = tensors.read_tensors(tmp_path / "t.cw")
    for name, value in given.items():
        value = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        assert np.array_equal(found[name].numpy(), value), name


@pytest.mark.parametrize(("name", "tensor"), [
    ("", torch.zeros(1)), ("a/b", torch.zeros(1)), ("_pad.0", torch.zeros(1)), ("__metadata__", torch.zeros(1)), (".x", torch.zeros(1)),
    ("x" * 201, torch.zeros(1)), ("é", torch.zeros(1)), ("x", torch.zeros(1, dtype=torch.complex64)), ("x", torch.zeros(1, device="meta")),
    ("x", torch.zeros(2, 2).to_sparse()), ("x", np.array(["a"])), ("x", np.array([None])), ("x", np.zeros(1, dtype="M8[s]")),
])
def test_what_cannot_be_stored_is_refused_before_writing(name, tensor, tmp_path):
    with pytest.raises(CodewordError):
        tensors.write_tensors(tmp_path / "t.cw", {name: tensor}, {})
    assert os.listdir(tmp_path) == []


def test_mapped_tensors_are_private_and_need_no_file_afterwards(tmp_path):
    path = tmp_path / "t.cw"
    tensors.write_tensors(path, {"x": np.arange(1000)}, {})
    data = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = tensors.read_tensors(path, mmap=True)
        found["x"][0] = 7
    assert path.read_bytes() == data
    path.unlink()
    assert found["x"][1:].equal(torch.arange(1, 1000)) and int(found.unchecked("x")[0]) == 7


def test_a_mapped_file_that_was_replaced_is_the_old_one_still(tmp_path):
    path = tmp_path / "t.cw"
    tensors.write_tensors(path, {"x": np.arange(1000)}, {})
    found, _ = tensors.read_tensors(path, mmap=True)
    tensors.write_tensors(path, {"x": np.zeros(1)}, {})
    found.verify()
    assert found["x"].equal(torch.arange(1000))


def test_a_header_of_several_pages(tmp_path):
    given = {f"block.{i:04}.weight": np.full(i % 5, i) for i in range(700)}
    tensors.write_tensors(tmp_path / "t.cw", given, {"text": "x" * 10_000})
    found, _ = tensors.read_tensors(tmp_path / "t.cw")
    assert all(np.array_equal(found[name].numpy(), given[name]) for name in given)
    with pytest.raises(FormatError) as refused:
        tensors.read_tensors(tmp_path / "t.cw", limits=canonical.Limits(tensors=699))
    assert refused.value.code == "limit"


def test_more_than_fits_is_refused_by_the_writer(tmp_path):
    for given, header in (({}, {"x": "y" * (5 << 20)}), ({f"t{i}": np.zeros(0) for i in range(10_001)}, {})):
        with pytest.raises(CodewordError):
            tensors.write_tensors(tmp_path / "t.cw", given, header)


def test_whatever_is_written_can_be_read(tmp_path):
    """The writer counts values as the reader does."""
    for count in (95_000, 99_980, 100_000):
        try:
            tensors.write_tensors(tmp_path / "t.cw", {}, {"x": [0] * count})
        except CodewordError:
            assert count == 100_000
            continue
        assert len(tensors.read_tensors(tmp_path / "t.cw")[1]["x"]) == count


# ---------------------------------------------------------------------- canonical JSON


@pytest.mark.parametrize("value", [math.nan, math.inf, 1 << 63, -(1 << 63), (1,), {1: 2}, {"a": {1}}, b"x", np.float32(1), np.int64(1), "\0",
                                   "\ud800", object(), torch.tensor(1), [[[]] * 3, {"x": complex(1)}], Path("x")])
def test_values_without_canonical_text(value):
    with pytest.raises(CodewordError, match="canonical JSON"):
        canonical.encode({"x": value})


def test_nesting_is_bounded_on_both_sides():
    value: list = []
    for _ in range(canonical.LIMITS.depth - 1):
        value = [value]
    assert canonical.decode(canonical.encode(value), "x") == value
    with pytest.raises(CodewordError):
        canonical.encode([value])
    with pytest.raises(FormatError):
        canonical.decode(b"[" + canonical.encode(value) + b"]", "x")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text("[]{}:,\"\\0123456789.eE+-truefalsn ud8", max_size=60).map(str.encode))
def test_a_decoded_text_is_the_only_text_of_its_value(data):
    try:
        value = canonical.decode(data, "x")
    except FormatError:
        return
    assert canonical.encode(value) == data


@given(st.integers(0, 2**64 - 1))
def test_every_finite_double_survives(bits):
    (value,) = struct.unpack("<d", struct.pack("<Q", bits))
    if math.isfinite(value):
        (back,) = struct.unpack("<Q", struct.pack("<d", canonical.decode(canonical.encode([value]), "x")[0]))
        assert back == bits


def test_known_text():
    assert canonical.encode({"b": [1, -0.5, 1e300, None], "a": "é\"\n", "B": True}) == b'{"B":true,"a":"\\u00e9\\"\\n","b":[1,-0.5,1e+300,null]}'
    digest = hashlib.sha256(b'{"a":1,"digest":"' + b"0" * 64 + b'"}').hexdigest().encode()
    assert canonical.sealed({"a": 1}) == b'{"a":1,"digest":"' + digest + b'"}'
