"""Save and load: the same object gives the same bytes, and the loaded one the same codes."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from subjects import Subject, same, state

from codeword.errors import FormatError

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.skipif(importlib.util.find_spec("codeword.io") is None, reason="codeword.io is not part of this checkout"),
]


def test_same_object_same_bytes(subject: Subject, tmp_path) -> None:
    x = subject.rows()
    for name in ("a", "b"):
        subject.new().fit(x).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_loaded_object_is_the_saved_one(subject: Subject, tmp_path) -> None:
    quantizer, x = subject.fitted(), subject.rows()
    quantizer.save(tmp_path / "q")
    loaded = type(quantizer).load(tmp_path / "q")
    assert state(loaded) == state(quantizer) and loaded.fitted
    assert same(loaded.encode(x), quantizer.encode(x))
    assert loaded.decode(loaded.encode(x)).tobytes() == quantizer.decode(quantizer.encode(x)).tobytes()
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "q").read_bytes()


def test_unfitted_objects_can_be_saved(subject: Subject, tmp_path) -> None:
    quantizer = subject.new()
    quantizer.save(tmp_path / "q")
    loaded = type(quantizer).load(tmp_path / "q")
    assert loaded.fitted == quantizer.fitted
    assert state(loaded.fit(subject.rows())) == state(quantizer.fit(subject.rows()))


def test_fingerprint_names_the_content(subject: Subject) -> None:
    quantizer, x = subject.new(), subject.rows()
    first = quantizer.fit(x).fingerprint
    assert first == subject.new().fit(x).fingerprint and len(first) == 16 and int(first, 16) >= 0
    if quantizer.state_dict() and state(quantizer.fit(subject.rows(seed=9) * 2)) != state(subject.new().fit(x)):
        assert quantizer.fingerprint != first


def test_state_is_checked(subject: Subject) -> None:
    subject.fitted().check_state()
    for key, value in subject.fitted().state_dict().items():
        if value.is_floating_point() and value.numel():
            spoiled = subject.fitted()
            spoiled.state_dict()[key].view(-1)[-1] = torch.nan
            with pytest.raises(FormatError) as caught:
                spoiled.check_state()
            assert caught.value.code == "value", key


def test_structure_rebuilds_the_state(subject: Subject) -> None:
    quantizer, fresh = subject.fitted(), subject.new()
    fresh.restore(quantizer.structure)
    fresh.load_state_dict(quantizer.state_dict())
    assert state(fresh) == state(quantizer) and fresh.levels == quantizer.levels
    x = subject.rows()
    assert same(fresh.encode(x), quantizer.encode(x))
