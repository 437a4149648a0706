"""The ops inside torch: custom-op rules, gradients, torch.compile, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from codeword import ops
from codeword.errors import ShapeError
from codeword.ops import functions

from .conftest import pairs
from .test_linear import signs_for

WIDTHS = [3, 5]


def cases() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    x, codebook = pairs("gaussian", 6, 5, 8)
    grad = x.clone().requires_grad_()
    return {
        "nearest": (functions._nearest, (x, codebook)),
        "project": (functions._project, (grad, codebook.clone().requires_grad_())),
        "hadamard": (functions._hadamard, (grad,)),
        "rotate": (functions._rotate, (grad, signs_for(8), False)),
        "segment_sum": (functions._segment_sum, (x, torch.tensor([0, 1, 0, 2, 2, 0]), 3, torch.rand(6))),
        "segment_sum without weights": (functions._segment_sum, (x, torch.tensor([0, 1, 0, 2, 2, 0]), 3, None)),
        "gather": (functions._gather, (codebook.clone().requires_grad_(), torch.tensor([4, 0, 4, 1]))),
        "pack": (functions._pack, (torch.tensor([[1, 2], [7, 31]]), WIDTHS)),
        "unpack": (functions._unpack, (torch.tensor([9, 200], dtype=torch.uint8), WIDTHS, 2, torch.int32)),
    }


@pytest.mark.parametrize("name", list(cases()))
def test_opcheck(name: str) -> None:
    op, arguments = cases()[name]
    torch.library.opcheck(op, arguments)


def test_gradients() -> None:
    """The ops compute in float32, so gradients are compared with those of the same mathematics in torch."""
    x, matrix = pairs("gaussian", 6, 5, 16)
    weight = torch.randn(6, 5)
    a, b = x.clone().requires_grad_(), matrix.clone().requires_grad_()
    (ops.project(a, b) * weight).sum().backward()
    torch.testing.assert_close(a.grad, weight @ matrix)
    torch.testing.assert_close(b.grad, weight.mT @ x)

    # y = Q x with orthonormal Q, so the gradient of <w, y> is Q^T w: the inverse applied to w.
    weight = torch.randn(6, 16)
    for forward, backward in ((ops.hadamard, ops.hadamard),
                              (lambda v: ops.rotate(v, signs_for(16)), lambda v: ops.rotate(v, signs_for(16), inverse=True)),
                              (lambda v: ops.rotate(v, signs_for(16), inverse=True), lambda v: ops.rotate(v, signs_for(16)))):
        a = x.clone().requires_grad_()
        (forward(a) * weight).sum().backward()
        torch.testing.assert_close(a.grad, backward(weight), rtol=1e-4, atol=1e-5)
        step = 0.5 * torch.randn(6, 16)
        change = ((forward(x + step) - forward(x)) * weight).sum()  # linear: exact for any step
        torch.testing.assert_close((a.grad * step).sum(), change, rtol=1e-4, atol=1e-4)


def test_gradient_of_gather() -> None:
    """Sums of float64 in the order of the rows, so that many small gradients beside a large one are not lost."""
    codebook, indices = torch.randn(5, 3), torch.tensor([4, 1, 4, 4, 0])
    book = codebook.clone().requires_grad_()
    chosen = ops.gather(book, indices)
    assert torch.equal(chosen, codebook[indices])
    grad = torch.randn(5, 3)
    grad[0], grad[2:4] = 1e8, torch.tensor([[1.0], [-1.0]])
    chosen.backward(grad)
    assert book.grad is not None
    want = torch.zeros(5, 3, dtype=torch.float64).index_add_(0, indices, grad.double()).float()
    assert torch.equal(book.grad, want) and book.grad[2].eq(0).all()
    with pytest.raises(ShapeError, match="gather got"):
        ops.gather(codebook, indices[None])


def test_gradient_of_odd_width() -> None:
    x = torch.randn(3, 13, requires_grad=True)
    weight = torch.randn(3, 13)
    (ops.rotate(x, signs_for(13)) * weight).sum().backward()
    torch.testing.assert_close(x.grad, ops.rotate(weight, signs_for(13), inverse=True), rtol=1e-4, atol=1e-5)


def test_compile_whole_graph() -> None:
    """Without a graph break, with the same values and gradients. The graph runs eagerly: no compiler is needed."""
    x, codebook = pairs("gaussian", 12, 9, 16)
    signs = signs_for(16)

    def step(v: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
        turned = ops.hadamard(ops.rotate(v, signs))
        found = ops.nearest(turned, book)
        sums, counts = ops.segment_sum(turned, found.indices, 9)
        packed = ops.pack(found.indices.unsqueeze(1), [4])
        again = ops.unpack(packed, [4], v.shape[0])
        return ops.project(turned - book[again[:, 0]], book).square().sum() + (sums.sum() + counts.sum()).float()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    plain, graph = step(a, codebook), compiled(b, codebook)
    assert torch.equal(plain, graph)
    plain.backward()
    graph.backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_autocast_changes_nothing() -> None:
    x, codebook = pairs("gaussian", 12, 9, 16)
    plain = (ops.nearest(x, codebook).indices, ops.project(x, codebook), ops.rotate(x, signs_for(16)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = (ops.nearest(x, codebook).indices, ops.project(x, codebook), ops.rotate(x, signs_for(16)))
    assert all(torch.equal(a, b) for a, b in zip(plain, cast))
