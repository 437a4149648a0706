"""parts/random: the same numbers everywhere, and none shared between seeds, streams and parts."""

from __future__ import annotations

import numpy as np

from codeword.parts import random


def test_known_values_never_change() -> None:
    """Files hold fitted state, but a fit must give the same codebooks in every release."""
    assert random.bits(1, 3, stream="s").tolist() == [16241306189701621734, 15186493533523280267, 12737413954388413032]
    parts = [random.part_seed(*which) for which in ((0, 0), (0, 1), (-3, 7))]
    assert parts == [967523849935342, 3876640063524148, 4485891768277066]


def test_a_position_does_not_depend_on_where_reading_starts() -> None:
    whole = random.bits(9, 100, stream="x")
    assert np.array_equal(whole[40:60], random.bits(9, 20, stream="x", start=40))


def test_parts_of_seeds_and_parts_of_parts_are_all_different() -> None:
    seeds = range(-50, 50)
    first = [random.part_seed(seed, part) for seed in seeds for part in range(64)]
    second = [random.part_seed(seed, part) for seed in first[::16] for part in range(8)]
    everything = [*seeds, *first, *second]
    assert len(set(everything)) == len(everything)
    assert all(0 <= seed < 1 << 52 for seed in first)


def test_neighbouring_seeds_start_from_other_rows() -> None:
    starts = [set(random.choice(random.part_seed(seed, part), 1000, 16).tolist()) for seed in range(8) for part in range(8)]
    shared = [len(a & b) for i, a in enumerate(starts) for b in starts[:i]]
    assert max(shared) <= 5 and np.mean(shared) < 0.5  # chance: 0.26
