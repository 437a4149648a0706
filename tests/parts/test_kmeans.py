"""k-means: the same bits with and without pruning, on any number of threads, from blocks of other types; starts and repairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from codeword import ops
from codeword.errors import CodewordError, ShapeError
from codeword.ops import dispatch
from codeword.parts import kmeans as module
from codeword.parts.kmeans import kmeans


def mixture(n: int, d: int, centres: int, spread: float = 0.4, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    middle = torch.randn(centres, d, generator=g)
    return middle[torch.randint(0, centres, (n,), generator=g)] + spread * torch.randn(n, d, generator=g)


def plain(x: Tensor, start: Tensor, iterations: int) -> tuple[Tensor, list[float]]:
    """Lloyd's iteration as it stands in books, for rows that empty no cluster."""
    centroids, history = start.clone(), []
    for _ in range(iterations):
        found = ops.nearest(x, centroids)
        history.append(float(found.distances.double().numpy().sum()) / len(x))
        sums, counts = ops.segment_sum(x, found.indices, len(start))
        assert bool((counts > 0).all())
        centroids = (sums / counts.unsqueeze(1)).float()
    return centroids, history


@pytest.mark.parametrize("shape", [(3000, 40, 200), (2000, 8, 50), (1500, 100, 130)])
def test_pruning_changes_nothing(shape: tuple[int, int, int]) -> None:
    n, d, k = shape
    x = mixture(n, d, k)
    found = kmeans(x, k, initial=x[:k], iterations=12, tolerance=0.0)
    centroids, history = plain(x, x[:k], len(found.objective))
    assert torch.equal(found.centroids, centroids) and found.objective == history and found.repaired == 0


def test_any_instruction_set_and_thread_count_gives_the_same_bits() -> None:
    native = dispatch.native()
    if native is None or dispatch.choice("nearest") != "native":
        pytest.skip("the compiled module is absent or not in use")
    x = mixture(2500, 48, 150)
    want, before = kmeans(x, 150), torch.get_num_threads()
    try:
        for isa in native.runnable_isas():
            native.set_isa(isa)
            for threads in (1, 3):
                torch.set_num_threads(threads)
                got = kmeans(x, 150)
                assert torch.equal(got.centroids, want.centroids) and got.objective == want.objective
    finally:
        torch.set_num_threads(before)
        native.set_isa("")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.float64])
def test_rows_of_other_types_pass_in_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = (mixture(700, 20, 30) * 20 + 100).clamp(0, 255).to(dtype)
    want = kmeans(x.float(), 30, iterations=5)
    monkeypatch.setattr("codeword.parts.arrays.BLOCK_VALUES", 20 * 64)  # 64 rows a block
    got = kmeans(x, 30, iterations=5)
    assert torch.equal(got.centroids, want.centroids) and got.objective == want.objective


def test_weights_count_rows() -> None:
    x = mixture(300, 6, 10)
    times = torch.randint(1, 4, (300,), generator=torch.Generator().manual_seed(1))
    weighted = kmeans(x, 10, initial=x[:10], weights=times.float(), iterations=8)
    repeated = kmeans(x.repeat_interleave(times, 0), 10, initial=x[:10], iterations=8)
    assert torch.allclose(weighted.centroids, repeated.centroids, atol=1e-6)


def test_plus_plus_takes_every_far_cluster() -> None:
    """Twenty clusters far apart, ten of them small: D^2 sampling hits each once, uniform sampling misses some."""
    g = torch.Generator().manual_seed(2)
    middle = 1000 * torch.randn(20, 5, generator=g)
    labels = torch.cat((torch.randint(0, 10, (2000,), generator=g), torch.arange(10, 20).repeat(3)))
    x = middle[labels] + torch.randn(len(labels), 5, generator=g)
    start = kmeans(x, 20, start="k-means++", iterations=0).centroids
    assert len(ops.nearest(start, middle).indices.unique()) == 20
    assert len(ops.nearest(kmeans(x, 20, iterations=0).centroids, middle).indices.unique()) < 20


def test_plus_plus_draws_by_squared_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second draw on a line with the first: frequencies follow D^2, in batches as one by one."""
    x = torch.tensor([[0.0], [1.0], [3.0]])
    for batch in (1, 64):
        monkeypatch.setattr(module, "BATCH", batch)
        counts = torch.zeros(3, 3)
        for seed in range(500):
            first, second = (int((x == v).nonzero()[0, 0]) for v in kmeans(x, 2, start="k-means++", seed=seed, iterations=0).centroids)
            counts[first, second] += 1
        square = (x - x.mT) ** 2
        want = counts.sum(1, keepdim=True) * square / square.sum(1, keepdim=True)
        assert bool(((counts - want).abs() <= 4.5 * want.clamp(min=1).sqrt()).all())


def test_plus_plus_with_few_distinct_rows_and_weights() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat(20, 1)
    start = kmeans(x, 5, start="k-means++", iterations=0).centroids
    assert len(start) == 5 and len(start.unique(dim=0)) == 2
    only = kmeans(x, 1, start="k-means++", iterations=0, weights=(x[:, 0] == 1).float()).centroids
    assert only.tolist() == [[1.0, 1.0]]


def test_empty_clusters_are_refilled_and_counted() -> None:
    x = mixture(400, 16, 40)
    start = x[:40].clone()
    start[7:12] = 1e6
    found = kmeans(x, 40, initial=start)
    assert found.repaired >= 5 and len(ops.nearest(x, found.centroids).indices.unique()) == 40


@pytest.mark.parametrize(("arguments", "message"), [
    ({"k": 0}, "at least one"), ({"k": 3, "start": "random"}, "'k-means[+][+]'"), ({"k": 3, "initial": torch.zeros(2, 4)}, "initial")])
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises((CodewordError, ShapeError), match=message):
        kmeans(torch.zeros(5, 4), **arguments)
