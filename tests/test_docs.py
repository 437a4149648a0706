"""The front page: its tables are those of results/, its Python runs, its commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from codeword.cli.app import app

ROOT = Path(__file__).parents[1]


def test_tables_are_those_of_the_results():
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "docs" / "build.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: python docs/build.py"


def test_the_ten_lines_run(tmp_path: Path, monkeypatch):
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    np.save(tmp_path / "embeddings.npy", np.random.default_rng(0).normal(size=(600, 32)).astype(np.float16))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block.group(1), names)
    assert names["hits"].ids.shape == (5, 10) and (names["hits"].ids[:, 0] == np.arange(5)).all()  # type: ignore[attr-defined]
    assert (tmp_path / "mine.safetensors").is_file() and len(names["index"]) == 600  # type: ignore[arg-type]


def test_the_network_lines_run():
    import torch

    import codeword
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    encoder, decoder = torch.nn.Linear(64, 64), torch.nn.Linear(64, 3)
    names = {"codeword": codeword, "first_batch": torch.randn(2048, 64), "z": encoder(torch.randn(32, 64)), "decoder": decoder,
             "task_loss": lambda y: y.square().mean(), "optimizer": torch.optim.SGD(encoder.parameters(), lr=0.1)}
    exec(blocks[1], names)
    assert encoder.weight.grad is not None and names["out"].values.shape == (32, 64)  # type: ignore[attr-defined]


def test_commands_named_on_the_front_page_exist():
    from typer.main import get_command
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        named = set(re.findall(r"`codeword ([a-z]+)", (ROOT / name).read_text()))
        assert named <= known, (name, named - known)
