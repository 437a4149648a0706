"""OPQ: an orthonormal rotation, the exact alternation, better than PQ where slices share variance, no worse than its starts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from codeword.data.bundle import bundled
from codeword.parts import orthogonal, random, slices
from codeword.quantizer import Quantizer
from codeword.quantizers import opq
from codeword.quantizers.opq import OPQ
from codeword.quantizers.pq import PQ


def correlated(n: int = 3000, dim: int = 8) -> np.ndarray:
    """Rows whose first half repeats in the second, plus a little noise, all turned by a random rotation."""
    half = random.normal(0, n * dim // 2, stream="opq half").reshape(n, dim // 2) * np.linspace(0.3, 2, dim // 2, dtype=np.float32)
    noise = random.normal(1, n * dim, stream="opq noise").reshape(n, dim)
    return (np.concatenate([half, half], 1) + 0.1 * noise) @ orthogonal.random_rotation(dim, 5).numpy()


def error(quantizer: Quantizer, x: np.ndarray) -> float:
    return float(np.square(np.asarray(quantizer.decode(quantizer.encode(x))) - x).sum(1).mean())


def test_it_beats_pq_where_slices_share_variance() -> None:
    x = correlated()
    ours, plain = (kind(dim=8, num_codebooks=2, codebook_size=32).fit(x) for kind in (OPQ, PQ))
    assert error(ours, x) < 0.9 * error(plain, x)
    rotation = ours.rotation
    assert isinstance(rotation, torch.Tensor)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [64, 160])
def test_the_slices_are_searched_where_the_rotation_puts_them(size: int) -> None:
    x = bundled().vectors[:1500].astype(np.float32)
    quantizer = OPQ(dim=x.shape[1], num_codebooks=4, codebook_size=size, iterations=8).fit(x)
    for _ in range(2):
        turned = (torch.from_numpy(x).double() @ quantizer.rotation.double().mT).unflatten(1, (4, -1))
        distances = torch.stack([torch.cdist(turned[:, m], quantizer.codebooks[m].double()) for m in range(4)], 1)
        found = torch.from_numpy(np.asarray(quantizer.encode(x).indices).astype(np.int64))
        excess = distances.gather(2, found.unsqueeze(2)).squeeze(2) - distances.amin(2)
        assert excess.max() < 1e-6
        quantizer.codebooks.copy_(quantizer.codebooks.flip(1) * 0.9)


@pytest.mark.parametrize("training", [True, False])
def test_whole_rows_are_searched_in_one_graph(training: bool) -> None:
    x = bundled().vectors[:600].astype(np.float32)
    quantizer = OPQ(dim=x.shape[1], num_codebooks=4, codebook_size=64, iterations=2).fit(x).train(training)
    rows = torch.from_numpy(x)
    compiled = torch.compile(quantizer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(rows).codes.indices, quantizer(rows).codes.indices)


def test_the_rotation_is_the_best_for_its_codes() -> None:
    x = torch.from_numpy(correlated(500))
    y = x @ orthogonal.random_rotation(8, 9).mT
    found = orthogonal.procrustes(y.mT.double() @ x.double())
    torch.testing.assert_close(found, orthogonal.random_rotation(8, 9), atol=1e-5, rtol=0)


def test_a_round_without_momentum_never_hurts(monkeypatch) -> None:
    monkeypatch.setattr(opq, "MOMENTUM", 0.0)
    x = torch.from_numpy(correlated())
    quantizer = OPQ(dim=8, num_codebooks=2, codebook_size=16)
    state, errors = quantizer._start(x, None), []
    for _ in range(12):
        turned = x @ state.rotation.mT
        chosen = slices.values(state.codebooks, slices.assign(turned, state.codebooks))
        errors.append(float((turned - chosen).double().square().sum()))
        state = quantizer._round(state, x, None)
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(errors))
    assert errors[-1] < 0.95 * errors[0]


def test_parts_end_lower_than_all_rows_in_every_round(monkeypatch) -> None:
    x = bundled().vectors[:2500, :32].astype(np.float32)
    ours = error(OPQ(dim=32, num_codebooks=4, codebook_size=32).fit(x), x)
    monkeypatch.setattr(opq, "COOLING", ((1.0, None),))
    assert ours < 0.995 * error(OPQ(dim=32, num_codebooks=4, codebook_size=32).fit(x), x)


def test_emptied_codewords_move_to_rows_served_worst() -> None:
    rows = torch.tensor([[0.0], [0.1], [9.0], [5.0]])
    from codeword import ops
    sums, counts, fixed = slices.cluster_sums(rows, ops.nearest(rows, torch.tensor([[0.0], [100.0], [-100.0]])), 3, None)
    assert fixed == 2
    assert counts.tolist() == [4.0, 1.0, 1.0]
    assert sums[1:, 0].tolist() == [9.0, 5.0]


def test_rotated_queries_rank_as_decoded_rows() -> None:
    x = correlated()
    quantizer = OPQ(dim=8, num_codebooks=2, codebook_size=32, iterations=4).fit(x)
    codes = quantizer.encode(x[:320])
    decoded = torch.from_numpy(np.asarray(quantizer.decode(codes)))
    queries = torch.from_numpy(x[400:410])
    inner = queries @ decoded.mT
    for metric, exact in (("l2", decoded.square().sum(1) - 2 * inner), ("ip", -inner)):
        found = quantizer.scan(quantizer.pack(codes), quantizer.prepare(queries, metric), 0, 320)[0]
        torch.testing.assert_close(found, exact, atol=1e-3, rtol=1e-4)
