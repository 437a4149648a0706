"""What is fuzzed: every reader of bytes that a stranger may have written. Each target takes bytes, raises AssertionError where a
property fails, and lets nothing but the expected error family through. Needs no fuzzer: tests run the regressions through it.

A checksum stops a fuzzer, so the first byte decides: even inputs are read with every digest accepted; odd ones with digests checked.
Its second bit chooses between a raw file and one whose header is padded and measured here, so that mutations of the JSON survive.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codeword import catalog, ops
from codeword.errors import CodewordError, FormatError
from codeword.io import canonical, faiss, faiss_layout, folder, jobs, objects, tensors

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "io"))

SEPARATOR = b"\n\xff\n"
_HOME = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)


def json_text(data: bytes) -> None:
    """Canonical JSON: an accepted text is the only text of its value."""
    with _refused():
        value = canonical.decode(data, "text")
        assert canonical.encode(value) == data


def tensor_file(data: bytes) -> None:
    """An accepted file written again is the same file; mapped and read whole it gives the same verdict."""
    path, checked = _file(data)
    with _refused(), _digests(checked):
        found, header = tensors.read_tensors(path)
        assert tensors.verify_file(path).header == header
        mapped, _ = tensors.read_tensors(path, mmap=True)
        mapped.verify()
        if checked:
            assert b"".join(tensors._chunks(*tensors.encode_tensors(found, header)[:2])) == path.read_bytes()
        for name in found:
            assert found[name].shape == mapped[name].shape and found[name].dtype == mapped[name].dtype


def quantizer_file(data: bytes) -> None:
    """A quantizer that loads encodes, decodes, and is saved as the same object."""
    path, checked = _file(data)
    with _refused(), _digests(checked):
        one = objects.load(path)
        mark = one.fingerprint
        if one.fitted and one.dim <= 64:
            x = np.linspace(-1, 1, 3 * one.dim, dtype=np.float32).reshape(3, one.dim)
            codes = one.encode(x)
            one.decode(codes)
            assert codes.indices.shape == (3, len(one.levels))
        assert one.fingerprint == mark
        content, header = objects.to_parts(one)
        assert objects.from_parts(content, header).fingerprint == mark


def codes_file(data: bytes) -> None:
    """Accepted codes are within their levels and pack to the very bit string they came from."""
    path, checked = _file(data)
    with _refused(), _digests(checked):
        codes = objects.load_codes(path)
        raw, header = tensors.read_tensors(path)
        levels = [level for level, count in header["levels"] for _ in range(count)]
        rows = np.asarray(codes.indices).reshape(-1, len(levels))
        assert (rows.astype(np.uint64) < np.array(levels, dtype=np.uint64)).all()
        widths = [(level - 1).bit_length() for level in levels]
        assert ops.pack(torch.from_numpy(rows.astype(np.int64)), widths).equal(raw["indices"])


def manifest(data: bytes) -> None:
    """An accepted manifest names files in its folder only, and is the only text of itself."""
    checked, text = bool(data[:1] and data[0] & 1), data[1:]
    (_HOME / folder.MANIFEST).write_bytes(text)
    with _refused(), _digests(checked):
        record = folder.read_manifest(_HOME)
        assert all(os.path.basename(name) == name and name not in (".", "..") for name in record["files"])
        if checked:
            assert canonical.sealed({key: value for key, value in record.items() if key != "digest"}) == text
        for name in record["files"]:
            with contextlib.suppress(FormatError):
                folder.Folder.open(_HOME).read_segment(name)


def job_record(data: bytes) -> None:
    """The decision to resume is total: accepted, or refused by name."""
    checked, text = bool(data[:1] and data[0] & 1), data[1:]
    home = _HOME / "job"
    home.mkdir(exist_ok=True)
    (home / jobs.JOB).write_bytes(text)
    with _refused(), _digests(checked):
        jobs.Job.start(home, "sample", config={"bits": 2}, inputs={"x": {"rows": 3}}, seed=5, resume=True).close()
        assert jobs.read_job(home)["config"] == {"bits": 2}


def spec(data: bytes) -> None:
    """parse(print(parse(text))) = parse(text)."""
    with contextlib.suppress(UnicodeDecodeError):
        text = data.decode()
        with contextlib.suppress(CodewordError):
            found = catalog.parse(text)
            again = catalog.parse(_print(found))
            assert repr(again) == repr(found), (found, again)


def faiss_file(data: bytes) -> None:
    """An index that is read decodes to finite values, under the ids it lists."""
    with _refused():
        found = faiss.convert(faiss_layout.parse(data, "input"), "input")
        assert len(found.index) == found.found.rows
        if len(found.index) and found.found.dim <= 64:
            ids = found.index.ids[:3]
            assert np.isfinite(found.index.reconstruct(ids)).all()
            assert found.index.search(np.zeros((1, found.found.dim), np.float32), 1).ids[0, 0] in found.index.ids


TARGETS: dict[str, Callable[[bytes], None]] = {
    "json": json_text, "tensors": tensor_file, "quantizer": quantizer_file, "codes": codes_file, "manifest": manifest, "job": job_record,
    "spec": spec, "faiss": faiss_file,
}


def seeds(name: str) -> Iterator[bytes]:
    """Valid inputs and the catalogue of bad ones, in the target's own encoding."""
    import io_damage
    import io_samples
    files = {sample.name: sample.data for sample in io_samples.all_files()}
    if name == "spec":
        yield from (entry.example_spec.encode() for entry in catalog.QUANTIZERS)
        yield from (b"residual(vq:codebook_size=256;projected(fsq:grid=8x5x5)):stages=3",
                    b"vq:codebook_size=1e3,learning=ema,seed=-1,x=none")
        return
    if name == "faiss":
        home = Path(__file__).parents[1] / "tests" / "io" / "golden" / "faiss-1.15"
        yield from (path.read_bytes() for path in sorted(home.glob("*.faiss")))
        return
    if name in ("json", "manifest", "job"):
        data = files[{"json": "manifest"}.get(name, name)]
        bad = [b.data for b in io_damage.small_json(data) if len(b.data) < 4096]
        yield from [data, *bad] if name == "json" else [bytes([mode]) + text for text in (data, *bad) for mode in (0, 1)]
        return
    for kind, data in files.items():
        if kind == name or kind.startswith(f"{name}-"):
            n = 8 + int.from_bytes(data[:8], "little")
            yield b"\x00" + data[8:n].rstrip(b" ") + SEPARATOR + data[n:]
            yield b"\x01" + data[8:n].rstrip(b" ") + SEPARATOR + data[n:]
            yield b"\x03" + data
            if kind in ("tensors", "quantizer-pq", "codes-rabitq"):
                for bad in io_damage.tensor_file(data):
                    if len(bad.data) < 16384:
                        yield b"\x02" + bad.data


# ---------------------------------------------------------------------- inside


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Errors that a stranger's bytes may cause; "internal" is none of them."""
    try:
        yield
    except FormatError as error:
        assert error.code != "internal", error
    except CodewordError:
        pass


@contextlib.contextmanager
def _digests(checked: bool) -> Iterator[None]:
    before = canonical.same_digest
    canonical.same_digest = before if checked else lambda actual, recorded: True
    try:
        yield
    finally:
        canonical.same_digest = before


def _file(data: bytes) -> tuple[Path, bool]:
    mode, rest = data[0] if data else 0, data[1:]
    if not mode & 2:
        text, _, payload = rest.partition(SEPARATOR)
        size = -(-(8 + len(text)) // tensors.PAGE) * tensors.PAGE - 8
        rest = size.to_bytes(8, "little") + text.ljust(size) + payload
    path = _HOME / "input"
    path.write_bytes(rest)
    return path, bool(mode & 1)


def _print(found: tuple[str, tuple[str, ...], dict[str, Any]]) -> str:
    """A spec string from its parsed form."""
    name, inner, options = found
    words = {True: "true", False: "false", None: "none"}

    def show(value: Any) -> str:
        if isinstance(value, list):
            return "x".join(map(str, value))
        return words[value] if value is None or isinstance(value, bool) else str(value)

    head = f"{name}({';'.join(inner)})" if inner else name
    return head + (":" + ",".join(f"{key}={show(value)}" for key, value in options.items()) if options else "")
