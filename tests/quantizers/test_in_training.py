"""Quantizers inside a network: what reaches an encoder and the codewords, stage by stage and slice by slice, under every estimator."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import codeword
from codeword.errors import CodewordError, Unsupported
from codeword.parts import losses
from codeword.parts.gradients import ESTIMATORS, PAIRS
from codeword.parts.upkeep import accumulated
from codeword.quantizer import Quantizer


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def train(quantizer: Quantizer, steps: int = 12, rate: float = 0.05, seed: int = 5) -> None:
    """A few steps as a network would take them."""
    quantizer.train()
    moving = [p for p in quantizer.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=rate) if moving else None
    for step in range(steps):
        out = quantizer(normal(24, quantizer.dim, seed + step).requires_grad_() * 1.5)
        (out.values.square().mean() + out.loss).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        quantizer.update(out)


# ---------------------------------------------------------------------- the gradient factor


@pytest.mark.parametrize("spec", ["rvq:num_codebooks=4,codebook_size=8,beam=1,commitment=0", "rvq:num_codebooks=4,codebook_size=8",
                                  "rvq:num_codebooks=4,codebook_size=8,learning=ema,commitment=0", "vq:codebook_size=8",
                                  "pq:num_codebooks=3,codebook_size=8", "residual(vq:codebook_size=8):stages=4",
                                  "product(vq:codebook_size=8):groups=3", "simvq:codebook_size=8,steps=5"])
def test_identity_decoder_gives_the_gradient_once(spec: str) -> None:
    """|q|^2 / 2 has the gradient q; summed stage by stage it would arrive four times."""
    quantizer = codeword.make(spec, 6).fit(normal(200, 6)).train()
    x = normal(20, 6, 1).requires_grad_()
    values = quantizer(x).values
    (values.square().sum() / 2).backward()
    assert x.grad is not None and torch.equal(x.grad, values.detach())


@pytest.mark.parametrize("beam", [1, 3])
def test_every_stage_holds_the_encoder(beam: int) -> None:
    """Commitment of a later stage reaches x through the residual, whose codewords are constants: 2 beta sum_m r_m / (n d)."""
    rvq = codeword.RVQ(dim=4, num_codebooks=3, codebook_size=4, beam=beam, commitment=0.7).fit(normal(100, 4))
    x = normal(10, 4, 1).requires_grad_()
    out = rvq(x)
    out.loss.backward()
    left, expected = x.detach(), torch.zeros(10, 4)
    for m in range(3):
        left = left - rvq.codebooks.detach()[m][out.codes.indices[:, m].long()]
        expected += 2 * 0.7 * left / 40
    torch.testing.assert_close(x.grad, expected)


# ---------------------------------------------------------------------- equal to what they are made of


@pytest.mark.parametrize("options", ["", ",learning=ema,decay=0.6,revival=0.3", ",revival=0.3,decay=0.6", ",estimator=rotation",
                                     ",estimator=diveq_detached"])
def test_pq_trains_as_a_product_of_vqs(options: str) -> None:
    pq = codeword.make(f"pq:num_codebooks=3,codebook_size=8{options}", 6).fit(normal(100, 6))
    product = codeword.make(f"product(vq:codebook_size=8{options}):groups=3", 6).fit(normal(100, 6))
    x, mask = normal(20, 6, 1), torch.arange(20) % 4 != 1
    found = []
    for quantizer in (pq, product):
        rows = x.clone().requires_grad_()
        out = quantizer(rows, mask=mask)
        (out.loss + out.values.square().sum()).backward()
        found.append((out.loss.detach(), out.values.detach(), rows.grad))
        quantizer.zero_grad()
        train(quantizer)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    parts = [part for part in product.quantizers if isinstance(part, codeword.VQ)]  # type: ignore[union-attr]
    torch.testing.assert_close(torch.stack([part.codebook for part in parts]).detach(), pq.codebooks.detach())
    if "decay" in options:
        torch.testing.assert_close(torch.stack([part.upkeep.counts for part in parts]), pq.upkeep.counts)
        assert pq.upkeep.updates.tolist() == [int(part.upkeep.updates) for part in parts]
    assert not torch.equal(pq.codebooks, codeword.make(f"pq:num_codebooks=3,codebook_size=8{options}", 6).fit(normal(100, 6)).codebooks)


@pytest.mark.parametrize("options", ["", ",learning=ema,decay=0.6,revival=0.3"])
def test_greedy_rvq_trains_as_a_residual_of_vqs(options: str) -> None:
    rvq = codeword.make(f"rvq:num_codebooks=3,codebook_size=8,beam=1{options}", 4).fit(normal(100, 4))
    residual = codeword.make(f"residual(vq:codebook_size=8{options}):stages=3", 4).fit(normal(100, 4))
    for quantizer in (rvq, residual):
        train(quantizer)
    parts = [part for part in residual.quantizers if isinstance(part, codeword.VQ)]
    torch.testing.assert_close(torch.stack([part.codebook for part in parts]).detach(), rvq.codebooks.detach())
    if options:
        torch.testing.assert_close(torch.stack([part.upkeep.sums for part in parts]), rvq.upkeep.sums)


def test_averages_of_stages_go_to_the_means_of_what_is_left() -> None:
    rvq = codeword.RVQ(dim=2, num_codebooks=2, codebook_size=3, beam=1, learning="ema", decay=0.8, revival=0.0).fit(normal(60, 2))
    x = normal(60, 2)
    for _ in range(60):
        rvq.update(rvq(x))
    left = x
    for book in rvq.codebooks.detach():
        index = torch.cdist(left, book).argmin(1)
        for k in range(3):
            torch.testing.assert_close(left[index == k].mean(0), book[k], rtol=1e-3, atol=1e-3)
        left = left - book[index]


def test_revival_of_one_stage_leaves_the_others_alone() -> None:
    rvq = codeword.RVQ(dim=3, num_codebooks=2, codebook_size=4, beam=1, decay=0.5, revival=0.05).fit(normal(60, 3))
    with torch.no_grad():
        rvq.codebooks[1, 2] = 1e4
    before = rvq.codebooks.detach().clone()
    reports = [rvq.update(rvq(normal(60, 3, seed))) for seed in range(6)]  # its share halves: 1/32 of what is expected after five
    assert [report.get("revived") for report in reports] == [None] * 4 + [{"codebooks.1": [2]}, None]
    moved = (rvq.codebooks.detach() != before).any(2)
    assert bool(moved[1, 2]) and not bool(moved[0].any()) and float(rvq.codebooks.detach()[1, 2].abs().max()) < 10


# ---------------------------------------------------------------------- dropout of stages


@pytest.mark.parametrize("spec", [
    "rvq:num_codebooks=4,codebook_size=8,beam=1,dropout=0.7", "rvq:num_codebooks=4,codebook_size=8,beam=3,dropout=0.7",
    "residual(vq:codebook_size=8):stages=4,dropout=0.7", "residual(pvq:group=4,pulses=3,gain_bits=1):stages=4,dropout=0.7"])
def test_dropped_stages_are_missing_everywhere(spec: str) -> None:
    quantizer = codeword.make(spec, 4).fit(normal(200, 4)).eval()
    x, whole = normal(30, 4, 1).reshape(10, 3, 4), quantizer(normal(30, 4, 1).reshape(10, 3, 4))
    assert whole.codes.lengths is None
    torch.manual_seed(2)
    out = quantizer.train()(x.clone().requires_grad_())
    lengths = out.codes.lengths
    assert isinstance(lengths, Tensor) and lengths.shape == (10, 3) and lengths.dtype == torch.int32
    assert bool((lengths == lengths[:, :1]).all()), "one length an item"
    each = len(quantizer.levels) // 4
    assert set((lengths // each).flatten().tolist()) <= {1, 2, 3, 4} and len(set(lengths.flatten().tolist())) > 2
    torch.testing.assert_close(out.values.detach(), quantizer.decode(out.codes), rtol=1e-6, atol=1e-6)
    beyond = torch.arange(4 * each) >= lengths.unsqueeze(-1)
    indices = torch.as_tensor(out.codes.indices).long()
    assert not bool(indices[beyond].any()) and torch.equal(indices[~beyond], torch.as_tensor(whole.codes.indices).long()[~beyond])
    assert torch.equal(torch.as_tensor(quantizer.eval()(x).codes.indices), torch.as_tensor(whole.codes.indices))


def test_loss_under_dropout_is_that_of_the_stages_used() -> None:
    """Items of different lengths in one batch: the loss is the mean over items of what each would cost with its own stages alone."""
    rvq = codeword.RVQ(dim=4, num_codebooks=3, codebook_size=4, beam=1, dropout=1.0).fit(normal(100, 4)).train()
    residual = codeword.make("residual(vq:codebook_size=4):stages=3,dropout=1.0", 4).fit(normal(100, 4)).train()
    x, found = normal(12, 4, 1), []
    for quantizer in (rvq, residual):
        torch.manual_seed(3)
        rows = x.clone().requires_grad_()
        out = quantizer(rows)
        out.loss.backward()
        found.append((out, rows.grad))
    out, grad = found[0]
    expected = torch.zeros(())
    for row, length in zip(x, out.codes.lengths, strict=True):
        left = row
        for m in range(int(length)):
            left = left - rvq.codebooks.detach()[m][torch.cdist(left[None], rvq.codebooks.detach()[m])[0].argmin()]
            expected += 1.25 * left.square().mean() / len(x)
    torch.testing.assert_close(out.loss.detach(), expected)
    torch.testing.assert_close(found[1][0].loss.detach(), expected)
    torch.testing.assert_close(found[1][1], grad)
    assert torch.equal(found[1][0].codes.lengths, out.codes.lengths)


def test_dropped_and_masked_rows_leave_averages_alone() -> None:
    options: dict[str, Any] = {"dim": 3, "num_codebooks": 2, "codebook_size": 4, "beam": 1, "learning": "ema", "revival": 0.0}
    rvq = codeword.RVQ(**options, dropout=1.0).fit(normal(50, 3)).train()
    x, mask = normal(16, 3, 1), torch.arange(16) % 5 != 2
    x[~mask] = torch.nan
    torch.manual_seed(4)
    out = rvq(x, mask=mask)
    lengths = torch.as_tensor(out.codes.lengths)
    assert not lengths[~mask].any() and bool((lengths[mask] > 0).all())
    assert out.stats["counts"].sum(1).tolist() == [int((lengths > m).sum()) for m in range(2)]
    deep = out.codes.indices[lengths > 1]
    torch.testing.assert_close(out.stats["counts"][1], torch.bincount(deep[:, 1].long(), minlength=4).double())
    before = rvq.codebooks[1].clone()
    single = out._replace(stats={**out.stats, "counts": out.stats["counts"] * torch.tensor([[1.0], [0.0]])})
    rvq.update(single)  # a stage that nobody reached stays where it is, and its first update is still to come
    assert torch.equal(rvq.codebooks[1], before) and rvq.upkeep.updates.tolist() == [1, 0]


def test_dropout_of_one_vector() -> None:
    rvq = codeword.RVQ(dim=3, num_codebooks=2, codebook_size=4, dropout=1.0).fit(normal(50, 3)).train()
    assert {int(torch.as_tensor(rvq(normal(1, 3)[0]).codes.lengths)) for _ in range(20)} == {1, 2}
    assert torch.as_tensor(rvq(torch.empty(0, 5, 3)).codes.lengths).shape == (0, 5)


# ---------------------------------------------------------------------- estimators in quantizers


@pytest.mark.parametrize("name, estimator", [*itertools.product(["vq", "simvq"], ESTIMATORS), *itertools.product(["pq", "rvq"], PAIRS)])
def test_eval_values_are_exact_whatever_the_estimator(name: str, estimator: str) -> None:
    spec = {"vq": "vq:codebook_size=8", "simvq": "simvq:codebook_size=8,steps=5", "pq": "pq:num_codebooks=2,codebook_size=4",
            "rvq": "rvq:num_codebooks=2,codebook_size=4"}[name]
    quantizer = codeword.make(f"{spec},estimator={estimator}", 4).fit(normal(100, 4)).eval()
    x = normal(20, 4, 1).requires_grad_()
    out = quantizer(x)
    assert torch.equal(out.values, quantizer.decode(quantizer.encode(x)))
    (out.values * normal(20, 4, 2)).sum().backward()
    assert x.grad is not None and bool(torch.isfinite(x.grad).all()) and bool(x.grad.any())
    moved = [p.grad for p in quantizer.parameters() if p.grad is not None]
    assert any(bool(grad.any()) for grad in moved) == (estimator not in ("straight_through", "rotation"))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_each_estimator_trains_a_small_autoencoder(estimator: str) -> None:
    """Two linear layers around eight codewords that start far from the data: the task's error falls below half of the variance."""
    torch.manual_seed(0)
    x = normal(256, 2).repeat(1, 3) + 0.05 * normal(256, 6, 1)
    encoder, decoder = torch.nn.Linear(6, 2), torch.nn.Linear(2, 6)
    quantizer = codeword.VQ(dim=2, codebook_size=8, estimator=estimator, temperature=0.3).fit(0.3 * normal(64, 2, 2)).train()
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *quantizer.parameters()], lr=0.03)
    for _ in range(150):
        out = quantizer(encoder(x))
        error = (decoder(out.values) - x).square().mean()
        optimizer.zero_grad()
        (error + out.loss).backward()
        optimizer.step()
    quantizer.eval()
    assert float((decoder(quantizer(encoder(x)).values) - x).square().mean().detach()) < 0.5 * float(x.var())


def test_noise_is_for_training_only() -> None:
    for estimator in ("nsvq", "diveq", "gumbel"):
        quantizer = codeword.VQ(dim=3, codebook_size=8, estimator=estimator).fit(normal(50, 3))
        x = normal(40, 3, 1)
        assert torch.equal(quantizer.eval()(x).values, quantizer(x).values)
        first, second = quantizer.train()(x), quantizer(x)
        assert not torch.equal(first.values, second.values)
        torch.manual_seed(9)
        again = quantizer(x).values
        torch.manual_seed(9)
        assert torch.equal(quantizer(x).values, again)


def test_simvq_bakes_and_fits_alike_under_any_estimator() -> None:
    x = normal(200, 4)
    plain = codeword.SimVQ(dim=4, codebook_size=8, steps=20).fit(x)
    other = codeword.SimVQ(dim=4, codebook_size=8, steps=20, estimator="gumbel").fit(x)
    assert torch.equal(plain.effective(), other.effective()) and torch.equal(other.bake()(x).values, other.eval()(x).values)


# ---------------------------------------------------------------------- penalties


def test_penalties_weigh_and_name_their_terms() -> None:
    text = "orthogonality:0.5+active_orthogonality:0.25+diversity:2+uniform:1+entropy:0.125"
    plain, vq = (codeword.VQ(dim=3, codebook_size=6, penalties=p, temperature=0.5).fit(normal(50, 3)) for p in (None, text))
    x = normal(20, 3, 1).requires_grad_()
    out, base = vq(x), plain(x)
    terms = {term: float(out.stats[term]) for term in losses.PENALTIES}
    expected = float(base.loss.detach()) + sum(weight * terms[term] for term, weight in losses.parse("vq", text).items())
    assert float(out.loss.detach()) == pytest.approx(expected, rel=1e-5)
    directions = torch.nn.functional.normalize(vq.codebook.detach(), dim=1)
    assert terms["orthogonality"] == pytest.approx(float((directions @ directions.mT).square().sum() / 36 - 1 / 6), abs=1e-6)
    used = directions[torch.as_tensor(out.codes.indices).long().unique()]
    assert terms["active_orthogonality"] == pytest.approx(float((used @ used.mT).square().mean() - 1 / len(used)), abs=1e-6)
    p = torch.softmax(-torch.cdist(x, vq.codebook).square() / 0.5, 1).detach()
    sure, spread = torch.special.entr(p).sum(1).mean(), torch.special.entr(p.mean(0)).sum()
    limit = torch.log(torch.tensor(6.0))
    for term, value in {"diversity": limit - spread, "uniform": limit - sure, "entropy": sure - spread}.items():
        assert terms[term] == pytest.approx(float(value), abs=1e-5), term


def test_orthogonality_makes_directions_orthogonal() -> None:
    codebook = torch.nn.Parameter(normal(4, 4))
    optimizer = torch.optim.Adam([codebook], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        losses.orthogonality(codebook).backward()
        optimizer.step()
    directions = torch.nn.functional.normalize(codebook.detach(), dim=1)
    torch.testing.assert_close(directions @ directions.mT, torch.eye(4), atol=1e-2, rtol=0)
    assert float(losses.orthogonality(torch.eye(4))) == 0.0 and float(losses.orthogonality(torch.ones(4, 4))) == pytest.approx(0.75)


@pytest.mark.parametrize("text", ["", "orthogonality", "orthogonality:-1", "diversity:0.1+diversity:0.2", "smooth:1", "entropy:nan",
                                  "entropy:0"])
def test_bad_penalties(text: str) -> None:
    with pytest.raises(CodewordError, match="penalties"):
        codeword.VQ(dim=2, codebook_size=4, penalties=text)


@pytest.mark.parametrize("build", [
    lambda: codeword.VQ(dim=2, codebook_size=4, learning="ema", penalties="orthogonality:1"),
    lambda: codeword.VQ(dim=2, codebook_size=4, estimator="reinforce"), lambda: codeword.VQ(dim=2, codebook_size=4, temperature=0.0),
    lambda: codeword.RVQ(dim=2, num_codebooks=2, estimator="ibq"), lambda: codeword.RVQ(dim=2, num_codebooks=2, dropout=1.5),
    lambda: codeword.RVQ(dim=2, num_codebooks=2, learning="none"), lambda: codeword.PQ(dim=2, num_codebooks=2, estimator="gumbel"),
    lambda: codeword.PQ(dim=2, num_codebooks=2, decay=1.0), lambda: codeword.SimVQ(dim=2, codebook_size=4, temperature=-1.0),
    lambda: codeword.make("residual(vq:codebook_size=4,estimator=diveq):stages=2", 2),
    lambda: codeword.make("residual(product(vq:codebook_size=4,estimator=rotation):groups=2;vq:codebook_size=4)", 2)])
def test_bad_arguments(build: Any) -> None:
    with pytest.raises(CodewordError):
        build()


# ---------------------------------------------------------------------- accumulation, files, update by itself


@pytest.mark.parametrize("spec", ["rvq:num_codebooks=2,codebook_size=4,beam=1,learning=ema",
                                  "pq:num_codebooks=2,codebook_size=4,learning=ema"])
def test_micro_batches_add_up(spec: str) -> None:
    whole, parts = (codeword.make(spec, 4).fit(normal(50, 4)) for _ in range(2))
    x = normal(24, 4, 1)
    whole.update(whole(x))
    parts.update(accumulated([parts(part) for part in x.split(8)]))
    torch.testing.assert_close(parts.codebooks, whole.codebooks)
    torch.testing.assert_close(parts.upkeep.sums, whole.upkeep.sums)
    halves = [parts(part).stats["candidates"] for part in x.split(12)]
    mixed = accumulated([parts(part) for part in x.split(12)]).stats["candidates"]
    assert torch.equal(mixed[:, 0], halves[0][:, 0]) and torch.equal(mixed[:, 1], halves[1][:, 1])


@pytest.mark.parametrize("spec", [
    "rvq:num_codebooks=2,codebook_size=4,learning=ema,dropout=0.5", "pq:num_codebooks=2,codebook_size=4,learning=ema",
    "vq:codebook_size=4,estimator=ibq,temperature=0.5,penalties=diversity:0.1", "simvq:codebook_size=4,steps=3,estimator=nsvq",
    "residual(vq:codebook_size=4):stages=2,dropout=0.25"])
def test_training_options_survive_a_file(spec: str, tmp_path: Any) -> None:
    quantizer = codeword.make(spec, 4).fit(normal(50, 4))
    train(quantizer, steps=3)
    quantizer.save(tmp_path / "q")
    twin = type(quantizer).load(tmp_path / "q")
    assert twin.fingerprint == quantizer.fingerprint and twin.extra_repr() == quantizer.extra_repr()
    for one in (quantizer, twin):
        torch.manual_seed(1)
        train(one, steps=2)
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in quantizer.state_dict().items())


def test_codes_with_lengths_survive_a_file(tmp_path: Any) -> None:
    from codeword.io import objects
    rvq = codeword.RVQ(dim=4, num_codebooks=3, codebook_size=8, beam=1, dropout=1.0).fit(normal(100, 4)).train()
    codes = rvq(normal(20, 4, 1).reshape(5, 4, 4)).codes
    objects.save_codes(tmp_path / "c", codes, rvq)
    loaded = objects.load_codes(tmp_path / "c", rvq)
    assert torch.equal(rvq.decode(loaded), rvq.decode(codes))
    assert torch.equal(torch.as_tensor(loaded.lengths), torch.as_tensor(codes.lengths))


@pytest.mark.parametrize("spec", ["vq:codebook_size=8,learning=ema,decay=0.5,revival=0.3", "vq:codebook_size=8",
                                  "rvq:num_codebooks=2,codebook_size=4,learning=ema",
                                  "product(vq:codebook_size=4,learning=ema;fsq:grid=3x3)"])
def test_auto_update_does_what_update_by_hand_does(spec: str) -> None:
    by_hand = codeword.make(spec, 4).fit(normal(50, 4)).train()
    auto = codeword.AutoUpdate(copy.deepcopy(by_hand)).train()
    for seed in range(5):
        x = normal(16, 4, seed)
        out, found = by_hand(x), auto(x)
        assert torch.equal(out.values, found.values) and torch.equal(out.loss, found.loss)
        by_hand.update(out)
    assert any(not torch.equal(value, auto.quantizer.state_dict()[key]) for key, value in by_hand.state_dict().items()) == ("ema" in spec)
    auto.eval()  # what was waiting is applied
    assert all(torch.equal(value, auto.quantizer.state_dict()[key]) for key, value in by_hand.state_dict().items())
    before = copy.deepcopy(auto.state_dict())
    auto(normal(16, 4, 9))
    assert auto.flush() == {} and all(torch.equal(value, before[key]) for key, value in auto.state_dict().items())


def test_auto_update_keeps_no_graph_and_refuses_strangers() -> None:
    auto = codeword.AutoUpdate(codeword.VQ(dim=2, codebook_size=4, learning="ema").fit(normal(20, 2)))
    auto(normal(5, 2).requires_grad_(), mask=torch.tensor([True, True, False, True, True]))
    assert auto._waiting is not None and auto._waiting.values.numel() == 0 and not auto._waiting.loss.requires_grad
    assert isinstance(auto.flush(), dict) and auto._waiting is None
    with pytest.raises(CodewordError, match="Quantizer"):
        codeword.AutoUpdate(torch.nn.Identity())  # type: ignore[arg-type]


def test_old_arguments_keep_their_fingerprints() -> None:
    """Arguments at the value that means what there was before are not stored."""
    from codeword.io import objects
    for spec in ("vq:codebook_size=4", "pq:num_codebooks=2,codebook_size=4", "rvq:num_codebooks=2,codebook_size=4", "simvq:codebook_size=4",
                 "residual(vq:codebook_size=4):stages=2"):
        quantizer = codeword.make(spec, 4)
        stored = objects._record(quantizer)["config"].keys()
        assert not stored & type(quantizer).later_arguments.keys() and quantizer.state_dict().keys() >= set(), spec


def test_partial_codes_of_a_product_are_refused() -> None:
    pq = codeword.PQ(dim=4, num_codebooks=2, codebook_size=4).fit(normal(20, 4))
    codes = pq.encode(normal(3, 4))
    with pytest.raises(Unsupported):
        pq.decode(codes._replace(lengths=torch.tensor([2, 1, 0])))
