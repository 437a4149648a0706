"""The only module that writes files. A save leaves the old file or the new one, whatever fails and whenever the power goes.

    write beside -> flush file -> rename over the target -> flush folder

The sibling is created exclusively under a random name, so neither another writer nor a planted link can share it. The writer keeps
an advisory lock on it until the rename; a sibling that nobody locks was left by a killed process, and the next writer removes it.
A failed flush is final: the data counts as lost, and is never flushed again to look like a success (kernels drop the dirty pages
after reporting the error once).

Every call to the operating system goes through one small ``System``, so that tests can fail the n-th one and read their order.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from codeword.errors import CodewordError, FormatError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks; leftovers then stay until they are removed by hand
    fcntl = None

TEMPORARY = re.compile(r"\.(?P<target>.+)\.[0-9a-f]{16}\.cwtmp")
"""Names of siblings being written. Readers never open them."""

_CHUNK = 1 << 20


class System:
    """The operating system as a writer sees it, one method a call. Paths are strings, errors are OSError."""

    def open_new(self, path: str) -> int:
        """A descriptor of a file that did not exist before (permissions 0666 less the umask)."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)

    def open_append(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0), 0o666)

    def open_folder(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0))

    def lock(self, descriptor: int) -> bool:
        """Try to lock; False where another holder is alive. Locks end with their process."""
        if fcntl is None:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def write(self, descriptor: int, data: memoryview) -> int:
        """Bytes taken, possibly fewer than offered."""
        return os.write(descriptor, data)

    def chmod(self, descriptor: int, mode: int) -> None:
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, mode)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        os.mkdir(path)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def stat(self, path: str) -> os.stat_result:
        """Of the path itself, links not followed."""
        return os.lstat(path)


_system = System()


@contextlib.contextmanager
def use_system(system: System) -> Iterator[System]:
    """Write through ``system`` inside the block (tests: a double that fails or records)."""
    global _system
    before, _system = _system, system
    try:
        yield system
    finally:
        _system = before


def write_file(path: str | Path, chunks: Iterable[bytes | bytearray | memoryview], *, durable: bool = True) -> None:
    """Replace ``path`` by the concatenated ``chunks`` (of single bytes), keeping its permissions. ``durable=False`` skips both
    flushes (scratch data). Raises OSError as it comes; where that happens before the rename, the old file is untouched."""
    target = os.fspath(path)
    folder, name = os.path.split(target)
    folder = folder or "."
    mode = _replaceable(target)
    temporary, descriptor = _open_beside(folder, name)
    try:
        try:
            for chunk in chunks:
                _write_all(descriptor, memoryview(chunk))
            if mode is not None:
                _system.chmod(descriptor, mode)
            if durable:
                _system.fsync(descriptor)
            _system.rename(temporary, target)
        finally:
            _system.close(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):  # gone already where the rename succeeded and closing failed
            _system.unlink(temporary)
        raise
    if durable:
        sync_folder(folder)
    remove_leftovers(folder, name)


def make_folder(path: str | Path, *, durable: bool = True) -> None:
    """Create the folder ``path`` (its parent must exist); nothing happens where it is one already."""
    try:
        _system.mkdir(os.fspath(path))
    except FileExistsError:
        if not stat.S_ISDIR(_system.stat(os.fspath(path)).st_mode):
            raise
        return
    if durable:
        sync_folder(os.path.dirname(os.fspath(path)) or ".")


def append_line(path: str | Path, line: str) -> None:
    """Add one line to a log. Not a transaction: after a crash the last line may be cut."""
    descriptor = _system.open_append(os.fspath(path))
    try:
        _write_all(descriptor, memoryview(line.replace("\n", " ").encode() + b"\n"))
    finally:
        _system.close(descriptor)


def remove_file(path: str | Path) -> None:
    """Delete a file; nothing happens where there is none."""
    with contextlib.suppress(FileNotFoundError):
        _system.unlink(os.fspath(path))


def list_folder(path: str | Path) -> list[str]:
    """Sorted names in a folder, temporaries left out."""
    return sorted(name for name in _system.listdir(os.fspath(path)) if not TEMPORARY.fullmatch(name))


def sync_folder(path: str | Path) -> None:
    """Flush the names in a folder to the disk."""
    if os.name == "nt":  # folders cannot be opened there; renames are journaled
        return
    descriptor = _system.open_folder(os.fspath(path))
    try:
        _system.fsync(descriptor)
    finally:
        _system.close(descriptor)


def remove_leftovers(folder: str | Path, name: str | None = None) -> None:
    """Delete siblings that killed writers left (of target ``name``, or all). Those of live writers are locked and stay.
    Best effort: a leftover that cannot be removed now is ignored, by readers too."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for entry in _system.listdir(os.fspath(folder)):
            match = TEMPORARY.fullmatch(entry)
            if match and name in (None, match["target"]):
                with contextlib.suppress(OSError):
                    _remove_unlocked(os.path.join(folder, entry))


def lock_folder(path: str | Path) -> int:
    """Take the writer's lock of a folder until ``unlock`` or the end of the process."""
    descriptor = _system.open_folder(os.fspath(path))
    try:
        if not _system.lock(descriptor):
            raise CodewordError(f"{path} is being written by another process or object; wait until it has finished")
    except BaseException:
        _system.close(descriptor)
        raise
    return descriptor


def unlock(descriptor: int) -> None:
    _system.close(descriptor)


def open_regular(path: str | Path, *, follow: bool = True) -> tuple[int, os.stat_result]:
    """A read-only descriptor of a regular file. Raises FormatError("file") for folders, pipes, devices, missing or unreadable
    files and, with ``follow=False``, symbolic links. Never blocks and never opens a device."""
    text = os.fspath(path)
    try:
        found = os.stat(text, follow_symlinks=follow)
        if not stat.S_ISREG(found.st_mode):
            raise FormatError("file", f"{path} is {_kind(found.st_mode)}, not a regular file")
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(text, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
    except (OSError, ValueError) as error:  # ValueError: NUL in a path
        if isinstance(error, FormatError):
            raise
        raise FormatError("file", f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):  # swapped between the two calls
        os.close(descriptor)
        raise FormatError("file", f"{path} is {_kind(found.st_mode)}, not a regular file")
    return descriptor, found


def read_bytes(path: str | Path, limit: int, *, follow: bool = True) -> bytes:
    """The whole of a small regular file; FormatError("limit") above ``limit`` bytes."""
    descriptor, found = open_regular(path, follow=follow)
    with os.fdopen(descriptor, "rb") as file:
        if found.st_size > limit:
            raise FormatError("limit", f"{path} has {found.st_size} bytes; at most {limit} are read here")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise FormatError("limit", f"{path} grew beyond {limit} bytes while it was read")
    return data


# ---------------------------------------------------------------------- inside a write


def _replaceable(target: str) -> int | None:
    """Permissions to keep, or None where there is no file yet. Only a regular file (or a link, which is replaced) may be replaced."""
    try:
        found = _system.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        return None
    if not stat.S_ISREG(found.st_mode):
        raise FormatError("file", f"{target} is {_kind(found.st_mode)}; only a regular file can be replaced")
    return stat.S_IMODE(found.st_mode)


def _open_beside(folder: str, name: str) -> tuple[str, int]:
    """A new locked sibling. A cleaner may meet it between creation and lock; then it is lost and the next name is tried."""
    if not name or len(name) > 200:
        raise CodewordError(f"file name {name!r} must have 1..200 characters")
    for _ in range(100):
        temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.cwtmp")
        descriptor = _system.open_new(temporary)
        try:
            if _system.lock(descriptor) and _still_there(temporary):
                return temporary, descriptor
        except BaseException:
            _system.close(descriptor)
            with contextlib.suppress(OSError):
                _system.unlink(temporary)
            raise
        _system.close(descriptor)
    raise CodewordError(f"no temporary file beside {name!r} could be locked in 100 attempts")


def _still_there(path: str) -> bool:
    try:
        _system.stat(path)
    except FileNotFoundError:
        return False
    return True


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        taken = _system.write(descriptor, data[:_CHUNK])
        if taken <= 0:
            raise OSError("a write took no bytes")
        data = data[taken:]


def _remove_unlocked(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and _system.lock(descriptor):
            _system.unlink(path)
    finally:
        os.close(descriptor)


def _kind(mode: int) -> str:
    for test, word in ((stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a symbolic link"), (stat.S_ISFIFO, "a named pipe"),
                       (stat.S_ISSOCK, "a socket")):
        if test(mode):
            return word
    return "a device"
