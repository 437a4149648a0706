"""The shared catalogue of odd inputs: ``cases(dim)`` yields (name, input, outcome of fit, outcome of encode).

Outcomes: ``OK`` the call returns, codes are in range and decode to finite values; ``ANY`` the same or a CodewordError, for finite
values so large that a square leaves float32; ``EDGE`` the same, but the decoded values may saturate to infinity (never to NaN), for
values at the edge of float32; an exception class: exactly that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from codeword.errors import CodewordError, ShapeError
from codeword.parts import random

OK = None
ANY = CodewordError


class EDGE(CodewordError):
    """Marks the outcome; never raised."""


class Case(NamedTuple):
    name: str
    input: Any
    fit: type[Exception] | None
    encode: type[Exception] | None


def cases(dim: int) -> Iterator[Case]:
    """All of them, for rows of width ``dim``."""
    for make in (shapes, values, types, layouts):
        yield from make(dim)


def _normal(n: int, dim: int, seed: int = 5) -> np.ndarray:
    return random.normal(seed, n * dim, stream="bad inputs").reshape(n, dim)


def shapes(dim: int) -> Iterator[Case]:
    x = _normal(24, dim)
    yield Case("no rows", x[:0], ShapeError, OK)
    yield Case("no rows, three axes", np.zeros((3, 0, dim), np.float32), ShapeError, OK)
    yield Case("one row", x[:1], OK, OK)
    yield Case("one vector", x[0], OK, OK)
    yield Case("three axes", x.reshape(2, 12, dim), OK, OK)
    yield Case("fewer rows than codewords", x[:2], OK, OK)
    yield Case("no columns", np.zeros((4, 0), np.float32), ShapeError, ShapeError)
    yield Case("one column", np.zeros((4, 1), np.float32), ShapeError, ShapeError)
    yield Case("one column less", np.zeros((4, dim - 1), np.float32), ShapeError, ShapeError)
    yield Case("one column more", np.zeros((4, dim + 1), np.float32), ShapeError, ShapeError)
    yield Case("transposed", np.zeros((dim, dim + 1), np.float32), ShapeError, ShapeError)
    yield Case("scalar", np.float32(1.0), ShapeError, ShapeError)
    yield Case("0-d array", np.array(1.0, np.float32), ShapeError, ShapeError)
    yield Case("0-d tensor", torch.tensor(1.0), ShapeError, ShapeError)
    yield Case("list", x.tolist(), ShapeError, ShapeError)
    yield Case("list of unequal rows", [[1.0], [1.0, 2.0]], ShapeError, ShapeError)
    yield Case("nothing", None, ShapeError, ShapeError)


def values(dim: int) -> Iterator[Case]:
    x = _normal(24, dim)

    def at(value: float) -> np.ndarray:
        y = x.copy()
        y[7, dim // 2] = value
        return y

    for name, value in (("NaN", np.nan), ("plus infinity", np.inf), ("minus infinity", -np.inf)):
        yield Case(f"{name} in one place", at(value), ShapeError, ShapeError)
        yield Case(f"{name} in one place, tensor", torch.from_numpy(at(value)), ShapeError, ShapeError)
        yield Case(f"all {name}", np.full((8, dim), value, np.float32), ShapeError, ShapeError)
    yield Case("both infinities", np.where(np.arange(dim) % 2, np.float32(np.inf), np.float32(-np.inf)) * np.ones((3, 1), np.float32),
               ShapeError, ShapeError)
    yield Case("float64 beyond float32", x.astype(np.float64) * 1e300, ShapeError, ShapeError)
    yield Case("half-precision overflow", np.full((4, dim), np.inf, np.float16), ShapeError, ShapeError)
    yield Case("minus zero", np.full((8, dim), -0.0, np.float32), OK, OK)
    yield Case("all zero", np.zeros((8, dim), np.float32), OK, OK)
    yield Case("all ones", np.ones((8, dim), np.float32), OK, OK)
    yield Case("all rows equal", np.repeat(x[:1], 8, axis=0), OK, OK)
    yield Case("two rows repeated", np.tile(x[:2], (12, 1)), OK, OK)
    yield Case("constant column", np.concatenate([np.full((24, 1), 3.5, np.float32), x[:, 1:]], axis=1), OK, OK)
    yield Case("one row of zeros", np.concatenate([np.zeros((1, dim), np.float32), x]), OK, OK)
    yield Case("one axis only", x * np.eye(dim, dtype=np.float32)[0], OK, OK)
    yield Case("collinear", x[:, :1] * np.arange(1, dim + 1, dtype=np.float32), OK, OK)
    yield Case("subnormal", np.full((8, dim), 1e-41, np.float32) * np.sign(x[:8]), OK, OK)
    yield Case("scale 1e-30", x * np.float32(1e-30), OK, OK)
    yield Case("scale 1e-20", x * np.float32(1e-20), OK, OK)
    yield Case("scale 1e+15", x * np.float32(1e15), OK, OK)
    yield Case("scale 1e+30", x * np.float32(1e30), ANY, ANY)
    yield Case("largest float32", np.full((8, dim), np.finfo(np.float32).max) * np.sign(x[:8]), EDGE, EDGE)
    yield Case("one enormous outlier", at(1e12), OK, OK)
    yield Case("heavy-tailed", (x**3 * np.exp(np.abs(x))).astype(np.float32), OK, OK)
    yield Case("integers as float", np.round(x * 4), OK, OK)


def types(dim: int) -> Iterator[Case]:
    x = _normal(24, dim)
    whole = np.round(x * 20).clip(-100, 100)
    yield Case("float64", x.astype(np.float64), OK, OK)
    yield Case("float16", x.astype(np.float16), OK, OK)
    yield Case("float64 tensor", torch.from_numpy(x).double(), OK, OK)
    yield Case("float16 tensor", torch.from_numpy(x).half(), OK, OK)
    yield Case("bfloat16 tensor", torch.from_numpy(x).bfloat16(), OK, OK)
    for kind in (np.int8, np.int16, np.int32, np.int64):
        yield Case(np.dtype(kind).name, whole.astype(kind), OK, OK)
        yield Case(f"{np.dtype(kind).name} tensor", torch.from_numpy(whole.astype(kind)), OK, OK)
    for kind in (np.uint8, np.uint16, np.uint32, np.uint64):
        yield Case(np.dtype(kind).name, np.abs(whole).astype(kind), OK, OK)
        yield Case(f"{np.dtype(kind).name} tensor", torch.from_numpy(np.abs(whole).astype(kind)), OK, OK)
    yield Case("requires grad", torch.from_numpy(x).requires_grad_(), OK, OK)
    yield Case("bool", x > 0, ShapeError, ShapeError)
    yield Case("bool tensor", torch.from_numpy(x > 0), ShapeError, ShapeError)
    yield Case("complex", x.astype(np.complex64), ShapeError, ShapeError)
    yield Case("complex tensor", torch.from_numpy(x).to(torch.complex64), ShapeError, ShapeError)
    yield Case("long double", x.astype(np.longdouble), ShapeError, ShapeError)
    yield Case("object", x.astype(object), ShapeError, ShapeError)
    yield Case("strings", x.astype(str), ShapeError, ShapeError)
    yield Case("structured", np.zeros((4, dim), dtype=[("a", "f4"), ("b", "i4")]), ShapeError, ShapeError)
    yield Case("datetime", np.zeros((4, dim), dtype="M8[s]"), ShapeError, ShapeError)
    yield Case("masked array", np.ma.masked_less(x, 0), ShapeError, ShapeError)
    yield Case("meta tensor", torch.zeros(4, dim, device="meta"), ShapeError, ShapeError)
    yield Case("sparse tensor", torch.from_numpy(x).to_sparse(), ShapeError, ShapeError)
    yield Case("a string", "vectors.npy", ShapeError, ShapeError)


def layouts(dim: int) -> Iterator[Case]:
    for name, array in views(_normal(24, dim)).items():
        yield Case(name, array, OK, OK)
    yield Case("stride 0", np.broadcast_to(_normal(1, dim), (8, dim)), OK, OK)
    yield Case("stride 0 tensor", torch.from_numpy(_normal(1, dim)).expand(8, dim), OK, OK)


def views(x: np.ndarray) -> dict[str, Any]:
    """The same float32 values (n, dim) in every memory layout."""
    n, dim = x.shape
    read_only = x.copy()
    read_only.flags.writeable = False
    wide = np.zeros((2 * n, 3 * dim), np.float32)
    wide[::2, 1:1 + 2 * dim:2] = x
    unaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(n, dim)
    unaligned[:] = x
    return {
        "read-only": read_only,
        "Fortran order": np.asfortranarray(x),
        "transposed view": np.ascontiguousarray(x.T).T,
        "strided": wide[::2, 1:1 + 2 * dim:2],
        "reversed rows": x[::-1].copy()[::-1],
        "reversed columns": x[:, ::-1].copy()[:, ::-1],
        "big-endian": x.astype(">f4"),
        "unaligned": unaligned,
        "strided tensor": torch.from_numpy(wide)[::2, 1:1 + 2 * dim:2],
        "transposed tensor": torch.from_numpy(np.ascontiguousarray(x.T)).T,
    }
