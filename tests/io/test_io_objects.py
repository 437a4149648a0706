"""Quantizers and codes of the whole catalog: saved, loaded, and refused where anything in them is impossible."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import io_samples
import numpy as np
import pytest
import torch
from io_damage import Parts

import codeword
from codeword import catalog
from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.io import objects, tensors
from codeword.quantizer import Codes, EntropyCoded, Quantizer

NAMES = io_samples.names()
PLAIN = [name for name in NAMES if not isinstance(io_samples.quantizer(name), EntropyCoded)]
"""Not entropy coded: tests/quantizers/test_ecsq.py asks the same of streams."""
SAMPLES = {sample.name: sample for sample in io_samples.single_files()}


def code_of(path: Path, data: bytes, read: Callable[[Path], Any] = objects.load) -> str:
    path.write_bytes(data)
    try:
        read(path)
    except FormatError as error:
        return error.code
    return "accepted"


# ---------------------------------------------------------------------- what must work


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_does_the_same(name, tmp_path):
    one = io_samples.quantizer(name)
    one.save(tmp_path / "a.cw")
    two = codeword.load(tmp_path / "a.cw")
    assert type(two) is type(one) and two.fingerprint == one.fingerprint and two.fitted
    x = io_samples.rows(one.dim, 50, 3)
    for a, b in zip(one.encode(x), two.encode(x)):
        assert (a is None and b is None) or np.array_equal(a, b)
    codes = one.encode(x)
    assert np.array_equal(one.decode(codes), two.decode(codes))
    two.save(tmp_path / "b.cw")
    assert (tmp_path / "a.cw").read_bytes() == (tmp_path / "b.cw").read_bytes()
    trained = [{k: (v.dtype, v.requires_grad) for k, v in each.named_parameters()} for each in (one, two)]
    assert trained[0] == trained[1]
    two.fit(io_samples.rows(one.dim, 30, 4))  # and it is as alive as the first
    assert np.isfinite(two.decode(two.encode(x))).all()


@pytest.mark.parametrize("name", NAMES)
def test_unfitted_ones_come_back_unfitted(name, tmp_path):
    entry = catalog.entry(name)
    one = catalog.make(entry.example_spec, entry.example_dim)
    one.save(tmp_path / "a.cw")
    two = objects.load(tmp_path / "a.cw")
    assert two.fitted == one.fitted and two.fingerprint == one.fingerprint
    assert one.fingerprint != io_samples.quantizer(name).fingerprint or not one.learns


@pytest.mark.parametrize("name", NAMES)
def test_the_public_package_opens_the_file(name, tmp_path):
    import safetensors.torch
    one = io_samples.quantizer(name)
    one.save(tmp_path / "a.cw")
    found = safetensors.torch.load_file(tmp_path / "a.cw")
    expected = one.state_dict()
    assert {key for key in found if not key.startswith("_pad.")} == set(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (2, 3), (), (3, 0)])
def test_codes_of_any_shape(name, shape, tmp_path):
    one = io_samples.quantizer(name)
    codes = one.encode(io_samples.rows(one.dim, math.prod(shape), 5).reshape(*shape, one.dim))
    objects.save_codes(tmp_path / "c.cw", codes, one)
    for given in (one, None):
        found = objects.load_codes(tmp_path / "c.cw", given)
        assert found.indices.dtype == one.index_dtype
        for a, b in zip(codes, found):
            assert (a is None and b is None) or np.array_equal(np.asarray(a), b.numpy())
    kept = tensors.read_header(tmp_path / "c.cw")
    stored = sum(spec.stop - spec.start for spec in kept.specs.values())
    assert stored == one.stored_bytes(math.prod(shape))  # counted bits are stored bits


def test_codes_with_lengths(tmp_path):
    one = codeword.make("vq:codebook_size=5", 4).fit(io_samples.rows(4))
    out = one(torch.from_numpy(io_samples.rows(4, 6)), mask=torch.tensor([True, False, True, True, False, True]))
    objects.save_codes(tmp_path / "c.cw", out.codes, one)
    found = objects.load_codes(tmp_path / "c.cw", one)
    assert torch.equal(found.lengths, out.codes.lengths) and found.lengths.dtype == out.codes.lengths.dtype
    assert torch.equal(one.decode(found), one.decode(out.codes))


def test_many_codes_pass_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "_UNPACK_BITS", 300)
    one = codeword.make("pq:num_codebooks=3,codebook_size=7", 6).fit(io_samples.rows(6))
    codes = one.encode(io_samples.rows(6, 501))
    objects.save_codes(tmp_path / "c.cw", codes, one)
    assert np.array_equal(objects.load_codes(tmp_path / "c.cw", one).indices.numpy(), codes.indices)


def test_fingerprint_follows_configuration_and_values_but_not_spelling():
    x = io_samples.rows(6)
    one = codeword.make("vq:codebook_size=4", 6).fit(x)
    assert one.fingerprint == codeword.make("vq:codebook_size=4,seed=0", 6).fit(x.astype(np.float64)).fingerprint
    assert one.fingerprint != codeword.make("vq:codebook_size=4,seed=1", 6).fit(x).fingerprint
    moved = codeword.make("vq:codebook_size=4", 6).fit(x)
    with torch.no_grad():
        moved.codebook[3, 5] += 1e-6
    assert one.fingerprint != moved.fingerprint


def test_an_argument_that_a_later_release_adds_changes_no_old_file(tmp_path, monkeypatch):
    """As if ``seed`` had not existed when the first file was written."""
    x = io_samples.rows(6)
    plain, seeded = (codeword.make(f"pq:num_codebooks=2,codebook_size=4,seed={seed}", 6).fit(x) for seed in (0, 1))
    with_seed = Parts(written(plain, tmp_path / "f"))
    monkeypatch.setattr(codeword.PQ, "later_arguments", {"seed": 0})
    old = written(plain, tmp_path / "f")
    assert "seed" in with_seed.header["object"]["config"] and "seed" not in Parts(old).header["object"]["config"]
    loaded = objects.load(tmp_path / "f")
    assert loaded.seed == 0 and loaded.fingerprint == plain.fingerprint and written(loaded, tmp_path / "g") == old
    written(seeded, tmp_path / "f")
    assert objects.load(tmp_path / "f").seed == 1
    monkeypatch.undo()
    assert code_of(tmp_path / "f", old) == "missing-key"


def written(one: Quantizer, path: Path) -> bytes:
    one.save(path)
    return path.read_bytes()


def test_only_quantizers_of_the_catalog_are_saved(tmp_path):
    class Mine(codeword.VQ):
        pass

    for one in (Mine(dim=2, codebook_size=2), codeword.VQ(dim=objects.MAX_DIM + 1, codebook_size=1)):
        with pytest.raises(CodewordError):
            one.save(tmp_path / "a.cw")
    assert not list(tmp_path.iterdir())


def test_loading_as_another_class_is_refused(tmp_path):
    io_samples.quantizer("vq").save(tmp_path / "a.cw")
    with pytest.raises(FormatError, match="kind"):
        codeword.PQ.load(tmp_path / "a.cw")


def test_codes_of_nothing_but_one_symbol_are_bounded(tmp_path):
    one = codeword.VQ(dim=2, codebook_size=1).fit(io_samples.rows(2))
    objects.save_codes(tmp_path / "c.cw", one.encode(io_samples.rows(2, 1000)), one)
    assert objects.load_codes(tmp_path / "c.cw", one).indices.shape == (1000, 1)
    with pytest.raises(Unsupported):
        objects.save_codes(tmp_path / "d.cw", Codes(torch.zeros(1, 1, dtype=torch.uint8).expand((1 << 24) + 1, 1)), one)


def test_wrong_partner(tmp_path):
    one, two = io_samples.quantizer("vq"), codeword.make("vq:codebook_size=12,seed=9", 6).fit(io_samples.rows(6))
    objects.save_codes(tmp_path / "c.cw", one.encode(io_samples.rows(6, 5)), one)
    with pytest.raises(FormatError) as found:
        objects.load_codes(tmp_path / "c.cw", two)
    assert found.value.code == "fingerprint"


# ---------------------------------------------------------------------- what must be refused


def bad_quantizers(data: bytes) -> Iterator[tuple[str, bytes, set[str]]]:
    """(what, file, codes allowed) with right digests: only the reader of objects can object."""

    def changed(change: Callable[[Parts], Any]) -> bytes:
        parts = Parts(data)
        change(parts)
        return parts.seal()

    def record(**fields: Any) -> bytes:
        return changed(lambda p: p.header["object"].update(fields))

    def config(**fields: Any) -> bytes:
        return changed(lambda p: p.header["object"]["config"].update(fields))

    parts = Parts(data)
    for name in ("", "nothing", "../vq", "os", "os:system", "vq:VQ", "quantizers.vq", "__init__", "VQ", " vq", "vq\n", "builtins.eval"):
        yield f"named {name!r}", record(quantizer=name), {"name"}
    yield "name a number", record(quantizer=1), {"header"}
    yield "config a list", record(config=[]), {"header"}
    yield "structure a list", record(structure=[]), {"header"}
    yield "object without config", changed(lambda p: p.header["object"].pop("config")), {"missing-key"}
    yield "object with more", record(module="os"), {"unknown-key"}
    yield "structure empty", record(structure={}), {"config"}
    yield "fitted a string", changed(lambda p: p.header["object"]["structure"].update(fitted="yes")), {"config"}
    yield "fingerprint wrong", changed(lambda p: p.header.update(fingerprint="0" * 16)), {"fingerprint"}
    yield "fingerprint a number", changed(lambda p: p.header.update(fingerprint=0)), {"header"}
    yield "header with more", changed(lambda p: p.header.update(code="import os")), {"unknown-key"}
    yield "kind codes", changed(lambda p: p.header.update(kind="codes")), {"kind"}
    yield "kind a list", changed(lambda p: p.header.update(kind=["quantizer"])), {"kind"}
    yield "argument unknown", config(__class__="x"), {"unknown-key"}
    yield "argument self", config(self=1), {"unknown-key"}
    deep: Any = parts.header["object"]
    for _ in range(6):
        deep = {"quantizer": "rotated", "config": {"quantizer": deep, "seed": 0}, "structure": {"fitted": True}}
    yield "nested six deep", changed(lambda p: p.header.update(object=deep)), {"limit"}
    for key, value in parts.header["object"]["config"].items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            continue
        for other in ("8x", None, [1], {"a": 1}, {"quantizer": "vq"}, True):
            if type(other) is not type(value):
                # None is another value, not another type, where the argument allows it.
                yield f"{key}={other!r}", config(**{key: other}), {"config", "missing-key", "limit",
                                                                   *(("fingerprint", "shape") if other is None else ())}
        if isinstance(value, int) and key != "seed":
            for number in (-1, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1):
                # An argument that only steers fitting may be any number; then the fingerprint is the one to answer.
                yield f"{key}={number}", config(**{key: number}), {"config", "limit", "shape", "missing-key", "unknown-key", "fingerprint"}
    contents = parts.contents()
    for name, (dtype, shape, raw) in contents.items():
        less = {k: v for k, v in contents.items() if k != name}
        yield f"without {name}", changed(lambda p, c=less: p.rebuild(c)), {"missing-key"}
        if math.prod(shape):
            cut = {**contents, name: (dtype, [math.prod(shape) - 1], raw[:-tensors.ITEMSIZE[dtype]])}
            yield f"{name} cut", changed(lambda p, c=cut: p.rebuild(c)), {"shape"}
            flat = {**contents, name: (dtype, [1, *shape], raw)}
            yield f"{name} of other shape", changed(lambda p, c=flat: p.rebuild(c)), {"shape"}
            other = {"F32": "I32", "F64": "I64", "I64": "F64", "F16": "I16", "BF16": "F16"}.get(dtype)
            if other:
                cast = {**contents, name: (other, shape, raw)}
                yield f"{name} of other dtype", changed(lambda p, c=cast: p.rebuild(c)), {"dtype"}
            if dtype == "F32":
                for value in (math.nan, math.inf, -math.inf):
                    broken = {**contents, name: (dtype, shape, np.float32(value).tobytes() + raw[4:])}
                    yield f"{name} with {value}", changed(lambda p, c=broken: p.rebuild(c)), {"value"}
    more = {**contents, "zzz": ("F32", [1], bytes(4))}
    yield "one more tensor", changed(lambda p: p.rebuild(more)), {"unknown-key"}


@pytest.mark.parametrize("name", NAMES)
def test_impossible_quantizers(name, tmp_path):
    wrong = []
    for what, data, codes in bad_quantizers(SAMPLES[f"quantizer-{name}"].data):
        found = code_of(tmp_path / "f", data)
        if found not in codes:
            wrong.append((what, found, codes))
    assert not wrong


def nested(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"quantizer": name, "config": config, "structure": {"fitted": True}}


WIDE = nested("pvq", {"dim": objects.MAX_DIM, "group": 8, "pulses": 2, "gain_bits": 1})
NARROW = nested("pq", {"dim": 1, "num_codebooks": 1, "codebook_size": 65536, "iterations": 25, "seed": 0})


@pytest.mark.parametrize(("bomb", "codes"), [
    (nested("residual", {"quantizers": [WIDE] * 3000}), {"limit"}),
    (nested("product", {"quantizers": [WIDE] * 2, "groups": None}), {"limit"}),
    (nested("product", {"quantizers": WIDE, "groups": 65536}), {"limit", "config"}),
    (nested("product", {"quantizers": NARROW, "groups": 1 << 30}), {"limit", "config"}),
    (nested("residual", {"quantizers": [NARROW] * 7_000}), {"limit"}),
    (nested("rabitq", {"dim": 1 << 40, "code_bits": 4, "fast": False, "slack": 1.9, "seed": 0}), {"limit"}),
    (nested("vq", {"dim": objects.MAX_DIM, "codebook_size": 1 << 24}), {"missing-key"}),
    (nested("fsq", {"dim": 8, "grid": [256] * 50_000}), {"config"}),
])
def test_configurations_that_ask_for_the_world_get_nothing(bomb, codes, tmp_path):
    parts = Parts(SAMPLES["quantizer-pq"].data)
    parts.header["object"] = bomb
    data = parts.rebuild({}).seal()
    start = time.process_time()
    assert code_of(tmp_path / "f", data) in codes
    assert time.process_time() - start < 2
    tracemalloc.start()
    try:
        found = code_of(tmp_path / "f", data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found in codes
    assert peak < 2 * len(data) + (16 << 20)


def bad_codes(data: bytes, one: Quantizer) -> Iterator[tuple[str, bytes, set[str]]]:
    def changed(change: Callable[[Parts], Any]) -> bytes:
        parts = Parts(data)
        change(parts)
        return parts.seal()

    def header(**fields: Any) -> bytes:
        return changed(lambda p: p.header.update(fields))

    def with_(**more: tuple[str, list[int], bytes]) -> bytes:
        return changed(lambda p: p.rebuild({**p.contents(), **more}))

    parts = Parts(data)
    if "stream" in parts.contents():  # entropy coded: tests/quantizers/test_ecsq.py
        return
    rows, bits = parts.contents()["indices"][1][0], sum(one.widths)
    raw = parts.values("indices")
    yield "twice the rows", header(shape=[26]), {"shape"}
    yield "one row less", header(shape=[12]), {"shape", "value"}
    yield "no rows", header(shape=[0]), {"shape"}
    yield "negative rows", header(shape=[-13]), {"shape"}
    yield "nine axes", header(shape=[1] * 9), {"shape"}
    yield "shape wraps", header(shape=[1 << 32, 1 << 32]), {"limit"}
    yield "2^40 rows", header(shape=[1 << 40]), {"shape"}
    yield "shape a number", header(shape=13), {"header"}
    for levels in ([], [[0, 1]], [[-1, 1]], [[2]], [[2, 1, 1]], [[2.0, 1]], [[True, 1]], [2], ["2"], [[2, 1], [2, 1]], {"a": 1}):
        yield f"levels {levels!r}", header(levels=levels), {"header"}
    yield "levels 2^40 positions", header(levels=[[2, 1 << 40]]), {"limit"}
    yield "symbols without bits", changed(lambda p: p.header.update(levels=[[1, 1]], shape=[1 << 40]) or p.rebuild(
        {"indices": ("U8", [0], b"")})), {"limit"}
    yield "symbols without bits, many positions", changed(lambda p: p.header.update(levels=[[1, 1 << 18]], shape=[1 << 28]) or p.rebuild(
        {"indices": ("U8", [0], b"")})), {"limit"}
    yield "fingerprint short", header(fingerprint="0" * 15), {"header"}
    yield "fingerprint in capitals", header(fingerprint="A" * 16), {"header"}
    yield "dim a string", header(dim="6"), {"header"}
    yield "kind quantizer", header(kind="quantizer"), {"kind"}
    yield "more in the header", header(x=1), {"unknown-key"}
    yield "without shape", changed(lambda p: p.header.pop("shape")), {"missing-key"}
    yield "bit string cut", with_(indices=("U8", [rows - 1], raw[:-1])), {"shape"}
    yield "bit string longer", with_(indices=("U8", [rows + 1], raw + b"\0")), {"shape"}
    yield "bit string of int8", with_(indices=("I8", [rows], raw)), {"dtype"}
    yield "bit string two-dimensional", with_(indices=("U8", [1, rows], raw)), {"shape"}
    yield "no indices", changed(lambda p: p.rebuild({k: v for k, v in p.contents().items() if k != "indices"})), {"missing-key"}
    yield "unknown tensor", with_(extra=("U8", [1], b"\0")), {"unknown-key"}
    if 13 * bits % 8:
        yield "padding bits", with_(indices=("U8", [rows], raw[:-1] + bytes([raw[-1] | 0x80]))), {"value"}
    if any(level & (level - 1) for level in one.levels):
        full = bytearray(b"\xff" * rows)
        full[-1] >>= -13 * bits % 8
        yield "all bits set", with_(indices=("U8", [rows], bytes(full))), {"value"}
    yield "lengths too long", with_(lengths=("U8", [13], bytes([len(one.levels) + 1] * 13))), {"value"}
    yield "lengths of int64", with_(lengths=("I64", [13], bytes(8 * 13))), {"dtype"}
    yield "lengths of other shape", with_(lengths=("U8", [12], bytes(12))), {"shape"}
    yield "side of other shape", with_(side=("F32", [12, 2], bytes(8 * 12))), {"shape"}
    yield "side of integers", with_(side=("I32", [13, 2], bytes(8 * 13))), {"dtype"}
    yield "side without floats", with_(side=("F32", [13, 0], b"")), {"shape"}
    yield "side with NaN", with_(side=("F32", [13, 1], np.full(13, math.nan, np.float32).tobytes())), {"value"}


@pytest.mark.parametrize("name", PLAIN)
def test_impossible_codes(name, tmp_path):
    one, wrong = io_samples.quantizer(name), []
    for what, data, codes in bad_codes(SAMPLES[f"codes-{name}"].data, one):
        found = code_of(tmp_path / "f", data, objects.load_codes)
        if found not in codes:
            wrong.append((what, found, codes))
    assert not wrong


@pytest.mark.parametrize("name", PLAIN)
def test_codes_that_contradict_their_own_quantizer(name, tmp_path):
    one = io_samples.quantizer(name)
    parts = Parts(SAMPLES[f"codes-{name}"].data)

    def read(path: Path) -> Codes:
        return objects.load_codes(path, one)

    for change in ({"dim": one.dim + 1}, {"quantizer": "other"}, {"levels": [[2, sum(one.widths)]]}):
        again = Parts(SAMPLES[f"codes-{name}"].data)
        again.header.update(change)
        assert code_of(tmp_path / "f", again.seal(), read) == ("shape" if again.header != parts.header else "accepted")
    contents = parts.contents()
    if one.side_count:
        del contents["side"]
    else:
        contents["side"] = ("F32", [13, 1], bytes(52))
    assert code_of(tmp_path / "f", parts.rebuild(contents).seal(), read) == "shape"


# ---------------------------------------------------------------------- joined codes


@pytest.mark.parametrize("name", NAMES)
def test_joined_codes_are_the_file_of_all_rows(name, tmp_path):
    """Parts that fill whole bytes give, byte for byte, what saving all rows at once gives."""
    one = io_samples.quantizer(name)
    codes = [one.encode(torch.from_numpy(io_samples.rows(one.dim, 8 + 8 * i + 3 * (i == 2)))) for i in range(3)]
    parts = [objects.codes_to_parts(part, one) for part in codes]
    objects.join_codes(tmp_path / "joined.cw", [lambda part=part: part for part in parts], one)
    whole = Codes(*(None if column[0] is None else torch.cat(column) for column in zip(*codes, strict=True)))
    objects.save_codes(tmp_path / "whole.cw", whole, one)
    assert (tmp_path / "joined.cw").read_bytes() == (tmp_path / "whole.cw").read_bytes()


def test_parts_that_do_not_follow_are_refused(tmp_path):
    one, other = io_samples.quantizer("pq"), io_samples.quantizer("vq")
    parts = [objects.codes_to_parts(q.encode(io_samples.rows(q.dim, n)), q) for q, n in ((one, 8), (other, 8))]
    for given in ([], parts, parts[1:]):
        with pytest.raises(CodewordError):
            objects.join_codes(tmp_path / "joined.cw", [lambda part=part: part for part in given], one)
    assert not (tmp_path / "joined.cw").exists()
