"""R9 and the folder of segments: commits, confinement of names, damage, single-file export."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from io_damage import seal_json

from codeword.errors import CodewordError, FormatError
from codeword.io import folder, tensors
from codeword.io.folder import MANIFEST, Folder

OPENED: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is not None and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        OPENED.append(os.fsdecode(arguments[0]))


sys.addaudithook(_hook)


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder of two segments, beside a file that nobody may touch."""
    (tmp_path / "outside.cw").write_bytes(b"secret")
    with Folder.create(tmp_path / "d", "sample") as made:
        names = [made.write_segment("part", {"x": torch.arange(3) + i}, {"i": i}) for i in range(2)]
        made.commit({"rows": 6}, names)
    return tmp_path / "d"


def manifest(home: Path) -> dict[str, Any]:
    record = json.loads((home / MANIFEST).read_bytes())
    del record["digest"]
    return record


def read_all(home: Path) -> list[list[int]]:
    return folder.read_folder(home, lambda f: [f.read_segment(name)[0]["x"].tolist() for name in f.segments])


def code_of(home: Path, record: dict[str, Any] | None = None) -> str:
    if record is not None:
        (home / MANIFEST).write_bytes(seal_json(record))
    try:
        read_all(home)
    except FormatError as error:
        return error.code
    return "accepted"


# ---------------------------------------------------------------------- what must work


def test_commit_replaces_and_removes(home):
    with Folder.open(home, "sample") as opened:
        assert opened.meta == {"rows": 6} and opened.size == sum((home / name).stat().st_size for name in opened.segments)
        kept = opened.segments[0]
        new = opened.write_segment("list_3", {"x": np.arange(9)}, {})
        assert opened.read_segment(new)[0]["x"].tolist() == list(range(9))  # readable before it is part of the object
        opened.commit({"rows": 12}, [kept, new])
        assert sorted(os.listdir(home)) == sorted([kept, new, MANIFEST])
        assert opened.segments == sorted([kept, new])
    assert Folder.open(home).manifest == opened.manifest


def test_equal_content_is_one_segment_and_equal_folders_are_equal_bytes(home, tmp_path):
    with Folder.create(tmp_path / "e", "sample") as made:
        names = [made.write_segment("part", {"x": torch.arange(3) + i}, {"i": i}) for i in (1, 0, 1)]
        assert names[0] == names[2]
        made.commit({"rows": 6}, names)
    assert {p.name: p.read_bytes() for p in home.iterdir()} == {p.name: p.read_bytes() for p in (tmp_path / "e").iterdir()}


def test_mapped_segments_outlive_their_removal(home):
    opened = Folder.open(home)
    content, header = opened.read_segment(opened.segments[0], mmap=True)
    with Folder.open(home) as writer:
        writer.commit({}, [])
    assert os.listdir(home) == [MANIFEST]
    assert content["x"].tolist() == [header["i"], header["i"] + 1, header["i"] + 2]


def test_a_reader_overtaken_by_a_writer_begins_again(home):
    versions = []

    def load(opened: Folder) -> list[int]:
        versions.append(opened.meta)
        if len(versions) == 1:
            with Folder.open(home) as writer:
                writer.commit({"rows": 9}, [writer.write_segment("other", {"x": np.arange(9)}, {})])
        return [opened.read_segment(name)[0]["x"].numel() for name in opened.segments]

    assert folder.read_folder(home, load) == [9]
    assert versions == [{"rows": 6}, {"rows": 9}]


def test_one_writer_at_a_time(home):
    one, two = Folder.open(home), Folder.open(home)
    name = one.write_segment("part", {"x": np.arange(4)}, {})
    with pytest.raises(CodewordError, match="being written"):
        two.write_segment("part", {"x": np.arange(5)}, {})
    one.commit({"rows": 4}, [name])
    with pytest.raises(CodewordError, match="changed by another writer"):
        two.write_segment("part", {"x": np.arange(5)}, {})
    assert read_all(home) == [[0, 1, 2, 3]]


def test_creating_over_something_is_refused(home, tmp_path):
    with pytest.raises(CodewordError, match="already holds an object"):
        Folder.create(home, "sample")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "notes.txt").write_text("mine")
    with pytest.raises(CodewordError, match=r"notes\.txt"):
        Folder.create(tmp_path / "e", "sample")
    (tmp_path / "f").write_text("a file")
    with pytest.raises(OSError, match="exists"):
        Folder.create(tmp_path / "f", "sample")


def test_a_creation_that_was_killed_is_taken_over(tmp_path):
    made = Folder.create(tmp_path / "d", "sample")
    made.write_segment("part", {"x": np.arange(4)}, {})
    made.close()
    assert code_of(tmp_path / "d") == "file"  # no manifest: nothing was saved
    with Folder.create(tmp_path / "d", "sample") as made:
        made.commit({}, [])
    assert os.listdir(tmp_path / "d") == [MANIFEST]


@pytest.mark.parametrize("kind", ["", "Part", "a-b", "../x", "a/b", "x" * 33, "1a", "ä", "a.b"])
def test_kinds_are_plain_words(kind, home, tmp_path):
    with pytest.raises(CodewordError), Folder.open(home) as opened:
        opened.write_segment(kind, {}, {})
    with pytest.raises(CodewordError):
        Folder.create(tmp_path / "n", kind)


def test_committing_what_is_not_there(home):
    with Folder.open(home) as opened, pytest.raises(CodewordError, match="neither"):
        opened.commit({}, ["part-0123456789abcdef.cw"])
    assert len(read_all(home)) == 2


def test_export_and_import(home, tmp_path):
    folder.export_file(home, tmp_path / "one.cw")
    imported = folder.import_file(tmp_path / "one.cw", tmp_path / "again")
    assert imported.manifest == Folder.open(home).manifest and read_all(tmp_path / "again") == read_all(home)
    folder.export_file(tmp_path / "again", tmp_path / "two.cw")
    assert (tmp_path / "one.cw").read_bytes() == (tmp_path / "two.cw").read_bytes()


def test_a_damaged_export_leaves_nothing(home, tmp_path):
    folder.export_file(home, tmp_path / "one.cw")
    content, header = tensors.read_tensors(tmp_path / "one.cw")
    names = sorted(content)
    swapped = {names[0]: content[names[1]], names[1]: content[names[0]]}
    for bad, given, code in ((swapped, header, "digest"), ({names[0]: content[names[0]]}, header, "missing-key"),
                             ({**content, "x": torch.zeros(1)}, header, "unknown-key"), (content, {**header, "kind": "x"}, "kind"),
                             (content, {**header, "manifest": {**header["manifest"], "version": 2}}, "version"),
                             (content, {**header, "manifest": {**header["manifest"], "kind": "../x"}}, "kind"),
                             ({**content, names[0]: torch.zeros(5000, dtype=torch.uint8)}, header, "magic")):
        tensors.write_tensors(tmp_path / "bad.cw", bad, given)
        with pytest.raises(FormatError) as found:
            folder.import_file(tmp_path / "bad.cw", tmp_path / "again")
        assert found.value.code == code
        assert not (tmp_path / "again").exists() or os.listdir(tmp_path / "again") == []


# ---------------------------------------------------------------------- what must be refused


def bad_names(good: str, outside: Path) -> list[str]:
    digest = good.partition("-")[2]
    return [
        "", ".", "..", "/", "../outside.cw", f"../d/{good}", str(outside), f"./{good}", f"sub/{good}", f"{good}/", f"..\\{good}",
        "C:\\x.cw", f"C:{good}", "\\\\host\\share\\x.cw", f"//host/{good}", "file:///etc/passwd", "/dev/zero", "/proc/self/environ",
        "~/x.cw", "$HOME/x.cw", "con", "nul.cw", "COM1.cw", good.upper(), good.capitalize(), f" {good}", f"{good} ", f"{good}\n",
        f"{good}.", f"{good}:stream", f"x-{digest[:-4]}.cw", f"{'p' * 33}-{digest}", f"part-{'0' * 17}.cw", f"part-{'0' * 15}.cw",
        f"part_{digest}", f"pаrt-{digest}", f"part-{digest[:-3]}.сw", f"p\u0301art-{digest}", f"part-{'０' * 16}.cw",
        f"part\u202e-{digest}", "x" * 300, "manifest.json", "a*.cw", f".part-{digest}", f"-{digest}", f"part--{digest}",
        f"part-{digest}.cw", "part-ABCDEF0123456789.cw",
    ]


def test_names_in_a_manifest_stay_in_the_folder(home):
    """More than 30 names, each refused, and nothing opened but the folder's own files."""
    global OPENED
    record = manifest(home)
    good = sorted(record["files"])[0]
    names = [name for name in bad_names(good, home.parent / "outside.cw") if name not in record["files"]]
    assert len(set(names)) >= 30
    for name in names:
        wrong = {**record, "files": {**{k: v for k, v in record["files"].items() if k != good}, name: record["files"][good]}}
        (home / MANIFEST).write_bytes(seal_json(wrong))
        OPENED = []
        found = code_of(home)
        opened, OPENED = OPENED, None
        assert found == "name", name
        assert {os.path.realpath(path) for path in opened} <= {str(home / MANIFEST)}, name


def test_names_asked_for_stay_in_the_folder(home):
    opened = Folder.open(home)
    for name in bad_names(opened.segments[0], home.parent / "outside.cw"):
        with pytest.raises(FormatError) as found:
            opened.read_segment(name)
        assert found.value.code == "name"


def _replace_by(make: Any) -> Any:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)
    return damage


def _grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _link(path: Path) -> None:
    moved = path.parent.parent / "moved.cw"
    shutil.move(path, moved)
    path.symlink_to(moved)


def _other(path: Path) -> None:
    """Another valid segment of the same size under this name."""
    with Folder.create(path.parent.parent / "o", "sample") as made:
        made.commit({}, [made.write_segment("part", {"x": torch.arange(3) + 9}, {"i": 9})])
    shutil.copy(made.path / made.segments[0], path)


@pytest.mark.parametrize(("damage", "code"), [
    (Path.unlink, "file"), (_replace_by(os.mkdir), "file"), (_replace_by(os.mkfifo), "file"), (_link, "file"), (_flip, "digest"),
    (_grow, "trailing"), (lambda p: p.write_bytes(b""), "empty"), (lambda p: p.write_bytes(p.read_bytes()[:-1]), "truncated"),
    (_other, "digest"),
    (lambda p: tensors.write_tensors(p, {"x": torch.arange(3)}, {"kind": "quantizer"}), "digest"),
])
def test_damaged_segments(damage, code, home):
    damage(home / Folder.open(home).segments[0])
    assert code_of(home) == code


def test_swapped_segments(home):
    one, two = (home / name for name in Folder.open(home).segments)
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)
    assert code_of(home) == "digest"


@pytest.mark.parametrize(("damage", "code"), [
    (Path.unlink, "file"), (_replace_by(os.mkdir), "file"), (_replace_by(os.mkfifo), "file"), (_link, "file"),
    (lambda p: p.write_bytes(b""), "empty"), (lambda p: p.write_bytes(b"{" * (5 << 20)), "limit"), (_grow, "header")])
def test_damaged_manifests(damage, code, home):
    damage(home / MANIFEST)
    assert code_of(home) == code


def test_impossible_manifests(home):
    record = manifest(home)
    name = sorted(record["files"])[0]
    entry = record["files"][name]
    other = sorted(record["files"])[1]
    for change, code in (
        ({"kind": "Index"}, "kind"), ({"kind": ""}, "kind"), ({"files": []}, "header"), ({"files": {name: []}}, "header"),
        ({"files": {name: {**entry, "size": entry["size"] + 1}}}, "digest"), ({"files": {name: {**entry, "size": -1}}}, "value"),
        ({"files": {name: {**entry, "size": 1 << 62}}}, "digest"), ({"files": {name: {**entry, "size": 1.0}}}, "header"),
        ({"files": {name: {**entry, "sha256": "0" * 64}}}, "name"), ({"files": {name: {**entry, "sha256": entry["sha256"][:16]}}}, "name"),
        ({"files": {name: {**entry, "sha256": entry["sha256"][:16] + "0" * 48}}}, "digest"),
        ({"files": {name: {**entry, "path": "x"}}}, "unknown-key"),
        ({"files": {name: record["files"][other]}}, "name"), ({"files": {name: {"size": 1}}}, "missing-key"),
    ):
        assert code_of(home, {**record, **change}) == code, change
    assert code_of(home, record) == "accepted"


def test_wrong_sort_of_object(home, tmp_path):
    with pytest.raises(FormatError) as found:
        Folder.open(home, "index")
    assert found.value.code == "kind"
    with pytest.raises(FormatError) as found:
        Folder.open(home / Folder.open(home).segments[0])
    assert found.value.code == "kind"
    for path in (home, tmp_path / "nothing", "\0", tmp_path / ("x" * 5000)):
        with pytest.raises(FormatError) as found:
            tensors.read_tensors(path)
        assert found.value.code == "file"
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FormatError) as found:
            Folder.open(path)
        assert found.value.code == "file"
    for device in ("/dev/zero", "/dev/null", "/dev/tty"):
        if os.path.exists(device):
            with pytest.raises(FormatError) as found:
                tensors.read_tensors(device)
            assert found.value.code == "file"


def test_a_segment_that_vanished_for_good_is_an_error_and_no_endless_retry(home):
    (home / Folder.open(home).segments[0]).unlink()
    with pytest.raises(FormatError) as found:
        read_all(home)
    assert found.value.code == "file"
