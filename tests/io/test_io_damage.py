"""R1, R2, R3: every damaged file is refused with the code meant; no prefix and no flipped bit is accepted."""

from __future__ import annotations

import itertools
from pathlib import Path

import io_damage
import io_samples
import pytest

from codeword.errors import FormatError
from codeword.io import tensors

SINGLE = {sample.name: sample for sample in io_samples.single_files()}
JSON = {sample.name: sample for sample in io_samples.small_json()}
ALL = {**SINGLE, **JSON}


def refused(sample: io_samples.Sample, path: Path, data: bytes) -> str:
    """The code of the FormatError that reading ``data`` raises; "accepted" otherwise."""
    path.write_bytes(data)
    try:
        sample.read(path)
    except FormatError as error:
        return error.code
    return "accepted"


@pytest.mark.parametrize("name", ALL)
def test_sample_itself_is_accepted_and_written_again_identically(name, tmp_path):
    sample = ALL[name]
    assert refused(sample, tmp_path / "f", sample.data) == "accepted"
    sample.write(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == sample.data


@pytest.mark.parametrize("name", ALL)
def test_catalogue(name, tmp_path):
    sample = ALL[name]
    specific = io_damage.small_json if name in JSON else io_damage.tensor_file
    wrong, count = [], 0
    for bad in itertools.chain(io_damage.raw(sample.data), specific(sample.data)):
        assert bad.data != sample.data, bad.name
        found = refused(sample, tmp_path / "f", bad.data)
        count += 1
        if found != bad.code:
            wrong.append((bad.name, found, bad.code))
    assert not wrong
    assert count > 35


@pytest.mark.parametrize("name", ALL)
def test_files_of_another_kind_are_refused(name, tmp_path):
    for other in ALL.values():
        if other.name != name and not (name == "tensors" or name == "no-tensors") and other.name.split("-")[0] != name.split("-")[0]:
            found = refused(ALL[name], tmp_path / "f", other.data)
            assert found in ("kind", "magic", "missing-key", "unknown-key"), (other.name, found)


@pytest.mark.parametrize("name", ALL)
def test_every_prefix_is_refused(name, tmp_path):
    sample = ALL[name]
    home = tmp_path / "f"
    assert len(sample.data) <= 1 << 16
    # Within one page of padding all prefixes look alike: they are sampled here, and taken one by one at night.
    sizes = {n for n in range(len(sample.data)) if n < 64 or n % 61 == 0 or n > len(sample.data) - 64}
    for size in sorted(sizes):
        assert refused(sample, home, sample.data[:size]) in ("empty", "truncated", "header"), size


@pytest.mark.night
@pytest.mark.parametrize("name", ALL)
def test_every_prefix_is_refused_one_by_one(name, tmp_path):
    sample = ALL[name]
    for size in range(len(sample.data)):
        assert refused(sample, tmp_path / "f", sample.data[:size]) != "accepted", size


@pytest.mark.parametrize("name", ALL)
def test_flipped_bits_are_noticed(name, tmp_path):
    sample = ALL[name]
    home = tmp_path / "f"
    bits = 8 * len(sample.data)
    step = 5 if name in JSON else 211  # primes beside 8: all positions in a byte, the padding too; every bit at night
    for bit in range(0, bits, step):
        found = refused(sample, home, io_damage._flip(sample.data, bit))
        assert found not in ("accepted", "internal"), bit


def test_every_bit_of_a_header_is_noticed(tmp_path):
    """Text and the first padding, through the header reader alone."""
    data = SINGLE["no-tensors"].data
    text = len(data.rstrip(b" "))
    path = tmp_path / "f"
    for bit in range(8 * (text + 2)):
        path.write_bytes(io_damage._flip(data, bit))
        with pytest.raises(FormatError) as found:
            tensors.read_header(path)
        assert found.value.code != "internal"


@pytest.mark.night
@pytest.mark.parametrize("name", ALL)
def test_every_bit_is_noticed(name, tmp_path):
    sample = ALL[name]
    for bit in range(8 * len(sample.data)):
        assert refused(sample, tmp_path / "f", io_damage._flip(sample.data, bit)) not in ("accepted", "internal"), bit


def test_mapped_files_notice_flipped_bits_of_a_tensor_when_it_is_taken(tmp_path):
    data = SINGLE["tensors"].data
    header = tensors.read_header(_written(tmp_path / "f", data))
    for name, spec in header.specs.items():
        for bit in range(8 * spec.start, 8 * spec.stop, 13):
            mapped, _ = tensors.read_tensors(_written(tmp_path / "g", io_damage._flip(data, bit)), mmap=True)
            with pytest.raises(FormatError) as found:
                mapped[name]
            assert found.value.code == "digest"
    gap = next(left.stop for left, right in itertools.pairwise(header.specs.values()) if left.stop < right.start)
    mapped, _ = tensors.read_tensors(_written(tmp_path / "h", io_damage._flip(data, 8 * gap)), mmap=True)
    assert len(dict(mapped)) == len(header.specs)
    with pytest.raises(FormatError, match="padding"):
        mapped.verify()


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
