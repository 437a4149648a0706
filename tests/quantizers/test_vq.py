"""VQ in a network: exact gradients, the averages by hand, revival, several processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import codeword
from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.parts.upkeep import CANDIDATES, accumulated


def vq(codebook: torch.Tensor, **options) -> codeword.VQ:
    """A fitted VQ with exactly this codebook."""
    quantizer = codeword.VQ(dim=codebook.shape[1], codebook_size=len(codebook), **options).fit(codebook)
    with torch.no_grad():
        quantizer.codebook.copy_(codebook)
    quantizer.upkeep.start(codebook)
    return quantizer


def test_gradients_are_the_analytic_ones() -> None:
    torch.manual_seed(0)
    quantizer = vq(torch.randn(5, 3), commitment=0.3)
    x = torch.randn(7, 3, requires_grad=True)
    out = quantizer(x)
    chosen = out.codes.indices[:, 0].to(torch.int64)
    g = torch.randn(7, 3)
    (out.loss + (out.values * g).sum()).backward()
    difference = x.detach() - quantizer.codebook.detach()[chosen]
    torch.testing.assert_close(x.grad, g + 2 * 0.3 * difference / 21)
    expected = torch.zeros(5, 3).index_add_(0, chosen, -2 * difference / 21)
    torch.testing.assert_close(quantizer.codebook.grad, expected)


def test_straight_through_is_exact() -> None:
    quantizer = vq(torch.tensor([[1e-20, 1.0], [3e7, -0.1]]))
    x = torch.tensor([[1e7, 0.3], [0.1, 1 / 3]], requires_grad=True)
    out = quantizer(x)
    assert torch.equal(out.values, quantizer.codebook[out.codes.indices[:, 0].long()])
    g = torch.tensor([[1.0, -2.0], [1 / 3, 1e-9]])
    out.values.backward(g)
    assert torch.equal(x.grad, g)


def test_codebook_learns_by_averages_only_where_asked() -> None:
    x = torch.randn(20, 3)
    assert codeword.VQ(dim=3, codebook_size=4, learning="ema").fit(x)(x).loss.requires_grad is False
    plain = codeword.VQ(dim=3, codebook_size=4).fit(x)
    before = plain.codebook.detach().clone()
    assert plain.update(plain(x)) == {} and torch.equal(plain.codebook, before)
    assert set(plain.state_dict()) == {"codebook"}


def test_two_steps_of_averages_by_hand() -> None:
    quantizer = vq(torch.tensor([[0.0], [10.0]]), learning="ema", decay=0.75, revival=0.0)
    first, second = torch.tensor([[1.0], [3.0], [8.0], [-1.0]]), torch.tensor([[12.0], [11.0]])
    e = 1e-5
    # Step 1: 4 tokens, so the equal shares become n = (2, 2), m = (0, 20); counts (3, 1), sums (3, 8).
    quantizer.update(quantizer(first))
    n, m = [0.75 * 2 + 0.25 * 3, 0.75 * 2 + 0.25 * 1], [0.75 * 0 + 0.25 * 3, 0.75 * 20 + 0.25 * 8]
    c = [(m[0] + e * 0) / (n[0] + e), (m[1] + e * 10) / (n[1] + e)]
    assert quantizer.codebook.flatten().tolist() == pytest.approx(c, rel=1e-6)
    # Step 2: counts (0, 2), sums (0, 23).
    quantizer.update(quantizer(second))
    n, m = [0.75 * n[0], 0.75 * n[1] + 0.25 * 2], [0.75 * m[0], 0.75 * m[1] + 0.25 * 23]
    c = [(m[k] + e * c[k]) / (n[k] + e) for k in (0, 1)]
    assert quantizer.codebook.flatten().tolist() == pytest.approx(c, rel=1e-6)
    assert quantizer.upkeep.counts.tolist() == pytest.approx(n) and quantizer.upkeep.sums.flatten().tolist() == pytest.approx(m)
    assert int(quantizer.upkeep.updates) == 2


def test_a_codeword_nobody_chooses_stays_where_it_is() -> None:
    quantizer = vq(torch.tensor([[0.0, 0.0], [5.0, -7.0]]), learning="ema", decay=0.5, revival=0.0)
    for _ in range(200):  # its count falls to 1e-60; smoothing towards the origin would have taken it there
        quantizer.update(quantizer(torch.zeros(8, 2)))
    torch.testing.assert_close(quantizer.codebook[1], torch.tensor([5.0, -7.0]))


def test_averages_reach_the_means_of_the_clusters() -> None:
    quantizer = vq(torch.tensor([[-1.0], [1.0]]), learning="ema", decay=0.9)
    x = torch.tensor([[-3.0], [-2.0], [4.0], [6.0]])
    for _ in range(300):
        quantizer.update(quantizer(x))
    torch.testing.assert_close(quantizer.codebook.flatten(), torch.tensor([-2.5, 5.0]))


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_revival_moves_codeword_count_and_sums(learning: str) -> None:
    torch.manual_seed(1)
    far = torch.full((1, 4), 1e3)
    quantizer = vq(torch.cat((torch.randn(3, 4), far)), learning=learning, decay=0.5, revival=0.1)
    x = torch.randn(64, 4)
    reports = [quantizer.update(quantizer(x)) for _ in range(5)]
    # The share of the far one halves at each step: 1/4 of what is expected after two, below a tenth after four.
    assert reports[:3] == [{}, {}, {}] and reports[3] == {"revived": [3]} and reports[4] == {}
    for _ in range(3):
        quantizer = vq(torch.cat((torch.randn(3, 4), far)), learning=learning, decay=0.5, revival=0.1)
        for _ in range(4):
            quantizer.update(quantizer(x))
    row = quantizer.codebook[3].detach()
    assert bool((x == row).all(1).any())
    expected = 64 / 4  # counts sum to the tokens of a batch
    assert float(quantizer.upkeep.counts[3]) == pytest.approx(expected, rel=0.02)
    if learning == "ema":
        torch.testing.assert_close(quantizer.upkeep.sums[3], row.double() * quantizer.upkeep.counts[3])


def test_threshold_is_relative_to_the_batch() -> None:
    """The same data in batches of 4 and of 400 tokens revive at the same step."""
    steps = []
    for repeat in (1, 100):
        quantizer = vq(torch.tensor([[0.0], [1.0], [1e6]]), learning="ema", decay=0.8, revival=0.05)
        x = torch.tensor([[0.0], [0.1], [1.0], [0.9]]).repeat(repeat, 1)
        reports = [quantizer.update(quantizer(x)) for _ in range(30)]
        steps.append(next(i for i, report in enumerate(reports) if report))
    assert steps[0] == steps[1] == math.ceil(math.log(0.05) / math.log(0.8)) - 1


def test_every_revived_codeword_is_reported_and_distinct() -> None:
    torch.manual_seed(2)
    quantizer = vq(torch.cat((torch.zeros(1, 2), torch.full((7, 2), 1e4))), learning="ema", decay=0.1, revival=0.5)
    before = quantizer.codebook.detach().clone()
    report = quantizer.update(quantizer(torch.randn(50, 2)))
    moved = (quantizer.codebook != before).any(1).nonzero().flatten().tolist()
    assert report["revived"] == moved[1:] == [1, 2, 3, 4, 5, 6, 7]  # codeword 0 moved with its average
    assert len(torch.unique(quantizer.codebook[1:], dim=0)) == 7


def test_too_few_rows_revive_as_many_as_there_are() -> None:
    quantizer = vq(torch.cat((torch.zeros(1, 2), torch.full((7, 2), 1e4))), learning="ema", decay=0.1, revival=0.5)
    assert len(quantizer.update(quantizer(torch.tensor([[0.1, 0.2], [0.3, 0.1]])))["revived"]) == 2


def test_masked_and_nan_rows_leave_the_averages_alone() -> None:
    x = torch.randn(12, 3)
    keep = torch.arange(12) % 3 != 1
    dirty = torch.where(keep.unsqueeze(1), x, torch.nan)
    states = []
    for rows, mask in ((x[keep], None), (dirty, keep)):
        quantizer = vq(torch.randn(6, 3, generator=torch.Generator().manual_seed(3)), learning="ema", decay=0.3, revival=0.3)
        for _ in range(6):
            quantizer.update(quantizer(rows, mask=mask))
        states.append(quantizer.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


def test_nan_without_a_mask_is_refused_and_changes_nothing() -> None:
    quantizer = vq(torch.randn(4, 2), learning="ema")
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    x = torch.randn(5, 2)
    x[2, 0] = torch.nan
    with pytest.raises(CodewordError):
        quantizer.update(quantizer(x))
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


def test_an_empty_batch_changes_nothing() -> None:
    quantizer = vq(torch.randn(4, 2), learning="ema")
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    assert quantizer.update(quantizer(torch.empty(0, 2))) == {}
    assert quantizer.update(quantizer(torch.randn(3, 2), mask=torch.zeros(3, dtype=torch.bool))) == {}
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


def test_micro_batches_add_up_to_the_batch() -> None:
    torch.manual_seed(4)
    codebook, x = torch.randn(6, 3), torch.randn(24, 3)
    whole, parts = vq(codebook, learning="ema", revival=0.0), vq(codebook, learning="ema", revival=0.0)
    whole.update(whole(x))
    parts.update(accumulated([parts(part) for part in x.split(8)]))
    torch.testing.assert_close(parts.codebook, whole.codebook)
    torch.testing.assert_close(parts.upkeep.counts, whole.upkeep.counts)
    # and gradients accumulate: the loss is a mean, so thirds of three equal parts make the whole
    one, three = vq(codebook), vq(codebook)
    one(x).loss.backward()
    for part in x.split(8):
        (three(part).loss / 3).backward()
    torch.testing.assert_close(three.codebook.grad, one.codebook.grad)


def test_accumulated_offers_rows_of_every_micro_batch() -> None:
    quantizer = vq(torch.cat((torch.zeros(1, 1), torch.full((7, 1), 1e4))), learning="ema", decay=0.1, revival=0.5)
    outs = [quantizer(torch.linspace(a, a + 0.9, 10).unsqueeze(1)) for a in (-2.0, 2.0)]
    quantizer.update(accumulated(outs))
    revived = quantizer.codebook[1:].detach()
    assert bool((revived < 0).any()) and bool((revived > 0).any())


def test_usage_and_perplexity() -> None:
    quantizer = vq(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    stats = quantizer(torch.tensor([[0.0], [0.0], [1.0], [1.0], [9.0]]), mask=torch.tensor([True, True, True, True, False])).stats
    assert float(stats["usage"]) == 0.5 and float(stats["perplexity"]) == pytest.approx(2.0)


def test_gradient_training_reaches_the_floor_of_kmeans() -> None:
    torch.manual_seed(5)
    x = torch.randn(256, 4) * 2 + 1
    floor = float(codeword.VQ(dim=4, codebook_size=16).fit(x)(x).stats["error"])
    quantizer = codeword.VQ(dim=4, codebook_size=16).fit(torch.randn(64, 4))
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.1)
    before = float(quantizer(x).stats["error"])
    for _ in range(80):
        optimizer.zero_grad()
        quantizer(x).loss.backward()
        optimizer.step()
    after = float(quantizer(x).stats["error"])
    assert before > 1.5 * floor and after < 1.15 * floor


def test_resume_gives_the_identical_next_step(tmp_path) -> None:
    torch.manual_seed(6)
    quantizer = codeword.VQ(dim=3, codebook_size=8, learning="ema", decay=0.6, revival=0.4).fit(torch.randn(40, 3))
    for _ in range(5):
        quantizer.update(quantizer(torch.randn(16, 3)))
    quantizer.save(tmp_path / "vq")
    twin, x = codeword.VQ.load(tmp_path / "vq"), torch.randn(16, 3)
    assert twin.update(twin(x)) == quantizer.update(quantizer(x))
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key


def test_impossible_averages_are_refused() -> None:
    quantizer = vq(torch.randn(4, 2), learning="ema")
    quantizer.upkeep.counts[1] = -1
    with pytest.raises(FormatError) as caught:
        quantizer.check_state()
    assert caught.value.code == "value"


@pytest.mark.parametrize("name", ["vq", "simvq"])
def test_dial(name: str) -> None:
    quantizer = codeword.make(f"{name}:bits=2,seed=3", 4)
    assert (quantizer.codebook_size, quantizer.seed, quantizer.nominal_bits) == (256, 3, 2.0)
    assert codeword.make(f"{name}:bits=0.25", 8).codebook_size == 4
    assert codeword.make(f"product({name}:bits=2):groups=8", 32).nominal_bits == 2.0
    for dim, bits in ((8, 2.5), (8, 0.3), (4, 0.1)):
        with pytest.raises(Unsupported):
            codeword.make(f"{name}:bits={bits}", dim)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"revival": 1.0}, {"revival": -0.1}, {"learning": "none"},
                                     {"commitment": -1.0}, {"codebook_size": 0}])
def test_bad_options(options: dict) -> None:
    with pytest.raises(CodewordError):
        codeword.VQ(**{"dim": 2, "codebook_size": 4, **options})


def test_compiled_training_step_equals_eager() -> None:
    torch.manual_seed(7)
    x = torch.randn(32, 4)
    states = []
    for compiled in (False, True):
        quantizer = codeword.VQ(dim=4, codebook_size=8, learning="ema", decay=0.5, revival=0.4).fit(x)
        forward = torch.compile(quantizer, backend="aot_eager", fullgraph=True) if compiled else quantizer
        for scale in (1.0, 2.0, 3.0):
            rows = (x * scale).requires_grad_()
            out = forward(rows)
            out.loss.backward()
            quantizer.update(out)
        states.append((quantizer.codebook.detach().clone(), rows.grad.clone()))
    assert torch.equal(states[0][0], states[1][0])
    torch.testing.assert_close(states[0][1], states[1][1])


def test_autocast_changes_no_decision_and_no_average() -> None:
    x, states = torch.randn(40, 4), []
    for enabled in (False, True):
        quantizer = codeword.VQ(dim=4, codebook_size=8, learning="ema").fit(x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = quantizer(x)
            quantizer.update(out)
        states.append(quantizer.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


SPECS = {
    "ema": "vq:codebook_size=8,decay=0.7,revival=0.3,learning=ema",
    "gradient": "vq:codebook_size=8,decay=0.7,revival=0.3",
    "product": "product(vq:codebook_size=4,decay=0.7,revival=0.3,learning=ema):groups=2",
    "residual": "residual(vq:codebook_size=4,decay=0.7,revival=0.3,learning=ema):stages=2",
    "union": "vq:codebook_size=8,decay=0.7,revival=0.0,learning=ema",
}


def training_data() -> tuple[torch.Tensor, torch.Tensor]:
    """24 drifting batches of 12 rows, and rows to start from."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(24, 12, 4, generator=g) * torch.linspace(0.5, 3, 24)[:, None, None], torch.randn(32, 4, generator=g)


RANK = """
    import json, sys, torch, torch.distributed as dist
    from datetime import timedelta
    import codeword
    from test_vq import SPECS, training_data
    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    data, start = training_data()
    states, reports = {}, {}
    for kind, spec in SPECS.items():
        quantizer, reports[kind] = codeword.make(spec, 4).fit(start), []
        for step, batch in enumerate(data):
            empty = kind != "union" and rank == 1 and step % 3 == 0
            reports[kind].append(quantizer.update(quantizer(batch[:0] if empty else batch[rank::2])))
        states[kind] = quantizer.state_dict()
    torch.save(states, f"{folder}/{rank}.pt")
    open(f"{folder}/{rank}.json", "w").write(json.dumps(reports))
    dist.destroy_process_group()
"""


def test_two_ranks_keep_one_codebook(tmp_path) -> None:
    """Two gloo ranks; every third batch of rank 1 is empty. A collective that waits longer than 60 s fails."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ranks = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(RANK), str(r), str(tmp_path)], env={**os.environ, "PYTHONPATH": path})
             for r in range(2)]
    try:
        assert [process.wait(timeout=240) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    first, second = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    reports, others = (json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2))
    assert reports == others
    for kind, state in first.items():
        assert any(reports[kind]) == (kind != "union"), kind
        for key, value in state.items():
            assert torch.equal(value, second[kind][key]), (kind, key)
    # Without empty batches and revival, two ranks are one process on the union of their rows.
    data, start = training_data()
    quantizer = codeword.make(SPECS["union"], 4).fit(start)
    for batch in data:
        quantizer.update(quantizer(batch))
    torch.testing.assert_close(first["union"]["codebook"], quantizer.codebook.detach(), rtol=1e-5, atol=1e-5)


def test_ranks_offer_a_fixed_number_of_rows() -> None:
    quantizer = codeword.VQ(dim=2, codebook_size=1000, learning="ema").fit(torch.randn(10, 2))
    for n in (0, 1, 7, 500):
        stats = quantizer(torch.randn(n, 2)).stats
        assert stats["candidates"].shape == (CANDIDATES, 2) and int(stats["candidate_valid"].sum()) == min(n, CANDIDATES)


def test_shared_bytes_count_the_codebook_alone() -> None:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    for options, codebooks in (("vq:codebook_size=8,learning=ema", 1), ("vq:codebook_size=8,revival=0.1", 1),
                               ("residual(vq:codebook_size=8,learning=ema):stages=3", 3)):
        quantizer = codeword.make(options, 4).fit(x)
        assert quantizer.shared_bytes == codebooks * 8 * 4 * 4
        assert quantizer.shared_bytes < sum(t.numel() * t.element_size() for t in quantizer.state_dict().values())
