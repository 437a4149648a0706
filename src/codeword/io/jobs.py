"""Long work as a folder that can be killed at any moment and continued: same bytes in the end, at most one unit done twice.

    job.json        sealed: code version, kind, configuration, identities of the inputs, seed
    PHASE.json      sealed: the units of a phase, in order
    unit-*.cw       one file of ``tensors`` a finished unit, with its record
    finished.json   sealed: the job's results have been taken; its folder may be used for another
    log.txt         what happened when

A unit is done when its file is whole, its digests match, and it belongs to this job; that a file exists means nothing. ``resume``
compares every field of job.json and refuses strangers by the name of the field that differs. Randomness of a unit comes from
``unit_seed(seed, unit)``, never from a stream that earlier units have advanced.

The first interrupt (Ctrl-C, or terminate) finishes the current unit and returns; the second stops at once. Both leave a folder that
resumes.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import codeword
from codeword.errors import CodewordError, FormatError
from codeword.io import canonical, files, tensors
from codeword.io.canonical import LIMITS

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Result = tuple[Mapping[str, Tensor | np.ndarray], dict[str, Any]]

JOB = "job.json"
LOG = "log.txt"
FINISHED = "finished.json"
WHOLE_DIGEST_BYTES = 1 << 26
"""Inputs up to this size are identified by all of their bytes; larger ones by size, time of change, and a sample of 64 blocks."""


class Run(NamedTuple):
    """What ``Job.run`` did: units finished before, now, and in all; ``interrupted`` where a signal asked it to end, if only in the
    last unit."""

    before: int
    now: int
    total: int
    interrupted: bool


class Job:
    """One job folder, locked for this process until ``close``. A ``with`` block closes it; where a CodewordError (bad input) ends the
    block before the first unit is done, the folder goes, so that the corrected call can begin. A full disk or an interrupt leaves it."""

    def __init__(self, path: Path, record: dict[str, Any], lock: int) -> None:
        self.path, self.record = path, record
        self._lock: int | None = lock

    @classmethod
    def start(cls, path: str | Path, kind: str, *, config: dict[str, Any], inputs: Mapping[str, str | Path | dict[str, Any]],
              seed: int = 0, resume: bool = False, replace_finished: bool = False, code: str = codeword.__version__) -> Self:
        """Begin a job in a new or empty folder, or continue the one there (``resume=True``). ``inputs``: a path, or JSON that
        identifies what is not a file. ``replace_finished``: without ``resume``, a job whose ``finish`` was called makes room.
        Raises CodewordError naming the first field in which the job there is another one."""
        folder = Path(path)
        record = {"code": code, "config": config, "inputs": {name: _identity(given) for name, given in sorted(inputs.items())},
                  "kind": kind, "seed": seed, "version": tensors.VERSION}
        record = canonical.decode(canonical.encode(record), "job")  # as it will be read: tuples and such are refused now
        files.make_folder(folder)
        lock = files.lock_folder(folder)
        try:
            began = _enter(folder, record, resume, replace_finished)
            job = cls(folder, record, lock)
            job.log(f"{'began' if began else 'resumed'} {kind}")
        except BaseException:
            files.unlock(lock)
            raise
        return job

    def run(self, units: Sequence[str], work: Callable[[str], Result], *, phase: str = "units",
            progress: Callable[[int, int, str], None] | None = None) -> Run:
        """Do ``work(unit) -> (tensors, record)`` for each unit that is not done, in order, saving each result as it comes.
        ``progress(finished, total, unit)`` is called before each and at the end."""
        self._check_units(phase, list(units))
        done = {unit for unit in units if self.is_done(unit, phase)}
        now = 0
        with graceful() as stop:
            for unit in units:
                if unit in done:
                    continue
                if stop:
                    self.log(f"interrupted after {len(done) + now} of {len(units)} units of {phase}")
                    return Run(len(done), now, len(units), True)
                if progress:
                    progress(len(done) + now, len(units), unit)
                content, record = work(unit)
                tensors.write_tensors(self._unit_path(unit, phase), content,
                                      {"job": self._identity, "kind": "unit", "phase": phase, "record": record, "unit": unit})
                now += 1
                self.log(f"finished {unit}")
        if progress:
            progress(len(units), len(units), "")
        return Run(len(done), now, len(units), bool(stop))

    def result(self, unit: str, phase: str = "units", *, mmap: bool = False) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """Tensors and record of a finished unit. Raises FormatError where it is not done."""
        path = self._unit_path(unit, phase)
        content, header = tensors.read_tensors(path, mmap=mmap, follow=False)
        self._check_result(header, unit, phase, path)
        return content, header["record"]

    def is_done(self, unit: str, phase: str = "units") -> bool:
        """True where the unit's file is whole and this job's; what is damaged is logged and will be done again."""
        path = self._unit_path(unit, phase)
        if not os.path.lexists(path):
            return False
        try:
            self._check_result(tensors.verify_file(path, follow=False).header, unit, phase, path)
        except FormatError as error:
            self.log(f"will repeat {unit}: {error}")
            return False
        return True

    def finish(self) -> None:
        """Note that nothing more is wanted from this job (see ``replace_finished``); resuming it takes the note back."""
        files.write_file(self.path / FINISHED, [canonical.sealed({"job": self._identity, "version": tensors.VERSION})])
        self.log("finished the job")

    def log(self, message: str) -> None:
        """Add a line with the time to log.txt."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        files.append_line(self.path / LOG, f"{now} {message}")

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            files.unlock(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, CodewordError) and self._lock is not None:
            with contextlib.suppress(OSError):  # the error itself is what matters
                if not any(name.startswith("unit-") for name in files.list_folder(self.path)):
                    _clear(self.path, set())
                    os.rmdir(self.path)
        self.close()

    @property
    def _identity(self) -> str:
        return _fingerprint(self.record)

    def _unit_path(self, unit: str, phase: str) -> Path:
        return self.path / f"unit-{hashlib.sha256(f'{phase}/{unit}'.encode()).hexdigest()[:16]}.cw"

    def _check_result(self, header: dict[str, Any], unit: str, phase: str, path: Path) -> None:
        canonical.fields(header, f"header of {path}", {"job": str, "kind": str, "phase": str, "record": dict, "unit": str})
        if header["kind"] != "unit":
            raise FormatError("kind", f"{path} holds {header['kind'][:40]!r}, not the result of a unit")
        if (header["job"], header["phase"], header["unit"]) != (self._identity, phase, unit):
            raise FormatError("fingerprint", f"{path} holds unit {header['unit'][:80]!r} of job {header['job'][:16]!r}, "
                                             f"not {unit!r} of job {self._identity!r}")

    def _check_units(self, phase: str, units: list[str]) -> None:
        if not phase.isidentifier() or phase == "job":
            raise CodewordError(f"phase {phase!r} must be an identifier other than 'job'")
        if len(set(units)) != len(units):
            raise CodewordError(f"units of {phase} must be different; {next(u for u in units if units.count(u) > 1)!r} stands twice")
        path = self.path / f"{phase}.json"
        if not os.path.lexists(path):
            files.write_file(path, [canonical.sealed({"units": units, "version": tensors.VERSION})])
            return
        before = read_sealed(path, {"units": list})["units"]
        if before != units:
            at = next((i for i, (old, new) in enumerate(zip(before, units)) if old != new), min(len(before), len(units)))
            raise CodewordError(f"{self.path} is another job: its {phase} differ at position {at} "
                                f"({_show(before[at:at + 1])} there, {_show(units[at:at + 1])} here)")


def unit_seed(seed: int, unit: str) -> int:
    """A seed 0..2^63-1 for one unit, independent of all others and of their order."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{unit}".encode()).digest()[:8], "little") >> 1


def read_job(path: str | Path) -> dict[str, Any]:
    """The record of a job folder, checked. Raises FormatError."""
    return read_sealed(Path(path) / JOB, {"code": str, "config": dict, "inputs": dict, "kind": str, "seed": int})


def read_sealed(path: Path, kinds: dict[str, type]) -> dict[str, Any]:
    """A small sealed JSON file with exactly the fields of ``kinds`` (and "version"), without its digest. Raises FormatError."""
    data = files.read_bytes(path, LIMITS.header_bytes, follow=False)
    if not data:
        raise FormatError("empty", f"{path} is empty")
    if data[:1] != b"{":
        raise FormatError("magic", f"{path} is not a job's file")
    tensors.check_version(canonical.parse(data, str(path)), str(path))
    record = canonical.unseal(data, str(path))
    canonical.fields(record, str(path), {**kinds, "digest": str, "version": int})
    return {key: value for key, value in record.items() if key != "digest"}


# ---------------------------------------------------------------------- identity and resume


def _enter(folder: Path, record: dict[str, Any], resume: bool, replace_finished: bool) -> bool:
    """Write the record into an empty folder (True), or compare it with the one there."""
    present = files.list_folder(folder)
    if JOB not in present:
        strangers = [name for name in present if name != LOG]
        if strangers:
            raise CodewordError(f"{folder} already holds {strangers[0]!r} and no job; an empty folder is needed")
        files.write_file(folder / JOB, [canonical.sealed(record)])
        return True
    before = read_job(folder)
    if replace_finished and not resume and _is_finished(folder, before):
        _clear(folder, {JOB, FINISHED, LOG})  # in this order, a kill leaves a finished job or a new one
        files.write_file(folder / JOB, [canonical.sealed(record)])
        files.remove_file(folder / FINISHED)
        return True
    for key in ("version", "kind", "code", "config", "inputs", "seed"):
        if key == "inputs" and (changed := _changed_file(before[key], record[key])):
            raise CodewordError(f"{folder} is another job: the input {changed} has changed since, or is another file; use another folder, "
                                "or the same input")
        where = _difference(before[key], record[key], key)
        if where:
            raise CodewordError(f"{folder} is another job: {where}; use another folder, or the same arguments")
    if not resume:
        raise CodewordError(f"{folder} already holds this job; resume it (--resume), or use another folder")
    files.remove_file(folder / FINISHED)
    files.remove_leftovers(folder)
    return False


def _fingerprint(record: dict[str, Any]) -> str:
    return hashlib.sha256(canonical.encode(record)).hexdigest()[:16]


def _is_finished(folder: Path, record: dict[str, Any]) -> bool:
    """Whether ``finish`` was called on the job of this record; a note that is damaged, or another job's, is none."""
    if not os.path.lexists(folder / FINISHED):
        return False
    try:
        return read_sealed(folder / FINISHED, {"job": str})["job"] == _fingerprint(record)
    except FormatError:
        return False


def _clear(folder: Path, keep: set[str]) -> None:
    """Delete what jobs write, except ``keep``."""
    for name in files.list_folder(folder):
        if name not in keep and (name == LOG or name.endswith(".json") or (name.startswith("unit-") and name.endswith(".cw"))):
            files.remove_file(folder / name)


def _changed_file(before: dict[str, Any], now: dict[str, Any], name: str = "") -> str:
    """Name of the first file that both jobs read and that has other contents now; empty where there is none."""
    if any(key in before and key in now for key in ("sha256", "sample_sha256")):
        return name if before != now else ""
    for key in sorted(before.keys() & now.keys()):
        if isinstance(before[key], dict) and isinstance(now[key], dict):
            found = _changed_file(before[key], now[key], f"{name}/{key}" if name else key)
            if found:
                return found
    return ""


def _difference(before: Any, now: Any, where: str) -> str:
    """The first place where two JSON values differ, in words; empty where they are equal."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if key not in before or key not in now:
                return f"{where}.{key} is {'new' if key in now else 'missing'} here"
            found = _difference(before[key], now[key], f"{where}.{key}")
            if found:
                return found
        return ""
    return "" if type(before) is type(now) and before == now else f"{where} is {_show(before)} there and {_show(now)} here"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _identity(given: str | Path | dict[str, Any]) -> dict[str, Any]:
    """What stands for an input: JSON as given; a file by size and digest; a folder by its files."""
    if isinstance(given, dict):
        return given
    path = Path(given)
    if path.is_dir():
        return {name: _identity(path / name) for name in files.list_folder(path)}
    descriptor, found = files.open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if found.st_size <= WHOLE_DIGEST_BYTES:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return {"sha256": digest.hexdigest(), "size": found.st_size}
        digest = hashlib.sha256()
        for i in range(64):
            file.seek((found.st_size - (1 << 16)) * i // 63)
            digest.update(file.read(1 << 16))
        return {"changed": found.st_mtime_ns, "sample_sha256": digest.hexdigest(), "size": found.st_size}


# ---------------------------------------------------------------------- signals


@contextlib.contextmanager
def graceful() -> Iterator[list[int]]:
    """A list that is empty until the first signal; the second one acts as if nobody had asked. A signal that this process was started to
    ignore (nohup, a shell's background) stays ignored. Main thread only, else never filled."""
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def first(number: int, frame: Any) -> None:
        stop.append(number)
        restore()

    for number in before:
        signal.signal(number, first)
    try:
        yield stop
    finally:
        restore()
