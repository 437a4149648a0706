"""A double of the operating system that fails its n-th call, or records all of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codeword.io import files

ERRORS = {"permission": errno.EACCES, "disk-full": errno.ENOSPC, "interrupted": errno.EINTR, "read-only": errno.EROFS,
          "cross-device": errno.EXDEV, "io": errno.EIO}

CALLS = ("open_new", "open_append", "open_folder", "lock", "write", "chmod", "fsync", "close", "rename", "unlink", "mkdir",
         "listdir", "stat")


class Faults(files.System):
    """Passes calls on to the real system. Call number ``fail_at`` (from 1) fails with ``error``, after half of its data where it is a
    write; with ``error="short"`` it succeeds, but takes a single byte. ``log`` holds (call, path or descriptor's path)."""

    def __init__(self, fail_at: int = 0, error: str = "io") -> None:
        self.fail_at, self.error, self.count = fail_at, error, 0
        self.failed: str | None = None
        self.log: list[tuple[str, str]] = []
        self._paths: dict[int, str] = {}

    def _enter(self, call: str, what: str | int) -> bool:
        """Record the call; True where it is the one to fail."""
        self.count += 1
        self.log.append((call, self._paths.get(what, "?") if isinstance(what, int) else what))
        if self.count == self.fail_at:
            self.failed = call
            return True
        return False

    def _raise(self) -> None:
        number = ERRORS[self.error]
        raise OSError(number, os.strerror(number))

    def write(self, descriptor: int, data: memoryview) -> int:
        if self._enter("write", descriptor):
            if self.error == "short":
                return super().write(descriptor, data[:1])
            super().write(descriptor, data[:len(data) // 2])
            self._raise()
        return super().write(descriptor, data)

    def close(self, descriptor: int) -> None:
        failing = self._enter("close", descriptor)
        super().close(descriptor)  # a failing close releases the descriptor too
        self._paths.pop(descriptor, None)
        if failing and self.error != "short":
            self._raise()


def _passed(call: str) -> Callable[..., Any]:
    real = getattr(files.System, call)

    def method(self: Faults, what: Any, *rest: Any) -> Any:
        if self._enter(call, what) and self.error != "short":
            self._raise()
        result = real(self, what, *rest)
        if call.startswith("open_"):
            self._paths[result] = what
        return result

    return method


for _call in CALLS:
    if _call not in ("write", "close"):
        setattr(Faults, _call, _passed(_call))


def each_fault(write: Callable[[], Any], errors: tuple[str, ...] = tuple(ERRORS), most: int = 2000):
    """Yield (double, exception or None) for ``write`` with its first, second, ... call failing, until all its calls have been failed."""
    for error in errors:
        for n in range(1, most):
            with files.use_system(Faults(n, error)) as system:
                raised = None
                try:
                    write()
                except OSError as found:
                    raised = found
            if system.failed is None:
                assert raised is None
                break
            yield system, raised
        else:
            raise AssertionError(f"still failing after {most} calls")


def temporaries(folder: Path) -> list[str]:
    """Names of siblings left by writers, in a folder and below."""
    return [name for _, _, names in os.walk(folder) for name in names if files.TEMPORARY.fullmatch(name)]
