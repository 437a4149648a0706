"""Every question that a quantizer is allowed not to answer, with its reason: (test function, catalog name) -> reason.

A test asserts that each row still names an existing check and an existing quantizer.
"""

from __future__ import annotations

EXCEPTIONS: dict[tuple[str, str], str] = {}
