"""R10: files of every release are read for ever, and give what they gave."""

from __future__ import annotations

import json
import shutil

import golden
import io_damage
import numpy as np
import pytest

from codeword import catalog
from codeword.errors import FormatError
from codeword.io import objects, tensors

EXPECTED = json.loads((golden.HOME / "expected.json").read_text())


def test_every_quantizer_has_golden_files():
    """A new entry of the catalog: run tests/io/golden.py once and commit what it adds."""
    missing = {entry.name for entry in catalog.QUANTIZERS} - set(EXPECTED)
    assert not missing, f"run tests/io/golden.py to add {sorted(missing)}"


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_files_read_as_they_were_written(name):
    expected = EXPECTED[name]
    quantizer_path, codes_path = golden.HOME / f"{name}.cw", golden.HOME / f"{name}.codes.cw"
    assert [tensors.verify_file(path).digest for path in (quantizer_path, codes_path)] == expected["digests"]
    quantizer = objects.load(quantizer_path)
    codes = objects.load_codes(codes_path, quantizer)
    found = golden.expectation(quantizer, codes)
    assert np.allclose(found.pop("decoded"), expected["decoded"], rtol=1e-6, atol=1e-6)  # level D2: rotations and sums may round
    assert found == {key: expected[key] for key in found}
    again = quantizer.encode(golden.rows(quantizer.dim))
    assert (np.asarray(again.indices) == codes.indices.numpy()).mean() >= 0.99


def test_golden_files_are_never_overwritten(tmp_path):
    copy = tmp_path / "format-1"
    shutil.copytree(golden.HOME, copy)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    golden.make(copy)
    assert {name: before[name] for name in before} == {name: (copy / name).read_bytes() for name in before}
    record = json.loads((copy / "expected.json").read_text())
    record.pop("pq")
    (copy / "expected.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="never overwritten"):
        golden.make(copy)


def test_a_newer_major_is_refused_by_number(tmp_path):
    parts = io_damage.Parts((golden.HOME / "pq.cw").read_bytes())
    parts.record["version"] = 2
    parts.record["compression"] = "unheard of"
    (tmp_path / "f").write_bytes(parts.seal())
    with pytest.raises(FormatError, match="format 2; this release reads format 1, a newer codeword is needed") as found:
        objects.load(tmp_path / "f")
    assert found.value.code == "version"
