"""Tokens and their shards: round trips, random access, crashes, strangers, hostile folders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "io"))
from io_faults import each_fault

from codeword.errors import CodewordError, FormatError, ShapeError
from codeword.io.folder import Folder
from codeword.tokenizers.shards import TokenShards, TokenWriter
from codeword.tokenizers.tokens import Layout, Tokens

PRINT = "0123456789abcdef"
LEVELS = (300, 7)


def item(i: int, grid: tuple[int, int] = (2, 3)) -> Tokens:
    rng = np.random.default_rng(i)
    n = grid[0] * grid[1]
    indices = torch.from_numpy(np.stack([rng.integers(0, 300, n), rng.integers(0, 7, n)], 1).astype(np.uint16))
    return Tokens(indices, None, None, Layout("image", LEVELS, grid, (3, 4 * grid[0], 4 * grid[1])), PRINT)


def start(path: Path, total: int = 5, **other: Any) -> TokenWriter:
    return TokenWriter.start(path, **{"fingerprint": PRINT, "signal": "image", "levels": LEVELS, "source": {"images": total},
                                      "total": total, **other})


def written(path: Path) -> Path:
    writer = start(path)
    writer.write([item(0), item(1), item(2)], 3, names=["a", "b/ü.png", ""], labels=[4, 5, 6])
    writer.write([item(3), item(4)], 5, names=["d", "e"], labels=[7, 8])
    writer.finish()
    return path


def equal(a: Tokens, b: Tokens) -> bool:
    same = [(x is None and y is None) or (x is not None and y is not None and torch.equal(x, y)) for x, y in zip(a[:3], b[:3])]
    return all(same) and a.layout == b.layout and a.fingerprint == b.fingerprint


def test_items_come_back_one_by_one_and_in_batches(tmp_path: Path) -> None:
    shards = TokenShards(written(tmp_path / "t"))
    assert len(shards) == 5 and all(equal(shards[i], item(i)) for i in range(5)) and equal(shards[-1], item(4))
    assert [shards.name(i) for i in range(5)] == ["a", "b/ü.png", "", "d", "e"]
    assert shards.labels is not None and shards.labels.tolist() == [4, 5, 6, 7, 8]
    batch = shards.batch([4, 0])
    assert torch.equal(batch.indices, torch.stack([item(4).indices, item(0).indices])) and batch.grid_indices.shape == (2, 2, 3, 2)
    assert shards.places == 30 and sum(len(block) for block in shards.blocks()) == 30
    with pytest.raises(IndexError, match=r"0\.\.4"):
        shards[5]


def test_same_tokens_same_bytes(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name) for name in "ab")
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


def test_items_of_different_sizes(tmp_path: Path) -> None:
    sizes = [(2, 3), (3, 2), (1, 1)]
    writer = start(tmp_path / "t", 3)
    writer.write([item(i, size) for i, size in enumerate(sizes)], 3)
    writer.finish()
    shards = TokenShards(tmp_path / "t")
    assert all(equal(shards[i], item(i, size)) for i, size in enumerate(sizes)) and shards.name(0) is None and shards.labels is None
    with pytest.raises(ShapeError, match="different layouts"):
        shards.batch([0, 1])


def test_positions_and_masks(tmp_path: Path) -> None:
    """What dynamic tokenizers give: no grid, tokens where they lie, some places empty."""
    base = item(0)
    some = [base._replace(indices=base.indices[:n], positions=torch.arange(3 * n, dtype=torch.int32).reshape(n, 3),
                          mask=torch.arange(n) % 2 == 0, layout=Layout("image", LEVELS, (), (3, 8, 8))) for n in (4, 6)]
    writer = start(tmp_path / "t", 2)
    writer.write(some, 2)
    writer.finish()
    shards = TokenShards(tmp_path / "t")
    assert all(equal(shards[i], some[i]) for i in range(2))
    with pytest.raises(ShapeError, match="no grid"):
        shards[0].grid_indices  # noqa: B018


def test_unfinished_shards_say_how_far_they_are_and_go_on(tmp_path: Path) -> None:
    writer = start(tmp_path / "t")
    writer.write([item(0), item(1)], 2)
    writer.close()
    with pytest.raises(CodewordError, match=r"2 of 5 items are encoded; resume"):
        TokenShards(tmp_path / "t")
    assert len(TokenShards(tmp_path / "t", partial=True)) == 2
    with pytest.raises(CodewordError, match="--resume"):
        start(tmp_path / "t")
    again = start(tmp_path / "t", resume=True)
    assert again.consumed == 2
    again.write([item(3), item(4)], 5, skipped=["item 2"])
    again.finish()
    assert len(TokenShards(tmp_path / "t")) == 4 and TokenShards(tmp_path / "t").meta["skipped"] == ["item 2"]


@pytest.mark.parametrize(("other", "what"), [({"fingerprint": "f" * 16}, "another tokenizer"), ({"source": {"images": 6}}, "other images"),
                                             ({"levels": (300, 8)}, "another levels"),
                                             ({"total": 6, "source": {"images": 5}}, "another total")])
def test_strangers_are_refused(tmp_path: Path, other: dict[str, Any], what: str) -> None:
    written(tmp_path / "t")
    with pytest.raises(CodewordError, match=what):
        start(tmp_path / "t", **other, resume=True)


def test_what_does_not_belong_is_not_written(tmp_path: Path) -> None:
    writer = start(tmp_path / "t")
    for wrong in (item(0)._replace(fingerprint="f" * 16), item(0)._replace(layout=Layout("image", LEVELS, (3, 3))),
                  item(0)._replace(indices=torch.full((6, 2), 400, dtype=torch.uint16)),
                  item(0)._replace(mask=torch.ones(3, dtype=torch.bool))):
        with pytest.raises(ShapeError):
            writer.write([wrong], 1)
    with pytest.raises(ShapeError, match="names"):
        writer.write([item(0)], 1, names=["a", "b"])
    with pytest.raises(CodewordError, match="cannot bring"):
        writer.write([item(0)], 6)
    with pytest.raises(CodewordError, match="0 of 5"):
        writer.finish()


def test_whatever_fails_the_shards_are_old_or_new(tmp_path: Path) -> None:
    """Every call to the system fails once, and the writer then goes on from what is there."""
    path, rounds = tmp_path / "t", 0
    writer = start(path)
    writer.write([item(0)], 1)
    writer.close()

    def write() -> None:
        again = start(path, 5, resume=True)
        try:
            again.write([item(again.consumed)], again.consumed + 1)
        finally:
            again.close()

    def reset() -> None:
        import shutil
        shutil.rmtree(path)
        first = start(path)
        first.write([item(0)], 1)
        first.close()

    for system, _ in each_fault(write, errors=("io",)):
        rounds += 1
        shards = TokenShards(path, partial=True)
        assert len(shards) in (1, 2) and all(equal(shards[i], item(i)) for i in range(len(shards))), system.log
        reset()
    assert rounds > 10


# ---------------------------------------------------------------------- hostile folders

META = {"complete": True, "consumed": 1, "fingerprint": PRINT, "levels": list(LEVELS), "order": [], "signal": "image", "skipped": [],
        "source": {}, "total": 1}


def planted(path: Path, content: dict[str, Any], meta: dict[str, Any] | None = None, header: dict[str, Any] | None = None) -> str:
    """The code with which a folder of this content, sealed as it should be, is refused."""
    whole = {"indices": item(0).indices, "grids": torch.tensor([[2, 3]], dtype=torch.int32), **content}
    with Folder.create(path, "tokens") as made:
        name = made.write_segment("tokens", {k: v for k, v in whole.items() if v is not None}, {"first": 0, "items": 1, **(header or {})})
        made.commit({**META, "order": [[name, 1]], **(meta or {})}, [name])
    try:
        found = TokenShards(path)
        for i in range(len(found)):
            found[i].check()
            found.name(i)
        return "accepted"
    except FormatError as error:
        return error.code


@pytest.mark.parametrize(("content", "code"), [
    ({}, "accepted"),
    ({"indices": torch.full((6, 2), 299, dtype=torch.uint16)}, "value"),
    ({"indices": torch.zeros(6, 2, dtype=torch.int64)}, "dtype"),
    ({"indices": torch.zeros(6, 3, dtype=torch.uint16)}, "shape"),
    ({"indices": None}, "missing-key"),
    ({"grids": None}, "missing-key"),
    ({"grids": torch.tensor([[2, 4]], dtype=torch.int32)}, "value"),
    ({"grids": torch.tensor([[-2, -3]], dtype=torch.int32)}, "value"),
    ({"grids": torch.tensor([[1 << 16, 1 << 16]], dtype=torch.int32)}, "value"),
    ({"starts": torch.tensor([0, 7])}, "value"),
    ({"starts": torch.tensor([6, 0])}, "value"),
    ({"starts": torch.tensor([0, 3, 6])}, "shape"),
    ({"shapes": torch.tensor([[3, 0, 8]], dtype=torch.int32)}, "value"),
    ({"mask": torch.ones(5, dtype=torch.bool)}, "shape"),
    ({"positions": torch.zeros(6, 2, dtype=torch.int32)}, "missing-key"),
    ({"names": torch.zeros(3, dtype=torch.uint8)}, "missing-key"),
    ({"names": torch.zeros(3, dtype=torch.uint8), "name_starts": torch.tensor([0, 9])}, "value"),
    ({"names": torch.full((3,), 255, dtype=torch.uint8), "name_starts": torch.tensor([0, 3])}, "accepted"),
    ({"more": torch.zeros(1)}, "unknown-key"),
], ids=str)
def test_segments_that_lie(tmp_path: Path, content: dict[str, Any], code: str) -> None:
    assert planted(tmp_path / "t", content) == code


@pytest.mark.parametrize(("meta", "code"), [
    ({"order": []}, "missing-key"), ({"order": [["tokens-0123456789abcdef.cw", 1]]}, "missing-key"), ({"order": [["x"]]}, "header"),
    ({"levels": []}, "header"), ({"levels": [300, 0]}, "header"), ({"levels": [1 << 40, 7]}, "header"), ({"signal": "smell"}, "name"),
    ({"fingerprint": "xyz"}, "header"), ({"consumed": 2}, "value"),
    ({"total": 1 << 50, "consumed": 1 << 50}, "value"),
    ({"more": 1}, "unknown-key"), ({"skipped": [3]}, "header"), ({"complete": 1}, "header"),
    ({"levels": [301, 7]}, "accepted"), ({"levels": [200, 7]}, "dtype"),
], ids=str)
def test_manifests_that_lie(tmp_path: Path, meta: dict[str, Any], code: str) -> None:
    assert planted(tmp_path / "t", {}, meta) == code


def test_damage_is_found_when_a_segment_is_touched(tmp_path: Path) -> None:
    path = written(tmp_path / "t")
    victim = next(p for p in path.iterdir() if p.suffix == ".cw")
    data = bytearray(victim.read_bytes())
    data[4096 + 3] ^= 1
    victim.write_bytes(data)
    shards = TokenShards(path)
    with pytest.raises(FormatError, match=r"\[digest\]"):
        [shards[i] for i in range(5)]
    victim.write_bytes(data[:-1])
    with pytest.raises(FormatError):
        [TokenShards(path)[i] for i in range(5)]


def test_layouts_are_read_strictly() -> None:
    good = Layout("image", (4,), (2, 2), (3, 8, 8))
    assert Layout.from_json(good.to_json(), "here") == good and good.bits == 2
    for wrong in ({"grid": [1 << 13, 1 << 13]}, {"levels": []}, {"shape": [1] * 6}, {"grid": [True]}, {"signal": "x"}, {"shape": "x"}):
        with pytest.raises(FormatError):
            Layout.from_json({**good.to_json(), **wrong}, "here")
