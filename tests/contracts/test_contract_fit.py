"""What fitting owes: it always works, is a function of its rows and seed alone, and forgets what came before."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
import torch
from subjects import Subject, generator_states, same, state

from codeword import ops
from codeword.errors import NotFitted, ShapeError
from codeword.quantizer import Codes, Report

pytestmark = pytest.mark.filterwarnings("error")


def test_fit_returns_self_and_a_report(subject: Subject) -> None:
    quantizer = subject.new()
    assert quantizer.fit(subject.rows()) is quantizer
    assert quantizer.fitted and isinstance(quantizer.report, Report)


def test_same_seed_same_state_and_codes(subject: Subject) -> None:
    x = subject.rows()
    first, second = subject.new().fit(x), subject.new().fit(x)
    assert state(first) == state(second)
    assert same(first.encode(x), second.encode(x))


def test_another_seed_is_allowed(subject: Subject) -> None:
    quantizer = subject.new()
    if "seed" not in inspect.signature(type(quantizer).__init__).parameters:
        pytest.skip("this quantizer has no seed: nothing in it is random")
    other = type(quantizer)(**{**quantizer.config, "seed": 12345}).fit(subject.rows())
    assert np.isfinite(other.decode(other.encode(subject.rows()))).all()
    assert other.config["seed"] == 12345


def test_fit_twice_equals_fit_once(subject: Subject) -> None:
    x = subject.rows()
    assert state(subject.new().fit(x).fit(x)) == state(subject.new().fit(x))


def test_fit_forgets(subject: Subject) -> None:
    x, other = subject.rows(), subject.rows(seed=1) * 3 + 1
    assert state(subject.new().fit(other).fit(x)) == state(subject.new().fit(x))


def test_tensor_and_array_fit_alike(subject: Subject) -> None:
    x = subject.rows()
    assert state(subject.new().fit(torch.from_numpy(x))) == state(subject.new().fit(x))
    assert state(subject.new().fit(x.reshape(2, -1, subject.dim))) == state(subject.new().fit(x))


def test_fit_does_not_depend_on_threads(subject: Subject, threads) -> None:
    """On as many rows as torch needs to cut its own operations in parts (32,768 values)."""
    x, states = subject.rows(-(-40000 // subject.dim)), []
    for count in (1, 2):
        threads(count)
        states.append(state(subject.new().fit(x)))
    assert states[0] == states[1]


def test_fit_reference_equals_native(subject: Subject, monkeypatch) -> None:
    if "native" not in ops.available():
        pytest.skip("the native module is not built here")
    x, native = subject.rows(), state(subject.new().fit(subject.rows()))
    monkeypatch.setenv("CODEWORD_OPS", "reference")
    assert state(subject.new().fit(x)) == native


def test_fit_leaves_global_generators_alone(subject: Subject) -> None:
    before = generator_states()
    subject.new().fit(subject.rows())
    assert generator_states() == before


def test_fit_does_not_depend_on_global_state(subject: Subject) -> None:
    x, expected = subject.rows(), state(subject.new().fit(subject.rows()))
    torch.manual_seed(99)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert state(subject.new().fit(x)) == expected


def test_not_fitted_before_fit(subject: Subject) -> None:
    quantizer, x = subject.new(), subject.rows(4)
    codes = Codes(np.zeros((4, len(subject.fitted().levels)), np.uint8),
                  np.zeros((4, quantizer.side_count), np.float32) if quantizer.side_count else None)
    calls = (lambda: quantizer.encode(x), lambda: quantizer.decode(codes), lambda: quantizer(torch.from_numpy(x)))
    for call in calls:
        if quantizer.learns:
            with pytest.raises(NotFitted, match="fit"):
                call()
        else:
            call()


def test_no_rows_and_failed_fits_leave_an_earlier_fit(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.rows()
    before = state(quantizer)
    for bad in (x[:0], x[:, 1:], np.full_like(x, np.nan)):
        with pytest.raises(ShapeError):
            quantizer.fit(bad)
    with pytest.raises(ShapeError):
        quantizer.fit(x, weights=np.zeros(len(x)))
    assert state(quantizer) == before and quantizer.fitted


@pytest.mark.parametrize("fault", ["raises", "leaves float32"])
def test_an_error_while_learning_leaves_it_unfitted(subject: Subject, fault: str, monkeypatch) -> None:
    quantizer, x = subject.fitted(), subject.rows()
    learn = type(quantizer)._fit

    def spoiled(self, rows, weights):
        learn(self, rows * 2, weights)
        if fault == "raises":
            raise torch.linalg.LinAlgError("not positive definite")
        for value in (v for v in self.state_dict().values() if v.is_floating_point()):
            value.fill_(torch.inf)

    if fault == "leaves float32" and not any(v.is_floating_point() for v in quantizer.state_dict().values()):
        pytest.skip("this quantizer has no floats in its state")
    monkeypatch.setattr(type(quantizer), "_fit", spoiled)
    with pytest.raises(ShapeError):
        quantizer.fit(x)
    monkeypatch.undo()
    assert quantizer.fitted == (not quantizer.learns)
    if quantizer.learns:
        with pytest.raises(NotFitted, match="fit"):
            quantizer.encode(x)
    assert state(quantizer.fit(x)) == state(subject.fitted())


def test_rows_of_weight_zero_count_as_absent(subject: Subject) -> None:
    x, other = subject.rows(48), subject.rows(16, seed=3) * 5
    weights = np.concatenate([np.full(48, 1.0), np.zeros(16)]).astype(np.float32)
    order = np.argsort(np.arange(64) * 37 % 64)  # absent rows stand between the others
    mixed, weights = np.concatenate([x, other])[order], weights[order]
    present = weights > 0
    assert state(subject.new().fit(mixed, weights=weights)) == state(subject.new().fit(mixed[present], weights=weights[present]))


def test_weights_are_relative(subject: Subject) -> None:
    x = subject.rows()
    weights = np.linspace(0.5, 2, len(x)).astype(np.float32)
    assert same(subject.new().fit(x, weights=weights).encode(x), subject.new().fit(x, weights=weights * 4).encode(x))


def test_bad_weights_are_refused(subject: Subject) -> None:
    x = subject.rows(8)
    ones = np.ones(8, np.float32)
    bad = [ones[:7], np.ones((8, 1), np.float32), -ones, 0 * ones, ones * np.nan, ones * np.inf, ones.astype(complex),
           ["a"] * 8, [[1.0], [1.0, 2.0]], np.float32(1)]
    for weights in bad:
        with pytest.raises(ShapeError):
            subject.new().fit(x, weights=weights)


def test_fit_reads_a_seeded_sample_of_large_inputs(subject: Subject, monkeypatch) -> None:
    x = subject.rows()
    monkeypatch.setattr(type(subject.new()), "fit_values", 32 * subject.dim)
    first, second = subject.new().fit(x), subject.new().fit(x)
    assert state(first) == state(second) and first.report["fit_rows"] == 32


def test_copies_are_independent(subject: Subject) -> None:
    original, x = subject.fitted(), subject.rows()
    before = state(original)
    twin = copy.deepcopy(original)
    assert state(twin) == before and same(twin.encode(x), original.encode(x))
    twin.fit(subject.rows(seed=2) * 2)
    assert state(original) == before


def test_error_is_below_that_of_zero(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.rows().astype(np.float64)
    if not quantizer.input_space:
        pytest.skip("decode does not live in the input's space")
    error = np.square(quantizer.decode(quantizer.encode(subject.rows())) - x).sum()
    assert error < 0.9 * np.square(x).sum()
