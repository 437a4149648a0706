"""Checkpoints of vector-quantize-pytorch: the same indices and values as its own forward, from small files that it made, and, where the
package is installed, from its objects; and every state without an exact equivalent refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peers
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import codeword
from codeword import compat
from codeword.cli import main
from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.quantizer import Quantizer

HOME = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in HOME.glob("*.safetensors"))
EXACT = ("vq", "vq_learnable", "vq_heads_shared", "vq_heads_separate", "fsq", "fsq_books", "lfq", "lfq_scale", "lfq_books", "lfq_clamped")
"""Kinds whose values are looked up, nothing computed: equal to the bit."""


def told(name: str) -> tuple[str, dict[str, Any]]:
    with safetensors.safe_open(HOME / f"{name}.safetensors", "pt") as file:
        found = json.loads(file.metadata()["peer"])
    return found["kind"], found["options"]


def held(name: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(HOME / f"{name}.safetensors")


def state_of(name: str) -> dict[str, Tensor]:
    return {key.removeprefix("state."): value for key, value in held(name).items() if key.startswith("state.")}


def same(quantizer: Quantizer, x: Tensor, indices: Tensor, values: Tensor, exact: bool) -> None:
    codes = quantizer.encode(x)
    assert torch.equal(torch.as_tensor(codes.indices).long(), indices)
    out = quantizer(x)
    for mine in (quantizer.decode(codes), out.values.detach()):
        torch.testing.assert_close(mine, values, rtol=0, atol=0 if exact else 2e-6)
    assert torch.equal(torch.as_tensor(out.codes.indices).long(), indices)


@pytest.mark.parametrize("name", NAMES)
def test_files(name: str, tmp_path: Path) -> None:
    kind, options = told(name)
    data = held(name)
    found = compat.convert(HOME / f"{name}.safetensors", kind, prefix="state.", **options)
    same(found.quantizer, data["x"], data["indices"], data["values"], name in EXACT)
    found.quantizer.save(tmp_path / "mine.safetensors")
    again = codeword.load(tmp_path / "mine.safetensors")
    same(again, data["x"], data["indices"], data["values"], name in EXACT)
    # the same from a file of torch.save, from within a checkpoint, and with the kind read off the names
    torch.save({"state_dict": {f"quantizer.{key}": value for key, value in state_of(name).items()}, "step": 3}, tmp_path / "theirs.pt")
    if kind != "fsq":
        guessed = compat.load(tmp_path / "theirs.pt", prefix="quantizer.", **options)
        assert guessed.fingerprint == found.quantizer.fingerprint


def test_every_golden_file_is_known() -> None:
    assert len(NAMES) == 30


@pytest.mark.parametrize("name", NAMES)
def test_objects(name: str) -> None:
    """Larger inputs, in the package's own arithmetic; where two codewords are equally near to rounding, either may win."""
    pytest.importorskip("vector_quantize_pytorch", exc_type=ImportError)
    torch.manual_seed(7)
    peer = peers.peers()[name]
    x = torch.randn(500, peer.dim)
    indices, values = peers.answers(peer, x)
    quantizer = compat.from_vector_quantize_pytorch(peer.module)
    mine = torch.as_tensor(quantizer.encode(x).indices).long()
    same_rows = (mine == indices).all(1)
    assert float(same_rows.float().mean()) > 0.995
    torch.testing.assert_close(quantizer(x).values.detach()[same_rows], values[same_rows], rtol=0, atol=3e-6)


def test_a_module_trained_there_goes_on_here() -> None:
    """The averages come along: one step from the same state moves the codebooks alike, up to the two ways of smoothing."""
    package = pytest.importorskip("vector_quantize_pytorch", exc_type=ImportError)
    torch.manual_seed(3)
    theirs, x = package.VectorQuantize(dim=4, codebook_size=6, decay=0.9), torch.randn(400, 4)
    for _ in range(20):
        theirs(x)
    mine = compat.from_vector_quantize_pytorch(theirs).train()
    before = theirs.codebook.clone()
    theirs(x)
    mine.update(mine(x))
    assert not torch.equal(before, theirs.codebook)
    torch.testing.assert_close(mine.codebook.detach(), theirs.codebook, rtol=1e-3, atol=1e-4)


def test_learning_is_read_off_the_averages() -> None:
    assert compat.load(state_of("vq")).learning == "ema"
    trained = state_of("vq_learnable")
    trained["_codebook.embed"] = trained["_codebook.embed"] + 0.3
    assert compat.load(trained).learning == "gradient" == compat.load(state_of("vq"), learning="gradient").learning


def changed(name: str, **tensors: Tensor | None) -> dict[str, Tensor]:
    state = state_of(name)
    for key, value in tensors.items():
        key = key.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


def test_what_has_no_equivalent_is_refused() -> None:
    flat = torch.zeros(1, 1, 6)
    for state, kind, why in (
            (changed("vq", **{"_codebook.codebook_mean": flat}), "vq", "affine"),
            (changed("vq", **{"_codebook.vq_bridge.weight": torch.zeros(6, 6)}), "vq", "bridge"),
            (changed("vq", **{"_codebook.initted": torch.tensor(False)}), "vq", "k-means"),
            (changed("residual_vq", **{"mlps.0.proj_in.weight": torch.zeros(6, 12)}), "residual_vq", "implicit"),
            (changed("vq_projected", **{"project_in.1.weight": torch.ones(4)}), "vq", "norm"),
            (changed("lfq_projected", **{"project_in.weight": torch.zeros(6, 8), "project_in.bias": None, "project_out.bias": None,
                                         "project_out.weight": torch.zeros(6, 8)}), "lfq", "cosine"),
            (changed("simvq", **{"code_transform.norm": torch.ones(6)}), "simvq", "no use"),
            (state_of("vq") | {"stranger": torch.zeros(2)}, "vq", "stranger")):
        with pytest.raises(Unsupported, match=why):
            compat.load(state, kind)
    with pytest.raises(Unsupported, match="length 1"):
        compat.load(state_of("vq"), cosine=True)
    with pytest.raises(Unsupported, match="Linear is not read"):
        compat.from_vector_quantize_pytorch(nn.Linear(2, 2))


def test_modules_that_are_refused() -> None:
    package = pytest.importorskip("vector_quantize_pytorch", exc_type=ImportError)
    linear = nn.Linear(4, 4)
    normed = nn.Sequential(linear, nn.LayerNorm(4), linear)
    for module, why in ((package.VectorQuantize(dim=4, codebook_size=4, affine_param=True), "affine"),
                        (package.VectorQuantize(dim=4, codebook_size=4, vq_bridge=linear), "bridge"),
                        (package.ResidualVQ(dim=4, codebook_size=4, num_quantizers=2, beam_size=2), "beam"),
                        (package.ResidualVQ(dim=4, codebook_size=4, num_quantizers=2, implicit_neural_codebook=True), "implicit"),
                        (package.FSQ([4, 4], bound_hard_clamp=True), "clamping"),
                        (package.LFQ(dim=3, codebook_size=4, cosine_sim_project_in=True), "normalises"),
                        (package.SimVQ(dim=4, codebook_size=4, codebook_transform=normed), "LayerNorm"),
                        (package.LatentQuantize([4, 4], dim=2), "LatentQuantize is not read")):
        with pytest.raises(Unsupported, match=why):
            compat.from_vector_quantize_pytorch(module)


def test_hostile_states() -> None:
    book = state_of("vq")["_codebook.embed"]
    for state, kind, code in (
            (changed("vq", **{"_codebook.embed": book[0]}), "vq", "shape"),
            (changed("vq", **{"_codebook.embed": book[:, :0]}), "vq", "shape"),
            (changed("vq", **{"_codebook.embed": book * torch.nan}), "vq", "value"),
            (changed("vq", **{"_codebook.cluster_size": -torch.ones(1, 12)}), "vq", "shape"),
            (changed("vq", **{"_codebook.embed_avg": torch.ones(1, 3, 6)}), "vq", "shape"),
            (changed("vq", **{"_codebook.embed": None}), "vq", "missing-key"),
            (changed("vq_projected", **{"project_in.weight": torch.ones(3, 7), "project_out.weight": torch.ones(7, 3),
                                        "project_in.bias": torch.ones(3)}), "vq", "shape"),
            (changed("vq_projected", **{"project_out.bias": torch.ones(2)}), "vq", "shape"),
            (changed("lfq", mask=torch.ones(6)), "lfq", "value"),
            (changed("fsq_rotated", orthogonal_rot=torch.ones(2, 3)), "fsq", "shape"),
            (changed("simvq", **{"code_transform.weight": torch.ones(6, 5)}), "simvq", "shape"),
            ({"_codebook.embed": "text"}, "vq", "kind"), ({"_codebook.embed": book.to_sparse()}, "vq", "dtype")):
        with pytest.raises(FormatError) as found:
            compat.load(state, kind, **({"levels": [5, 5, 5]} if kind == "fsq" else {}))
        assert found.value.code == code
    for state, kind, options in (({}, "vq", {}), (state_of("vq"), "codec", {}), (state_of("vq"), "vq", {"levels": [3]}),
                                 (state_of("vq_projected"), "vq", {"heads": 3}), (state_of("fsq_projected"), "fsq", {}),
                                 (state_of("fsq_projected"), "fsq", {"levels": [8, 2, 5]}),
                                 (state_of("fsq_projected"), "fsq", {"levels": [8, 8]}),
                                 (state_of("lfq_projected"), "lfq", {"num_codebooks": 3}), (state_of("simvq_deep"), "simvq", {}),
                                 ({"a": torch.ones(2)}, None, {})):
        with pytest.raises(CodewordError):
            compat.load(state, kind, **options)


def test_hostile_files(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    whole = (HOME / "vq.safetensors").read_bytes()
    torch.save({"_codebook.embed": Trap()}, tmp_path / "trap.pt")
    cases = {"empty": b"", "cut": whole[:-5], "long": whole + b"0", "noise": bytes(range(256)),
             "pickle": (tmp_path / "trap.pt").read_bytes(), "header": (1 << 62).to_bytes(8, "little") + whole[8:]}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FormatError):
            compat.load(tmp_path / name, "vq", prefix="state.")
    torch.save([1, 2], tmp_path / "list.pt")
    for path in (tmp_path / "list.pt", tmp_path / "absent"):
        with pytest.raises(FormatError):
            compat.load(path, "vq")
    assert not (tmp_path / "ran").exists()


def test_conversion_leaves_the_state_alone() -> None:
    state = state_of("vq_projected")
    kept = copy.deepcopy(state)
    quantizer: Any = compat.load(state)
    with torch.no_grad():
        quantizer.weight_in.add_(1)
        quantizer.quantizer.codebook.add_(1)
    assert state.keys() == kept.keys() and all(torch.equal(state[key], kept[key]) for key in kept)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "mine.safetensors"
    command = ["import", "vector-quantize-pytorch", str(HOME / "fsq_projected.safetensors"), "--kind", "fsq", "--levels", "8x6x5",
               "--prefix", "state.", "--out", str(out)]
    assert main(command) == 0
    assert "affine" in capsys.readouterr().out
    data = held("fsq_projected")
    same(codeword.load(out), data["x"], data["indices"], data["values"], False)
    assert main(command) == 2 and "exists" in capsys.readouterr().err
    deep = ["import", "vector-quantize-pytorch", str(HOME / "simvq_deep.safetensors"), "--prefix", "state.", "--activation", "relu",
            "--json", "-o", str(tmp_path / "deep")]
    assert main(deep) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["kind"] == "simvq" and said["quantizer"] == "vq" and len(said["notes"]) == 1
    assert main([*command[:-1], str(tmp_path / "other"), "--heads", "2"]) == 2 and "heads" in capsys.readouterr().err
    assert main([*command[:6], "8xfive", *command[7:-1], str(tmp_path / "other")]) == 2 and "8x5x5x5" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
