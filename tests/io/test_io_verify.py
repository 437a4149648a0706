"""``verify`` finds what was damaged, says so by exit code, and edits nothing; ``describe`` says what a file is without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import io_damage
import io_samples
import numpy as np
import pytest

import codeword
from codeword.errors import FormatError
from codeword.io import folder, jobs, objects, tensors, verify


@pytest.fixture
def home(tmp_path) -> Path:
    """One of everything."""
    one = io_samples.quantizer("pq")
    one.save(tmp_path / "q.cw")
    objects.save_codes(tmp_path / "c.cw", one.encode(io_samples.rows(16, 7)), one)
    tensors.write_tensors(tmp_path / "t.cw", io_samples.some_tensors(), {})
    with folder.Folder.create(tmp_path / "d", "sample") as made:
        made.commit({"rows": 4}, [made.write_segment("part", {"x": np.arange(9) + i}, {}) for i in range(2)])
    with jobs.Job.start(tmp_path / "j", "sample", config={"bits": 2}, inputs={}) as job:
        job.run(["a", "b"], lambda unit: ({"x": np.arange(9)}, {}))
    return tmp_path


def status(path: Path) -> tuple[int, list[str]]:
    findings = verify.verify(path)
    return verify.exit_code(path, findings), [finding.code for finding in findings]


def test_whole_things_are_clean_and_described(home):
    for name, kind in (("q.cw", "quantizer"), ("c.cw", "codes"), ("t.cw", "tensors"), ("d", "sample"), ("j", "job")):
        assert status(home / name) == (0, [])
        assert verify.describe(home / name)["kind"] == kind
    described = verify.describe(home / "q.cw")
    assert described["header"]["object"]["config"]["codebook_size"] == 8 and described["tensors"]["codebooks"]["shape"] == [4, 8, 4]
    assert described["bytes"] == (home / "q.cw").stat().st_size
    assert verify.describe(home / "d")["meta"] == {"rows": 4} and len(verify.describe(home / "d")["segments"]) == 2
    assert verify.describe(home / "j")["units_finished"] == 2


def flip_last(path: Path) -> None:
    path.write_bytes(io_damage._flip(path.read_bytes(), 8 * path.stat().st_size - 1))


def test_damage_is_found_and_nothing_is_edited(home):
    segment, unit = sorted((home / "d").glob("part-*"))[0], sorted((home / "j").glob("unit-*"))[0]
    for damaged, path in ((home / "q.cw", home / "q.cw"), (home / "t.cw", home / "t.cw"), (segment, home / "d"), (unit, home / "j")):
        flip_last(damaged)
        before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
        assert status(path) == (1, ["digest"])
        assert str(damaged) in verify.verify(path)[0].message
        assert {p: p.read_bytes() for p in home.rglob("*") if p.is_file()} == before
    assert verify.describe(home / "j")["units_damaged"] == [unit.name]
    parts = io_damage.Parts((home / "c.cw").read_bytes())
    parts.header["levels"] = [[7, 4]]  # digests right, values impossible: deeper than bytes
    (home / "c.cw").write_bytes(parts.seal())
    assert status(home / "c.cw") == (1, ["value"])


def test_every_damaged_segment_is_listed(home):
    one, two = sorted((home / "d").glob("part-*"))
    flip_last(one)
    two.unlink()
    assert status(home / "d") == (1, ["digest", "file"])


def test_damaged_manifests(home):
    path = home / "d" / folder.MANIFEST
    data = path.read_bytes()
    for bad, expected in ((data[:-1], (1, ["header"])), (data.replace(b'"rows":4', b'"rows":5'), (1, ["digest"])), (b"", (1, ["empty"])),
                          (data.replace(b'"version":1', b'"version":2'), (2, ["version"]))):
        path.write_bytes(bad)
        assert status(home / "d") == expected


def test_cannot_tell(home):
    (home / "notes.txt").write_text("not a file of codeword's")
    (home / "empty").mkdir()
    os.mkfifo(home / "pipe")
    for name in ("notes.txt", "empty", "pipe", "nothing"):
        assert status(home / name)[0] == 2
        with pytest.raises(FormatError):
            verify.describe(home / name)
    parts = io_damage.Parts((home / "q.cw").read_bytes())
    parts.record["version"] = 2
    (home / "q.cw").write_bytes(parts.seal())
    assert status(home / "q.cw") == (2, ["version"])
    assert "a newer codeword is needed" in verify.verify(home / "q.cw")[0].message


def test_leftovers_are_no_damage(home):
    (home / "d" / ".manifest.json.0123456789abcdef.cwtmp").write_bytes(b"half")
    shutil.copy(home / "q.cw", home / "d" / "part-0123456789abcdef.cw")
    assert status(home / "d") == (0, [])
    assert verify.describe(home / "d")["unreferenced"] == ["part-0123456789abcdef.cw"]


def test_describing_imports_no_torch(home):
    code = ("import sys; from codeword.io import verify\n"
            "for path in sys.argv[1:]: verify.describe(path)\n"
            "assert verify.verify(sys.argv[3]) == [] == verify.verify(sys.argv[4])\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code, *(str(home / name) for name in ("q.cw", "c.cw", "t.cw", "d", "j"))], capture_output=True,
                          text=True, check=False, env={**os.environ, "PYTHONPATH": str(Path(codeword.__file__).parents[1])})
    assert done.returncode == 0, done.stderr
