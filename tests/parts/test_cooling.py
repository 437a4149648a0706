"""Parts that grow: sizes by the formula, samples that repeat, and k-means that ends lower for starting on them."""

from __future__ import annotations

import torch

from codeword.data.bundle import bundled
from codeword.parts import cooling, random
from codeword.parts.kmeans import kmeans
from codeword.parts.threads import one_thread

SCHEDULE = ((0.5, 32), (0.75, 64), (1.0, None))


def test_sizes_have_the_noise_that_was_asked_for() -> None:
    sizes = cooling.part_sizes(50_000, 256, 20, SCHEDULE)
    assert sizes == sorted(sizes) and sizes[-5:] == [50_000] * 5 and len(sizes) == 20
    for size, many in ((sizes[0], 32), (sizes[10], 64)):
        assert abs((1 / size - 1 / 50_000) * many * 256 - 1) < 1e-3


def test_a_part_has_a_row_for_every_codeword_where_there_are_so_many() -> None:
    assert cooling.part_sizes(100, 256, 3, SCHEDULE) == [100] * 3
    assert min(cooling.part_sizes(300, 256, 4, ((1.0, 1),))) >= 256
    assert cooling.part_sizes(10_000, 16, 1, SCHEDULE) == [10_000]
    assert cooling.part_sizes(10, 2, 0, SCHEDULE) == []


def test_parts_are_seeded_subsets_in_order() -> None:
    rows, weights = torch.arange(1000.0).unsqueeze(1), torch.arange(1000.0)
    part, mass = cooling.part(rows, weights, 100, 3, "a")
    again, none = cooling.part(rows, None, 100, 3, "a")
    assert mass is not None and none is None and torch.equal(part[:, 0], mass) and torch.equal(part, again)
    assert bool((part[1:, 0] > part[:-1, 0]).all()) and len(part) == 100
    assert sorted(random.choice(3, 1000, 100, stream="a").tolist()) == part[:, 0].long().tolist()
    assert not torch.equal(part, cooling.part(rows, None, 100, 3, "b")[0])
    assert cooling.part(rows, weights, 1000, 3, "a")[0] is rows


def test_k_means_ends_lower_from_a_cooled_start_and_the_same_on_any_threads() -> None:
    x = torch.from_numpy(bundled().vectors[:4000, :24]).float()
    plain, cooled = (torch.tensor([kmeans(x, 64, seed=seed, start=start).objective[-1] for seed in range(4)]).mean()
                     for start in ("sample", "cooled"))
    assert cooled < 0.998 * plain
    with one_thread():
        alone = kmeans(x, 64, start="cooled").centroids
    assert torch.equal(alone, kmeans(x, 64, start="cooled").centroids)


def test_a_cooled_start_of_few_or_equal_rows() -> None:
    assert torch.equal(kmeans(torch.ones(9, 3), 4, start="cooled").centroids, torch.ones(4, 3))
    assert kmeans(torch.eye(3), 3, start="cooled").objective[-1] == 0
    assert len(kmeans(torch.eye(3), 5, start="cooled").centroids) == 5
