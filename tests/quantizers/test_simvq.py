"""SimVQ: every codeword moves by the formula, the baked codebook is the same one, and the map does the work on real vectors."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import codeword
from codeword import ops
from codeword.errors import CodewordError, NotFitted
from codeword.parts.moments import moments
from codeword.parts.threads import one_thread
from codeword.parts.training import minibatches


def small(steps: int = 20, **options) -> tuple[codeword.SimVQ, torch.Tensor]:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2, 1, 1, 0.5, 0.1]) + 5
    return codeword.SimVQ(dim=6, codebook_size=16, steps=steps, batch_size=64, **options).fit(x), x


def test_one_step_moves_every_codeword_by_the_formula() -> None:
    quantizer, x = small()
    basis, before = quantizer.basis.double(), quantizer.effective().detach().double()
    token, rate, tokens = x[:1], 0.125, 1
    out = quantizer(token)
    out.loss.backward()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter -= rate * parameter.grad
    moved = quantizer.effective().detach().double() - before
    j = int(out.codes.indices)
    factor = -2 * rate / (tokens * quantizer.dim) * (basis @ basis[j] + 1)
    expected = factor.unsqueeze(1) * (before[j] - token.double())
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)
    assert bool((moved.norm(dim=1) > 0).all())
    assert torch.equal(quantizer.basis.double(), basis) and not quantizer.basis.requires_grad


def test_both_ways_to_the_winners_have_the_same_values_and_gradients() -> None:
    """Few tokens go through the winners, many through the whole codebook."""
    quantizer, x = small()
    results = []
    for rows in (x[:5], x[:5].repeat(8, 1)):
        quantizer.zero_grad()
        out = quantizer(rows)
        out.loss.backward()
        results.append((out.values[:5].detach(), quantizer.weight.grad.clone(), quantizer.bias.grad.clone()))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][2], results[1][2])


def test_input_gradient_is_straight_through_plus_commitment() -> None:
    quantizer, x = small(commitment=0.5)
    rows, g = x[:9].clone().requires_grad_(), torch.randn(9, 6)
    out = quantizer(rows)
    (out.loss + (out.values * g).sum()).backward()
    torch.testing.assert_close(rows.grad, g + 2 * 0.5 * (rows - out.values).detach() / 54)


def test_bake_is_bit_equal() -> None:
    quantizer, x = small()
    baked = quantizer.bake()
    assert isinstance(baked, codeword.VQ) and baked.fitted
    codes = quantizer.encode(x)
    assert torch.equal(baked.encode(x).indices, codes.indices)
    assert torch.equal(baked.decode(codes), quantizer.decode(codes))
    assert torch.equal(baked(x).values, quantizer(x).values)
    metric = torch.diag(torch.arange(1.0, 7.0))
    assert torch.equal(baked.encode(x, metric=metric).indices, quantizer.encode(x, metric=metric).indices)
    with pytest.raises(NotFitted):
        codeword.SimVQ(dim=6, codebook_size=4).bake()


def test_the_kept_codebook_follows_every_way_of_writing() -> None:
    quantizer, x = small()
    quantizer.encode(x)

    def fresh() -> torch.Tensor:
        return ops.nearest(x, ops.project(quantizer.basis, quantizer.weight.detach()) + quantizer.bias.detach()).indices

    def by_data() -> None:
        quantizer.weight.data *= -1

    def by_optimizer() -> None:
        optimizer = torch.optim.SGD(quantizer.parameters(), lr=5.0)
        quantizer(x).loss.backward()
        optimizer.step()

    def by_numpy() -> None:
        quantizer.bias.detach().numpy()[:] += 3

    def by_loading() -> None:
        quantizer.load_state_dict(small(seed=3)[0].state_dict())

    def by_assignment() -> None:
        quantizer.load_state_dict(small(seed=4)[0].state_dict(), assign=True)

    for write in (by_data, by_optimizer, by_numpy, by_loading, by_assignment):
        before = quantizer.encode(x).indices
        write()
        after = quantizer.encode(x).indices
        assert torch.equal(after[:, 0].long(), fresh()) and not torch.equal(before, after), write.__name__


def test_fit_does_not_care_about_offset_and_scale() -> None:
    _, x = small()

    def fitted(rows: torch.Tensor) -> codeword.SimVQ:
        return codeword.SimVQ(dim=6, codebook_size=16, steps=60, seed=1).fit(rows)

    codes = [fitted(x * scale).encode(x * scale).indices for scale in (1, 1024, 2**-20)]
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])
    errors = [float((q.decode(q.encode(y)) - y).square().mean()) for q, y in ((fitted(x), x), (fitted(x + 1000), x + 1000))]
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


def test_fit_is_the_same_on_any_number_of_threads_and_every_time() -> None:
    _, x = small()
    before, states = torch.get_num_threads(), []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        quantizer = codeword.SimVQ(dim=6, codebook_size=16, steps=30, batch_size=50).fit(x)
        states.append(quantizer.fit(x).state_dict() if threads == 1 and states else quantizer.state_dict())
    torch.set_num_threads(before)
    assert all(torch.equal(value, state[key]) for state in states[1:] for key, value in states[0].items())


def test_row_weights_are_sampling_frequencies() -> None:
    _, x = small()
    far = torch.cat((x, x + 100))
    weights = torch.cat((torch.ones(200), torch.zeros(200)))
    quantizer = codeword.SimVQ(dim=6, codebook_size=16, steps=60).fit(far, weights=weights)
    codebook = quantizer.effective().detach()
    assert float((codebook.mean(0) - x.mean(0)).norm()) < 10
    plain = codeword.SimVQ(dim=6, codebook_size=16, steps=60).fit(x)
    error = [float((q.decode(q.encode(x)) - x).square().mean()) for q in (quantizer, plain)]
    assert error[0] < 1.3 * error[1]


def test_training_beats_its_own_start() -> None:
    errors = []
    for steps in (0, 20, 200):
        quantizer, x = small(steps)
        errors.append(float((quantizer.decode(quantizer.encode(x)) - x).square().mean()))
    assert errors[2] < errors[1] < errors[0]


def test_all_rows_equal_are_met_exactly() -> None:
    x = torch.full((20, 6), 3.25)
    quantizer = codeword.SimVQ(dim=6, codebook_size=4, steps=3).fit(x)
    assert torch.equal(quantizer.decode(quantizer.encode(x)), x)


@pytest.mark.parametrize("options", [{"codebook_size": 0}, {"dim": 0}, {"steps": -1}, {"batch_size": 0}, {"learning_rate": 0.0},
                                     {"commitment": -0.1}])
def test_bad_options(options: dict) -> None:
    with pytest.raises(CodewordError):
        codeword.SimVQ(**{"dim": 4, "codebook_size": 4, **options})


def test_moments_of_any_scale() -> None:
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(2)) + torch.tensor([0.0, 5.0, 1e3])
    weights = torch.rand(500)
    for scale in (1.0, 2.0**90, 2.0**-100):
        mean, variance = moments(x * scale, weights)
        exact = (x.double() * weights.double()[:, None]).sum(0) / weights.double().sum()
        spread = ((x.double() - exact).square() * weights.double()[:, None]).sum(0) / weights.double().sum()
        torch.testing.assert_close(mean / scale, exact, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(variance / scale**2, spread, rtol=1e-4, atol=0)


def test_minibatches_pass_over_rows_in_seeded_order() -> None:
    batches = list(minibatches(10, 3, 6, seed=4))
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert len(first.unique()) == len(second.unique()) == 9 and not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(batches, minibatches(10, 3, 6, seed=4), strict=True))
    assert not torch.equal(first, torch.cat(list(minibatches(10, 3, 3, seed=5))))
    assert len(torch.cat(list(minibatches(10, 3, 30, seed=4))).unique()) == 10  # what one pass leaves out, another takes
    assert [len(batch) for batch in minibatches(2, 5, 3, seed=0)] == [2, 2, 2]


def test_one_thread_overlaps_and_nests() -> None:
    """A thread that meets torch first while another is inside, and leaves last, does not leave one thread behind."""
    before, seen = torch.get_num_threads(), []
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with one_thread():
            inside.set()
            leave.wait(10)
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    def fresh() -> None:
        seen.append(torch.get_num_threads())

    try:
        torch.set_num_threads(2)
        late = threading.Thread(target=other)
        with one_thread():
            with one_thread():
                late.start()
                assert inside.wait(10)
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        leave.set()
        late.join(10)
        last = threading.Thread(target=fresh)
        last.start()
        last.join(10)
        assert seen == [1, 2, 2] and torch.get_num_threads() == 2
    finally:
        leave.set()
        torch.set_num_threads(before)


def test_weighted_minibatches_draw_in_proportion() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])
    drawn = torch.cat(list(minibatches(5, 5, 400, seed=1, weights=weights)))
    assert drawn.unique().tolist() == [1, 3] and float((drawn == 3).double().mean()) == pytest.approx(0.75, abs=0.03)


def sentences() -> torch.Tensor:
    root = Path(os.environ.get("CODEWORD_SHARED", Path(__file__).parents[2].parent / "shared"))
    found = sorted((root / "data" / "vectors").rglob("minilm_sentences.f16.npy")) if root.is_dir() else []
    if not found:
        pytest.skip("the sentence embeddings in shared/data/vectors are not on this machine")
    return torch.from_numpy(np.load(found[0], mmap_mode="r")[:400].astype(np.float32))


def test_on_sentence_embeddings_kmeans_is_the_floor_and_frozen_codes_the_ceiling() -> None:
    x, size = sentences(), 64
    floor = codeword.VQ(dim=x.shape[1], codebook_size=size).fit(x)
    learned = codeword.SimVQ(dim=x.shape[1], codebook_size=size, steps=100, batch_size=400).fit(x)
    frozen = learned.basis * float((x - x.mean(0)).square().sum(1).mean().sqrt()) + x.mean(0)  # as long as the data, but not mapped
    errors = [float((q.decode(q.encode(x)) - x).square().sum(1).mean()) for q in (floor, learned)]
    errors.append(float(ops.nearest(x, frozen).distances.mean()))
    assert errors[0] < errors[1] < errors[2], errors
