"""A child saves version after version and says so; it is killed at a random moment; whoever opens its files then finds the last version
it had acknowledged, or the one after it, and nothing in between."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import codeword
from codeword.io import folder, tensors, verify
from codeword.io.files import TEMPORARY

CHILD = textwrap.dedent("""
    import itertools, pathlib, sys
    import numpy as np
    from codeword.io import folder, tensors
    home, first = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    made = folder.Folder.open(home / "d") if (home / "d" / folder.MANIFEST).exists() else folder.Folder.create(home / "d", "sample")
    for version in itertools.count(first):
        content = {"x": np.full(20_000, version)}
        tensors.write_tensors(home / "t.cw", content, {"version": version})
        print("file", version, flush=True)
        names = [made.write_segment(kind, content, {"version": version}) for kind in ("a", "b")]
        made.commit({"version": version}, names)
        print("folder", version, flush=True)
""")


def rounds(home: Path, count: int, seed: int) -> int:
    """Kill ``count`` children at random; AssertionError where a mixed or unreadable state is found. Returns versions saved in all."""
    chance = random.Random(seed)
    last = {"file": -1, "folder": -1}
    save_seconds = 0.02
    for _ in range(count):
        first = max(last.values()) + 2  # beyond a save that was not acknowledged
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(home), str(first)], stdout=subprocess.PIPE, text=True,
                                 env={**os.environ, "PYTHONPATH": str(Path(codeword.__file__).parents[1])})
        assert child.stdout is not None
        if chance.random() < 0.9:  # else it may die before its first save
            start = time.perf_counter()
            lines = [child.stdout.readline() for _ in range(4)]
            save_seconds = 0.5 * save_seconds + 0.5 * (time.perf_counter() - start) / 8
        else:
            lines = []
        time.sleep(chance.random() * 4 * save_seconds)
        child.kill()
        lines += child.communicate()[0].splitlines()
        said = {kind: [int(v) for k, v in (line.split() for line in lines if len(line.split()) == 2) if k == kind] for kind in last}
        found = {"file": _read_file(home), "folder": _read_folder(home)}
        for kind, versions in said.items():
            acknowledged = versions[-1] if versions else last[kind]
            following = acknowledged + 1 if versions else first
            assert found[kind] in (acknowledged, following), (kind, found, acknowledged, following)
            last[kind] = found[kind]
        for path in (home / "t.cw", home / "d"):
            if path.exists() and (path.is_file() or (path / folder.MANIFEST).exists()):
                assert verify.verify(path) == []
    _next_writer_cleans(home, max(last.values()) + 2)
    return max(last.values())


def _read_file(home: Path) -> int:
    if not (home / "t.cw").exists():
        return -1
    content, header = tensors.read_tensors(home / "t.cw")
    assert set(content["x"].tolist()) == {header["version"]}
    return header["version"]


def _read_folder(home: Path) -> int:
    if not (home / "d" / folder.MANIFEST).exists():
        return -1

    def load(opened: folder.Folder) -> int:
        for name in opened.segments:
            content, header = opened.read_segment(name)
            assert set(content["x"].tolist()) == {header["version"]} == {opened.meta["version"]}
        assert len(opened.segments) == 2
        return opened.meta["version"]

    return folder.read_folder(home / "d", load)


def _next_writer_cleans(home: Path, version: int) -> None:
    import numpy as np
    tensors.write_tensors(home / "t.cw", {"x": np.full(3, version)}, {"version": version})
    with folder.Folder.open(home / "d") as opened:
        name = opened.write_segment("a", {"x": np.full(3, version)}, {"version": version})
        opened.commit({"version": version}, [name])
    assert sorted(os.listdir(home / "d")) == [name, folder.MANIFEST]
    assert not [entry for entry in os.listdir(home) if TEMPORARY.fullmatch(entry)]
