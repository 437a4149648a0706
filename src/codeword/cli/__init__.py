"""The command line. ``codeword --help`` imports no torch: commands import what they use when they run."""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 a check found something, 2 refused, 130 interrupted)."""
    from codeword.cli.app import run
    return run(arguments)
