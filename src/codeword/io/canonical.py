"""Canonical JSON: one text for one value, parsed within bounds. Every header, manifest and record is written in it.

    ASCII only, keys sorted, no spaces, no NaN or infinity, integers below 2^63 in size, no lone surrogates or NUL

A reader encodes what it parsed again and compares: what is not byte for byte the canonical text is refused. So there is exactly one
file for one object, and nothing can hide in white space, key order, escapes or duplicate keys. Depth and number of values are counted
before the parser runs, because its memory grows with them.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NamedTuple

from codeword.errors import CodewordError, FormatError

MAX_INT = (1 << 63) - 1


class Limits(NamedTuple):
    """What a reader accepts at most. Pass ``Limits(header_bytes=...)`` to raise one."""

    header_bytes: int = 4 << 20
    values: int = 100_000
    depth: int = 24
    tensors: int = 10_000
    axes: int = 8
    elements: int = 1 << 48


LIMITS = Limits()

DIGEST_ZEROS = "0" * 64


def encode(value: Any) -> bytes:
    """The canonical text of JSON ``value``. CodewordError where it has none, or where ``decode`` would refuse it."""
    try:
        _check(value, LIMITS.depth)
        text = dump(value)
        _count(text, "the value", LIMITS)
    except (_NotCanonical, FormatError) as error:
        raise CodewordError(f"cannot be stored as canonical JSON: {error}") from None
    return text


def dump(value: Any) -> bytes:
    """The text of a value that is known to have one."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), sort_keys=True).encode("ascii")


def decode(data: bytes, what: str, limits: Limits = LIMITS) -> Any:
    """The value of canonical ``data``; FormatError("header", "duplicate" or "limit") otherwise."""
    value = parse(data, what, limits)
    if dump(value) != data:
        raise FormatError("header", f"{what} is not in canonical form (sorted keys, no spaces, shortest numbers)")
    return value


def parse(data: bytes, what: str, limits: Limits = LIMITS) -> Any:
    """As ``decode`` without asking for the canonical text; used where the caller compares a larger text itself."""
    if len(data) > limits.header_bytes:
        raise FormatError("limit", f"{what} has {len(data)} bytes; at most {limits.header_bytes} are allowed")
    _count(data, what, limits)
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise FormatError("header", f"{what} has byte 0x{data[error.start]:02x} at {error.start}; ASCII is needed") from None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
        _check(value, limits.depth)
    except FormatError:
        raise
    except _NotCanonical as error:
        raise FormatError("header", f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise FormatError("header", f"{what} is not JSON: {error}") from None
    return value


def sealed(value: dict[str, Any]) -> bytes:
    """Canonical text of ``value`` with its own SHA-256 under "digest": computed over the text with 64 zeros in that place."""
    text = encode({**value, "digest": DIGEST_ZEROS})
    digest = hashlib.sha256(text).hexdigest()
    return dump({**value, "digest": digest})


def unseal(data: bytes, what: str, limits: Limits = LIMITS) -> dict[str, Any]:
    """Inverse of ``sealed``; FormatError("digest") where the text was changed. The "digest" stays in the result."""
    value = decode(data, what, limits)
    record = fields(value, what, {"digest": str}, open_ended=True)
    zeroed = dump({**record, "digest": DIGEST_ZEROS})
    if not same_digest(hashlib.sha256(zeroed).hexdigest(), record["digest"]):
        raise FormatError("digest", f"{what} differs from its digest")
    return record


def fields(value: Any, what: str, kinds: dict[str, type | tuple[type, ...]], *, open_ended: bool = False) -> dict[str, Any]:
    """``value`` as a dict with exactly the keys of ``kinds`` (or at least, if ``open_ended``), each of its type; bool is no int."""
    if not isinstance(value, dict):
        raise FormatError("header", f"{what} is {type(value).__name__}; an object is needed")
    for key, kind in kinds.items():
        if key not in value:
            raise FormatError("missing-key", f"{what} lacks {key!r}")
        wanted = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value[key], wanted) or (isinstance(value[key], bool) and bool not in wanted):
            raise FormatError("header", f"{what} has {key!r} of type {type(value[key]).__name__}; "
                                        f"{' or '.join(k.__name__ for k in wanted)} is needed")
    unknown = [] if open_ended else sorted(value.keys() - kinds.keys())
    if unknown:
        raise FormatError("unknown-key", f"{what} has unknown keys {', '.join(map(repr, unknown[:5]))}")
    return value


def same_digest(actual: str, recorded: str) -> bool:
    """One place for the comparison: a fuzzer replaces it to get past checksums."""
    return actual == recorded


# ---------------------------------------------------------------------- inside


class _NotCanonical(ValueError):
    pass


_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]', re.DOTALL)


def _count(data: bytes, what: str, limits: Limits) -> None:
    """Depth and number of values of the text, wrong or right, in constant memory."""
    depth, values = 0, 1
    for match in _TOKEN.finditer(data):
        token = data[match.start()]
        if token in b"[{":
            depth += 1
            values += 1
            if depth > limits.depth:
                raise FormatError("limit", f"{what} nests deeper than {limits.depth} levels")
        elif token in b"]}":
            depth -= 1
        elif token in b",":
            values += 1
        if values > limits.values:
            raise FormatError("limit", f"{what} has more than {limits.values} values")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise FormatError("duplicate", f"key {twice!r} stands twice in one object")
    return found


def _integer(text: str) -> int:
    if len(text) > 20:
        raise _NotCanonical(f"integer of {len(text)} digits; at most 2^63 - 1 is allowed")
    return int(text)


def _float(text: str) -> float:
    if len(text) > 40:
        raise _NotCanonical(f"number of {len(text)} characters; 40 are enough for any double")
    return float(text)


def _constant(text: str) -> float:
    raise _NotCanonical(f"{text} is not a JSON number")


def _check(value: Any, depth: int) -> None:
    """Only plain JSON within bounds: exact types, so that no subclass can print itself differently."""
    if depth < 0:
        raise _NotCanonical("nested too deep")
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise _NotCanonical(f"key {key!r} is not a string")
            _check_text(key)
            _check(item, depth - 1)
    elif kind is list:
        for item in value:
            _check(item, depth - 1)
    elif kind is str:
        _check_text(value)
    elif kind is int:
        if not -MAX_INT <= value <= MAX_INT:
            raise _NotCanonical(f"integer {value} is outside +-(2^63 - 1)")
    elif kind is float:
        if value != value or value in (float("inf"), float("-inf")):
            raise _NotCanonical(f"{value} is not a JSON number")
    elif value is not None and kind is not bool:
        raise _NotCanonical(f"{kind.__name__} is not a JSON value")


_NEVER = re.compile("[\0\ud800-\udfff]")


def _check_text(text: str) -> None:
    if _NEVER.search(text):
        raise _NotCanonical(f"string {text[:40]!r} has NUL or half a surrogate pair")
