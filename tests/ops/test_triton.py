"""Triton kernels: the cases of ``triton_cases`` on a GPU, else in the interpreter, which is chosen before Triton is imported."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch

from codeword.errors import Unsupported
from codeword.ops import dispatch

INSTALLED = importlib.util.find_spec("triton") is not None
ROOT = pathlib.Path(dispatch.__file__).parents[3]

if INSTALLED and torch.cuda.is_available():
    from .triton_cases import *  # noqa: F403
else:
    @pytest.mark.skipif(not INSTALLED, reason="triton is not installed (extra gpu)")
    @pytest.mark.parametrize("part", ["nearest_is", "awkward or segment or gather or layer", "way or ties or finite or scales", "bounds"])
    def test_in_the_interpreter(part: str) -> None:
        done = python("-m", "pytest", "-x", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(ROOT),
                      "-k", part,
                      str(pathlib.Path(__file__).with_name("triton_cases.py")), TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
        assert done.returncode == 0 and re.search(r"\b[1-9]\d* passed", done.stdout), done.stdout[-3000:] + done.stderr[-1000:]


def python(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=280, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": path, "CODEWORD_OPS": "", **env})


def test_nothing_imports_triton_by_itself() -> None:
    done = python("-c", "import sys, torch, codeword, codeword.ops as ops\n"
                        "ops.nearest(torch.zeros(3, 2), torch.zeros(4, 2)), ops.choices(), ops.available()\n"
                        "print('triton' in sys.modules, 'codeword.ops.triton' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_forcing_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEWORD_OPS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    with pytest.raises(Unsupported, match="'nearest' got a tensor on cpu; its kernels run on CUDA"):
        dispatch.choice("nearest")
    assert dispatch.choice("nearest", "cuda:1") == "triton" and dispatch.choice("project", "cuda") == "reference"
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    with pytest.raises(Unsupported, match="triton is not installed"):
        dispatch.choice("nearest", "cuda")
    monkeypatch.setenv("CODEWORD_OPS", "")
    assert dispatch.choice("nearest", "cuda") == "reference"
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    assert dispatch.choice("segment_sum", torch.device("cuda")) == "triton" and dispatch.choice("segment_sum") != "triton"
    monkeypatch.setenv("CODEWORD_OPS", "reference")
    assert dispatch.choice("nearest", "cuda") == "reference"
