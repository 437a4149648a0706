"""R5, R6, R8: bounded memory, bounded time, and no code from data."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import os
import pickle
import resource
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import io_damage
import io_samples
import numpy as np
import pytest
import torch
from test_io_objects import bad_codes, bad_quantizers

import codeword
from codeword.errors import CodewordError
from codeword.io import folder, jobs, objects, tensors, verify

SOURCE = Path(codeword.__file__).parent
MIB = 1 << 20

# ---------------------------------------------------------------------- R8

BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "ctypes", "code", "runpy"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "torch.hub.load", "torch.jit.load", "os.system",
                "os.popen", "np.fromregex", "importlib.reload", "pickle.loads"}
IMPORTS_BY_NAME = {
    "__init__.py": "public names from a literal table",
    "data/__init__.py": "public names from a literal table",
    "tokenizers/__init__.py": "public names from a literal table",
    "cli/about.py": "a room that may be missing, by a literal name",
    "catalog.py": "the catalog's own literal table: the one place where a name from a file becomes a class",
    "ops/dispatch.py": "the native module, whose name is a literal",
    "claims/run.py": "a claim by the name that the caller typed; names in files never come here",
}
RESTRICTED = {("compat/states.py", "torch.load"): "checkpoints of another library, weights only, on the user's own command"}
WRITES = {"io/files.py": "the one writer", "cli/app.py": "/dev/null in place of a closed pipe",
          "cli/demo.py": "marks the demo's folder as its own before anything is in it"}
WRITING_CALLS = {"os.replace", "os.rename", "os.open", "shutil.move", "shutil.copy", "shutil.copyfile", "torch.save"}
WRITING_METHODS = {"write_text", "write_bytes", "tofile", "fdopen", "NamedTemporaryFile"}


def _calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def _sources():
    found = sorted(SOURCE.rglob("*.py"))
    assert len(found) > 30
    return [(path.relative_to(SOURCE).as_posix(), path) for path in found]


def test_no_source_runs_code_from_data():
    wrong = []
    for name, path in _sources():
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [(name, module) for module in modules if module.partition(".")[0] in BANNED_MODULES]
        for call, node in _calls(path):
            if (name, call) in RESTRICTED and any(key.arg == "weights_only" and ast.unparse(key.value) == "True" for key in node.keywords):
                continue
            if call in BANNED_CALLS or call.startswith(("pickle.", "marshal.")):
                wrong.append((name, call))
            if call.endswith("import_module") and name not in IMPORTS_BY_NAME:
                wrong.append((name, call))
            wrong += [(name, "allow_pickle") for key in node.keywords if key.arg == "allow_pickle" and ast.unparse(key.value) != "False"]
            wrong += [(name, "shell=") for key in node.keywords if key.arg == "shell"]
    assert not wrong


def test_one_module_writes_files():
    wrong = []
    for name, path in _sources():
        if name in WRITES:
            continue
        for call, node in _calls(path):
            last = call.rpartition(".")[2]
            modes = [ast.unparse(a) for a in (*node.args, *[k.value for k in node.keywords if k.arg == "mode"])]
            opens = last == "open" and any(mode.strip("'\"b") in ("w", "a", "x", "r+", "w+", "a+", "x+") for mode in modes)
            reads = name.startswith("io/") and call == "os.fdopen"
            if opens or ((call in WRITING_CALLS or last in WRITING_METHODS) and not reads):
                wrong.append((name, call))
    assert not wrong


class Bomb:
    """Whoever unpickles this creates the marker."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_booby_traps_do_not_go_off(tmp_path):
    marker = tmp_path / "marker"
    traps: dict[str, bytes] = {"pickle": pickle.dumps(Bomb(str(marker)))}
    for name, save in (("torch", lambda f: torch.save({"x": Bomb(str(marker))}, f)),
                       ("torch-old", lambda f: torch.save(Bomb(str(marker)), f, _use_new_zipfile_serialization=False)),
                       ("npy", lambda f: np.save(f, np.array([Bomb(str(marker))], dtype=object), allow_pickle=True)),
                       ("npz", lambda f: np.savez(f, x=np.array([Bomb(str(marker))], dtype=object)))):
        buffer = io.BytesIO()
        save(buffer)
        traps[name] = buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", traps["pickle"])
    traps["zip"] = buffer.getvalue()
    sample = {s.name: s for s in io_samples.single_files()}["quantizer-pq"]
    code = f"__import__('os').mkdir({str(marker)!r})"
    for name, change in (("name", {"quantizer": f"os:mkdir({str(marker)!r})"}), ("name2", {"quantizer": code}),
                         ("config", {"config": {"dim": code, "num_codebooks": 1}}), ("config2", {"config": {code: 1}}),
                         ("config3", {"config": {"__reduce__": ["os.mkdir", [str(marker)]], "dim": 1, "num_codebooks": 1}}),
                         ("structure", {"structure": {"fitted": code}})):
        parts = io_damage.Parts(sample.data)
        parts.header["object"].update(change)
        traps[f"object-{name}"] = parts.seal()
    parts = io_damage.Parts(sample.data)
    contents = parts.contents()
    contents["codebooks"] = ("U8", [len(traps["pickle"])], traps["pickle"])
    traps["tensor"] = parts.rebuild(contents).seal()
    readers = [objects.load, objects.load_codes, tensors.read_header, verify.describe,
               lambda p: tensors.read_tensors(p, mmap=True), lambda p: folder.import_file(p, tmp_path / "d"), codeword.Quantizer.load]
    for name, data in traps.items():
        for path in (tmp_path / f"{name}.cw", tmp_path / f"{name}.npy", tmp_path / f"{name}.pt"):
            path.write_bytes(data)
            for read in readers:
                with contextlib.suppress(CodewordError):
                    read(path)
            assert verify.verify(path)
            home = tmp_path / f"{path.name}.d"
            home.mkdir()
            for manifest in (folder.MANIFEST, jobs.JOB):
                (home / manifest).write_bytes(data)
                assert verify.exit_code(home, verify.verify(home)) != 0
    assert not marker.exists()
    for name in ("pickle", "npy"):  # and the traps are live ones
        with pytest.raises(FileExistsError):
            for _ in range(2):
                if name == "pickle":
                    pickle.loads(traps["pickle"])  # noqa: S301
                else:
                    np.load(io.BytesIO(traps["npy"]), allow_pickle=True)
        assert marker.exists()
        marker.rmdir()


# ---------------------------------------------------------------------- R5, R6

CHILD = textwrap.dedent("""
    import json, sys, time, pathlib
    import codeword, torch
    from codeword.errors import FormatError
    from codeword.io import folder, objects, tensors, verify
    torch.set_num_threads(1)
    home = pathlib.Path(sys.argv[1])
    def read(path):
        try:
            if path.is_dir():
                folder.Folder.open(path)
            elif "codes" in path.name:
                objects.load_codes(path)
            elif "quantizer" in path.name:
                objects.load(path)
            else:
                tensors.read_tensors(path)
            return "accepted"
        except FormatError as error:
            return error.code
    def status(key):
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
    for path in sorted((home / "good").iterdir()):   # imports and caches are not the files' fault
        read(path)
    found = {}
    for path in sorted((home / "bad").iterdir()):
        pathlib.Path("/proc/self/clear_refs").write_text("5")   # the peak begins again at what is resident now
        before, start = status("VmRSS"), time.process_time()
        code = read(path)
        found[path.name] = code, time.process_time() - start, (status("VmHWM") - before) / 1024
    print(json.dumps(found))
""")


def _measure(home: Path) -> dict[str, tuple[str, float, float]]:
    """{name: (code, CPU seconds, MiB that reading took above what was resident)} of all files in home/bad, read by a fresh process."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(home)], capture_output=True, text=True, timeout=250, check=False,
                          env={**os.environ, "PYTHONPATH": str(SOURCE.parent), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def _fill(home: Path) -> dict[str, int]:
    """Good files of all kinds; the whole catalogue for some, impossible objects for all. Returns sizes of the bad ones."""
    sizes = {}
    for part in ("good", "bad"):
        (home / part).mkdir()
    samples = {sample.name: sample for sample in io_samples.single_files()}
    for name, sample in samples.items():
        (home / "good" / name).write_bytes(sample.data)
        if name in ("tensors", "quantizer-pq", "codes-rabitq"):
            bad = ((b.name, b.data) for b in itertools.chain(io_damage.raw(sample.data), io_damage.tensor_file(sample.data)))
        elif name.startswith("quantizer-"):
            bad = ((what, data) for what, data, _ in bad_quantizers(sample.data))
        elif name.startswith("codes-"):
            bad = ((what, data) for what, data, _ in bad_codes(sample.data, io_samples.quantizer(name.partition("-")[2])))
        else:
            bad = ()
        for i, (what, data) in enumerate(bad):
            label = f"{name}-{i:03}-{''.join(ch if ch.isalnum() else '_' for ch in what)[:40]}"
            (home / "bad" / label).write_bytes(data)
            sizes[label] = len(data)
    for i, bad in enumerate(io_damage.small_json({s.name: s for s in io_samples.small_json()}["manifest"].data)):
        (home / "bad" / f"folder-{i:03}").mkdir()
        (home / "bad" / f"folder-{i:03}" / folder.MANIFEST).write_bytes(bad.data)
        sizes[f"folder-{i:03}"] = len(bad.data)
    return sizes


needs_proc = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is measured through Linux' /proc")


@needs_proc
def test_bad_files_are_refused_in_little_memory_and_time(tmp_path):
    sizes = _fill(tmp_path)
    found = _measure(tmp_path)
    assert len(found) == len(sizes) > 800
    assert {name for name, (code, _, _) in found.items() if code in ("accepted", "internal")} == set()
    for name, (_, seconds, growth) in found.items():
        assert growth <= 2 * sizes[name] / MIB + 16, name
        assert seconds <= 1, name


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@needs_proc
def test_large_good_files_load_in_twice_their_size(tmp_path):
    for part in ("good", "bad"):
        (tmp_path / part).mkdir()
    rng = np.random.default_rng(0)
    tensors.write_tensors(tmp_path / "bad" / "a", {"x": rng.integers(0, 255, (32, MIB), dtype=np.uint8)}, {})
    one = codeword.make("vq:codebook_size=16384", 256)
    one.fitted = True
    one.save(tmp_path / "bad" / "b-quantizer")
    small = codeword.make("pq:num_codebooks=8,codebook_size=256", 8)
    small.fitted = True
    objects.save_codes(tmp_path / "bad" / "c-codes", codeword.Codes(rng.integers(0, 256, (1 << 22, 8), dtype=np.uint8)), small)
    for name, sample in {s.name: s for s in io_samples.single_files()}.items():
        (tmp_path / "good" / name).write_bytes(sample.data)
    found = _measure(tmp_path)
    assert {code for code, _, _ in found.values()} == {"accepted"}
    for name, (_, _, growth) in found.items():
        size = (tmp_path / "bad" / name).stat().st_size / MIB
        assert size / 2 < growth <= 2 * size + 16, found  # the lower bound shows that the measure measures


@needs_proc
def test_a_huge_mapped_file_takes_no_memory_to_open(tmp_path):
    path = tmp_path / "big.cw"
    head, _, _ = tensors.encode_tensors({"x": np.zeros(1, np.uint8)}, {})
    parts = io_damage.Parts(head + b"\0")
    size = 1 << 33
    parts.entries["x"].update(shape=[size], data_offsets=[0, size])
    parts.payload = b""
    path.write_bytes(parts.seal())
    os.truncate(path, path.stat().st_size + size)  # a hole of 8 GiB
    before = resident()
    found, _ = tensors.read_tensors(path, mmap=True)
    assert resident() - before < 8 * MIB
    assert found.unchecked("x").shape == (size,) and int(found.unchecked("x")[-1]) == 0
