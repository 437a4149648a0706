"""The catalogue of bad files: named mutators, each with the code that its file must be refused with.

``raw`` mutators work on any bytes; the others take a file apart into entries, record and payload, change one thing, and seal it again
with right digests, so that the check meant is the one that answers, and not a checksum in front of it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from codeword.io import canonical, tensors

PAGE = tensors.PAGE


class Bad(NamedTuple):
    name: str
    data: bytes
    code: str


# ---------------------------------------------------------------------- taking apart and sealing


class Parts:
    """A file of ``tensors`` as Python values; ``seal()`` gives bytes with right digests whatever the values are."""

    def __init__(self, data: bytes) -> None:
        n = int.from_bytes(data[:8], "little")
        self.entries: dict[str, Any] = json.loads(data[8:8 + n])
        self.record: dict[str, Any] = json.loads(self.entries.pop("__metadata__")["codeword"])
        self.payload = data[8 + n:]

    @property
    def header(self) -> dict[str, Any]:
        return self.record["header"]

    def real(self) -> list[str]:
        return sorted(name for name in self.entries if not name.startswith("_pad."))

    def values(self, name: str) -> bytes:
        start, stop = self.entries[name]["data_offsets"]
        return self.payload[start:stop]

    def rebuild(self, contents: dict[str, tuple[str, list[int], bytes]]) -> Parts:
        """Replace all tensors: lay them out and digest them again."""
        self.entries, self.payload, self.record["sha256"] = {}, b"", {}
        shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape, _) in sorted(contents.items())}
        for name, dtype, shape, start, stop in tensors._layout(shapes):
            self.entries[name] = {"data_offsets": [start, stop], "dtype": dtype, "shape": list(shape)}
            raw = contents[name][2] if name in contents else bytes(stop - start)
            self.payload += raw
            if name in contents:
                self.record["sha256"][name] = hashlib.sha256(raw).hexdigest()
        return self

    def contents(self) -> dict[str, tuple[str, list[int], bytes]]:
        return {name: (self.entries[name]["dtype"], self.entries[name]["shape"], self.values(name)) for name in self.real()}

    def redigest(self) -> Parts:
        for name in self.real():
            self.record["sha256"][name] = hashlib.sha256(self.values(name)).hexdigest()
        return self

    def seal(self, dump: Callable[[Any], str] | None = None, inner: Callable[[str], str] = str, outer: Callable[[str], str] = str) -> bytes:
        """Bytes; ``inner`` and ``outer`` may rewrite the two JSON texts before the digest is taken."""
        dump = dump or (lambda value: json.dumps(value, separators=(",", ":"), sort_keys=True))

        def head(digest: str) -> bytes:
            text = inner(dump({**self.record, "digest": digest}))
            whole = outer(dump({**self.entries, "__metadata__": {"codeword": text}})).encode("utf-8", "surrogatepass")
            n = math.ceil((8 + len(whole)) / PAGE) * PAGE - 8
            return n.to_bytes(8, "little") + whole.ljust(n)

        if "digest" in self.record and self.record["digest"] is None:  # a mutator removed it
            del self.record["digest"]
            whole = dump({**self.entries, "__metadata__": {"codeword": dump(self.record)}}).encode()
            n = math.ceil((8 + len(whole)) / PAGE) * PAGE - 8
            return n.to_bytes(8, "little") + whole.ljust(n) + self.payload
        digest = hashlib.sha256(head(canonical.DIGEST_ZEROS)).hexdigest()
        return head(digest) + self.payload


def seal_json(record: dict[str, Any], rewrite: Callable[[str], str] = str) -> bytes:
    """A sealed small JSON file with a right digest."""

    def text(digest: str) -> bytes:
        return rewrite(json.dumps({**record, "digest": digest}, separators=(",", ":"), sort_keys=True)).encode("utf-8", "surrogatepass")

    return text(hashlib.sha256(text(canonical.DIGEST_ZEROS)).hexdigest())


# ---------------------------------------------------------------------- the catalogue


def raw(data: bytes) -> Iterator[Bad]:
    """Section 7.1 and 7.2: for any kind of file. Cuts and additions have the code "cut": see ``cut_codes``."""
    yield Bad("empty", b"", "empty")
    size = len(data)
    yield Bad("zeros", bytes(size), "magic")
    yield Bad("ones", b"\xff" * size, "magic")
    yield Bad("random", bytes((hashlib.sha256(str(i).encode()).digest()[0] | 0x80) for i in range(size)), "magic")
    yield Bad("text", (b"This is a text, not a file of codes.\n" * (size // 37 + 1))[:size], "magic")
    yield Bad("gzip", gzip.compress(data, mtime=0), "magic")
    yield Bad("pickle", b"\x80\x04\x95" + bytes(size), "magic")
    yield Bad("zip", b"PK\x03\x04" + bytes(size), "magic")
    yield Bad("npy", b"\x93NUMPY\x01\x00v\x00 'descr': '<f4'" + bytes(size), "magic")


def tensor_file(data: bytes) -> Iterator[Bad]:
    """Sections 7.2 to 7.8 for a file of ``tensors``, whatever it holds."""
    n = int.from_bytes(data[:8], "little")
    head, payload = data[:8 + n], data[8 + n:]

    def length(value: int) -> bytes:
        return (value % (1 << 64)).to_bytes(8, "little") + data[8:]

    def sealed(change: Callable[[Parts], Any], **how: Any) -> bytes:
        parts = Parts(data)
        change(parts)
        return parts.seal(**how)

    yield Bad("one byte", data[:1], "truncated")
    yield Bad("length only", data[:8], "truncated")
    yield Bad("length and brace", data[:9], "truncated")
    yield Bad("header cut by one", data[:len(head) - 1], "truncated")
    yield Bad("extra byte", data + b"\0", "trailing")
    yield Bad("extra page", data + bytes(PAGE), "trailing")
    yield Bad("two files", data + data, "trailing")
    if payload:
        yield Bad("header only", head, "truncated")
        yield Bad("header and a byte", data[:len(head) + 1], "truncated") if len(payload) > 1 else Bad("cut", data[:-1], "truncated")
        yield Bad("last byte missing", data[:-1], "truncated")

    yield Bad("length 0", length(0), "header")
    yield Bad("length 1", length(1), "header")
    yield Bad("length short by one", length(n - 1), "digest")
    yield Bad("length a page short", length(n - PAGE) if n > PAGE else length(100), "header")
    yield Bad("length one more than the file", length(len(data) - 7), "truncated")
    for value, name in ((1 << 31, "2^31"), ((1 << 31) - 1, "2^31-1"), (1 << 32, "2^32"), (1 << 63, "2^63"), (-1, "-1"), (-4096, "-4096")):
        yield Bad(f"length {name}", length(value), "limit")

    yield Bad("no magic brace", data[:8] + b" " + data[9:], "magic")
    yield Bad("byte-order mark", data[:8] + b"\xef\xbb\xbf" + data[8:-3] + data[-3:], "magic")
    yield Bad("not UTF-8", data[:20] + b"\xff" + data[21:], "header")
    yield Bad("utf-8 letter", sealed(lambda p: p.header.update(x="a"), inner=lambda t: t.replace('"x":"a"', '"x":"é"'), dump=_loose), "header")
    yield Bad("newline behind the header", head[:-1] + b"\n" + payload, "digest")
    yield Bad("NUL behind the header", head[:-1] + b"\0" + payload, "header")

    for where, how in (("inner", {"inner": None}), ("outer", {"outer": None})):
        key = next(iter(how))
        swaps: list[tuple[str, Callable[[str], str], str]] = [
            ("space", lambda t: t.replace(":", ": ", 1), "header"),
            ("space at end", lambda t: t[:-1] + " }", "header"),
            ("array around it", lambda t: f"[{t}]", "magic" if key == "outer" else "header"),
            ("unclosed", lambda t: t[:-1], "header"),
            ("two values", lambda t: t + "{}", "header"),
            ("nested 10,000 deep", lambda t: t[:-1] + ',"z":' + "[" * 10_000 + "]" * 10_000 + "}", "limit"),
            ("nested objects", lambda t: t[:-1] + ',"z":' + '{"a":' * 10_000 + "1" + "}" * 10_000 + "}", "limit"),
            ("a million values", lambda t: t[:-1] + ',"z":[' + "1," * 200_000 + "1]}", "limit"),
            ("integer of 5,000 digits", lambda t: t[:-1] + ',"z":' + "9" * 5_000 + "}", "header"),
            ("integer 2^63", lambda t: t[:-1] + ',"z":9223372036854775808}', "header"),
            ("1e999", lambda t: t[:-1] + ',"z":1e999}', "header"),
            ("NaN", lambda t: t[:-1] + ',"z":NaN}', "header"),
            ("-Infinity", lambda t: t[:-1] + ',"z":-Infinity}', "header"),
            ("long fraction", lambda t: t[:-1] + ',"z":0.' + "1" * 5_000 + "}", "header"),
            ("single quotes", lambda t: t.replace('"', "'"), "header"),
            ("comment", lambda t: t[:-1] + "/**/}", "header"),
            ("trailing comma", lambda t: t[:-1] + ",}", "header"),
            ("duplicate key", lambda t: t[:-1] + ',"z":1,"z":1}', "duplicate"),
            ("key with NUL", lambda t: t[:-1] + ',"z\\u0000":1}', "header"),
            ("lone surrogate", lambda t: t[:-1] + ',"z":"\\ud800"}', "header"),
            ("bad escape", lambda t: t[:-1] + ',"z":"\\x41"}', "header"),
            ("raw control character", lambda t: t[:-1] + ',"z":"\x01"}', "header"),
            ("unknown key", lambda t: t[:-1] + ',"zzz":1}', "unknown-key" if key == "inner" else "missing-key"),
        ]
        for name, swap, code in swaps:
            yield Bad(f"{where} {name}", sealed(lambda p: None, **{key: swap}), code)
    yield Bad("string of 5 MB", sealed(lambda p: p.header.update(z="x" * 5_000_000)), "limit")

    yield Bad("no metadata", _outer(data, lambda e: e.pop("__metadata__")), "kind")
    yield Bad("foreign metadata", _outer(data, lambda e: e.update(__metadata__={"format": "pt"})), "kind")
    yield Bad("metadata is a list", _outer(data, lambda e: e.update(__metadata__=["codeword"])), "kind")
    yield Bad("second metadata key", _outer(data, lambda e: e["__metadata__"].update(format="pt")), "unknown-key")
    yield Bad("metadata not a string", _outer(data, lambda e: e["__metadata__"].update(codeword={"version": 1})), "header")
    yield Bad("metadata not JSON", _outer(data, lambda e: e["__metadata__"].update(codeword="quantizer")), "header")
    yield Bad("metadata is a JSON list", _outer(data, lambda e: e["__metadata__"].update(codeword="[]")), "header")
    for value, code in ((0, "version"), (2, "version"), (65536, "version"), ((1 << 63) - 1, "version"), (-1, "version"), ("1", "header"),
                        (True, "header"), (1.0, "header"), (None, "header")):
        yield Bad(f"version {value!r}", sealed(lambda p, v=value: p.record.update(version=v)), code)
    for key in ("digest", "header", "sha256", "version"):
        yield Bad(f"without {key}", sealed(lambda p, k=key: p.record.update(digest=None) if k == "digest" else p.record.pop(k)), "missing-key")
    yield Bad("header is a list", sealed(lambda p: p.record.update(header=[])), "header")
    yield Bad("digests are a list", sealed(lambda p: p.record.update(sha256=[])), "header")
    yield Bad("digest of no tensor", sealed(lambda p: p.record["sha256"].update(nothing="0" * 64)), "unknown-key")
    yield Bad("short digest", data.replace(b'digest\\":\\"', b'digest\\":\\"0', 1), "header")
    yield Bad("digest in capitals", _upper_digest(data), "header")
    yield Bad("wrong digest", _wrong_digest(data), "digest")
    if payload:
        yield from _tensor_entries(data, sealed)


def _tensor_entries(data: bytes, sealed: Callable[..., bytes]) -> Iterator[Bad]:
    """Sections 7.6 to 7.8: dtypes, shapes, offsets, digests of one tensor with content."""
    parts = Parts(data)
    name = next(n for n in reversed(parts.real()) if parts.values(n))
    start, stop = parts.entries[name]["data_offsets"]
    dtype, shape = parts.entries[name]["dtype"], parts.entries[name]["shape"]

    def entry(**fields: Any) -> bytes:
        return sealed(lambda p: p.entries[name].update(fields))

    for value in ("F8", "f32", "F32 ", "C64", "", "object", "float32"):
        yield Bad(f"dtype {value!r}", entry(dtype=value), "dtype")
    yield Bad("dtype a number", entry(dtype=1), "header")
    yield Bad("dtype of other width", entry(dtype="U8" if tensors.ITEMSIZE[dtype] > 1 else "F32"), "layout")
    yield Bad("shape a string", entry(shape="3"), "header")
    yield Bad("shape of 100 axes", entry(shape=[1] * 100), "shape")
    yield Bad("shape negative", entry(shape=[-1, *shape]), "shape")
    yield Bad("shape of floats", entry(shape=[float(k) for k in shape] or [1.0]), "shape")
    yield Bad("shape of booleans", entry(shape=[True, *shape]), "shape")
    yield Bad("shape wraps to 0", entry(shape=[1 << 32, 1 << 32]), "limit")
    yield Bad("shape wraps to 4", entry(shape=[(1 << 62) + 1, 4]), "limit")
    yield Bad("shape 0 beside huge", entry(shape=[0, 1 << 62]), "limit")
    count = math.prod(shape)
    for other in {0, 1, count - 1, count + 1, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32} - {count, -1}:
        yield Bad(f"shape [{other}]", entry(shape=[other]), "layout")
    yield Bad("shape [2^63-1]", entry(shape=[(1 << 63) - 1]), "limit")
    size = tensors.ITEMSIZE[dtype]
    for rows, code in ((1 << 31, "truncated"), (1 << 40, "truncated"), (count + 1, "truncated")):
        yield Bad(f"consistent {rows} elements", entry(shape=[rows], data_offsets=[start, start + rows * size]), code)
    yield Bad("begin after end", entry(data_offsets=[stop, start]), "layout")
    yield Bad("end past the file", entry(data_offsets=[start, stop + 64]), "layout")
    yield Bad("offset negative", entry(data_offsets=[-64, stop]), "layout")
    yield Bad("offset 2^63-1", entry(data_offsets=[start, (1 << 63) - 1]), "layout")
    yield Bad("offsets a triple", entry(data_offsets=[start, stop, stop]), "layout")
    yield Bad("offsets floats", entry(data_offsets=[float(start), float(stop)]), "layout")
    yield Bad("hole in front", sealed(lambda p: _move(p, name, 64)), "layout")
    yield Bad("unaligned", sealed(lambda p: _move(p, name, 1)), "layout")
    yield Bad("unknown field", entry(device="cpu"), "unknown-key")
    yield Bad("entry is a list", sealed(lambda p: p.entries.update({name: []})), "header")
    for key in ("dtype", "shape", "data_offsets"):
        yield Bad(f"entry without {key}", sealed(lambda p, k=key: p.entries[name].pop(k)), "missing-key")
    yield Bad("tensor without digest", sealed(lambda p: p.record["sha256"].pop(name)), "missing-key")
    yield Bad("digest a number", sealed(lambda p: p.record["sha256"].update({name: 1})), "header")
    yield Bad("digest too short", sealed(lambda p: p.record["sha256"].update({name: "0" * 63})), "header")
    yield Bad("tensor digest wrong", sealed(lambda p: p.record["sha256"].update({name: "0" * 64})), "digest")
    yield Bad("tensor gone", sealed(lambda p: p.rebuild({k: v for k, v in p.contents().items() if k != name}) and p.record["sha256"].update(
        {name: "0" * 64})), "unknown-key")
    yield Bad("stray filler", sealed(lambda p: p.entries.update({"_pad.77": {"data_offsets": [0, 0], "dtype": "U8", "shape": [0]}})), "layout")
    for bad in ("../x", "a/b", "a b", "a\\b", "ü", "-x", "x" * 201, ".hidden"):
        yield Bad(f"tensor named {bad[:12]!r}", sealed(lambda p, b=bad: _rename(p, name, b)), "name")
    fillers = [n for n in parts.entries if n.startswith("_pad.")]
    if fillers:
        where = parts.entries[fillers[0]]["data_offsets"][0]
        yield Bad("padding not zero", sealed(lambda p: setattr(p, "payload", _flip(p.payload, 8 * where))), "value")
        yield Bad("filler gone", sealed(lambda p: p.entries.pop(fillers[0])), "layout")
        yield Bad("filler renamed", sealed(lambda p: _rename(p, fillers[0], "_pad.9")), "layout")
    both = [n for n in parts.real() if parts.values(n)]
    if len(both) > 1 and parts.values(both[0]) != parts.values(both[-1]):
        yield Bad("digests swapped", sealed(lambda p: _swap(p.record["sha256"], both[0], both[-1])), "digest")
        yield Bad("overlap", sealed(lambda p: p.entries[both[-1]].update(data_offsets=p.entries[both[0]]["data_offsets"])), "layout")
        yield Bad("descending", sealed(lambda p: _swap_offsets(p, both[0], both[-1])), "layout")
    if any(p["dtype"] == "BOOL" and p["data_offsets"][0] < p["data_offsets"][1] for p in parts.entries.values()):
        def two(p: Parts) -> None:
            found = p.contents()
            key = next(n for n, (dtype, _, raw) in found.items() if dtype == "BOOL" and raw)
            found[key] = ("BOOL", found[key][1], b"\2" * len(found[key][2]))
            p.rebuild(found)
        yield Bad("boolean 2", sealed(two), "value")
    yield Bad("first bit flipped", data[:-len(parts.payload)] + _flip(parts.payload, 8 * start), "digest")
    yield Bad("last bit flipped", data[:-len(parts.payload)] + _flip(parts.payload, 8 * stop - 1), "digest")


def small_json(data: bytes) -> Iterator[Bad]:
    """The same for sealed JSON files."""
    record = json.loads(data)
    record.pop("digest")
    yield Bad("one byte", data[:1], "header")
    yield Bad("cut by one", data[:-1], "header")
    yield Bad("cut in the middle", data[:len(data) // 2], "header")
    yield Bad("extra byte", data + b"\0", "header")
    yield Bad("newline at end", data + b"\n", "header")
    yield Bad("two files", data + data, "header")
    yield Bad("not UTF-8", data[:20] + b"\xff" + data[21:], "header")
    yield Bad("byte-order mark", b"\xef\xbb\xbf" + data, "magic")
    yield Bad("a list", b"[" + data + b"]", "magic")
    yield Bad("wrong digest", data.replace(data[data.index(b'"digest":"') + 10:][:64], b"0" * 64, 1), "digest")
    yield Bad("no digest", canonical.dump(record), "missing-key")
    for name, swap, code in (
        ("space", lambda t: t.replace(":", ": ", 1), "header"),
        ("nested 10,000 deep", lambda t: t[:-1] + ',"z":' + "[" * 10_000 + "]" * 10_000 + "}", "limit"),
        ("many values", lambda t: t[:-1] + ',"z":[' + "1," * 200_000 + "1]}", "limit"),
        ("5 MB string", lambda t: t[:-1] + ',"z":"' + "x" * 5_000_000 + '"}', "limit"),
        ("integer of 5,000 digits", lambda t: t[:-1] + ',"z":' + "9" * 5_000 + "}", "header"),
        ("1e999", lambda t: t[:-1] + ',"z":1e999}', "header"),
        ("NaN", lambda t: t[:-1] + ',"z":NaN}', "header"),
        ("duplicate", lambda t: t[:-1] + ',"z":1,"z":1}', "duplicate"),
        ("unknown key", lambda t: t[:-1] + ',"zzz":1}', "unknown-key"),
        ("keys not sorted", lambda t: "{" + ",".join(reversed(t[1:-1].split(",", 1))) + "}", "header"),
        ("lone surrogate", lambda t: t[:-1] + ',"z":"\\udfff"}', "header"),
    ):
        yield Bad(name, seal_json(record, swap), code)
    for value, code in ((0, "version"), (2, "version"), ((1 << 63) - 1, "version"), (True, "header"), ("1", "header"), (None, "header")):
        yield Bad(f"version {value!r}", seal_json({**record, "version": value}), code)
    for key in record:
        yield Bad(f"without {key}", seal_json({k: v for k, v in record.items() if k != key}), "missing-key")
        yield Bad(f"{key} of wrong type", seal_json({**record, key: None}), "header")


# ---------------------------------------------------------------------- small changes


def _loose(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def _outer(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    n = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:8 + n])
    change(entries)
    text = canonical.dump(entries)
    size = math.ceil((8 + len(text)) / PAGE) * PAGE - 8
    return size.to_bytes(8, "little") + text.ljust(size) + data[8 + n:]


def _digest_at(data: bytes) -> int:
    return data.index(b'digest\\":\\"') + 11


def _upper_digest(data: bytes) -> bytes:
    at = _digest_at(data)
    return data[:at] + b"A" * 64 + data[at + 64:]


def _wrong_digest(data: bytes) -> bytes:
    at = _digest_at(data)
    return data[:at] + bytes(reversed(data[at:at + 64])) + data[at + 64:]


def _flip(data: bytes, bit: int) -> bytes:
    return data[:bit // 8] + bytes([data[bit // 8] ^ (1 << bit % 8)]) + data[bit // 8 + 1:]


def _move(parts: Parts, name: str, by: int) -> None:
    start, stop = parts.entries[name]["data_offsets"]
    parts.entries[name]["data_offsets"] = [start + by, stop + by]
    parts.payload = parts.payload[:start] + bytes(by) + parts.payload[start:]


def _rename(parts: Parts, old: str, new: str) -> None:
    parts.entries[new] = parts.entries.pop(old)
    if old in parts.record["sha256"]:
        parts.record["sha256"][new] = parts.record["sha256"].pop(old)


def _swap(values: dict[str, Any], a: str, b: str) -> None:
    values[a], values[b] = values[b], values[a]


def _swap_offsets(parts: Parts, a: str, b: str) -> None:
    one, two = parts.entries[a]["data_offsets"], parts.entries[b]["data_offsets"]
    parts.entries[a]["data_offsets"], parts.entries[b]["data_offsets"] = two, one
