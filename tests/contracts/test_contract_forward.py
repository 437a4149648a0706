"""The differentiable side: forward is pure, equals decode(encode), passes finite gradients and honours masks; update moves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from subjects import Subject, generator_states, same, state

from codeword.errors import ShapeError
from codeword.quantizer import Quantized, Report

warnings_are_errors = pytest.mark.filterwarnings("error")


@warnings_are_errors
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_forward_equals_decode_of_encode(subject: Subject, dtype: torch.dtype) -> None:
    quantizer, x = subject.fitted(), subject.tensor(24).to(dtype)
    out, codes = quantizer(x), quantizer.encode(x)
    assert isinstance(out, Quantized) and out.values.dtype == dtype and out.values.shape == x.shape
    assert same(out.codes, codes)
    assert torch.equal(out.values, quantizer.decode(codes).to(dtype))


@warnings_are_errors
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,)])
def test_forward_takes_leading_shapes(subject: Subject, lead: tuple[int, ...]) -> None:
    quantizer = subject.fitted()
    x = subject.tensor(6)[:int(np.prod(lead))].reshape(*lead, subject.dim)
    out = quantizer(x)
    assert out.values.shape == x.shape and out.codes.indices.shape == (*lead, len(quantizer.levels))
    assert out.loss.shape == () and bool(torch.isfinite(out.loss))
    assert all(not value.requires_grad and bool(torch.isfinite(value).all()) for value in out.stats.values())


@warnings_are_errors
@pytest.mark.parametrize("training", [True, False])
def test_forward_is_pure(subject: Subject, training: bool) -> None:
    quantizer = subject.fitted().train(training)
    x = subject.tensor(24).requires_grad_()
    before, generators = state(quantizer), generator_states()
    out = quantizer(x)
    (out.values.sum() + out.loss).backward()
    assert state(quantizer) == before and generator_states() == generators


@warnings_are_errors
@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_the_input(subject: Subject, training: bool) -> None:
    quantizer = subject.fitted().train(training)
    x = subject.tensor(24).requires_grad_()
    out = quantizer(x)
    assert out.loss.shape == () and all(not value.requires_grad for value in out.stats.values())
    (out.values.square().sum() + out.loss).backward()
    assert x.grad is not None and bool(torch.isfinite(x.grad).all()) and bool((x.grad != 0).any())
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name


@warnings_are_errors
def test_masked_rows_have_no_influence(subject: Subject) -> None:
    quantizer = subject.fitted()
    x = subject.tensor(10).reshape(2, 5, subject.dim).clone()
    mask = torch.tensor([[True, True, False, True, False], [True, False, True, True, True]])
    x[~mask] = float("nan")
    x.requires_grad_()
    out = quantizer(x, mask=mask)
    alone = quantizer(x.detach()[mask])
    assert bool((out.values[~mask] == 0).all()) and torch.equal(out.values[mask], alone.values)
    assert torch.equal(out.codes.indices[mask], alone.codes.indices)
    assert torch.equal(out.codes.lengths, mask.to(torch.int32) * len(quantizer.levels))
    torch.testing.assert_close(out.loss, alone.loss)
    assert out.stats.keys() == alone.stats.keys()
    for key, value in out.stats.items():
        torch.testing.assert_close(value, alone.stats[key], msg=key)
    (out.values.sum() + out.loss).backward()
    assert bool(torch.isfinite(x.grad).all()) and bool((x.grad[~mask] == 0).all())


@warnings_are_errors
def test_a_mask_of_nothing(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.tensor(4)
    out = quantizer(torch.full_like(x, float("nan")), mask=torch.zeros(4, dtype=torch.bool))
    assert bool((out.values == 0).all()) and bool((out.codes.lengths == 0).all()) and bool(torch.isfinite(out.loss))
    full = quantizer(x, mask=torch.ones(4, dtype=torch.bool))
    assert torch.equal(full.values, quantizer(x).values)


@warnings_are_errors
def test_bad_forward_inputs(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.tensor(4)
    for bad in (x[:, 1:], torch.tensor(1.0), x.to(torch.int64), x.numpy(), x.to(torch.complex64)):
        with pytest.raises(ShapeError):
            quantizer(bad)
    for mask in (torch.ones(3, dtype=torch.bool), torch.ones(4, 1, dtype=torch.bool)):
        with pytest.raises(ShapeError):
            quantizer(x, mask=mask)


@warnings_are_errors
def test_nan_propagates_through_forward(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.tensor(4).clone()
    clean = quantizer(x).values
    x[1, 0] = float("nan")
    values = quantizer(x).values
    assert bool(torch.isnan(values[1]).any()) and torch.equal(values[[0, 2, 3]], clean[[0, 2, 3]])


@warnings_are_errors
def test_forward_survives_autocast(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.tensor(24)
    expected = quantizer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(x)
    assert torch.equal(out.values, expected.values) and same(out.codes, expected.codes)


@warnings_are_errors
def test_update_reports_and_leaves_a_working_quantizer(subject: Subject) -> None:
    first, x = subject.fitted().train(), subject.tensor(24)
    second = copy.deepcopy(first)
    for quantizer in (first, second):
        report = quantizer.update(quantizer(x))
        assert isinstance(report, Report)
        out = quantizer(x)
        assert bool(torch.isfinite(out.values).all())
        assert bool(torch.isfinite(quantizer.decode(quantizer.encode(x))).all())
    assert state(first) == state(second)


def test_forward_compiles(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.tensor(24)
    expected = quantizer(x)
    torch._dynamo.reset()
    # aot_eager traces forward and backward with fake tensors but compiles no code: everything but the slow part.
    out = torch.compile(quantizer, backend="aot_eager", fullgraph=True)(x.clone().requires_grad_())
    assert torch.equal(out.values.detach(), expected.values) and same(out.codes, expected.codes)
    torch.testing.assert_close(out.loss, expected.loss)
    (out.values.sum() + out.loss).backward()


def test_forward_exports(subject: Subject) -> None:
    """One graph for any number of items, with a mask, and nothing in it but ops."""
    quantizer = subject.fitted()
    x, mask = subject.tensor(20).reshape(5, 4, subject.dim), torch.arange(20).reshape(5, 4) % 3 != 1
    items = torch.export.Dim("items", min=2, max=64)
    torch._dynamo.reset()
    program = torch.export.export(quantizer, (x,), {"mask": mask}, dynamic_shapes={"x": {0: items}, "mask": {0: items}})
    for n in (5, 7):
        y, keep = subject.tensor(4 * n, seed=1).reshape(n, 4, subject.dim), torch.arange(4 * n).reshape(n, 4) % 5 != 2
        found, expected = program.module()(y, mask=keep), quantizer(y, mask=keep)
        assert torch.equal(found.values, expected.values) and same(found.codes, expected.codes)


@warnings_are_errors
def test_checkpointing_gives_the_same_gradients(subject: Subject) -> None:
    quantizer, rows = subject.fitted().train(), subject.tensor(24)
    found = []
    for again in (False, True):
        quantizer.zero_grad()
        torch.manual_seed(0)  # for those that draw; checkpointing itself must restore the generator
        x = rows.clone().requires_grad_()
        out = torch.utils.checkpoint.checkpoint(quantizer, x, use_reentrant=False) if again else quantizer(x)
        (out.values.square().sum() + out.loss).backward()
        found.append([x.grad, *(parameter.grad for parameter in quantizer.parameters())])
    for plain, twice in zip(*found, strict=True):
        assert (plain is None and twice is None) or torch.equal(plain, twice)
