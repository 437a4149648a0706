"""The compiled module as such: what it refuses, threads, forks, instruction sets, and which symbols its objects hold."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch

from codeword import ops
from codeword.errors import Unsupported
from codeword.ops import dispatch, reference

from .conftest import NATIVE, equal, pairs

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(NATIVE is None, reason="the compiled module is absent")
native: Any = NATIVE


def f32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def i64(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int64)


WRONG = {
    "dtype": (lambda: native.project(np.zeros((2, 3)), f32(4, 3), f32(2, 4), 1), "x has another dtype than the float32 needed"),
    "rank": (lambda: native.hadamard(f32(4), f32(4), 1), "x has 1 axes"),
    "shape": (lambda: native.project(f32(2, 3), f32(4, 5), f32(2, 4), 1), r"x has shape \(2, 3\); \(2, 5\) is needed"),
    "strides": (lambda: native.hadamard(f32(4, 2).T, f32(2, 4), 1), "x of shape .2, 4. is not C-contiguous"),
    "output shape": (lambda: native.nearest(f32(2, 3), f32(4, 3), i64(3), f32(2), 1), r"indices has shape \(3\); \(2\) is needed"),
    "output dtype": (lambda: native.nearest(f32(2, 3), f32(4, 3), np.zeros(2, np.int32), f32(2), 1), "indices has another dtype"),
    "empty codebook": (lambda: native.nearest(f32(2, 3), f32(0, 3), i64(2), f32(2), 1), "codebook is empty"),
    "width": (lambda: native.hadamard(f32(2, 12), f32(2, 12), 1), "hadamard got width 12"),
    "no width": (lambda: native.rotate(f32(2, 0), f32(4, 0), f32(2, 0), False, 1), "rotate got width 0"),
    "threads": (lambda: native.hadamard(f32(2, 4), f32(2, 4), 0), "num_threads is 0"),
    "bit width": (lambda: native.pack(i64(1, 1), np.array([64]), np.zeros(8, np.uint8), 1), "widths has 64"),
    "bytes": (lambda: native.unpack(np.zeros(1, np.uint8), np.array([9]), i64(1, 1), 1), r"bytes has shape \(1\); \(2\) is needed"),
    "narrow": (lambda: native.unpack(np.zeros(2, np.uint8), np.array([9]), np.zeros((1, 1), np.uint8), 1), "more than indices hold"),
    "labels": (lambda: native.segment_sum(f32(2, 3), np.array([0, 7]), None, np.zeros((7, 3)), np.zeros(7), 1), r"outside of 0\.\.6"),
    "negative label": (lambda: native.segment_sum(f32(1, 3), np.array([-1]), None, np.zeros((7, 3)), np.zeros(7), 1), r"outside of 0\.\.6"),
    "isa": (lambda: native.set_isa("sse9"), "sse9 cannot run here; baseline"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_are_refused_in_words(what: str) -> None:
    call, message = WRONG[what]
    with pytest.raises(ValueError, match=message):
        call()


def test_sizes_that_overflow_are_refused() -> None:
    """No such array can exist, but a view with stride 0 claims to."""
    claimed = np.lib.stride_tricks.as_strided(np.zeros(1, np.int64), shape=(1 << 59, 1), strides=(0, 0))
    with pytest.raises((ValueError, TypeError)):
        native.pack(claimed, np.array([63]), np.zeros(8, np.uint8), 1)


def test_read_only_inputs_are_read_and_outputs_refused() -> None:
    x, out = f32(2, 4) + 1, f32(2, 4)
    x.flags.writeable = False
    native.hadamard(x, out, 1)
    assert out.tolist() == [[2.0, 0, 0, 0], [2.0, 0, 0, 0]]
    with pytest.raises(TypeError):
        native.hadamard(out, x, 1)


def test_self_check_and_info() -> None:
    info = ops.native_info()
    assert info["built"] and info["isa"] in info["runnable"] and set(info["runnable"]) <= set(info["compiled"])
    checked = ops.self_check()
    assert all(checked.values())
    assert set(checked) == {op for op in dispatch.OPS if dispatch.choice(op) == "native"}


def test_self_check_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    if dispatch.choice("nearest") != "native":
        pytest.skip("the reference is forced")
    right = native.project

    def wrong(x: np.ndarray, matrix: np.ndarray, out: np.ndarray, num_threads: int) -> None:
        right(x, matrix, out, num_threads)
        out[0, 0] = np.nextafter(out[0, 0], np.float32(9))

    monkeypatch.setattr(native, "project", wrong)
    checked = ops.self_check()
    assert not checked["project"] and checked["nearest"]


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(pathlib.Path(dispatch.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": path, **env})


def test_environment_chooses_the_instruction_set() -> None:
    code = "import json; from codeword import ops; i = ops.native_info(); print(json.dumps([i['isa'], i['workers'], ops.self_check()]))"
    isa, workers, checked = json.loads(run_python(code, CODEWORD_ISA="baseline", CODEWORD_OPS="").stdout)
    assert isa == "baseline" and set(checked) == set(dispatch.OPS) and all(checked.values())
    assert workers == 0, "no thread before an op needs one"
    refused = run_python(code, CODEWORD_ISA="avx1024", CODEWORD_OPS="")
    assert refused.returncode != 0 and "Unsupported: CODEWORD_ISA=avx1024 cannot run here; baseline" in refused.stderr


def test_unknown_choice_of_ops_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEWORD_OPS", "fast")
    with pytest.raises(Unsupported, match="CODEWORD_OPS='fast'"):
        dispatch.choice("nearest")


def big() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, codebook = pairs("gaussian", 3000, 64, 16)
    return x, codebook, reference.nearest(x, codebook)[0]


def native_nearest(x: torch.Tensor, codebook: torch.Tensor, num_threads: int) -> torch.Tensor:
    indices, distances = torch.empty(len(x), dtype=torch.int64), torch.empty(len(x))
    native.nearest(x.numpy(), codebook.numpy(), indices.numpy(), distances.numpy(), num_threads)
    return indices


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_starts_its_own_threads() -> None:
    x, codebook, want = big()
    assert torch.equal(native_nearest(x, codebook, 3), want)
    child = os.fork()
    if child == 0:  # no pytest machinery in here
        ok = native.workers() == 0 and torch.equal(native_nearest(x, codebook, 3), want) and native.workers() == 2
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(native_nearest(x, codebook, 3), want)


def test_calls_from_several_python_threads() -> None:
    x, codebook, want = big()
    results: list[bool] = []

    def work() -> None:
        results.extend(torch.equal(native_nearest(x, codebook, 3), want) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 20


def test_results_of_all_instruction_sets_are_equal() -> None:
    x, codebook = pairs("offset", 200, 70, 33)
    found = []
    for isa in native.runnable_isas():
        native.set_isa(isa)
        found.append((native_nearest(x, codebook, 2), ops.project(x, codebook), ops.rotate(x, torch.ones(4, 33))))
    native.set_isa("")
    for other in found[1:]:
        assert all(equal(a, b) for a, b in zip(found[0], other))


# ------------------------------------------------------------------ symbols

def symbols(*arguments: str) -> list[tuple[str, str]]:
    """(type, demangled name) of each symbol that nm lists as defined."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    lines = subprocess.run([nm, "-C", "--defined-only", *arguments], capture_output=True, text=True, check=True).stdout.splitlines()
    found = [re.match(r"[0-9a-f]* *([A-Za-z]) (.*)", line) for line in lines]
    return [(match[1], match[2]) for match in found if match]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the layout of objects is checked on Linux")
def test_kernel_objects_hold_nothing_another_object_could_be_linked_to() -> None:
    """An inline function compiled for AVX-512 would be weak, and could become the program's only copy."""
    folders = list((ROOT / "build").glob("*/CMakeFiles/kernels_*.dir"))
    if not folders:
        pytest.skip("no build folder (make native makes one)")
    for folder in folders:
        target = folder.name.removeprefix("kernels_").removesuffix(".dir")
        objects = list(folder.rglob("*.o"))
        assert objects, folder
        for file in objects:
            for kind, name in symbols(str(file)):
                assert kind not in "WVvuwBDC", f"{file.name} of {target} has {name} of type {kind}"
                assert kind.islower() or name.startswith(f"codeword::{target}::"), f"{file.name} of {target} exports {name}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the layout of objects is checked on Linux")
def test_the_module_exports_its_entry_only() -> None:
    exported = [name for kind, name in symbols("-D", native.__file__) if kind in "TDBRVW" and "codeword" in name.lower()]
    assert exported == []
    assert ("T", "PyInit__native") in symbols("-D", native.__file__)


# ------------------------------------------------------------------ other builds

def build(folder: pathlib.Path, *options: str) -> pathlib.Path:
    import nanobind
    subprocess.run([sys.executable, "-m", "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                    f"-DPython_EXECUTABLE={sys.executable}", f"-Dnanobind_DIR={nanobind.cmake_dir()}", *options],
                   check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "cmake", "--build", str(folder)], check=True, capture_output=True)
    return next(folder.glob("_native*"))


@pytest.mark.night
def test_vectors_of_64_bytes_without_avx512(tmp_path: pathlib.Path) -> None:
    """The kernels are right on every vector width by construction; here the width of AVX-512 is checked where AVX-512 cannot run."""
    module = build(tmp_path / "wide", "-DCODEWORD_WIDE=ON")
    code = f"""
import importlib.util, sys, pytest
spec = importlib.util.spec_from_file_location("codeword._native", {str(module)!r})
wide = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wide)
sys.modules["codeword._native"] = wide
from codeword.ops import dispatch
dispatch.native.cache_clear()
dispatch.native = lambda: wide
assert wide.nearest.__module__ and dispatch.native() is wide
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/ops/test_nearest.py", "tests/ops/test_linear.py", "tests/ops/test_pack.py"]))
"""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
