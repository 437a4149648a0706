"""Images to tokens and back, and the one file that holds a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_pictures import pictures

from codeword import catalog
from codeword.errors import CodewordError, FormatError, NotFitted, ShapeError, Unsupported
from codeword.io.tensors import read_tensors, write_tensors
from codeword.tokenizers.dynamic import DynamicTokenizer
from codeword.tokenizers.image import ImageTokenizer, to_bytes
from codeword.tokenizers.networks import NETWORKS, build, canonical_spec, parse

SPECS = ("vq:codebook_size=8,iterations=2", "simvq:codebook_size=8,steps=2", "fsq:grid=4x4",
         "rvq:num_codebooks=2,codebook_size=4,iterations=2",
         "projected(fsq:grid=3x3):width=2,map=pca")
NETS = ("conv:width=4", "vqgan:width=4,multipliers=1x1x2", "vit:patch=4,width=16,depth=1,heads=2")
IMAGES = torch.from_numpy(pictures(5).transpose(0, 3, 1, 2).copy())


def tokenizer(quantizer: str = SPECS[0], network: str = NETS[0], **options: Any) -> ImageTokenizer:
    torch.manual_seed(0)
    made = ImageTokenizer(quantizer=quantizer, network=network, size=16, dim=4, **options)
    with torch.no_grad():
        x = made.pixels(IMAGES[:, :options.get("channels", 3)])
        made.quantizer.fit(made.latents(x))
    return made


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("network", NETS)
def test_tokens_of_a_batch_are_those_of_its_images(spec: str, network: str) -> None:
    made = tokenizer(spec, network)
    tokens = made.encode(IMAGES)
    assert tokens.layout.grid == (4, 4) and tokens.layout.shape == (3, 16, 16)
    assert tokens.indices.shape == (5, 16, len(made.quantizer.levels))
    tokens.check()
    alone = torch.cat([made.encode(IMAGES[i:i + 1]).indices for i in range(5)])
    assert torch.equal(alone, tokens.indices)
    assert torch.allclose(made.decode(tokens)[2:3], made.decode(tokens._replace(indices=tokens.indices[2:3])), atol=1e-5)
    assert torch.equal(made.reconstruct(IMAGES), made.decode(tokens))


def test_bytes_and_floats_numpy_and_torch_are_the_same_image() -> None:
    made = tokenizer()
    first = made.encode(IMAGES).indices
    assert torch.equal(first, made.encode(IMAGES.numpy()).indices) and torch.equal(first, made.encode(IMAGES / 255).indices)
    assert torch.equal(first, made.encode((IMAGES / 255).double()).indices)
    assert torch.equal(to_bytes(IMAGES / 255), IMAGES)


@pytest.mark.parametrize("shape", [(16, 16), (15, 18), (1, 1), (5, 30)])
def test_any_size_comes_back_at_its_size(shape: tuple[int, int]) -> None:
    made = tokenizer(network=NETS[1])
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, *shape), dtype=np.uint8))
    tokens = made.encode(x)
    assert tokens.layout.grid == tuple(-(-side // 4) for side in shape) and tokens.layout.shape == (3, *shape)
    back = made.decode(tokens)
    assert back.shape == x.shape and back.dtype == torch.float32 and float(back.min()) >= 0 and float(back.max()) <= 1


def test_forward_in_eval_mode_says_what_decode_says() -> None:
    for options in ({}, {"likelihood": True}, {"channels": 1}):
        made = tokenizer(**options).eval()
        images = IMAGES[:, :made.channels]
        out = made(made.pixels(images))
        assert out.values.shape[1] == (6 if options.get("likelihood") else made.channels)
        if not options.get("likelihood"):
            assert torch.allclose(out.values.clamp(0, 1), made.reconstruct(images), atol=1e-5)
        assert torch.equal(torch.as_tensor(out.quantized.codes.indices).flatten(1, 2).long(), made.encode(images).indices.long())


def test_an_empty_batch() -> None:
    made = tokenizer()
    assert made.encode(IMAGES[:0]).indices.shape == (0, 16, 1) and made.reconstruct(IMAGES[:0]).shape == (0, 3, 16, 16)


def test_encode_leaves_training_mode_as_it_was() -> None:
    made = tokenizer().train()
    made.encode(IMAGES)
    assert made.training and made.encoder.training


def test_what_is_no_image_is_refused() -> None:
    made = tokenizer(network=NETS[0])
    for wrong, what in ((IMAGES[0], r"\(3, 16, 16\)"), (IMAGES[:, :1], "3, height"), (IMAGES.int(), "int32"),
                        (IMAGES / 100, r"outside \[0, 1\]"),
                        (torch.full((1, 3, 4, 4), torch.nan), "outside"), (IMAGES[:, :, :0], "sides")):
        with pytest.raises(ShapeError, match=what):
            made.encode(wrong)
    with pytest.raises(ShapeError, match="16 × 16 only"):
        tokenizer(network=NETS[2]).encode(IMAGES[:, :, :12])
    with pytest.raises(NotFitted):
        ImageTokenizer(quantizer="vq:codebook_size=8", dim=4, network="conv:width=4").encode(IMAGES)
    with pytest.raises(Unsupported, match="tokens are indices alone"):
        ImageTokenizer(quantizer="rabitq:code_bits=2", dim=8)


def test_tokens_of_another_tokenizer_are_refused() -> None:
    made = tokenizer()
    tokens = made.encode(IMAGES)
    with torch.no_grad():
        made.decoder[0].weight.mul_(1.01)  # type: ignore[index, operator, union-attr]
    with pytest.raises(FormatError, match=r"\[fingerprint\]"):
        made.decode(tokens)
    assert made.encode(IMAGES).fingerprint != tokens.fingerprint
    with pytest.raises(ShapeError, match="full grids"):
        made.decode(tokens._replace(fingerprint=made.fingerprint, mask=torch.ones(5, 16, dtype=torch.bool)))


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("spec", SPECS)
def test_a_file_comes_back_as_it_was_and_is_written_as_it_was(spec: str, tmp_path: Path) -> None:
    made = tokenizer(spec, NETS[1])
    made.about = {"steps": 3}
    made.save(tmp_path / "a.cw")
    back = ImageTokenizer.load(tmp_path / "a.cw")
    back.save(tmp_path / "b.cw")
    assert (tmp_path / "a.cw").read_bytes() == (tmp_path / "b.cw").read_bytes()
    assert back.fingerprint == made.fingerprint and back.about == {"steps": 3} and not back.training
    assert torch.equal(back.decode(made.encode(IMAGES)), made.decode(back.encode(IMAGES)))


def test_channels_last_weights_are_the_same_tokenizer(tmp_path: Path) -> None:
    made = tokenizer()
    before = made.fingerprint
    assert made.to(memory_format=torch.channels_last).fingerprint == before  # type: ignore[call-overload]


def planted(tmp_path: Path, change: Any) -> str:
    tokenizer().save(tmp_path / "t.cw")
    tensors, header = read_tensors(tmp_path / "t.cw")
    tensors = dict(tensors)
    change(tensors, header)
    write_tensors(tmp_path / "t.cw", tensors, header)
    try:
        ImageTokenizer.load(tmp_path / "t.cw")
        return "accepted"
    except FormatError as error:
        return error.code


@pytest.mark.parametrize(("change", "code"), [
    (lambda t, h: None, "accepted"),
    (lambda t, h: h.update(kind="quantizer"), "kind"),
    (lambda t, h: h.update(more=1), "unknown-key"),
    (lambda t, h: h["config"].update(network="conv:width=4096"), "shape"),
    (lambda t, h: h["config"].update(network="vqgan:width=4096,multipliers=64x64x64x64x64x64x64x64,blocks=64,attention=true"), "config"),
    (lambda t, h: h["config"].update(network="vqgan:width=4096,multipliers=64x64x64x64,blocks=16,attention=true"), "unknown-key"),
    (lambda t, h: h["config"].update(network="conv:width=1000000000"), "config"),
    (lambda t, h: h["config"].update(network="conv"), "config"),
    (lambda t, h: h["config"].update(network="os:system=1"), "config"),
    (lambda t, h: h["config"].update(network="vit:patch=5,width=16,depth=1,heads=2"), "config"),
    (lambda t, h: h["config"].update(size=0), "config"),
    (lambda t, h: h["config"].update(channels=2), "config"),
    (lambda t, h: h["config"].update(channels=True), "header"),
    (lambda t, h: h["config"].pop("size"), "missing-key"),
    (lambda t, h: t.pop("encoder.0.weight"), "missing-key"),
    (lambda t, h: t.update({"encoder.9.weight": torch.zeros(1)}), "unknown-key"),
    (lambda t, h: t.update({"encoder.0.bias": torch.full((4,), torch.nan)}), "value"),
    (lambda t, h: t.update({"encoder.0.bias": torch.zeros(4)}), "fingerprint"),
    (lambda t, h: t.update({"encoder.0.bias": torch.zeros(4, dtype=torch.float64)}), "dtype"),
    (lambda t, h: t.update({"quantizer.codebook": torch.zeros(8, 4)}), "fingerprint"),
    (lambda t, h: h["quantizer"]["object"]["config"].update(codebook_size=1 << 24), "shape"),
    (lambda t, h: h.update(fingerprint="0" * 16), "fingerprint"),
])
def test_files_that_lie(tmp_path: Path, change: Any, code: str) -> None:
    assert planted(tmp_path, change) == code


def test_every_network_builds_and_spells_its_options_out() -> None:
    for name in NETWORKS:
        spec = canonical_spec(name)
        assert canonical_spec(spec) == spec
        if name == "dynamic":  # no pair of networks
            assert DynamicTokenizer(quantizer="fsq:grid=4x4", dim=2, **parse(spec)[1]).network == spec
            continue
        network = build(spec, channels=3, outputs=3, dim=6, size=32)
        z = network.encoder(torch.zeros(1, 3, 32, 32))
        assert z.shape == (1, 6, 32 // network.factor, 32 // network.factor) and network.decoder(z).shape == (1, 3, 32, 32)
    for wrong in ("nothing", "conv:depth=2", "conv:width=0", "conv:width=2x2", "vqgan:attention=1", "vqgan:multipliers=0x1", "conv:width"):
        with pytest.raises(CodewordError):
            canonical_spec(wrong)


def test_any_quantizer_of_tokens_alone_makes_a_tokenizer() -> None:
    """All of the catalog: those that keep side information are refused, the others encode and decode."""
    for entry in catalog.QUANTIZERS:
        quantizer = catalog.make(entry.example_spec, entry.example_dim)
        if quantizer.side_count:
            with pytest.raises(Unsupported):
                ImageTokenizer(quantizer=quantizer, network="conv:width=2", size=16)
            continue
        made = ImageTokenizer(quantizer=quantizer, network="conv:width=2", size=16)
        quantizer.fit(made.latents(made.pixels(IMAGES)).detach())
        assert made.decode(made.encode(IMAGES).check()).shape == IMAGES.shape, entry.name
