"""R13, R15: a save is a transaction, in the right order, for every public function that writes."""

from __future__ import annotations

import ast
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import io_samples
import numpy as np
import pytest
from io_faults import ERRORS, Faults, each_fault, temporaries

import codeword
from codeword.errors import CodewordError, FormatError
from codeword.io import files, folder, jobs, objects, tensors


class Writer(NamedTuple):
    """A public function that writes: ``write(home, version)`` for version 0 and 1; ``read(home)`` gives back the version, or None
    where nothing has been saved yet."""

    write: Callable[[Path, int], Any]
    read: Callable[[Path], int | None]


def _quantizers() -> list[Any]:
    rows = io_samples.rows(6)
    return [codeword.make("vq:codebook_size=4", 6).fit(rows), codeword.make("vq:codebook_size=4,seed=1", 6).fit(rows * 2)]


def _which(path: Path, read: Callable[[Path], Any], versions: list[Any]) -> int | None:
    return versions.index(read(path)) if path.exists() else None


def _read_folder(home: Path) -> int | None:
    if not (home / "d" / folder.MANIFEST).exists():
        return None

    def load(opened: folder.Folder) -> int:
        version = opened.meta["version"]
        for name in opened.segments:
            content, header = opened.read_segment(name)
            assert header["version"] == version and content["x"].tolist() == [version] * 5000
        return version

    return folder.read_folder(home / "d", load)


def _write_folder(home: Path, version: int) -> None:
    path = home / "d"
    made = folder.Folder.open(path) if (path / folder.MANIFEST).exists() else folder.Folder.create(path, "sample")
    with made:
        names = [made.write_segment(kind, {"x": np.full(5000, version)}, {"version": version}) for kind in ("a", "b")]
        made.commit({"version": version}, names)


def _export(home: Path, version: int) -> None:
    source = home.parent / f"source-{version}"
    if not source.exists():
        with files.use_system(files.System()):
            _write_folder(_made(source), version)
    folder.export_file(source / "d", home / "e.cw")


def _import(home: Path, version: int) -> None:
    exported = home.parent / f"exported-{version}.cw"
    if not exported.exists():
        with files.use_system(files.System()):
            _export(_made(home.parent / "x"), version)
            os.rename(home.parent / "x" / "e.cw", exported)
    folder.import_file(exported, home / "d")


def _job(home: Path, version: int) -> None:
    """Version 0: the job has begun; version 1: its unit is done."""
    with jobs.Job.start(home / "j", "sample", config={}, inputs={}, resume=(home / "j" / jobs.JOB).exists()) as job:
        if version:
            job.run(["u"], lambda unit: ({"x": np.arange(1000)}, {}))


def _read_job(home: Path) -> int | None:
    if not (home / "j" / jobs.JOB).exists():
        return None
    with jobs.Job.start(home / "j", "sample", config={}, inputs={}, resume=True) as job:
        return int(job.is_done("u"))


def _made(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


QUANTIZERS = _quantizers()
CODES = [QUANTIZERS[0].encode(io_samples.rows(6, 20, seed)) for seed in (1, 2)]

WRITERS = {
    "files.write_file": Writer(lambda home, v: files.write_file(home / "f", [b"x", bytes([v]) * 3_000_000]),
                               lambda home: _which(home / "f", Path.read_bytes, [b"x" + bytes([v]) * 3_000_000 for v in (0, 1)])),
    "tensors.write_tensors": Writer(lambda home, v: tensors.write_tensors(home / "t.cw", {"x": np.full(9, v)}, {"v": v}),
                                    lambda home: _which(home / "t.cw", lambda p: tensors.read_tensors(p)[1]["v"], [0, 1])),
    "objects.save": Writer(lambda home, v: QUANTIZERS[v].save(home / "q.cw"),
                           lambda home: _which(home / "q.cw", lambda p: objects.load(p).fingerprint, [q.fingerprint for q in QUANTIZERS])),
    "objects.save_codes": Writer(lambda home, v: objects.save_codes(home / "c.cw", CODES[v], QUANTIZERS[0]),
                                 lambda home: _which(home / "c.cw", lambda p: objects.load_codes(p).indices.tolist(),
                                                     [c.indices.tolist() for c in CODES])),
    "objects.join_codes": Writer(lambda home, v: objects.join_codes(
                                     home / "j.cw", [lambda: objects.codes_to_parts(CODES[v], QUANTIZERS[0])], QUANTIZERS[0]),
                                 lambda home: _which(home / "j.cw", lambda p: objects.load_codes(p).indices.tolist(),
                                                     [c.indices.tolist() for c in CODES])),
    "folder.Folder": Writer(_write_folder, _read_folder),
    "folder.export_file": Writer(_export, lambda home: _which(home / "e.cw", lambda p: tensors.read_tensors(p)[1]["manifest"]["meta"],
                                                              [{"version": v} for v in (0, 1)])),
    "folder.import_file": Writer(_import, _read_folder),
    "jobs.Job": Writer(_job, _read_job),
}


def test_no_writer_is_forgotten():
    """Every function or class in codeword.io through which a file can be written stands in the table."""
    found = set()
    for path in sorted((Path(codeword.__file__).parent / "io").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                calls = {ast.unparse(call.func).rpartition(".")[2] for call in ast.walk(node) if isinstance(call, ast.Call)}
                if calls & {"write_file", "write_tensors", "write_segment", "rename"}:
                    found.add(f"{path.stem}.{node.name}")
    assert found - {"files.System"} | {"files.write_file"} == set(WRITERS)


@pytest.mark.parametrize(("name", "before"), [(name, before) for name in WRITERS for before in (None, 0)
                                              if (name, before) != ("folder.import_file", 0)])  # imports go into new folders only
def test_each_failing_call_leaves_the_old_or_the_new(name, before, tmp_path):
    writer, homes = WRITERS[name], iter(range(100_000))
    allowed = {before, 1, 0} if name == "jobs.Job" else {before, 1}  # a job has begun before its first unit is done
    home = tmp_path

    def write() -> None:
        nonlocal home
        home = _made(tmp_path / str(next(homes)))
        if before is not None:
            with files.use_system(files.System()):
                writer.write(home, before)
        writer.write(home, 1)

    failures = 0
    for system, raised in each_fault(write, errors=("disk-full", "short")):
        found = writer.read(home)
        assert found in allowed, (system.failed, raised)
        assert raised or found == 1
        if system.failed == "unlink":  # the double kept it from cleaning up: the next writer does
            writer.write(home, 1)
        assert not temporaries(home), system.failed
        failures += 1
    assert failures > 20


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_at_every_call(error, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    for system, raised in each_fault(lambda: files.write_file(path, [b"n", b"ew"]), errors=(error,)):
        renamed = "rename" in [call for call, _ in system.log] and system.failed != "rename"
        assert path.read_bytes() == (b"new" if renamed else b"old")
        assert renamed or raised
        assert system.failed == "unlink" or not temporaries(tmp_path)
        path.write_bytes(b"old")


@pytest.mark.parametrize("name", WRITERS)
def test_order_of_calls(name, tmp_path):
    """Data flushed before each rename, nothing written in between, folder flushed after; temporaries created exclusively."""
    with files.use_system(Faults()) as system:
        WRITERS[name].write(_made(tmp_path / "home"), 1)
    renames = [i for i, (call, _) in enumerate(system.log) if call == "rename"]
    assert renames
    for at in renames:
        temporary = system.log[at][1]
        before = [call for call, path in system.log[:at] if path == temporary]
        assert before[0] == "open_new" and before[-1] == "fsync" and "write" in before
        after = system.log[at + 1:]
        flush = next(i for i, (call, _) in enumerate(after) if call == "fsync")
        assert after[flush][1] == os.path.dirname(temporary)
        assert not [call for call, _ in after[:flush] if call in ("rename", "unlink", "write", "open_new")]


def test_manifest_is_replaced_after_its_segments_and_old_ones_are_removed_last(tmp_path):
    _write_folder(tmp_path, 0)
    with files.use_system(Faults()) as system:
        _write_folder(tmp_path, 1)
    steps = [(call, os.path.basename(path)) for call, path in system.log if call in ("rename", "unlink")]
    assert ["manifest" in path for _, path in steps] == [False, False, True, False, False]
    assert [call for call, _ in steps] == ["rename"] * 3 + ["unlink"] * 2


def test_scratch_data_is_not_flushed(tmp_path):
    with files.use_system(Faults()) as system:
        files.write_file(tmp_path / "f", [b"x"], durable=False)
    assert "fsync" not in [call for call, _ in system.log]


def test_a_failed_flush_is_never_repeated(tmp_path):
    for system, raised in each_fault(lambda: files.write_file(tmp_path / "f", [b"x"]), errors=("io",)):
        if system.failed == "fsync":
            at = [i for i, (call, _) in enumerate(system.log) if call == "fsync"]
            assert raised and len(at) == (1 if system.fail_at == at[0] + 1 else 2)


def test_permissions_are_kept_and_new_files_follow_the_umask(tmp_path):
    path = tmp_path / "f"
    before = os.umask(0o027)
    try:
        files.write_file(path, [b"x"])
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(before)
    path.chmod(0o604)
    files.write_file(path, [b"y"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "f").symlink_to(victim)
    files.write_file(tmp_path / "f", [b"x"])
    assert victim.read_bytes() == b"precious" and not (tmp_path / "f").is_symlink()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_only_regular_files_are_replaced(make, tmp_path):
    make(tmp_path / "f")
    with pytest.raises(FormatError, match="only a regular file"):
        files.write_file(tmp_path / "f", [b"x"])


def test_leftovers_of_killed_writers_are_removed_and_those_of_live_ones_are_not(tmp_path):
    path = tmp_path / "f"
    dead, other = tmp_path / ".f.0123456789abcdef.cwtmp", tmp_path / ".g.0123456789abcdef.cwtmp"
    similar = [tmp_path / ".f.0123456789abcdeX.cwtmp", tmp_path / "f.0123456789abcdef.cwtmp", tmp_path / ".f.tmp"]
    for one in (dead, other, *similar):
        one.write_bytes(b"half")
    started, finish = threading.Event(), threading.Event()

    def slow():
        yield b"a"
        started.set()
        finish.wait(30)
        yield b"b"

    thread = threading.Thread(target=files.write_file, args=(path, slow()))
    thread.start()
    started.wait(30)
    files.write_file(path, [b"fast"])
    assert path.read_bytes() == b"fast" and not dead.exists() and len(temporaries(tmp_path)) == 2
    finish.set()
    thread.join()
    assert path.read_bytes() == b"ab" and temporaries(tmp_path) == [other.name]
    assert all(one.exists() for one in similar)
    files.remove_leftovers(tmp_path)
    assert not other.exists()


def test_an_error_in_the_data_leaves_the_old_file(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def broken():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_file(path, broken())
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("name", ["", "x" * 201])
def test_impossible_names(name, tmp_path):
    with pytest.raises((CodewordError, FormatError, OSError)):
        files.write_file(os.path.join(tmp_path, name), [b"x"])
    assert os.listdir(tmp_path) == []


def test_readers_during_replacement_see_whole_versions(tmp_path):
    """R19 at a small size: readers of a file and of a folder while both are replaced."""
    for version in (0, 1):
        _write_folder(tmp_path, version)
        tensors.write_tensors(tmp_path / "t.cw", {"x": np.full(5000, version)}, {"v": version})
    stop, torn, reads = threading.Event(), [], [0]

    def reader():
        while not stop.is_set():
            try:
                content, header = tensors.read_tensors(tmp_path / "t.cw")
                assert set(content["x"].tolist()) == {header["v"]}
                assert _read_folder(tmp_path) in (0, 1)
                reads[0] += 1
            except BaseException as error:
                torn.append(error)
                return

    threads = [threading.Thread(target=reader) for _ in range(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        for thread in threads:
            thread.start()
        for version in range(30):
            _write_folder(tmp_path, version % 2)
            tensors.write_tensors(tmp_path / "t.cw", {"x": np.full(5000, version % 2)}, {"v": version % 2}, durable=False)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert not torn and reads[0] > 3
