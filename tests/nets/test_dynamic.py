"""Dynamic granularity: routers, packing, honest bits, training to a budget."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import codeword
from codeword import CodewordError, FormatError, NotFitted, ShapeError, Unsupported
from codeword.nets.dynamic import PositionalDecoder, TwoGridEncoder, fourier_features
from codeword.nets.router import EntropyRouter, LearnedRouter, RandomRouter, at_budget, cell_entropy, make_router
from codeword.tokenizers.dynamic import DynamicTokenizer
from codeword.tokenizers.dynamic_codes import adaptive_bits, joined, pack, repeated, singles, taken, unpack
from codeword.tokenizers.shards import TokenShards, TokenWriter

SMALL = dict(channels=1, size=16, dim=4, width=4, multipliers=[1, 1, 1])
SPECS = ["vq:codebook_size=16,iterations=3", "vq:codebook_size=16,iterations=3,learning=ema", "fsq:grid=8x5x5x5",
         "rvq:num_codebooks=2,codebook_size=8,iterations=3"]


def fashion() -> Tensor:
    """96 real pictures padded to 32 x 32 and halved to 16 x 16, or blobs where the data is absent."""
    path = Path(os.environ.get("CODEWORD_SHARED", Path(__file__).parents[2].parent / "shared")) / "data" / "fashion_mnist"
    if (path / "t10k-images-idx3-ubyte.gz").is_file():
        with gzip.open(path / "t10k-images-idx3-ubyte.gz") as file:
            x = torch.from_numpy(np.frombuffer(file.read(16 + 96 * 784), dtype=np.uint8, offset=16).copy()).view(-1, 1, 28, 28) / 255
    else:
        centres = torch.rand(96, 2, 1, 1, generator=torch.Generator().manual_seed(0)) * 20 + 4
        at = torch.arange(28.0)
        x = torch.exp(-((at.view(-1, 1) - centres[:, 0]) ** 2 + (at - centres[:, 1]) ** 2) / 20).unsqueeze(1)
    return torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (2, 2, 2, 2)), 2)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return fashion()


def build(spec: str, router: str, pictures: Tensor, **options) -> DynamicTokenizer:
    torch.manual_seed(0)
    model = DynamicTokenizer(quantizer=codeword.make(spec, 4), router=router, **(SMALL | options))
    start(model, pictures[:64])
    return model


def start(model: DynamicTokenizer, x: Tensor) -> None:
    """What the training loop does before its first step."""
    model.prepare(x)
    with torch.no_grad():
        model.quantizer.fit(model.rows(x)) if model.quantizer.learns else None


# ---------------------------------------------------------------------- sequences


def test_packing_round_trip(g: torch.Generator):
    """Any gates, any indices: unpacked they are themselves, in whatever order the tokens come; lengths are n + 3 fine cells."""
    fine = torch.rand(7, 3, 3, generator=g) < 0.4
    fine[0], fine[1] = False, True
    keep = taken(fine)
    indices = torch.randint(200, (*keep.shape, 2), generator=g).to(torch.uint8) * keep.unsqueeze(2)
    packed, positions, mask = pack(fine, indices)
    assert packed.dtype == torch.uint8 and packed.shape == (7, 36, 2)
    assert torch.equal(mask.sum(1), 9 + 3 * fine.sum((1, 2)))
    assert mask[0].sum() == 9 and torch.equal(positions[0, 5], torch.tensor([0, 1, 2], dtype=torch.int32))
    assert torch.equal(positions[1, 7], torch.tensor([1, 1, 1], dtype=torch.int32))
    again, dense = unpack(packed, positions, mask, 3)
    assert torch.equal(again, fine) and torch.equal(dense, indices)
    order = torch.randperm(36, generator=g)
    again, dense = unpack(packed[:, order], positions[:, order], mask[:, order], 3)
    assert torch.equal(again, fine) and torch.equal(dense, indices)
    for part in pack(fine[:0], indices[:0]):
        assert len(part) == 0


def test_unpacking_refuses_what_is_no_code(g: torch.Generator):
    fine = torch.tensor([[[True, False], [False, False]]])
    indices = torch.zeros(1, 20, 1, dtype=torch.int64)
    packed, positions, mask = pack(fine, indices)
    for wrong in (mask & (torch.arange(mask.shape[1]) != 0), mask & (torch.arange(mask.shape[1]) != 5)):     # one token missing
        with pytest.raises(ShapeError, match="exactly one coarse or four fine"):
            unpack(packed, positions, wrong, 2)
    doubled = torch.cat((positions, positions[:, :1]), 1)
    with pytest.raises(ShapeError, match="exactly one"):
        unpack(torch.cat((packed, packed[:, :1]), 1), doubled, torch.cat((mask, mask[:, :1]), 1), 2)
    for value in ([2, 0, 0], [0, 2, 0], [1, 0, 4], [0, -1, 0]):
        outside = positions.clone()
        outside[0, 0] = torch.tensor(value)
        with pytest.raises(ShapeError, match="outside"):
            unpack(packed, outside, mask, 2)
    with pytest.raises(ShapeError, match="needed"):
        unpack(packed, positions[:, 1:], mask, 2)


def test_adaptive_bits_is_the_sequential_coder(g: torch.Generator):
    """Against the estimator run cell by cell; all alike costs next to nothing, coin tosses about a bit each."""
    fine = torch.rand(5, 4, 3, generator=g) < 0.3
    counts, bits = np.full((8, 2), 0.5), 0.0
    for image in fine.int().numpy():
        for i in range(4):
            for j in range(3):
                left, above = (image[i, j - 1] if j else 0), (image[i - 1, j] if i else 0)
                corner = image[i - 1, j - 1] if i and j else 0
                state = left + 2 * above + 4 * corner
                bits -= math.log2(counts[state, image[i, j]] / counts[state].sum())
                counts[state, image[i, j]] += 1
    assert adaptive_bits(fine) == pytest.approx(bits, rel=1e-9)
    assert adaptive_bits(torch.zeros(50, 8, 8, dtype=torch.bool)) < 10
    assert adaptive_bits(torch.rand(50, 8, 8, generator=g) < 0.5) == pytest.approx(3200, rel=0.05)
    assert adaptive_bits(fine[:0]) == 0


# ---------------------------------------------------------------------- networks


def test_two_grids_and_positions(g: torch.Generator):
    torch.manual_seed(0)
    encoder = TwoGridEncoder(3, 5, width=4, multipliers=[1, 2, 3], attention=True)
    coarse, fine = encoder(torch.rand(2, 3, 16, 8, generator=g))
    assert coarse.shape == (2, 5, 4, 2) and fine.shape == (2, 5, 8, 4)
    (coarse.sum() + fine.sum()).backward()
    assert all(p.grad is not None for p in encoder.parameters())
    decoder = PositionalDecoder(3, 5, grid=4, width=4, multipliers=[1, 2])
    z = torch.rand(1, 5, 1, 1, generator=g).expand(2, 5, 4, 4)
    out = decoder(z)
    assert out.shape == (2, 3, 8, 8)
    features = fourier_features(4)
    assert torch.unique(features.flatten(2).mT[0], dim=0).shape[0] == 16                # every place has its own
    decoder.waves.zero_()
    decoder.rebuild()
    assert torch.equal(decoder(z), out)
    with pytest.raises(ShapeError, match="4, 4"):
        decoder(z[..., :3])
    with pytest.raises(CodewordError, match="two or more"):
        TwoGridEncoder(3, 5, multipliers=[1])


def test_entropy_of_known_cells(g: torch.Generator):
    """Flat cells share the least entropy whatever their level between the ends; uniform noise comes near log2 of the bins."""
    flat = torch.full((1, 1, 8, 8), 0.5)
    noise = torch.rand(1, 1, 64, 64, generator=g)
    assert float(cell_entropy(flat, 8)) == pytest.approx(float(cell_entropy(flat * 0.6, 8)), abs=0.02)
    assert float(cell_entropy(flat, 8)) < 2.2 < 4.8 < float(cell_entropy(noise, 64)) <= 5
    two = torch.where(torch.arange(8) < 4, 0.2, 0.8).expand(1, 1, 8, 8)
    assert float(cell_entropy(two, 8)) == pytest.approx(float(cell_entropy(flat, 8)) + 1, abs=0.02)
    colour = noise.expand(-1, 3, -1, -1)
    assert torch.allclose(cell_entropy(colour, 8), cell_entropy(noise, 8), atol=1e-4)
    shifted = torch.cat((flat, noise[..., :8, :8]), 3)
    assert cell_entropy(shifted, 8).argmax() == 1


def test_routers_keep_their_fraction(pictures: Tensor, g: torch.Generator):
    noise = torch.rand(40, 1, 16, 16, generator=g) * torch.rand(40, 1, 1, 1, generator=g)
    entropy = EntropyRouter(4, fraction=0.3)
    empty = torch.empty(0)
    with pytest.raises(NotFitted):
        entropy(noise, empty, empty)
    entropy.fit(noise)
    assert float(entropy(noise, empty, empty).gates.mean()) == pytest.approx(0.3, abs=0.005)
    entropy.fit(torch.zeros(3, 1, 8, 8))                                                # all alike: nothing is above the rest
    assert float(entropy(torch.zeros(3, 1, 8, 8), empty, empty).gates.sum()) == 0
    dice = RandomRouter(4, fraction=0.3, seed=1)
    gates = dice(pictures, empty, empty).gates
    assert gates.shape == (96, 4, 4) and float(gates.mean()) == pytest.approx(0.3, abs=0.05)
    assert torch.equal(dice(pictures[5:6], empty, empty).gates, gates[5:6]) and not torch.equal(gates[4], gates[5])
    with pytest.raises(CodewordError, match="unknown router"):
        make_router("best", dim=4, cell=4, cells=4, fraction=0.5)
    with pytest.raises(CodewordError, match="fraction"):
        make_router("random", dim=4, cell=4, cells=4, fraction=1.0)


def test_learned_router_gradient(g: torch.Generator):
    """Hard 0 and 1, with the gradient of their expectation at the budget; what all cells gain alike teaches nothing, and what one gains
    more than the others makes it fine more often. In inference a threshold and no dice."""
    torch.manual_seed(0)
    router = LearnedRouter(4, fraction=0.4)
    torch.nn.init.normal_(router.choice[2].weight, std=0.1)  # type: ignore[arg-type]
    coarse, fine = torch.randn(40, 4, 3, 3, generator=g), torch.randn(40, 4, 6, 6, generator=g)
    gates, scores = router(torch.empty(0), coarse, fine)
    assert bool(((gates == 0) | (gates == 1)).all()) and float(gates.detach().mean()) == pytest.approx(0.4, abs=0.1)
    assert float(scores.detach().std()) > 0.3
    gates.sum().backward(retain_graph=True)
    assert all(float(p.grad.abs().max()) < 1e-4 for p in router.choice.parameters() if p.grad is not None)
    router.zero_grad()
    gain = torch.randn(40, 3, 3, generator=g)
    (gates * gain).sum().backward()
    assert all(bool((p.grad.abs() > 1e-3).any()) for p in router.choice.parameters() if p.grad is not None)
    router.eval()
    assert torch.equal(router(torch.empty(0), coarse, fine).gates, router(torch.empty(0), coarse, fine).gates)


@pytest.mark.parametrize("fraction", [0.03, 0.4, 0.9])
def test_log_odds_are_at_budget(fraction: float, g: torch.Generator):
    """The mean chance is the fraction, whatever the scores; the derivative is that of the whole map, by differences."""
    scores = 5 * torch.randn(20, 3, 3, generator=g, dtype=torch.float64) + 7
    assert float(torch.sigmoid(at_budget(scores, fraction)).mean()) == pytest.approx(fraction, abs=1e-6)
    assert float(torch.sigmoid(at_budget(torch.full((2, 3, 3), 1e3), fraction)).mean()) == pytest.approx(fraction, abs=1e-3)
    assert at_budget(scores[:0], fraction).shape == (0, 3, 3)
    few, weight = scores[:2].requires_grad_(), torch.randn(2, 3, 3, generator=g, dtype=torch.float64)
    (weight * at_budget(few, fraction)).sum().backward()
    assert few.grad is not None
    step = torch.zeros_like(few)
    step[1, 2, 0] = 1e-4
    with torch.no_grad():
        slope = (weight * (at_budget(few + step, fraction) - at_budget(few - step, fraction))).sum() / 2e-4
    assert float(few.grad[1, 2, 0]) == pytest.approx(float(slope), abs=1e-4)


def test_learned_router_threshold(g: torch.Generator):
    """In inference the share of fine cells is the fraction, though dice at the same scores would give another one."""
    router = LearnedRouter(4, fraction=0.25)
    for _ in range(60):
        before = router.threshold.clone()
        found = router.statistics(2 + torch.randn(64, 3, 3, generator=g))
        assert torch.equal(router.threshold, before)
        router.follow(found)
    assert float((2 + torch.randn(4000, generator=g) > router.threshold).float().mean()) == pytest.approx(0.25, abs=0.02)
    router.follow(router.statistics(torch.empty(0, 3, 3)))
    assert int(router.updates) == 60


# ---------------------------------------------------------------------- the tokenizer


@pytest.mark.parametrize("router", ["learned", "entropy", "random"])
@pytest.mark.parametrize("spec", SPECS)
def test_encode_decode(spec: str, router: str, pictures: Tensor, tmp_path: Path):
    """Whatever stands in the middle: forward in inference equals decode(encode), an image's code does not depend on the others, and a
    saved tokenizer is the same one."""
    model = build(spec, router, pictures).eval()
    x = pictures[64:72]
    out, tokens = model(x), model.encode(x)
    assert torch.equal(model.decode(tokens), out.values.clamp(0, 1))
    assert tokens.mask is not None and tokens.positions is not None
    assert torch.equal(tokens.mask.sum(1), 16 + 3 * out.gates.sum((1, 2)).long())
    alone = model.encode(x[3:4])
    n = int(alone.mask.sum())
    assert torch.equal(alone.indices[0], tokens.indices[3, :n]) and torch.equal(alone.positions[0], tokens.positions[3, :n])
    model.save(tmp_path / "t.cw")
    again = DynamicTokenizer.load(tmp_path / "t.cw")
    assert again.fingerprint == model.fingerprint and torch.equal(again.decode(tokens), model.decode(tokens))
    assert torch.equal(again.encode(x).indices, tokens.indices)
    assert torch.equal(model.encode((x * 255).round().to(torch.uint8)).mask, model.encode((x * 255).round() / 255).mask)


def test_shards_keep_single_codes(pictures: Tensor, tmp_path: Path):
    """Each image's own length on the disk, the same batch and images back."""
    model = build(SPECS[2], "entropy", pictures).eval()
    tokens = model.encode(pictures[:9])
    writer = TokenWriter.start(tmp_path / "shards", fingerprint=model.fingerprint, signal="image", levels=model.quantizer.levels, source={},
                               total=9)
    writer.write(singles(tokens), 9)
    writer.finish()
    writer.close()
    shards = TokenShards(tmp_path / "shards")
    assert tokens.mask is not None and tokens.positions is not None and shards.places == int(tokens.mask.sum())
    again = joined(list(shards))
    assert torch.equal(again.indices, tokens.indices) and torch.equal(again.positions, tokens.positions)
    assert again.mask is not None and torch.equal(again.mask, tokens.mask)
    images = model.decode(again)
    assert torch.equal(images, model.decode(tokens)) and torch.allclose(model.decode(shards[4]), images[4], atol=1e-5)
    with pytest.raises(ShapeError, match="at least one item"):
        joined([])


def test_coarse_latents_count_once(pictures: Tensor):
    """The quantizer's loss, averages and usage are those of one row a token: the same as quantizing exactly the taken rows."""
    model = build(SPECS[1], "entropy", pictures)
    out = model(pictures[:8])
    rows, (gates, _), _ = model._latents(pictures[:8])
    kept = rows[taken(gates)]
    direct = model.quantizer(kept)
    assert float(out.stats["counts"].sum()) == len(kept) == float(out.stats["tokens"]) * 8
    assert torch.equal(out.stats["counts"], direct.stats["counts"])
    assert torch.allclose(out.quantized.loss, direct.loss, rtol=1e-5)
    z = model._joined(out.quantized.values, out.gates, None)
    coarse_cell = (gates == 0).nonzero()[0]
    b, i, j = coarse_cell.tolist()
    block = z[b, :, 2 * i:2 * i + 2, 2 * j:2 * j + 2]
    assert torch.equal(block, block[:, :1, :1].expand_as(block))


def test_router_gradient_is_what_the_other_branch_would_change(pictures: Tensor, monkeypatch: pytest.MonkeyPatch):
    """With a loss linear in z^, the gradient at a gate is the sum over its cell of <weight, fine - coarse>, one of them quantized."""
    model = build(SPECS[0], "random", pictures)
    rows, (gates, _), grids = model._latents(pictures[:2])
    values = model.quantizer(rows, mask=taken(gates)).values
    gates = gates.requires_grad_()
    weight = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    (weight * model._joined(values, gates, grids)).sum().backward()
    fine_at = repeated((gates > 0).unsqueeze(1))
    n = 16
    quantized_fine = values[:, n:].mT.reshape(2, 4, 8, 8)
    fine = torch.where(fine_at, quantized_fine, grids[1])
    coarse = repeated(torch.where((gates > 0).unsqueeze(1), grids[0], values[:, :n].mT.reshape(2, 4, 4, 4)))
    expected = 4 * torch.nn.functional.avg_pool2d((weight * (fine - coarse)).sum(1), 2)
    assert torch.allclose(gates.grad, expected, atol=1e-5)


def test_compiled_equals_eager(pictures: Tensor):
    """One graph, no breaks, the same numbers."""
    x = pictures[:4, :, 4:12, 4:12]
    torch.manual_seed(0)
    model = DynamicTokenizer(quantizer=codeword.make(SPECS[1], 4), router="learned", channels=1, size=8, width=4,
                             multipliers=[1, 1])
    start(model, x)
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    got = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    torch._dynamo.reset()
    assert torch.equal(got.gates, expected.gates) and torch.allclose(got.values, expected.values, atol=1e-5)
    assert torch.allclose(got.loss, expected.loss, rtol=1e-5)


def test_bits_count_the_gates(pictures: Tensor):
    model = build(SPECS[3], "entropy", pictures).eval()
    tokens = model.encode(pictures[:32])
    spent = model.code_bits(tokens)
    assert tokens.mask is not None
    assert spent["tokens"] == pytest.approx(float(tokens.mask.sum()) / 32 * 6) and spent["gates"] == 16
    assert spent["total"] == spent["tokens"] + min(spent["gates"], spent["gates_coded"])


def test_empty_batch(pictures: Tensor):
    model = build(SPECS[1], "learned", pictures)
    out = model(pictures[:0])
    assert out.values.shape == (0, 1, 16, 16) and float(out.loss.detach()) == 0
    out.loss.backward()
    model.update(out)
    assert model.decode(model.encode(pictures[:0])).shape == (0, 1, 16, 16)


def test_refusals(pictures: Tensor, tmp_path: Path):
    with pytest.raises(CodewordError, match="halvings divide"):
        DynamicTokenizer(quantizer="fsq:grid=8x5", channels=1, size=18)
    with pytest.raises(Unsupported, match="floats beside"):
        DynamicTokenizer(quantizer=codeword.make("rabitq:code_bits=3", 8))
    model = build(SPECS[2], "entropy", pictures)
    tokens = model.encode(pictures[:2])
    with pytest.raises(FormatError, match="made by tokenizer"):
        model.decode(tokens._replace(fingerprint="0" * 16))
    with pytest.raises(ShapeError, match="positions and a mask"):
        model.decode(tokens._replace(positions=None))
    with pytest.raises(ShapeError, match="outside"):
        model.encode(pictures[:2] + 1)
    with pytest.raises(ShapeError, match="16, 16"):
        model.encode(torch.rand(1, 1, 8, 8))
    fresh = DynamicTokenizer(quantizer=codeword.make(SPECS[2], 4), router="entropy", **SMALL)
    with pytest.raises(NotFitted, match="threshold"):
        fresh.save(tmp_path / "t.cw")


def test_files_of_strangers(pictures: Tensor, tmp_path: Path):
    """A changed configuration, a missing or misshapen tensor, NaN: FormatError, nothing else."""
    model = build(SPECS[0], "entropy", pictures)
    state, quantizer = model._parts()
    header = {"about": {}, "config": model.config, "fingerprint": model.fingerprint, "kind": "dynamic_tokenizer", "quantizer": quantizer}
    DynamicTokenizer.from_parts(state, header, "it")
    wrong_states = [
        {name: t for name, t in state.items() if name != "decoder.learned"},
        state | {"decoder.learned": torch.zeros(1, 4, 9, 9)},
        state | {"decoder.learned": torch.full((1, 4, 8, 8), torch.nan)},
        state | {"decoder.learned": torch.ones(1, 4, 8, 8)},
    ]
    for wrong in wrong_states:
        with pytest.raises(FormatError):
            DynamicTokenizer.from_parts(wrong, header, "it")
    for change in ({"size": 20}, {"size": 10**9}, {"multipliers": []}, {"multipliers": [1] * 99}, {"multipliers": ["x"] * 3},
                   {"router": "?"}, {"fraction": 2.0}, {"width": "4"}, {"blocks": 10**6}, {"more": 1}):
        with pytest.raises(FormatError):
            DynamicTokenizer.from_parts(state, header | {"config": model.config | change}, "it")
    with pytest.raises(FormatError):
        DynamicTokenizer.from_parts(state, header | {"kind": "image_tokenizer"}, "it")


def test_channels_last(pictures: Tensor):
    """The layout that the training loop uses, in which torch's GroupNorm has crashed."""
    model = build(SPECS[1], "learned", pictures).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    out = model(pictures[:4].contiguous(memory_format=torch.channels_last))
    (out.values.square().mean() + out.loss).backward()
    assert all(p.grad is not None for p in model.router.choice.parameters())  # type: ignore[union-attr]
