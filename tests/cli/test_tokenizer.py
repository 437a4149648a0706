"""codeword tokenizer as a user runs it: a folder of pictures to a tokenizer, shards, pictures again, numbers and a page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import codeword
from codeword.cli import main

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("lightning_fabric")

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenizers"))
from made_pictures import pictures  # noqa: E402

TRAIN = ("--quantizer", "vq:iterations=2,learning=ema", "--codebook-size", "8", "--network", "conv:width=4", "--dim", "4",
         "--batch-size", "8", "--warmup", "2", "-o", "tok")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from codeword.tokenizers import starting
    monkeypatch.setattr(starting, "FIT_ROWS", 256)
    monkeypatch.chdir(tmp_path)
    for i, picture in enumerate(pictures(30)):
        folder = tmp_path / "photos" / ("bars" if i % 2 else "discs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{i}.png")
    return tmp_path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], here: Path) -> Any:
    def run(*words: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        found = main([str(word) for word in words])
        out = capsys.readouterr()
        assert found == code, out
        return out
    return run


def summary(result: tuple[str, str]) -> dict[str, Any]:
    assert result[0].count("\n") == 1
    return json.loads(result[0])


@pytest.mark.parametrize("name", ["train", "encode", "decode", "eval", "report", "features"])
def test_help_has_an_example(name: str, cli: Any) -> None:
    out, _ = cli("tokenizer", name, "--help")
    assert f"Example: codeword tokenizer {name} " in " ".join(out.split()) and "--json" in out


def test_from_a_folder_of_pictures_to_a_page(cli: Any, here: Path) -> None:
    planned = summary(cli("tokenizer", "train", "photos", *TRAIN, "--steps", 6, "--dry-run", "--json"))
    assert planned["steps"] == 6 and planned["bits_per_pixel"] == 3 / 16 and not (here / "tok").exists()
    out, err = cli("tokenizer", "train", "photos", *TRAIN, "--steps", 6, "--eval-every", 3)
    assert "PSNR" in out and "in use" in out and err.count("step ") == 2
    assert set(os.listdir("tok")) == {"checkpoint.cw", "curves.png", "job.json", "log.csv", "log.txt", "samples", "tokenizer.cw",
                                      "usage.png"}
    assert sorted(os.listdir("tok/samples")) == ["step-0000003.png", "step-0000006.png"]
    sheet = np.asarray(Image.open("tok/samples/step-0000006.png"))
    assert sheet.ndim == 3 and sheet.std() > 10

    planned = summary(cli("tokenizer", "encode", "tok", "photos", "-o", "tokens", "--dry-run", "--json"))
    assert planned["tokens"] == 30 * 16 and not (here / "tokens").exists()
    encoded = summary(cli("tokenizer", "encode", "tok", "photos", "-o", "tokens", "--json"))
    assert encoded["images"] == 30 and encoded["tokens"] == 30 * 16
    out, _ = cli("verify", "tokens", "tok/tokenizer.cw", "tok")
    assert out.count("clean") == 3
    out, _ = cli("inspect", "tokens")
    assert "tokens" in out and encoded["fingerprint"] in out

    cli("tokenizer", "decode", "tok", "tokens", "-o", "back")
    assert len(os.listdir("back")) == 30 and "000000-1.png" in os.listdir("back")
    cli("tokenizer", "decode", "tok", "tokens", "-o", "some", "--items", "0-2,29")
    assert len(os.listdir("some")) == 4 and (here / "some/000029-28.png").read_bytes() == (here / "back/000029-28.png").read_bytes()
    numbers = summary(cli("tokenizer", "eval", "tok", "photos", "--json"))
    names = [(f"photos/bars/{2 * i + 1}.png", f"back/{i:06d}-{2 * i + 1}.png") for i in range(15)]
    differences = [np.asarray(Image.open(a)) / 255.0 - np.asarray(Image.open(b)) / 255.0 for a, b in names]
    first = summary(cli("tokenizer", "eval", "tok", "photos", "--limit", 15, "--json"))
    assert first["error"] == pytest.approx(np.mean(np.square(differences)), rel=1e-4)
    assert numbers["images"] == 30 and 0 < numbers["usage"] <= 1 and 1 <= numbers["perplexity"] <= 8 and numbers["bits"] == 3 / 16
    assert 0 <= numbers["entropy_bits"] <= numbers["bits"] and numbers["ssim"] <= 1

    cli("tokenizer", "report", "tok", "photos")
    page = (here / "tok/report.html").read_text()
    assert page.count("<svg") == 3 and "data:image/png;base64," in page and "src=\"http" not in page and ">nan" not in page


def test_labels_and_names_go_into_the_shards(cli: Any) -> None:
    from codeword.tokenizers.shards import TokenShards
    cli("tokenizer", "train", "photos", *TRAIN, "--steps", 2)
    cli("tokenizer", "encode", "tok", "photos", "-o", "tokens")
    shards = TokenShards("tokens")
    assert shards.labels is not None and shards.labels.tolist() == [0] * 15 + [1] * 15 and shards.name(0) == "bars/1.png"


def test_whole_images_come_back_at_their_sizes(cli: Any, here: Path) -> None:
    cli("tokenizer", "train", "photos", *TRAIN, "--steps", 2)
    (here / "more").mkdir()
    for name, shape in (("a", (9, 21)), ("b", (16, 16)), ("c", (30, 5))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)).save(here / "more" / f"{name}.png")
    cli("tokenizer", "encode", "tok", "more", "-o", "tokens", "--whole")
    cli("tokenizer", "decode", "tok", "tokens", "-o", "back")
    assert [Image.open(here / "back" / name).size for name in sorted(os.listdir("back"))] == [(21, 9), (16, 16), (5, 30)]
    _, err = cli("tokenizer", "encode", "tok", "more", "-o", "other", "--whole", "--size", 8, code=2)
    assert "--whole" in err


def test_an_interrupted_encode_resumes_to_the_same_bytes(cli: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from codeword.cli import tokenizer as command
    from codeword.tokenizers.image import ImageTokenizer
    monkeypatch.setattr(command, "ENCODE_ITEMS", 8)
    cli("tokenizer", "train", "photos", *TRAIN, "--steps", 2)
    cli("tokenizer", "encode", "tok", "photos", "-o", "quiet")
    encode, calls = ImageTokenizer.encode, []

    def interrupted(self: ImageTokenizer, images: Any) -> Any:
        calls.append(len(images))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return encode(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(ImageTokenizer, "encode", interrupted)
        _, err = cli("tokenizer", "encode", "tok", "photos", "-o", "tokens", code=130)
    assert "16 of 30 images are encoded" in err and "--resume" in err
    _, err = cli("tokenizer", "decode", "tok", "tokens", "-o", "back", code=2)
    assert "unfinished" in err
    _, err = cli("tokenizer", "encode", "tok", "photos", "-o", "tokens", code=2)
    assert "--resume" in err
    _, err = cli("tokenizer", "encode", "tok", "photos", "-o", "tokens", "--resume", "--size", 8, code=2)
    assert "other images, or other options" in err
    assert summary(cli("tokenizer", "encode", "tok", "photos", "-o", "tokens", "--resume", "--json"))["images_resumed"] == 16
    files = {path.name: path.read_bytes() for path in (here / "quiet").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (here / "tokens").iterdir()}


def test_bad_files_are_named_and_left_out_only_when_told(cli: Any, here: Path) -> None:
    (here / "photos" / "bars" / "broken.png").write_bytes((here / "photos" / "bars" / "1.png").read_bytes()[:100])
    _, err = cli("tokenizer", "train", "photos", *TRAIN, "--steps", 8, code=2)
    assert "bars/broken.png of photos cannot be decoded" in err and "Traceback" not in err
    assert not (here / "tok").exists()
    out, _ = cli("tokenizer", "train", "photos", *TRAIN, "--steps", 8, "--skip-bad")
    assert "broken.png" in out
    _, err = cli("tokenizer", "encode", "tok", "photos", "-o", "tokens", code=2)
    assert "broken.png" in err
    encoded = summary(cli("tokenizer", "encode", "tok", "photos", "-o", "tokens", "--resume", "--skip-bad", "--json"))
    assert encoded["images"] == 30 and len(encoded["skipped"]) == 1 and "broken.png" in encoded["skipped"][0]
    assert summary(cli("tokenizer", "eval", "tok", "photos", "--skip-bad", "--json"))["images"] == 30


@pytest.mark.parametrize(("words", "what"), [
    (("--quantizer", "nothing"), "unknown quantizer 'nothing'"), (("--network", "resnet"), "unknown network 'resnet'"),
    (("--quantizer", "rabitq:code_bits=2"), "tokens are indices alone"), (("--loss", "l3=1"), "loss is 'l3=1'"), (("--gan", "-1"), "--gan"),
    (("--schedule", "step"), "shape is 'step'"), (("--start", "warm"), "start is 'warm'"), (("--precision", "8"), "precision is '8'"),
    (("--quantizer", "fsq:grid=4x4"), "--codebook-size does not go with"), (("--learning-rate", "0"), "learning_rate is 0"),
    (("--network", "vit:patch=5"), "patch=5"), (("--size", "10"), "divide"), (("--accelerator", "abacus"), "abacus"),
])
def test_what_cannot_be_is_said_in_a_sentence_and_leaves_nothing(cli: Any, here: Path, words: tuple[str, ...], what: str) -> None:
    base = [word for word in TRAIN]
    for key in (*words[::2], *(("--codebook-size",) if words[1].startswith("rabitq") else ())):
        if key in base:
            at = base.index(key)
            del base[at:at + 2]
    _, err = cli("tokenizer", "train", "photos", *base, "--steps", 2, *words, code=2)
    assert what in err and "Traceback" not in err and not (here / "tok").exists()


def test_wrong_partners_are_refused(cli: Any, here: Path) -> None:
    cli("tokenizer", "train", "photos", *TRAIN, "--steps", 2)
    cli("tokenizer", "encode", "tok", "photos", "-o", "tokens")
    _, err = cli("tokenizer", "train", "photos", *TRAIN, "--steps", 2, code=2)
    assert "--resume" in err
    _, err = cli("tokenizer", "train", "photos", *TRAIN, "--steps", 2, "--resume", "--learning-rate", 0.5, code=2)
    assert "config.learning_rate is 0.002 there and 0.5 here" in err
    _, err = cli("tokenizer", "train", "photos/bars", *TRAIN, "--steps", 2, "--resume", code=2)
    assert "inputs.images" in err
    os.rename("tok", "old")
    cli("tokenizer", "train", "photos", *TRAIN, "--steps", 3)
    _, err = cli("tokenizer", "decode", "tok", "tokens", "-o", "back", code=2)
    assert "was encoded by tokenizer" in err
    _, err = cli("tokenizer", "eval", "photos", "photos", code=2)
    assert "tokenizer.cw" in err


def run_command(here: Path, *words: object, **options: Any) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(codeword.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "codeword", *map(str, words)], cwd=here, env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **options)


def test_two_ranks_train_one_codebook(here: Path) -> None:
    done = run_command(here, "tokenizer", "train", "photos", *TRAIN, "--steps", 4, "--devices", 2, "--accelerator", "cpu", "--json")
    out, err = done.communicate(timeout=280)
    assert done.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["steps"] == 4 and out.count('"fingerprint"') == 1
    from codeword.tokenizers.image import ImageTokenizer
    assert ImageTokenizer.load(here / "tok/tokenizer.cw").fingerprint == found["fingerprint"]


DYNAMIC = ("--quantizer", "vq:iterations=2,learning=ema", "--codebook-size", "8", "--dim", "4", "--batch-size", "8", "--warmup", "2",
           "-o", "tok", "--network")


@pytest.mark.parametrize("router", ["entropy", "learned", "random"])
def test_tokens_of_dynamic_granularity_all_the_way(cli: Any, here: Path, router: str) -> None:
    """A variable number of tokens an image, from training to a page; bits with the map of fine cells."""
    from codeword.tokenizers.shards import TokenShards
    network = f"dynamic:router={router},fraction=0.4,width=4,multipliers=1x1x1"
    planned = summary(cli("tokenizer", "train", "photos", *DYNAMIC, network, "--steps", 6, "--dry-run", "--json"))
    assert planned["bits_per_pixel"] == pytest.approx((16 * (1 + 3 * 0.4) * 3 + 16) / 256)
    cli("tokenizer", "train", "photos", *DYNAMIC, network, "--steps", 6)
    assert np.asarray(Image.open("tok/samples/step-0000006.png")).std() > 10
    planned = summary(cli("tokenizer", "encode", "tok", "photos", "-o", "tokens", "--dry-run", "--json"))
    encoded = summary(cli("tokenizer", "encode", "tok", "photos", "-o", "tokens", "--json"))
    lengths = [len(item.indices) for item in TokenShards("tokens")]
    assert sum(lengths) == encoded["tokens"] == planned["tokens"] and min(lengths) >= 16 and max(lengths) <= 64
    assert len(set(lengths)) > 1 and all((n - 16) % 3 == 0 for n in lengths)
    out, _ = cli("verify", "tokens", "tok/tokenizer.cw", "tok")
    assert out.count("clean") == 3
    cli("tokenizer", "decode", "tok", "tokens", "-o", "back")
    numbers = summary(cli("tokenizer", "eval", "tok", "photos", "--json"))
    pairs = [(f"photos/bars/{2 * i + 1}.png", f"back/{i:06d}-{2 * i + 1}.png") for i in range(15)] + \
            [(f"photos/discs/{2 * i}.png", f"back/{i + 15:06d}-{2 * i}.png") for i in range(15)]
    error = np.mean([np.square(np.asarray(Image.open(a)) / 255.0 - np.asarray(Image.open(b)) / 255.0) for a, b in pairs])
    assert numbers["error"] == pytest.approx(error, rel=1e-4)
    assert numbers["tokens"] == pytest.approx(np.mean(lengths)) == pytest.approx(16 * (1 + 3 * numbers["fine"]))
    assert (numbers["tokens_least"], numbers["tokens_most"]) == (min(lengths), max(lengths))
    assert numbers["bits"] == pytest.approx((np.mean(lengths) * 3 + 16) / 256) and numbers["gate_bits"] == 16 / 256
    assert numbers["entropy_bits"] <= numbers["bits"]
    cli("tokenizer", "report", "tok", "photos")
    page = (here / "tok/report.html").read_text()
    assert page.count("<svg") == 3 and "16 bits for the map of fine cells" in page and ">nan" not in page
    _, err = cli("tokenizer", "encode", "tok", "photos", "-o", "whole", "--size", 8, code=2)
    assert "(b, 3, 16, 16) is needed" in err and "Traceback" not in err


def test_factorized_codebooks_learn_from_features(cli: Any, here: Path) -> None:
    words = ("--quantizer", "factorized_vq:iterations=2", "--codebook-size", 8, "--dim", 8, "--batch-size", 8, "--warmup", 2, "--network",
             "factorized:width=4,adapter=transformer", "--representation", 0.5, "-o", "tok")
    cli("tokenizer", "train", "photos", *words, "--steps", 4)
    assert "representation" in (here / "tok/log.csv").read_text().splitlines()[0]
    encoded = summary(cli("tokenizer", "encode", "tok", "photos", "-o", "tokens", "--json"))
    assert encoded["tokens"] == 30 * 16
    assert summary(cli("tokenizer", "eval", "tok", "photos", "--json"))["bits"] == 16 * 6 / 256
    cli("tokenizer", "report", "tok", "photos")
    _, err = cli("tokenizer", "train", "photos", *TRAIN[:-2], "--steps", 4, "--representation", 0.5, "-o", "other", code=2)
    assert "teaches the first codebook of a factorized_vq" in err and not (here / "other").exists()


def test_frozen_features_from_images_to_a_tokenizer(cli: Any, here: Path) -> None:
    made = summary(cli("tokenizer", "features", "photos", "--codebook-size", 8, "-o", "features.npy", "--json"))
    assert made == {"features": "features.npy", "shape": [8, 96], "images": 30, "classes": 2, "network": "features-cifar10"}
    features = np.load("features.npy")
    assert features.dtype == np.float32 and np.isfinite(features).all() and len(np.unique(features, axis=0)) == 8
    cli("tokenizer", "features", "photos", "--codebook-size", 8, "-o", "again.npy")
    assert (here / "again.npy").read_bytes() == (here / "features.npy").read_bytes()
    whole = cli("tokenizer", "features", "photos", "--codebook-size", 8, "--no-by-class", "-o", "all.npy", "--json")
    assert summary(whole)["classes"] is None
    words = ("--quantizer", "projected_vq:steps=2", "--codebook-size", 8, "--network", "conv:width=4", "--dim", 4, "--batch-size", 8,
             "--warmup", 2, "-o", "tok")
    cli("tokenizer", "train", "photos", *words, "--features", "features.npy", "--steps", 2)
    assert '"shape":[8,96]' in (here / "tok/job.json").read_text()
    cli("tokenizer", "eval", "tok", "photos")
    _, err = cli("tokenizer", "train", "photos", *words, "--features", "all.npy", "--steps", 3, "--resume", code=2)
    assert "input features has changed" in err
    for wrong, what in ((("--codebook-size", 1, "-o", "one.npy"), "for 2 classes"),
                        (("--codebook-size", 481, "-o", "o.npy"), "480 patches"),
                        (("--codebook-size", 8, "-o", "o.txt"), "a .npy file is needed")):
        _, err = cli("tokenizer", "features", "photos", *wrong, code=2)
        assert what in err and "Traceback" not in err
