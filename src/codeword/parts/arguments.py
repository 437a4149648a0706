"""Constructor arguments, checked by their annotation once for every quantizer.

A configuration is JSON: ``True`` is no integer, ``nan`` no number, "8" no codebook size. numpy integers and floats become Python's,
so that what is saved is what was meant. Ranges stay in the constructors, where they mean something. What a place asks of a quantizer
that it is given is checked here too.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from codeword.errors import CodewordError, Unsupported

if TYPE_CHECKING:
    from codeword.quantizer import Quantizer


def checked(init: Callable[..., None]) -> Callable[..., None]:
    """``__init__`` whose keyword arguments are checked against (and converted to) their annotated types first."""
    kinds = {key: str(p.annotation) for key, p in inspect.signature(init).parameters.items() if key != "self"}

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **arguments: Any) -> None:
        owner = type(self).__name__
        init(self, *args, **{key: _convert(owner, key, value, kinds.get(key, "")) for key, value in arguments.items()})

    return wrapper


def require_input_space(quantizer: Quantizer, place: str) -> None:
    """Unsupported where ``quantizer`` decodes into another space than its input's, as FSQ's tanh does: ``place`` cannot use it."""
    if not quantizer.input_space:
        raise Unsupported(f"{quantizer.name} decodes outside its input's space, so it cannot stand in for {place}; "
                          f"wrap it: projected({quantizer.name}) or gain_shape({quantizer.name})")


def checked_dial(for_bits: Callable[..., Any]) -> Callable[..., Any]:
    """``for_bits(cls, dim, bits, ...)`` that refuses anything but a positive integer width and a positive finite rate."""

    @functools.wraps(for_bits)
    def wrapper(cls: type, dim: Any, bits: Any, **options: Any) -> Any:
        dim, bits = _convert(cls.__name__, "dim", dim, "int"), _convert(cls.__name__, "bits", bits, "float")
        if dim < 1 or bits <= 0:
            raise CodewordError(f"{cls.__name__}.for_bits got dim={dim} and bits={bits}; both must be positive")
        return for_bits(cls, dim, bits, **options)

    return wrapper


def _convert(owner: str, key: str, value: Any, kind: str) -> Any:
    choices = [part.strip() for part in kind.split("|")]
    if value is None and "None" in choices:
        return None
    if "Quantizer" in kind:
        return _quantizers(owner, key, value, choices)
    plain = [part for part in choices if part != "None"]
    if len(plain) != 1:
        return value
    kind = plain[0]
    if kind == "int":
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return int(value)
        raise CodewordError(f"{owner} got {key}={value!r}; an integer is needed")
    if kind == "float":
        if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise CodewordError(f"{owner} got {key}={value!r}; a finite number is needed")
    if kind == "bool":
        if isinstance(value, bool):
            return bool(value)
        raise CodewordError(f"{owner} got {key}={value!r}; true or false is needed")
    if kind == "str":
        if isinstance(value, str):
            return str(value)
        raise CodewordError(f"{owner} got {key}={value!r}; a string is needed")
    if kind in ("list[int]", "Sequence[int]", "tuple[int, ...]"):
        if isinstance(value, (list, tuple)):
            return [_convert(owner, f"{key}[{i}]", item, "int") for i, item in enumerate(value)]
        raise CodewordError(f"{owner} got {key}={value!r}; a list of integers is needed")
    return value


def _quantizers(owner: str, key: str, value: Any, choices: list[str]) -> Any:
    from codeword.quantizer import Quantizer
    if isinstance(value, Quantizer) and "Quantizer" in choices:
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, Quantizer) for item in value) and choices != ["Quantizer"]:
        return value
    what = "a Quantizer" if choices == ["Quantizer"] else "a list of Quantizers"
    raise CodewordError(f"{owner} got {key}={value!r}; {what} is needed (codeword.make builds one from a spec)")
