"""The Triton kernels against the definitions: on a GPU as they are, else in Triton's interpreter. ``test_triton`` runs these."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import codeword
from codeword import ops
from codeword.ops import dispatch, reference
from codeword.ops.triton import screen
from codeword.ops.triton.nearest import Shape, counted, prepare, scan, split
from codeword.ops.triton.segment_sum import gathered, segment_add

from .conftest import DISTRIBUTIONS, equal, pairs
from .test_nearest import SHAPES, by_definition

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
AWKWARD = [(1, 100, 7), (63, 65, 1), (2, 257, 63), (7, 129, 100), (100, 64, 3), (3, 7, 257), (5, 70, 300), (0, 70, 4), (4, 70, 0)]


def check(x: Tensor, codebook: Tensor, shape: Shape | None = None) -> tuple[int, int]:
    indices, distances, counts = counted(x.to(DEVICE), codebook.to(DEVICE), shape)
    want = by_definition(x, codebook)
    assert equal(indices.cpu(), want[0]) and equal(distances.cpu(), want[1]), (x.shape, codebook.shape)
    return int(counts.second), int(counts.full)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_nearest_is_the_definition(distribution: str) -> None:
    for n, k, d in [(7, 100, 5), *(SHAPES if GPU else [])]:
        check(*pairs(distribution, n, k, d))
    check(*pairs(distribution, 6, 390, 20), Shape(splits=1))


@pytest.mark.parametrize("shape", AWKWARD)
def test_awkward_sizes(shape: tuple[int, int, int]) -> None:
    check(*pairs("gaussian", *shape))


def two_clusters(n: int, k: int, d: int, spread: float) -> tuple[Tensor, Tensor]:
    """Rows near one of two far clusters of codewords, so that no centre makes the differences large."""
    g = torch.Generator().manual_seed(5)
    base = torch.randn(d, generator=g)
    sign = torch.where(torch.arange(k) % 2 == 0, 1.0, -1.0)
    codebook = sign[:, None] * base + spread * torch.randn(k, d, generator=g)
    return base + spread * torch.randn(n, d, generator=g), codebook


def test_each_way_is_taken() -> None:
    second, full = check(*pairs("gaussian", 9, 1000, 12), Shape(splits=1))
    assert second <= 3 and full == 0
    second, full = check(*two_clusters(7, 1000, 16, 3e-2), Shape(splits=1))
    assert second > 4 and full < second, "float16 cannot tell these apart, two parts of float16 can"
    second, full = check(*two_clusters(3, 1000, 16, 1e-6), Shape(splits=1))
    assert full == 3, "only float64 can"
    x, codebook = pairs("gaussian", 3, 520, 9)
    assert check(x, codebook[:1].expand(520, 9).contiguous(), Shape(splits=1)) == (3, 3)
    x[1] *= 1e20
    assert check(x, codebook) == (1, 1)


def test_near_ties() -> None:
    """Codewords that differ in the last bits of float32."""
    g = torch.Generator().manual_seed(3)
    base = torch.randn(1, 48, generator=g)
    codebook = base + torch.randint(-2, 3, (400, 48), generator=g) * 2.0**-22
    x = base + torch.randn(4, 48, generator=g) * 1e-3
    for columns in (48, 7):
        check(x[:, :columns].contiguous(), codebook[:, :columns].contiguous(), Shape(splits=1))
    codebook = torch.cat((torch.randn(300, 48, generator=g), codebook))
    check(x, codebook, Shape(splits=1))


def test_a_codebook_that_is_not_finite() -> None:
    x, codebook = pairs("gaussian", 5, 200, 6)
    codebook[:] = math.inf
    check(x, codebook)
    codebook[150] = 2.0
    check(x, codebook)
    codebook[77, 3] = math.nan
    indices, distances, _ = counted(x.to(DEVICE), codebook.to(DEVICE))
    assert indices.eq(0).all() and distances.isnan().all()
    indices, distances, _ = counted(x.to(DEVICE), codebook[70:80].to(DEVICE))
    assert indices.eq(0).all() and distances.isnan().all()


def test_scales_far_apart() -> None:
    """Codewords 2^80 times the others, rows much shorter and much longer than any of them."""
    x, codebook = pairs("gaussian", 8, 300, 10)
    codebook[::7] *= 2.0**80
    codebook[5::11] *= 2.0**-30
    x[1], x[2], x[3], x[4] = x[1] * 2.0**-70, x[2] * 2.0**70, x[3] * 2.0**90, 0.0
    check(x, codebook)
    check(x, codebook, Shape(splits=1))
    check(x, codebook[::7].contiguous())


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize(("distribution", "d"), [("gaussian", 20), ("offset", 64), ("far codeword", 9), ("integers", 300)])
def test_the_bounds_hold(distribution: str, d: int, second: bool) -> None:
    """Every group's best score lies below what the scan says of it, and the best of all above the lower bound."""
    n, k = (300, 5000) if GPU else (9, 500)
    x, codebook = (v.to(DEVICE) for v in pairs(distribution, n, k, d))
    book = prepare(codebook)
    parts, stats = split(x, book)
    listed, count = torch.arange(n, dtype=torch.int32, device=DEVICE), torch.tensor([n], dtype=torch.int32, device=DEVICE)
    value, group, floor, loose = (t[:, 0].double() for t in scan(book, parts, stats, listed, count, 1, second, Shape(rows=16)))
    unit, scale = stats[3].double(), 2.0 ** book.scale.double()
    a, b = x.double() - book.centre.double(), codebook.double() - book.centre.double()
    scores = (a @ b.mT - b.square().sum(1) / 2) / (scale * scale / unit).unsqueeze(1)
    best = torch.nn.functional.pad(scores, (0, -k % screen.GROUP), value=-math.inf).unflatten(1, (-1, screen.GROUP)).amax(2)
    tiny = 1e-12 * (1 + best.amax(1))
    assert bool((floor <= best.amax(1) + tiny).all())
    kept = torch.zeros_like(best, dtype=torch.bool)
    for slot in range(8):
        row = (value[:, slot] > -math.inf).nonzero().squeeze(1)
        at = group[row, slot].long()
        assert bool((at < best.shape[1]).all()) or distribution == "far codeword"
        row, at = row[at < best.shape[1]], at[at < best.shape[1]]
        assert bool((best[row, at] <= value[row, slot] + tiny[row]).all())
        kept[row, at] = True
    assert bool((best.masked_fill(kept, -math.inf).amax(1) <= loose + tiny).all())
    assert bool((kept.sum(1) >= min(8, best.shape[1]) - 3).all())


def test_segment_sum_is_the_definition() -> None:
    g = torch.Generator().manual_seed(1)
    for n, d, k in [(1, 1, 1), (63, 7, 5), (100, 33, 9), (257, 4, 100), (0, 3, 4), (5, 0, 3)]:
        x, labels = torch.randn(n, d, generator=g) * 1e3, torch.randint(0, max(1, k - 1), (n,), generator=g)
        for weights in (None, torch.rand(n, generator=g)):
            sums, counts = torch.zeros(k, d, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)
            for row in range(n):
                weight = 1.0 if weights is None else weights[row].double()
                sums[labels[row]] += x[row].double() * weight
                counts[labels[row]] += weight
            total, mass = torch.zeros_like(sums, device=DEVICE), torch.zeros_like(counts, device=DEVICE)
            for part in (slice(0, n // 3), slice(n // 3, n)):  # in blocks, as SegmentSum adds them
                w = None if weights is None else weights[part].to(DEVICE)
                segment_add(total, mass, x[part].to(DEVICE), labels[part].to(DEVICE), w)
            assert equal(total.cpu(), sums) and equal(mass.cpu(), counts), (n, d, k)


def test_gradient_of_gather() -> None:
    g = torch.Generator().manual_seed(2)
    grad, indices = torch.randn(120, 19, generator=g), torch.randint(0, 9, (120,), generator=g)
    want = reference.segment_sum(grad, indices, 11)[0].float()
    assert equal(gathered(grad.to(DEVICE), indices.to(DEVICE), 11).cpu(), want)


@pytest.mark.skipif(not GPU, reason="one thread and one order in the interpreter")
def test_repeated_calls_give_the_same_bits() -> None:
    x, codebook = (v.cuda() for v in two_clusters(5000, 3000, 24, 3e-2))
    first = counted(x, codebook)
    labels = first[0] % 7
    sums = ops.segment_sum(x, labels, 9)
    for _ in range(5):
        again = counted(x, codebook)
        assert equal(again[0], first[0]) and equal(again[1], first[1])
        assert all(equal(a, b) for a, b in zip(ops.segment_sum(x, labels, 9), sums, strict=True))
    alone = counted(x[7:8].clone(), codebook)
    assert equal(alone[0], first[0][7:8]) and equal(alone[1], first[1][7:8])


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_reference_sums_in_order_on_a_gpu() -> None:
    g = torch.Generator().manual_seed(2)
    x, labels = torch.randn(4000, 19, generator=g), torch.randint(0, 40, (4000,), generator=g)
    for weights in (None, torch.rand(4000, generator=g)):
        want = reference.segment_sum(x, labels, 41, weights)
        got = reference.segment_sum(x.cuda(), labels.cuda(), 41, None if weights is None else weights.cuda())
        assert equal(got[0].cpu(), want[0]) and equal(got[1].cpu(), want[1])


def test_a_network_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the public ops, forward and backward, with the same bits as on the CPU."""
    x, codebook = pairs("gaussian", 30, 70, 6)

    def step(device: str) -> tuple[Tensor, Tensor, Tensor]:
        book = codebook.to(device, copy=True).requires_grad_()
        found = ops.nearest(x.to(device), book)
        chosen = ops.gather(book, found.indices)
        (chosen * x.to(device)).sum().backward()
        assert book.grad is not None
        return found.indices.cpu(), chosen.detach().cpu(), book.grad.cpu()

    def fitted(device: str) -> tuple[Tensor, Tensor]:
        quantizer = codeword.VQ(dim=6, codebook_size=9, iterations=2).to(device)
        codes = quantizer.fit(x.to(device)).encode(x.to(device))
        return quantizer.codebook.detach().cpu(), codes.indices.cpu()

    results = []
    for which, device in (("reference", "cpu"), ("triton", DEVICE)):
        monkeypatch.setenv("CODEWORD_OPS", which)
        assert dispatch.choice("nearest", device) == which and dispatch.choice("project", device) == "reference"
        results.append((*step(device), *fitted(device)))
    assert all(equal(a, b) for a, b in zip(*results, strict=True))
