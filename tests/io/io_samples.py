"""One small valid file of every kind, and how each is read. A new entry of the catalog joins by itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from codeword import catalog
from codeword.io import folder, jobs, objects, tensors
from codeword.quantizer import EntropyCoded, Quantizer


class Sample(NamedTuple):
    """``data``: the bytes of a valid file; ``read(path)``: the public reader; ``write(path)``: the public writer."""

    name: str
    data: bytes
    read: Callable[[Path], Any]
    write: Callable[[Path], Any]


def rows(dim: int, n: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


@cache
def quantizer(name: str) -> Quantizer:
    """A fitted one of the catalog entry's example."""
    entry = catalog.entry(name)
    return catalog.make(entry.example_spec, entry.example_dim).fit(rows(entry.example_dim))


def names() -> list[str]:
    return [entry.name for entry in catalog.QUANTIZERS]


def some_tensors() -> dict[str, Any]:
    """All dtypes, odd sizes, a scalar, an empty one."""
    found: dict[str, Any] = {f"t.{kind}": torch.arange(5).to(getattr(torch, kind)) for kind in tensors._TORCH.values()}
    found.update(empty=torch.zeros(0, 3), scalar=torch.tensor(2.5), matrix=np.arange(12, dtype=np.float32).reshape(3, 4))
    return found


HEADER = {"kind": "sample", "list": [1, 2.5, None, True, "é\n\"\\"], "nested": {"a": {"b": []}}}


@cache
def single_files() -> tuple[Sample, ...]:
    """Files of ``tensors``: plain, a segment, every quantizer, codes of every quantizer."""
    found = [_sample("tensors", lambda path: tensors.write_tensors(path, some_tensors(), HEADER), tensors.read_tensors),
             _sample("no-tensors", lambda path: tensors.write_tensors(path, {}, {}), tensors.read_tensors)]
    for name in names():
        one = quantizer(name)
        codes = one.encode(rows(one.dim, 13, 1))
        found.append(_sample(f"quantizer-{name}", one.save, objects.load))
        read = partial(objects.load_codes, quantizer=one) if isinstance(one, EntropyCoded) else objects.load_codes
        found.append(_sample(f"codes-{name}", lambda path, codes=codes, one=one: objects.save_codes(path, codes, one), read))
    return tuple(found)


@cache
def small_json() -> tuple[Sample, ...]:
    """Sealed JSON files: a folder's manifest, a job's record and list of units."""

    def manifest(path: Path) -> None:
        with folder.Folder.create(path.parent / f"{path.name}.d", "sample") as made:
            made.commit({"rows": 3}, [made.write_segment("part", {"x": np.arange(3)}, {})])
        path.write_bytes((made.path / folder.MANIFEST).read_bytes())

    def read_manifest(path: Path) -> Any:
        home = path.parent / f"{path.name}.home"
        home.mkdir(exist_ok=True)
        (home / folder.MANIFEST).write_bytes(path.read_bytes())
        return folder.read_manifest(home)

    def job(path: Path, name: str = jobs.JOB) -> None:
        home = path.parent / f"{path.name}.job"
        with jobs.Job.start(home, "sample", config={"bits": 2}, inputs={"x": {"rows": 3}}, seed=5) as made:
            made.run(["a", "b"], lambda unit: ({}, {"unit": unit}))
        path.write_bytes((home / name).read_bytes())

    def read_job(path: Path) -> Any:
        home = path.parent / f"{path.name}.home"
        home.mkdir(exist_ok=True)
        (home / jobs.JOB).write_bytes(path.read_bytes())
        return jobs.read_job(home)

    return (_sample("manifest", manifest, read_manifest), _sample("job", job, read_job),
            _sample("units", lambda path: job(path, "units.json"), lambda path: jobs.read_sealed(path, {"units": list})))


def all_files() -> tuple[Sample, ...]:
    return single_files() + small_json()


def _sample(name: str, write: Callable[[Path], Any], read: Callable[[Path], Any]) -> Sample:
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "sample"
        write(path)
        return Sample(name, path.read_bytes(), read, write)
