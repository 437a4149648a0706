"""Where the compiled module was built its tests run on every instruction set this processor has, with 1, 2 and 3 threads."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from codeword.ops import dispatch

NATIVE = dispatch.native()
ISAS = NATIVE.runnable_isas() if NATIVE is not None and dispatch.choice("nearest") == "native" else []

DISTRIBUTIONS = ("gaussian", "duplicates", "integers", "1e30", "largest", "1e-20", "1e-30", "subnormal", "zeros", "zero rows",
                 "far codeword", "far row", "offset", "all far", "not finite")


@pytest.fixture(params=ISAS or [pytest.param("", marks=pytest.mark.skip(reason="the compiled module is absent or not in use"))])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn."""
    assert NATIVE is not None
    NATIVE.set_isa(request.param)
    yield request.param
    NATIVE.set_isa("")


@pytest.fixture(autouse=True, scope="package")
def small_work_is_split() -> Iterator[None]:
    """Scans take all threads they are given, however little there is to do."""
    if NATIVE is not None:
        NATIVE.set_thread_bytes(0)
    yield
    if NATIVE is not None:
        NATIVE.set_thread_bytes(1.5e6)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pairs(distribution: str, n: int, k: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows (n, d) and codewords (k, d) with what is hard about ``distribution``."""
    g = torch.Generator().manual_seed(seed)
    x, c = torch.randn(n, d, generator=g), torch.randn(k, d, generator=g)
    scale = {"1e30": 1e30, "1e-20": 1e-20, "1e-30": 1e-30, "subnormal": 1e-41, "zeros": 0.0}
    if distribution in scale:
        return x * scale[distribution], c * scale[distribution]
    if distribution == "duplicates":  # equal codewords, and rows that are codewords
        c = c[torch.randint(0, max(1, k // 4), (k,), generator=g)]
        x[::2] = c[torch.randint(0, k, (len(x[::2]),), generator=g)]
    elif distribution == "integers":  # many ties
        x, c = (2 * x).round(), (2 * c).round()
    elif distribution == "largest":  # differences and scores overflow float32
        x, c = (x * 2e38).clamp(-3.4e38, 3.4e38), (c * 2e38).clamp(-3.4e38, 3.4e38)
    elif distribution == "zero rows":  # all codewords of unit length are equally near, up to rounding
        x, c = x * 0, c / c.norm(dim=1, keepdim=True).clamp(min=1e-9)
    elif distribution == "far codeword":
        c[k // 2] *= 1e9
    elif distribution == "far row":
        x[n // 2:n // 2 + 1] *= 1e20
    elif distribution == "offset":  # the common part is a thousand times the difference
        x, c = x + 1000, c + 1000
    elif distribution == "all far":  # even float64 cannot tell all codewords apart
        x = x + 1e12
    elif distribution == "not finite" and d:
        x[::3, 0], x[1::5, -1] = math.nan, math.inf
        c[::4, 0] = -math.inf
    return x, c


def equal(a: Tensor, b: Tensor) -> bool:
    """The same bits, except that one NaN is like another."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    whole = torch.int32 if a.dtype == torch.float32 else torch.int64
    return torch.equal(a.nan_to_num(7.0, math.inf, -math.inf).view(whole), b.nan_to_num(7.0, math.inf, -math.inf).view(whole)) \
        and torch.equal(a.isnan(), b.isnan())
