"""Coarse labels of codewords: an exact relabelling, and clusters whose members can stand in for each other."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from torch import Tensor

import codeword
from codeword.data.bundle import IMAGES
from codeword.errors import CodewordError, ShapeError
from codeword.parts import partition


def book(k: int = 40, d: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(k, d, generator=torch.Generator().manual_seed(seed))


def test_label_and_rank_are_the_index() -> None:
    found = partition.cluster(book(), 7)
    indices = torch.arange(40).reshape(5, 8)
    labels, ranks = partition.split(found, indices)
    assert torch.equal(partition.join(found, labels, ranks), indices)
    assert torch.equal(found.sizes, torch.bincount(found.labels, minlength=7)) and int(found.sizes.sum()) == 40
    for m in range(7):
        mine = (found.labels == m).nonzero().squeeze(1)
        assert torch.equal(found.members[m, :len(mine)], mine) and bool((found.members[m, len(mine):] == -1).all())
        assert torch.equal(found.ranks[mine], torch.arange(len(mine)))
    again = partition.of_labels(found.labels.to(torch.uint8), 7)
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))


def test_as_many_clusters_as_codewords_and_one() -> None:
    each, one = partition.cluster(book(), 40), partition.cluster(book(), 1)
    assert bool((each.sizes == 1).all()) and torch.equal(one.members[0], torch.arange(40)) and torch.equal(one.ranks, torch.arange(40))


def test_labels_are_those_of_the_nearest_center() -> None:
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    codebook = (centers.unsqueeze(1) + 0.1 * book(15, 2).reshape(3, 5, 2)).flatten(0, 1)[torch.arange(15) * 4 % 15]
    for seed in range(5):
        found = partition.cluster(codebook, 3, seed=seed)
        if sorted(found.sizes.tolist()) == [5, 5, 5]:
            break
    truth = torch.arange(15) * 4 % 15 // 5
    assert all(len(set(truth[found.labels == m].tolist())) == 1 for m in range(3))


def test_counts_keep_dead_codewords_from_taking_clusters() -> None:
    codebook = torch.cat((book(32, 2), 1e3 + book(32, 2, seed=1)))
    counts = torch.cat((torch.ones(32), torch.zeros(32)))
    alike, weighed = partition.cluster(codebook, 8, seed=1), partition.cluster(codebook, 8, counts=counts, seed=1)
    assert len(set(alike.labels[32:].tolist())) > 1 and len(set(weighed.labels[:32].tolist())) == 8
    assert len(set(weighed.labels[32:].tolist())) == 1  # they get the label that is nearest, all the same one from that far


def test_masking_keeps_predictions_inside() -> None:
    found = partition.cluster(book(), 7)
    mask = partition.allowed(found, torch.arange(7))
    assert bool((mask.sum(0) == 1).all()) and torch.equal(mask.sum(1), found.sizes)
    drawn = partition.resample(found, torch.arange(40).repeat(50), torch.Generator().manual_seed(0))
    assert torch.equal(found.labels[drawn], found.labels.repeat(50))
    assert torch.equal(torch.bincount(drawn, minlength=40) > 0, torch.ones(40, dtype=torch.bool))
    again = partition.resample(found, torch.arange(40).repeat(50), torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_members_of_a_cluster_stand_in_for_each_other() -> None:
    """The paper's redundancy test: tokens replaced by random members of their cluster, against random clusters of equal sizes."""
    packed = (IMAGES / "t10k-images-idx3-ubyte.gz").read_bytes()
    pictures = torch.from_numpy(np.frombuffer(gzip.decompress(packed), np.uint8, offset=16).copy())
    base = pictures.reshape(-1, 28, 28)[:100].unfold(1, 4, 4).unfold(2, 4, 4).reshape(-1, 16).float() / 255
    vq = codeword.VQ(dim=16, codebook_size=256, iterations=6).fit(base)
    tokens = torch.as_tensor(vq.encode(base).indices)[:, 0].long()
    codewords = vq.codebook.detach()

    def excess(found: partition.Partition) -> float:
        drawn = partition.resample(found, tokens, torch.Generator().manual_seed(1))
        return float((codewords[drawn] - base).square().sum() - (codewords[tokens] - base).square().sum())

    found = [partition.cluster(codewords, clusters, counts=torch.bincount(tokens, minlength=256)) for clusters in (8, 32, 128)]
    real, dealt = [excess(one) for one in found], [excess(partition.shuffled(one, 3)) for one in found]
    assert real == sorted(real, reverse=True)
    assert all(a < 0.4 * b for a, b in zip(real, dealt, strict=True)), (real, dealt)
    assert all(torch.equal(partition.shuffled(one, 3).sizes, one.sizes) for one in found)


def test_bad_arguments() -> None:
    found = partition.cluster(book(), 7)
    for call in (lambda: partition.cluster(book(), 0), lambda: partition.cluster(book(), 41), lambda: partition.cluster(book()[0], 1),
                 lambda: partition.cluster(book(), 7, counts=(torch.arange(40) < 6).float())):
        with pytest.raises(CodewordError):
            call()
    for call in (lambda: partition.of_labels(torch.tensor([0, 7]), 7), lambda: partition.of_labels(torch.tensor([-1]), 7),
                 lambda: partition.of_labels(torch.tensor([0.0]), 7), lambda: partition.split(found, torch.tensor([40])),
                 lambda: partition.split(found, torch.tensor([0.5])), lambda: partition.join(found, torch.tensor([0]), found.sizes[:1]),
                 lambda: partition.join(found, torch.tensor([0, 1]), torch.tensor([0])),
                 lambda: partition.allowed(found, torch.tensor([7])),
                 lambda: partition.cluster(book(), 7, counts=torch.ones(39)), lambda: partition.cluster(book(), 7, counts=-torch.ones(40))):
        with pytest.raises(ShapeError):
            call()
