"""The one table: every quantizer, combinator and published system. Static data; importing it imports nothing heavy.

A name in a file, a spec string or on the command line resolves here and nowhere else.

    pq:bits=2                          PQ.for_bits(dim, 2)
    vq:codebook_size=256,seed=1        VQ(dim=dim, codebook_size=256, seed=1)
    projected(fsq:bits=2)              Projected around an FSQ of the same width
    residual(vq:codebook_size=256;vq:codebook_size=256)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

from codeword.errors import CodewordError

if TYPE_CHECKING:
    from codeword.quantizer import Quantizer


class Entry(NamedTuple):
    """One quantizer or combinator."""

    name: str
    target: str
    """module:Class under codeword.quantizers"""
    title: str
    input_space: bool = True
    """decode lives in the input's space; False enters search or weights only inside a wrapper that maps back"""
    combinator: bool = False


QUANTIZERS: tuple[Entry, ...] = (
    Entry("vq", "vq:VQ", "Vector quantization: one codebook, k-means, EMA or gradient (Gray 1984; van den Oord et al. 2017)"),
    Entry("pq", "pq:PQ", "Product quantization: one codebook a slice (Jegou et al. 2011)"),
    Entry("fsq", "fsq:FSQ", "Finite scalar quantization: a tanh and a grid, no codebook (Mentzer et al. 2024)", input_space=False),
    Entry("simvq", "simvq:SimVQ", "A frozen random codebook moved as a whole by one linear layer (Zhu et al. 2025)"),
    Entry("rotated", "rotated:Rotated", "Seeded random rotation around any quantizer", combinator=True),
    Entry("product", "product:Product", "Slices of a vector, each with its own or a shared quantizer", combinator=True),
    Entry("residual", "residual:Residual", "Stages, each coding what the ones before it left over", combinator=True),
    Entry("projected", "projected:Projected", "A linear map into a quantizer's own space and back", combinator=True),
)

_BY_NAME = {entry.name: entry for entry in QUANTIZERS}


def entry(name: str) -> Entry:
    """The table's row for ``name``; CodewordError lists what is known."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise CodewordError(f"unknown quantizer {name!r}; the catalog has {', '.join(sorted(_BY_NAME))}") from None


def quantizer_class(name: str) -> type[Quantizer]:
    """The class of a catalog name, imported on demand from inside the package only."""
    module, _, cls = entry(name).target.partition(":")
    return getattr(importlib.import_module(f"codeword.quantizers.{module}"), cls)


def name_of(cls: type) -> str:
    """Catalog name of a quantizer class (its lower-case class name where it is not in the catalog, as in tests)."""
    module = cls.__module__.rpartition(".")[2]
    for row in QUANTIZERS:
        if row.target == f"{module}:{cls.__name__}":
            return row.name
    return cls.__name__.lower()


# ---------------------------------------------------------------------- spec strings


def make(spec: str, dim: int) -> Quantizer:
    """A quantizer of width ``dim`` from a spec string; ``bits`` goes through ``for_bits``, other options to the constructor."""
    name, inner, options = parse(spec)
    cls = quantizer_class(name)
    if inner and not entry(name).combinator:
        raise CodewordError(f"{name!r} takes no inner quantizer in {spec!r}")
    try:
        if inner:
            return cls.wrap(inner, dim, **options)  # type: ignore[attr-defined]
        if "bits" in options:
            return cls.for_bits(dim, options.pop("bits"), **options)
        return cls(dim=dim, **options)
    except TypeError as error:
        raise CodewordError(f"{spec!r}: {error}") from None


def parse(spec: str) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """(name, inner specs, options) of ``name[(inner;inner)][:key=value,...]``; lists are written 8x5x5."""
    text = spec.strip()
    head, inner = text, ()
    options = ""
    if "(" in text and (":" not in text or text.index("(") < text.index(":")):
        head, _, rest = text.partition("(")
        close = rest.rfind(")")
        if close < 0:
            raise CodewordError(f"spec {spec!r} opens a parenthesis and never closes it")
        inner, tail = tuple(_split(rest[:close], ";")), rest[close + 1:]
        if tail and not tail.startswith(":"):
            raise CodewordError(f"spec {spec!r} has {tail!r} after the parenthesis; ':key=value' is allowed there")
        options = tail[1:]
    elif ":" in text:
        head, _, options = text.partition(":")
    entry(head)
    return head, inner, dict(_option(pair, spec) for pair in options.split(",") if pair)


def _split(text: str, mark: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, ch in enumerate(text + mark):
        depth += (ch == "(") - (ch == ")")
        if ch == mark and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return parts


def _option(pair: str, spec: str) -> tuple[str, Any]:
    key, sign, value = pair.partition("=")
    if not sign or not key.isidentifier():
        raise CodewordError(f"option {pair!r} in spec {spec!r} is not key=value")
    return key, _value(value)


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    if "x" in text and all(part.isdigit() for part in text.split("x")):
        return [int(part) for part in text.split("x")]
    return text
