"""Rotated, Product, Residual, Projected: exact identities with what they are made of, gradients, nested state."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import codeword
from codeword import catalog
from codeword.errors import CodewordError, FormatError, ShapeError, Unsupported
from codeword.parts import random
from codeword.quantizer import Codes, Progressive, Scannable


def rows(n: int = 120, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.2, 3, dim) + 1


def error(quantizer: codeword.Quantizer, x: torch.Tensor) -> float:
    return float((quantizer.decode(quantizer.encode(x)) - x).square().sum(1).mean())


# ---------------------------------------------------------------------- Product


@pytest.mark.parametrize("seed", [0, 5])
def test_product_of_vqs_is_pq(seed: int) -> None:
    x = rows()
    product = codeword.Product(quantizers=[codeword.VQ(dim=2, codebook_size=8, seed=random.part_seed(seed, m)) for m in range(4)]).fit(x)
    pq = codeword.PQ(dim=8, num_codebooks=4, codebook_size=8, seed=seed).fit(x)
    assert torch.equal(torch.stack([part.codebook for part in product.quantizers]), pq.codebooks)
    codes = product.encode(x)
    assert torch.equal(codes.indices, pq.encode(x).indices) and codes.indices.dtype == pq.encode(x).indices.dtype
    assert torch.equal(product.decode(codes), pq.decode(codes))
    assert product.nominal_bits == pq.nominal_bits and product.shared_bytes == pq.shared_bytes
    spec = codeword.make(f"product(vq:codebook_size=8,seed={seed}):groups=4", 8).fit(x)
    assert torch.equal(spec.encode(x).indices, codes.indices)


def test_shared_part_is_one_quantizer_on_all_slices() -> None:
    x = rows()
    shared = codeword.Product(quantizers=codeword.VQ(dim=2, codebook_size=8), groups=4).fit(x)
    alone = codeword.VQ(dim=2, codebook_size=8).fit(x.reshape(-1, 2))
    assert torch.equal(shared.quantizers.codebook, alone.codebook)
    assert torch.equal(shared.encode(x).indices.reshape(-1, 1), alone.encode(x.reshape(-1, 2)).indices)
    assert torch.equal(shared.decode(shared.encode(x)).reshape(-1, 2), alone.decode(alone.encode(x.reshape(-1, 2))))
    assert list(shared.state_dict()) == ["parts.0.codebook"] and shared.config == {"quantizers": shared.parts[0], "groups": 4}
    weights = torch.arange(120.0)
    weighted = codeword.Product(quantizers=codeword.VQ(dim=2, codebook_size=8), groups=4).fit(x, weights=weights)
    again = codeword.VQ(dim=2, codebook_size=8).fit(x.reshape(-1, 2), weights=weights.repeat_interleave(4))
    assert torch.equal(weighted.quantizers.codebook, again.codebook)


def test_loss_does_not_depend_on_how_slices_are_grouped() -> None:
    x = rows()
    one = codeword.VQ(dim=2, codebook_size=8).fit(x.reshape(-1, 2))
    parts = [codeword.VQ(dim=2, codebook_size=8) for _ in range(4)]
    for part in parts:
        part.load_state_dict(one.state_dict())
        part.fitted = True
    separate, shared = codeword.Product(quantizers=parts), codeword.Product(quantizers=one, groups=4)
    mask = torch.arange(120) % 4 != 0
    for keep in (None, mask):
        a, b = separate(x, mask=keep), shared(x, mask=keep)
        torch.testing.assert_close(a.loss, b.loss)
        assert torch.equal(a.values, b.values) and torch.equal(a.codes.indices, b.codes.indices)
        torch.testing.assert_close(a.stats["error"], b.stats["error"])


def test_slices_of_unequal_width_and_kind() -> None:
    x = rows()
    product = codeword.Product(quantizers=[codeword.VQ(dim=5, codebook_size=300), codeword.FSQ(dim=2, grid=[8, 5]), codeword.make(
        "rabitq:code_bits=2", 1)]).fit(x)
    assert product.dim == 8 and product.levels == (300, 40, 4) and product.side_count == 2
    codes = product.encode(x)
    assert torch.equal(codes.indices[:, 1:2].long(), codeword.FSQ(dim=2, grid=[8, 5]).encode(x[:, 5:7]).indices.long())
    assert torch.equal(product(x).values, product.decode(codes)) and not product.input_space


# ---------------------------------------------------------------------- Rotated


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 33])
def test_rotation_keeps_the_error_and_comes_back(dim: int) -> None:
    x = rows(60, dim)
    rotated = codeword.Rotated(quantizer=codeword.VQ(dim=dim, codebook_size=16), seed=3).fit(x)
    from codeword import ops
    y = ops.rotate(x, rotated.signs)
    inner = rotated.quantizer
    assert torch.equal(rotated.encode(x).indices, inner.encode(y).indices)
    assert error(rotated, x) == pytest.approx(error(inner, y), rel=1e-4)
    assert list(rotated.state_dict()) == ["parts.0.codebook"]


def test_rotation_spreads_what_one_scale_for_all_entries_would_waste() -> None:
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 32)
    spec = "product(vq:codebook_size=4):groups=32,shared=true"
    assert error(codeword.make(f"rotated({spec})", 32).fit(x), x) < 0.8 * error(codeword.make(spec, 32).fit(x), x)


def test_rotated_quadratic_form() -> None:
    """The rotated quantizer minimises the caller's form, not the one it sees inside."""
    x = rows(200, 7)
    rotated = codeword.Rotated(quantizer=codeword.VQ(dim=7, codebook_size=32)).fit(x)
    root = torch.randn(7, 7, generator=torch.Generator().manual_seed(2))
    metric = root.T @ root + 0.1 * torch.eye(7)
    found = rotated.encode(x, metric=metric).indices[:, 0].long()
    points = rotated.decode(Codes(torch.arange(32).unsqueeze(1)))
    difference = (x[:, None] - points[None]).double()
    costs = torch.einsum("nkd,de,nke->nk", difference, metric.double(), difference)
    torch.testing.assert_close(costs.gather(1, found[:, None])[:, 0], costs.min(1).values, rtol=1e-4, atol=1e-4)
    assert not torch.equal(found, rotated.encode(x).indices[:, 0].long())
    with pytest.raises(Unsupported):
        codeword.make("rotated(rabitq:code_bits=1)", 7).fit(x).encode(x, metric=metric)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_rotated_scan_gives_the_distances_of_what_it_decodes(metric: str) -> None:
    x, queries, centre = rows(64, 12), rows(5, 12, seed=1), rows(2, 12, seed=2)
    rotated = copy.deepcopy(codeword.make("rotated(pq:num_codebooks=4,codebook_size=8)", 12).fit(x))
    assert isinstance(rotated, Scannable) and not isinstance(codeword.make("rotated(vq:codebook_size=4)", 12), Scannable)
    given = centre.repeat_interleave(32, dim=0)
    codes = rotated.encode(x, given=given)
    packed = rotated.pack(codes, given)
    found = rotated.scan(packed, rotated.prepare(queries, metric), 0, 64)[0]
    values = rotated.decode(codes, given=given)
    if metric == "l2":
        exact, coarse = torch.cdist(queries, values).square(), torch.cdist(queries, given).square()
    else:
        exact, coarse = -queries @ values.T, -queries @ given.T
    torch.testing.assert_close(found + coarse, exact, rtol=1e-4, atol=1e-3)
    assert torch.equal(rotated.unpack(packed, torch.arange(64)).indices.long(), codes.indices.long())


def test_rotated_pq_in_an_index() -> None:
    x = rows(300, 12)
    index = codeword.Index(dim=12, quantizer="rotated(pq:num_codebooks=6,codebook_size=16)", nlist=4)
    index.fit(x)
    index.add(x)
    assert (torch.as_tensor(index.search(x[:50], k=5, nprobe=4).ids) == torch.arange(50)[:, None]).any(1).float().mean() > 0.8


def test_seeds_of_rotation_differ_and_repeat() -> None:
    x = rows(40)
    codes = [codeword.make(f"rotated(fsq:bits=3):seed={seed}", 8).encode(x).indices for seed in (1, 1, 2)]
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])


# ---------------------------------------------------------------------- Residual


def test_gradient_factor_is_one_whatever_the_number_of_stages() -> None:
    x = rows().requires_grad_()
    residual = codeword.make("residual(vq:codebook_size=8):stages=4", 8).fit(x.detach())
    values = residual(x).values
    values.square().sum().div(2).backward()
    assert torch.equal(x.grad, values.detach())  # times 1, not times 4


def test_stages_code_what_is_left() -> None:
    x = rows()
    residual = codeword.make("residual(vq:codebook_size=8,iterations=4;pq:num_codebooks=4,codebook_size=4)", 8).fit(x)
    first, second = residual.quantizers
    alone = codeword.VQ(dim=8, codebook_size=8, iterations=4).fit(x)
    assert torch.equal(first.codebook, alone.codebook)
    left = x - alone.decode(alone.encode(x))
    assert torch.equal(second.codebooks, codeword.PQ(dim=8, num_codebooks=4, codebook_size=4).fit(left).codebooks)
    codes = residual.encode(x)
    assert torch.equal(codes.indices, torch.cat((first.encode(x).indices, second.encode(left).indices), 1))
    assert torch.equal(residual.decode(codes), first.decode(first.encode(x)) + second.decode(second.encode(left)))
    assert torch.equal(residual(x).values, residual.decode(codes)) and residual.levels == (8, 4, 4, 4, 4)


def test_every_stage_lowers_the_error() -> None:
    x = rows()
    errors = [error(codeword.make(f"residual(vq:codebook_size=8):stages={s}", 8).fit(x), x) for s in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.5 * errors[0]


def test_truncated_codes_are_those_of_fewer_stages() -> None:
    x = rows()
    deep = codeword.make("residual(pq:num_codebooks=2,codebook_size=8):stages=3", 8).fit(x)
    assert isinstance(deep, Progressive)
    codes = deep.encode(x)
    shallow = codeword.Residual(quantizers=deep.quantizers[:2])
    for bits, stages in ((2.25, 3), (9.0, 3), (1.5, 2), (2.2, 2), (0.75, 1)):
        cut = deep.truncate(codes, bits)
        assert cut.lengths.unique().tolist() == [2 * stages] and bool((cut.indices[:, 2 * stages:] == 0).all())
        assert deep.bits(cut) == 2.25 + 1  # all positions are stored, and a byte of length
        if stages == 2:
            assert torch.equal(deep.decode(cut), shallow.decode(shallow.encode(x)))
    assert torch.equal(deep.decode(deep.truncate(codes, 9)), deep.decode(codes)) and deep.bits(codes) == 2.25
    again = deep.truncate(deep.truncate(codes, 1.5), 2.25)
    assert again.lengths.unique().tolist() == [4]
    with pytest.raises(Unsupported):
        deep.truncate(codes, 0.5)
    with pytest.raises(Unsupported):  # half a stage
        deep.decode(codes._replace(lengths=torch.full((120,), 3)))
    with pytest.raises(ShapeError):
        deep.decode(codes._replace(lengths=torch.full((120,), 7)))


def test_lengths_may_differ_from_row_to_row() -> None:
    x = rows()
    deep = codeword.make("residual(vq:codebook_size=8):stages=3", 8).fit(x)
    codes, lengths = deep.encode(x), torch.arange(120) % 4
    values = deep.decode(codes._replace(lengths=lengths))
    for stages in range(4):
        cut = codes._replace(lengths=torch.full((120,), stages))
        assert torch.equal(values[lengths == stages], deep.decode(cut)[lengths == stages])
    assert bool((values[lengths == 0] == 0).all())
    assert deep.bits(codes._replace(lengths=lengths)) == deep.bits(codes) + 1  # a byte of length in 8 dimensions


def test_truncated_side_floats_are_zero_and_counted() -> None:
    x = rows()
    deep = codeword.make("residual(rabitq:code_bits=1):stages=2", 8).fit(x)
    codes = deep.encode(x)
    cut = deep.truncate(codes, deep.nominal_bits / 2)
    assert deep.bits(cut) == deep.bits(codes) + 1 and bool((cut.side[:, 2:] == 0).all())
    assert torch.equal(deep.decode(cut), deep.quantizers[0].decode(deep.quantizers[0].encode(x)))


def test_residual_honours_a_form_only_if_all_stages_do() -> None:
    x, metric = rows(), torch.diag(torch.arange(1.0, 9.0))
    residual = codeword.make("residual(vq:codebook_size=16):stages=2", 8).fit(x)
    first, second = residual.quantizers
    codes, left = residual.encode(x, metric=metric), x - first.decode(first.encode(x, metric=metric))
    assert torch.equal(codes.indices[:, :1], first.encode(x, metric=metric).indices)
    assert torch.equal(codes.indices[:, 1:], second.encode(left, metric=metric).indices)  # each stage; the sum may be better or worse
    plain = x - first.decode(first.encode(x))
    assert float((left.square() @ metric.diag()).sum()) < float((plain.square() @ metric.diag()).sum())
    with pytest.raises(Unsupported):
        codeword.make("residual(vq:codebook_size=4;rabitq:code_bits=1)", 8).fit(x).encode(x, metric=metric)


# ---------------------------------------------------------------------- Projected


@pytest.mark.parametrize(("bits", "limit"), [(1, 0.38), (2, 0.13), (3, 0.055), (4, 0.021)])
def test_projected_fsq_on_gaussians_is_near_the_uniform_quantizer(bits: int, limit: float) -> None:
    """Distortion of N(0, 1): the best scalar quantizer leaves .3634, .1175, .0345, .0095 at 1..4 bits; the tanh grid is not that one."""
    x = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    y = x * torch.tensor([1e-3, 1.0, 50.0, 1e6]) + torch.tensor([0.0, -3.0, 7.0, 1e6])
    quantizer = codeword.make(f"projected(fsq:bits={bits})", 4).fit(y)
    relative = (quantizer.decode(quantizer.encode(y)) - y).square().mean(0) / y.var(0)
    assert bool((relative < limit).all()), relative
    assert quantizer.input_space and quantizer.nominal_bits == bits


def test_projected_line_is_least_squares() -> None:
    x = rows(400)
    quantizer = codeword.make("projected(fsq:bits=2)", 8).fit(x)
    values = quantizer.decode(quantizer.encode(x))
    left = (x - values).double()
    assert bool((left.mean(0).abs() < 1e-5 * x.std(0)).all())
    centred = values.double() - values.double().mean(0)
    assert bool(((left * centred).mean(0).abs() < 1e-4 * x.var(0)).all())


def test_principal_axes_keep_what_they_can() -> None:
    g = torch.Generator().manual_seed(0)
    plane = torch.randn(300, 2, generator=g) @ torch.randn(2, 6, generator=g)
    quantizer = codeword.make("projected(fsq:bits=8):map=pca,width=2", 6).fit(plane)
    assert error(quantizer, plane) < 0.02 * float(plane.var(0).sum()) and quantizer.nominal_bits == pytest.approx(16 / 6)
    gram = quantizer.axes @ quantizer.axes.T
    torch.testing.assert_close(gram, torch.eye(2), atol=1e-5, rtol=0)


def test_projected_leaves_a_learning_quantizer_its_own_metric() -> None:
    x = rows()
    quantizer = codeword.make("projected(vq:codebook_size=8)", 8).fit(x)
    plain = codeword.VQ(dim=8, codebook_size=8).fit(x)
    assert torch.equal(quantizer.scale, torch.ones(8)) and error(quantizer, x) == pytest.approx(error(plain, x), rel=0.1)


def test_projected_gradient_is_the_grid_s_in_the_input_s_units() -> None:
    x = rows().requires_grad_()
    quantizer = codeword.make("projected(fsq:bits=3)", 8).fit(x.detach())
    quantizer(x).values.sum().backward()
    z = ((x.detach() - quantizer.mean) * quantizer.scale + quantizer.shift).requires_grad_()
    quantizer.quantizer(z).values.sum().backward()
    torch.testing.assert_close(x.grad, z.grad * quantizer.scale * quantizer.gain)


def test_constant_coordinates_are_exact() -> None:
    x = rows()
    x[:, 3] = 0.1
    quantizer = codeword.make("projected(fsq:bits=2)", 8).fit(x)
    torch.testing.assert_close(quantizer.decode(quantizer.encode(x))[:, 3], x[:, 3])


# ---------------------------------------------------------------------- what all share


NESTED = "rotated(residual(product(vq:codebook_size=4,learning=ema,decay=0.5,revival=0.4):groups=2;projected(fsq:grid=4x3)))"


def test_nested_state_has_stable_names() -> None:
    quantizer = codeword.make(NESTED, 4).fit(rows(dim=4))
    names = list(quantizer.state_dict())
    assert "parts.0.parts.0.parts.1.codebook" in names and "parts.0.parts.1.scale" in names
    assert not any("quantizer" in name for name in names)


def test_nested_update_reaches_every_codebook() -> None:
    x = rows(dim=4)
    quantizer = codeword.make(NESTED, 4).fit(x)
    product = quantizer.quantizer.quantizers[0]
    before = [part.codebook.detach().clone() for part in product.quantizers]
    by_hand = codeword.make(NESTED, 4).fit(x)
    reports = []
    for _ in range(4):
        out = quantizer(x * 2)
        reports.append(quantizer.update(out))
        stats = {key.removeprefix("parts.0.parts.0."): value for key, value in by_hand(x * 2).stats.items() if "parts.0.parts.0." in key}
        by_hand.quantizer.quantizers[0].update(out._replace(stats=stats))
    for part, old, hand in zip(product.quantizers, before, by_hand.quantizer.quantizers[0].quantizers, strict=True):
        assert not torch.equal(part.codebook, old) and torch.equal(part.codebook, hand.codebook)
        assert int(part.upkeep.updates) == 4
    assert all(isinstance(json.dumps(report), str) for report in reports)


def test_nested_files(tmp_path) -> None:
    x = rows(dim=4)
    quantizer = codeword.make(NESTED, 4).fit(x)
    quantizer.save(tmp_path / "q")
    loaded = codeword.Rotated.load(tmp_path / "q")
    assert torch.equal(loaded.encode(x).indices, quantizer.encode(x).indices)
    assert loaded.fingerprint == quantizer.fingerprint
    out, twin = quantizer(x), loaded(x)
    assert torch.equal(out.values, twin.values) and loaded.update(twin) == quantizer.update(out)


def test_restoring_fits_the_parts_too() -> None:
    quantizer, fresh = codeword.make(NESTED, 4).fit(rows(dim=4)), codeword.make(NESTED, 4)
    fresh.restore(quantizer.structure)
    assert all(part.fitted for part in fresh.modules() if isinstance(part, codeword.Quantizer))
    with pytest.raises(FormatError):
        fresh.restore({"fitted": "yes"})


def test_reports_of_parts_are_kept() -> None:
    x = torch.cat((torch.zeros(50, 2), torch.arange(6.0).repeat(2, 1).T[:, :2]))
    x = torch.cat((x, torch.randn(56, 2)), dim=1)
    product = codeword.make("product(vq:codebook_size=8,seed=3;vq:codebook_size=4)", 4).fit(x)
    alone = codeword.VQ(dim=2, codebook_size=8, seed=3).fit(x[:, :2])
    assert product.report.get("parts.0", {}) == alone.report


def test_copies_get_seeds_of_their_own() -> None:
    product = codeword.make("product(rotated(simvq:codebook_size=4,seed=7):seed=2):groups=2", 8)
    seeds = [seed for part in product.quantizers for seed in (part.seed, part.quantizer.seed)]
    assert seeds == [random.part_seed(seed, part) for part in range(2) for seed in (2, 7)]
    deep = codeword.make("residual(product(vq:codebook_size=4):groups=4):stages=3", 8)
    assert len({part.seed for stage in deep.quantizers for part in stage.quantizers}) == 12


def test_fitted_parts_make_a_fitted_whole() -> None:
    x = rows()
    assert codeword.Rotated(quantizer=codeword.VQ(dim=8, codebook_size=4).fit(x)).fitted
    assert codeword.make("product(fsq:bits=2):groups=4", 8).fitted and not codeword.make("rotated(pq:bits=1)", 8).fitted


@pytest.mark.parametrize("make", [
    lambda: codeword.Product(quantizers=[]),
    lambda: codeword.Product(quantizers=codeword.FSQ(dim=2, grid=[4])),
    lambda: codeword.Product(quantizers=[codeword.FSQ(dim=2, grid=[4])], groups=2),
    lambda: codeword.Product(quantizers=codeword.FSQ(dim=2, grid=[4]), groups=0),
    lambda: codeword.Product(quantizers=[(q := codeword.FSQ(dim=2, grid=[4])), q]),
    lambda: codeword.Residual(quantizers=[codeword.FSQ(dim=2, grid=[4]), codeword.FSQ(dim=3, grid=[4])]),
    lambda: codeword.Residual(quantizers="pq"),
    lambda: codeword.Rotated(quantizer="pq"),
    lambda: codeword.Projected(quantizer=codeword.FSQ(dim=2, grid=[4]), dim=3),
    lambda: codeword.Projected(quantizer=codeword.FSQ(dim=4, grid=[4]), dim=3, map="pca"),
    lambda: codeword.Projected(quantizer=codeword.FSQ(dim=2, grid=[4]), dim=2, map="lda"),
])
def test_bad_arguments(make) -> None:
    with pytest.raises(CodewordError):
        make()


@pytest.mark.parametrize("spec", [
    "rotated(fsq:bits=2;fsq:bits=2)", "projected(fsq:bits=2;fsq:bits=2)", "rotated", "product(fsq:bits=2):groups=3",
    "product(fsq:bits=2;fsq:bits=2):groups=4", "product(fsq:bits=2;fsq:bits=1;fsq:bits=2)", "product(fsq:bits=2):groups=0",
    "residual(fsq:bits=2;fsq:bits=1):stages=3", "residual(fsq:bits=2):stages=0", "rotated(fsq:bits=2):angle=3", "fsq(pq:bits=1):grid=4x4",
    "rotated(fsq:bits=2", "rotated(nothing:bits=2)", "product(fsq:bits=2):groups=two",
])
def test_bad_specs(spec: str) -> None:
    with pytest.raises(CodewordError):
        catalog.make(spec, 8)
