"""Gradient estimators: their Jacobians against the formulas, exact values, and index backpropagation against the dense computation."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError
from codeword.parts import gradients, soft
from codeword.parts.gradients import ESTIMATORS, PAIRS, choose, passed


def pair(n: int = 6, d: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g, dtype=dtype, requires_grad=True), torch.randn(n, d, generator=g, dtype=dtype, requires_grad=True)


def jacobians(estimator: str, x: Tensor, c: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
    """d output / d x and d output / d c of one row (d, d)."""
    return tuple(torch.autograd.functional.jacobian(  # type: ignore[return-value]
        lambda a, b: passed(estimator, a[None], b[None], training=training)[0], (x.detach(), c.detach())))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_values_are_the_codewords_bit_for_bit(estimator: str, training: bool) -> None:
    torch.manual_seed(1)
    x, codebook = torch.randn(50, 3) * 10, torch.randn(7, 3)
    out = choose(estimator, x.requires_grad_(), codebook.requires_grad_(), training=training)
    assert torch.equal(out.codewords, codebook[out.indices])
    assert torch.equal(out.values, codebook[out.indices]) == (not (training and estimator in ("nsvq", "diveq")))
    if not (training and estimator == "gumbel"):
        assert torch.equal(out.indices, torch.cdist(x, codebook).argmin(1))


def test_straight_through_and_rotation_as_matrices() -> None:
    x, c = (t.detach()[0] for t in pair())
    one, none = jacobians("straight_through", x, c)
    assert torch.equal(one, torch.eye(4, dtype=torch.float64)) and not none.any()
    turn, none = jacobians("rotation", x, c)
    scale = c.norm() / x.norm()
    torch.testing.assert_close(turn @ x, c)  # it takes x to c ...
    torch.testing.assert_close(turn.T @ turn, scale**2 * torch.eye(4, dtype=torch.float64))  # ... keeping angles
    assert float(torch.linalg.det(turn)) == pytest.approx(float(scale**4)) and not none.any()
    normal = torch.linalg.qr(torch.stack((x, c), dim=1), mode="complete").Q[:, 2:]  # and turns nothing outside their plane
    torch.testing.assert_close(turn @ normal, scale * normal)


@pytest.mark.parametrize("c", [[-2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-3.0, 1e-7, 0.0]])
def test_rotation_where_there_is_none_is_straight_through(c: list[float]) -> None:
    x = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    out = passed("rotation", x, torch.tensor([c]), training=True)
    g = torch.tensor([[0.3, -2.0, 5.0]])
    out.backward(g)
    assert torch.equal(out, torch.tensor([c])) and torch.equal(x.grad, g)
    zero = torch.zeros(1, 3, requires_grad=True)
    passed("rotation", zero, torch.ones(1, 3), training=True).backward(g)
    assert torch.equal(zero.grad, g)


def test_diveq_detached_splits_the_gradient_along_the_error() -> None:
    x, c = (t.detach()[0] for t in pair())
    along = torch.nn.functional.normalize(c - x, dim=0)
    share = torch.outer(along, along)
    to_x, to_c = jacobians("diveq_detached", x, c)
    torch.testing.assert_close(to_c, share)
    torch.testing.assert_close(to_x, torch.eye(4, dtype=torch.float64) - share)
    for other in ("nsvq", "diveq"):
        assert all(torch.equal(a, b) for a, b in zip(jacobians(other, x, c), (to_x, to_c)))
    same, zero = jacobians("diveq_detached", x, x)  # no error: nothing to point along
    assert torch.equal(same, torch.eye(4, dtype=torch.float64)) and not zero.any()


def test_noise_in_training_has_the_length_of_the_error() -> None:
    x, c = (t.detach() for t in pair(500))
    torch.manual_seed(3)
    noisy = passed("nsvq", x, c, training=True)
    torch.testing.assert_close((noisy - x).norm(dim=1), (c - x).norm(dim=1))
    cosine = torch.nn.functional.cosine_similarity(noisy - x, c - x)
    assert abs(float(cosine.mean())) < 0.1 and float(cosine.std()) == pytest.approx(0.5, abs=0.06)  # uniform in 4 dimensions
    near = passed("diveq", x, c, training=True)
    torch.testing.assert_close((near - x).norm(dim=1), (c - x).norm(dim=1))
    assert 0 < float((near - c).abs().max()) < 0.1
    torch.manual_seed(3)
    assert torch.equal(passed("nsvq", x, c, training=True), noisy)  # torch's own generator


def test_gradient_formula_of_nsvq() -> None:
    x, c = pair(1)
    torch.manual_seed(5)
    v = torch.nn.functional.normalize(torch.randn_like(x), dim=1).detach()
    g = torch.randn_like(x)
    torch.manual_seed(5)
    passed("nsvq", x, c, training=True).backward(g)
    away = torch.nn.functional.normalize((x - c).detach(), dim=1) * (v * g).sum()
    torch.testing.assert_close(x.grad, g + away)
    torch.testing.assert_close(c.grad, -away)


# ---------------------------------------------------------------------- index backpropagation


def dense(x: Tensor, codebook: Tensor, indices: Tensor, temperature: float, kind: str, noise: Tensor | float = 0.0) -> Tensor:
    """(onehot + p - sg p) C, written out."""
    scores = -(x[:, None] - codebook).square().sum(2) if kind == "l2" else x @ codebook.mT
    p = torch.softmax(scores / temperature + noise, 1)
    return (torch.nn.functional.one_hot(indices, len(codebook)).to(p) + p - p.detach()) @ codebook


@pytest.mark.parametrize("values, rows", [(1 << 20, 64), (64, 8), (7, 1)])
@pytest.mark.parametrize("kind", ["l2", "ip"])
def test_soft_gradients_equal_the_dense_ones(monkeypatch: pytest.MonkeyPatch, kind: str, values: int, rows: int) -> None:
    monkeypatch.setattr(soft, "BLOCK_VALUES", values)
    monkeypatch.setattr(soft, "BLOCK_ROWS", rows)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(37, 5, generator=g, dtype=torch.float64).requires_grad_()
    codebook = torch.randn(11, 5, generator=g, dtype=torch.float64).requires_grad_()
    indices, weight = torch.randint(11, (37,), generator=g), torch.randn(37, 5, generator=g, dtype=torch.float64)
    found = torch.autograd.grad((soft.lookup(x, codebook, indices, temperature=0.7, kind=kind) * weight).sum(), (x, codebook))
    expected = torch.autograd.grad((dense(x, codebook, indices, 0.7, kind) * weight).sum(), (x, codebook))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_backward_sees_the_noise_of_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft, "BLOCK_VALUES", 64)
    monkeypatch.setattr(soft, "BLOCK_ROWS", 4)
    g = torch.Generator().manual_seed(0)
    x, codebook = torch.randn(10, 3, generator=g).requires_grad_(), torch.randn(40, 3, generator=g).requires_grad_()
    seed = torch.tensor(12345)
    noise = torch.cat([torch.cat([soft._scores(x[:0].new_zeros(len(x[part]), 3), torch.zeros(40, 3)[piece], seed, part, piece, 1.0, "ip")
                                  for piece in pieces], dim=1) for part, pieces in soft._blocks(10, 40)])
    indices = soft.sample(x, codebook, seed)
    scores = -(x[:, None] - codebook).square().sum(2) + noise
    assert torch.equal(indices, scores.argmax(1)) and not torch.equal(indices, soft.sample(x, codebook, seed + 1))
    weight = torch.randn(10, 3, generator=g)
    found = torch.autograd.grad((soft.lookup(x, codebook, indices, seed=seed) * weight).sum(), (x, codebook))
    expected = torch.autograd.grad((dense(x, codebook, indices, 1.0, "l2", noise) * weight).sum(), (x, codebook))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_draws_follow_the_softmax() -> None:
    x, codebook = torch.tensor([[0.3, -0.2]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    p = torch.softmax(-(x - codebook).square().sum(1) / 0.5, 0)
    drawn = soft.sample(x.expand(20000, 2), codebook, torch.tensor(7), temperature=0.5)
    share = torch.bincount(drawn, minlength=3) / 20000
    assert bool(((share - p).abs() < 4 * (p * (1 - p) / 20000).sqrt()).all())
    assert not bool(soft.sample(x.expand(500, 2), codebook, torch.tensor(7), temperature=1e-4).any())  # cold: the nearest


def test_far_from_the_origin_nothing_cancels() -> None:
    g = torch.Generator().manual_seed(0)
    x, codebook, weight = torch.randn(20, 3, generator=g), torch.randn(9, 3, generator=g), torch.randn(20, 3, generator=g)
    found = []
    for offset in (0.0, 4096.0):
        moved = (x + offset).requires_grad_(), (codebook + offset).requires_grad_()
        moved_indices = torch.cdist(x, codebook).argmin(1)
        found.append(torch.autograd.grad((soft.lookup(*moved, moved_indices) * weight).sum(), moved))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-2, atol=1e-2)


def test_no_memory_of_rows_times_codewords() -> None:
    """128 MiB of float32 scores, several times over, would be 600 MiB; the whole step takes a part of one such table."""
    script = """
import torch
from codeword.parts import soft
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
g = torch.Generator().manual_seed(0)
def step(n, k):
    x, e = torch.randn(n, 4, generator=g).requires_grad_(), torch.randn(k, 4, generator=g).requires_grad_()
    i = soft.sample(x, e, torch.tensor(1))
    soft.lookup(x, e, i, seed=torch.tensor(1)).square().sum().backward()
step(64, 64)
before = status("VmHWM")
step(4096, 8192)
print((status("VmHWM") - before) / 1024)
"""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("peak memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_compiled_equals_eager(estimator: str) -> None:
    x, codebook = torch.randn(9, 3).requires_grad_(), torch.randn(5, 3).requires_grad_()

    def step(rows: Tensor, book: Tensor) -> tuple[Tensor, Tensor]:
        out = choose(estimator, rows, book, training=False)
        return out.values, out.codewords

    results = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        values, codewords = function(x, codebook)
        results.append((values, *torch.autograd.grad((values * codewords).sum(), (x, codebook))))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


def test_gather_is_the_exact_sum_backward() -> None:
    codebook = torch.zeros(3, 1, requires_grad=True)
    g = torch.tensor([[1.0], [2.0**24], [1.0], [-(2.0**24)], [5.0]])
    ops.gather(codebook, torch.tensor([0, 0, 0, 0, 2])).backward(g)
    assert codebook.grad.flatten().tolist() == [2.0, 0.0, 5.0]  # float32 sums would say 0 or 1
    assert ops.gather(codebook, torch.empty(0, dtype=torch.int64)).shape == (0, 1)


@pytest.mark.parametrize("n, k", [(0, 3), (1, 1), (3, 1)])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_awkward_sizes(estimator: str, n: int, k: int) -> None:
    x, codebook = torch.randn(n, 2).requires_grad_(), torch.randn(k, 2).requires_grad_()
    out = choose(estimator, x, codebook, training=True)
    (out.values.sum() + out.codewords.sum()).backward()
    assert out.values.shape == (n, 2) and bool(torch.isfinite(x.grad).all()) and bool(torch.isfinite(codebook.grad).all())


def test_unknown_names_and_values_are_refused() -> None:
    x = torch.zeros(2, 2)
    with pytest.raises(CodewordError, match="straight_through, rotation, nsvq, diveq, diveq_detached, ibq, gumbel"):
        choose("reinforce", x, x, training=True)
    with pytest.raises(CodewordError, match=r"'ibq'.*straight_through"):
        passed("ibq", x, x, training=True)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(CodewordError):
            soft.lookup(x, x, torch.zeros(2, dtype=torch.int64), temperature=temperature)
    assert gradients.needs_codebook_term("rotation") and not gradients.needs_codebook_term("diveq") and set(PAIRS) < set(ESTIMATORS)
