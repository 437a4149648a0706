"""Every quantizer meets the catalogue of odd inputs: a documented result or a named error, never a crash, a warning or silent NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import bad_inputs
import exceptions
import numpy as np
import pytest
import torch
from subjects import Subject, same, state

from codeword import catalog
from codeword.errors import CodewordError
from codeword.quantizer import Codes, Quantizer

pytestmark = pytest.mark.filterwarnings("error")


def _length(x) -> tuple[int, ...]:
    return tuple(x.shape[:-1])


def _sound(quantizer: Quantizer, x, edge: bool = False) -> None:
    codes = quantizer.encode(x)
    indices = np.asarray(codes.indices).astype(np.uint64)
    assert indices.shape == (*_length(x), len(quantizer.levels))
    assert (indices < np.array(quantizer.levels, np.uint64)).all()
    values = np.asarray(quantizer.decode(codes))
    assert values.shape == tuple(x.shape) and values.dtype == np.float32
    assert not np.isnan(values).any() and (edge or np.isfinite(values).all())


def test_catalogue_of_bad_inputs_fit(subject: Subject) -> None:
    """Types and layouts that are accepted mean the same as elsewhere (see below); they are not fitted one by one."""
    cases = [*bad_inputs.shapes(subject.dim), *bad_inputs.values(subject.dim),
             *(case for case in bad_inputs.types(subject.dim) if case.fit is not bad_inputs.OK)]
    _meet(cases, "fit", lambda: subject.new(), lambda quantizer, x: quantizer.fit(x))


def test_catalogue_of_bad_inputs_encode(subject: Subject) -> None:
    quantizer = subject.fitted()
    _meet(bad_inputs.cases(subject.dim), "encode", lambda: quantizer, lambda quantizer, x: None)


def _meet(cases: Iterable[bad_inputs.Case], call: str, make: Callable[[], Quantizer], before: Callable[[Quantizer, Any], Any]) -> None:
    failures = []
    for case in cases:
        expected, outcome, quantizer = getattr(case, call), None, make()
        try:
            before(quantizer, case.input)
            _sound(quantizer, case.input, edge=expected is bad_inputs.EDGE)
        except Exception as error:
            outcome = error
        if expected in (bad_inputs.ANY, bad_inputs.EDGE):
            good = outcome is None or isinstance(outcome, CodewordError)
        else:
            good = outcome is None if expected is None else isinstance(outcome, expected)
        if not good:
            failures.append(f"{case.name}: expected {expected}, got {type(outcome).__name__}: {outcome}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("view", ["read-only", "strided", "big-endian", "strided tensor"])
def test_fit_reads_any_memory_layout(subject: Subject, view: str) -> None:
    x = subject.rows(24)
    assert state(subject.new().fit(bad_inputs.views(x)[view])) == state(subject.new().fit(x))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8"])
def test_fit_reads_any_dtype(subject: Subject, dtype: str) -> None:
    x = (subject.rows(24) * 8).clip(-100, 100).astype(dtype)
    assert state(subject.new().fit(x)) == state(subject.new().fit(x.astype(np.float32)))


def test_memory_layout_does_not_matter(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.rows(24)
    expected = quantizer.encode(x)
    for name, view in bad_inputs.views(x).items():
        codes = quantizer.encode(view)
        assert same(codes, expected), name
        assert isinstance(codes.indices, type(view)), name


def test_memory_mapped_rows(subject: Subject, tmp_path) -> None:
    x = subject.rows(24)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert same(subject.new().fit(mapped).encode(mapped), subject.new().fit(x).encode(x))


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint8", "int8", "int64"])
def test_dtypes_mean_their_float32_values(subject: Subject, dtype: str) -> None:
    x = (subject.rows(24) * 8).clip(0, 100).astype(dtype)
    quantizer = subject.fitted()
    assert same(quantizer.encode(x), quantizer.encode(x.astype(np.float32)))
    assert same(quantizer.encode(torch.from_numpy(x)), quantizer.encode(x.astype(np.float32)))


def test_bfloat16_means_its_float32_values(subject: Subject) -> None:
    x, quantizer = subject.tensor(24).bfloat16(), subject.fitted()
    assert same(quantizer.encode(x), quantizer.encode(x.float()))


def test_numpy_in_numpy_out_torch_in_torch_out(subject: Subject) -> None:
    quantizer, x = subject.fitted(), subject.rows(8)
    codes = quantizer.encode(x)
    assert all(part is None or isinstance(part, np.ndarray) for part in codes) and isinstance(quantizer.decode(codes), np.ndarray)
    codes = quantizer.encode(torch.from_numpy(x))
    assert all(part is None or isinstance(part, torch.Tensor) for part in codes) and isinstance(quantizer.decode(codes), torch.Tensor)


def test_inputs_are_not_written_to(subject: Subject) -> None:
    x = subject.rows(24)
    before, quantizer = x.copy(), subject.new().fit(x)
    quantizer.decode(quantizer.encode(x))
    quantizer.forward(torch.from_numpy(x))
    assert x.tobytes() == before.tobytes()


def test_inputs_may_change_afterwards(subject: Subject) -> None:
    x = subject.rows(24)
    kept = x.copy()
    quantizer = subject.new().fit(x)
    expected = quantizer.encode(kept)
    codes = quantizer.encode(x)
    x[:] = 7.0
    assert same(codes, expected) and same(quantizer.encode(kept), expected)


def test_decode_refuses_wrong_codes(subject: Subject) -> None:
    quantizer = subject.fitted()
    good = quantizer.encode(subject.rows(4))
    wide = np.asarray(good.indices).astype(np.int64)

    def changed(value: int) -> np.ndarray:
        indices = wide.copy()
        indices[1, -1] = value
        return indices

    bad = {
        "index equal to the level": good._replace(indices=changed(quantizer.levels[-1])),
        "negative index": good._replace(indices=changed(-1)),
        "largest integer": good._replace(indices=changed(np.iinfo(np.int64).max)),
        "largest uint64": good._replace(indices=np.full(wide.shape, np.iinfo(np.uint64).max, np.uint64)),
        "float indices": good._replace(indices=wide.astype(np.float32)),
        "bool indices": good._replace(indices=wide > 0),
        "string indices": good._replace(indices=wide.astype(str)),
        "one position more": good._replace(indices=np.concatenate([wide, wide[:, :1]], axis=1)),
        "no positions": good._replace(indices=wide[:, :0]),
        "0-d": good._replace(indices=np.int64(0)),
        "ragged": good._replace(indices=[[0], [0, 1]]),
        "lengths too long": good._replace(lengths=np.full(4, len(quantizer.levels) + 1)),
        "negative lengths": good._replace(lengths=np.full(4, -1)),
        "lengths of another shape": good._replace(lengths=np.zeros(3, np.int64)),
        "float lengths": good._replace(lengths=np.full(4, 0.5)),
        "no codes": None,
        "bare indices": wide,
    }
    if quantizer.side_count:
        bad |= {
            "missing side": good._replace(side=None),
            "side of another width": good._replace(side=np.asarray(good.side)[:, :0]),
            "side of other rows": good._replace(side=np.asarray(good.side)[:3]),
            "NaN side": good._replace(side=np.asarray(good.side) * np.float32(np.nan)),
            "infinite side": good._replace(side=np.full_like(np.asarray(good.side), np.inf)),
            "integer side": good._replace(side=np.asarray(good.side).astype(np.int64)),
        }
    else:
        bad["unexpected side"] = good._replace(side=np.zeros((4, 1), np.float32))
    for name, codes in bad.items():
        with pytest.raises(CodewordError):
            quantizer.decode(codes)
            pytest.fail(f"decode accepted {name}")


def test_masked_codes_decode_to_zero(subject: Subject) -> None:
    quantizer = subject.fitted()
    codes = quantizer.encode(subject.rows(4))
    lengths = np.array([len(quantizer.levels), 0, len(quantizer.levels), 0])
    values = quantizer.decode(codes._replace(lengths=lengths))
    expected = quantizer.decode(codes)
    assert (values[[1, 3]] == 0).all() and (values[[0, 2]] == expected[[0, 2]]).all()
    shifted = quantizer.decode(codes._replace(lengths=lengths), given=np.ones(subject.dim, np.float32))
    assert (shifted[[1, 3]] == 0).all()


def test_empty_codes_decode(subject: Subject) -> None:
    quantizer = subject.fitted()
    codes = quantizer.encode(subject.rows(4)[:0])
    assert isinstance(codes, Codes) and quantizer.decode(codes).shape == (0, subject.dim)
    assert quantizer.bits(codes) == 0.0


def test_declared_exceptions_are_current() -> None:
    import test_contract_codes
    import test_contract_config
    import test_contract_files
    import test_contract_fit
    import test_contract_forward
    modules = (test_contract_codes, test_contract_config, test_contract_files, test_contract_fit, test_contract_forward)
    checks = {name for module in modules for name in dir(module)} | set(globals())
    names = {entry.name for entry in catalog.QUANTIZERS}
    for (check, name), reason in exceptions.EXCEPTIONS.items():
        assert check in checks and name in names and len(reason) > 10, (check, name)
