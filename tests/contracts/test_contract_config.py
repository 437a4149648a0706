"""A configuration is JSON, is checked when it is given, and says all there is to say."""

from __future__ import annotations

import inspect
import json
from typing import Any

import numpy as np
import pytest
from subjects import Subject, plain, same

from codeword import catalog
from codeword.errors import CodewordError, Unsupported
from codeword.quantizer import Quantizer

pytestmark = pytest.mark.filterwarnings("error")


def test_arguments_are_keyword_only_and_stored(subject: Subject) -> None:
    quantizer = subject.new()
    for key, parameter in inspect.signature(type(quantizer).__init__).parameters.items():
        if key != "self":
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY and hasattr(quantizer, key), key


def test_configuration_is_json(subject: Subject) -> None:
    config = plain(subject.fitted().config)
    assert json.loads(json.dumps(config, allow_nan=False)) == config


def test_configuration_round_trip(subject: Subject) -> None:
    quantizer = subject.new()
    config = {key: value if _holds_quantizer(value) else json.loads(json.dumps(value)) for key, value in quantizer.config.items()}
    twin = type(quantizer)(**config)
    assert plain(twin.config) == plain(quantizer.config) and twin.dim == subject.dim
    if not any(_holds_quantizer(value) for value in config.values()):
        x = subject.rows()
        assert same(twin.fit(x).encode(x), quantizer.fit(x).encode(x))


def _holds_quantizer(value: Any) -> bool:
    return any(isinstance(item, Quantizer) for item in (value if isinstance(value, (list, tuple)) else [value]))


def test_numpy_numbers_are_accepted_as_what_they_mean(subject: Subject) -> None:
    quantizer = subject.new()
    config = {key: np.int64(value) if type(value) is int else value for key, value in quantizer.config.items()}
    assert json.dumps(plain(type(quantizer)(**config).config)) == json.dumps(plain(quantizer.config))


def test_constructor_refuses_nonsense(subject: Subject) -> None:
    quantizer = subject.new()
    config, parameters = quantizer.config, inspect.signature(type(quantizer).__init__).parameters
    for key, value in config.items():
        kind = str(parameters[key].annotation)
        nonsense: list[Any] = []
        if kind.startswith("int"):
            nonsense = [True, "3", 1.5, float("nan"), [1]] + ([] if "None" in kind else [None])
        elif kind.startswith("float"):
            nonsense = [True, "1", float("nan"), float("inf"), [1.0]]
        elif kind.startswith("bool"):
            nonsense = ["yes", 2, None]
        elif kind.startswith("str"):
            nonsense = [3, "no such thing", ""] + ([] if "None" in kind else [None])
        elif _holds_quantizer(value):
            nonsense = [None, 3, "pq", []]
        if key in ("dim", "codebook_size", "num_codebooks"):
            nonsense += [0, -1]
        for bad in nonsense:
            try:
                type(quantizer)(**{**config, key: bad})
            except CodewordError as error:
                assert str(error), key
            else:
                pytest.fail(f"{key}={bad!r} was accepted")


def test_unknown_arguments_are_refused(subject: Subject) -> None:
    quantizer = subject.new()
    with pytest.raises(TypeError):
        type(quantizer)(**quantizer.config, colour="red")
    mark = "," if ":" in subject.spec.rpartition(")")[2] else ":"
    with pytest.raises(CodewordError):
        catalog.make(f"{subject.spec}{mark}colour=red", subject.dim)


def test_repr_names_the_class_and_its_arguments(subject: Subject) -> None:
    quantizer = subject.fitted()
    text = repr(quantizer)
    assert type(quantizer).__name__ in text
    for key, value in quantizer.config.items():
        if not _holds_quantizer(value):
            assert f"{key}={value!r}" in text


def test_for_bits_keeps_its_promise(subject: Subject) -> None:
    cls, found = type(subject.new()), 0
    for dim in (8, 16, 24, 48):
        for bits in (1, 1.5, 2, 3, 4):
            try:
                quantizer = cls.for_bits(dim, bits)
            except Unsupported:
                continue
            found += 1
            assert quantizer.dim == dim
            # Less only where no configuration comes closer than a bit; more only for whole bits beside floats, and then at most half a bit.
            most = bits + (0.5 if quantizer.side_count else 0) + 1e-9
            assert bits - 1 < quantizer.nominal_bits <= most, (dim, bits, quantizer.nominal_bits)
    if not found:
        pytest.skip(f"{cls.__name__} has no dial for bits at these widths, and says so (Unsupported)")


def test_for_bits_refuses_nonsense(subject: Subject) -> None:
    cls = type(subject.new())
    for bits in (0, -1, float("nan"), float("inf"), True, "2", None):
        with pytest.raises(CodewordError):
            cls.for_bits(16, bits)
    for dim in (0, -8, 1.5, "16", True):
        with pytest.raises(CodewordError):
            cls.for_bits(dim, 2)


def test_catalog_names_the_class(subject: Subject) -> None:
    cls = type(subject.new())
    assert catalog.quantizer_class(subject.name) is cls
    assert catalog.name_of(cls) == subject.name and cls.__doc__


def test_levels_follow_the_contract(subject: Subject) -> None:
    quantizer = subject.fitted()
    assert isinstance(quantizer.levels, tuple) and all(type(level) is int and 1 <= level < 1 << 63 for level in quantizer.levels)
    assert len(quantizer.widths) == len(quantizer.levels) and quantizer.side_count >= 0
