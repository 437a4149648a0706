"""The commands as a user runs them: what they print, what they leave, what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import codeword
from codeword.cli import main

X = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("base.npy", X[:280])
    np.save("queries.npy", X[280:])
    Path("base.txt").write_text("".join(f"sentence {i}\n" for i in range(280)))
    return tmp_path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], here: Path) -> Any:
    def run(*words: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert main([str(word) for word in words]) == code
        return capsys.readouterr()
    return run


def summary(result: tuple[str, str]) -> dict[str, Any]:
    assert result[0].count("\n") == 1
    return json.loads(result[0])


def test_help_imports_neither_torch_nor_numpy() -> None:
    code = ("import sys; from codeword.cli import main; assert main(['--help']) == 0; "
            "heavy = {'torch', 'numpy', 'rich', 'matplotlib', 'pyarrow'} & sys.modules.keys(); assert not heavy, heavy")
    env = {**os.environ, "PYTHONPATH": str(Path(codeword.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("compare", "fit", "encode", "decode", "index", "inspect", "verify", "doctor", "places", "claims", "reproduce", "demo"):
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("words", [(name,) for name in ("compare", "fit", "encode", "decode", "inspect", "verify", "doctor", "places",
                                                        "claims",
                                                        "reproduce", "demo")]
                         + [("index", name) for name in ("build", "add", "remove", "search", "tune", "info")], ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(words: tuple[str, ...], cli: Any) -> None:
    out, _ = cli(*words, "--help")
    assert f"Example: codeword {' '.join(words)} " in " ".join(out.split()) + " "
    assert "--json" in out


def test_fit_encode_decode(cli: Any, here: Path) -> None:
    fitted = summary(cli("fit", "base.npy", "--quantizer", "pq:num_codebooks=4,codebook_size=16,iterations=3", "-o", "q.cw", "--json"))
    assert fitted["bits"] == 1.0 and fitted["rows"] == 280
    encoded = summary(cli("encode", "q.cw", "base.npy", "-o", "codes.cw", "--json"))
    assert encoded["rows"] == 280 and encoded["bytes_per_vector"] == 2.0 and encoded["fingerprint"] == fitted["fingerprint"]
    assert not (here / "codes.cw.job").exists()
    out, _ = cli("decode", "q.cw", "codes.cw", "-o", "decoded.npy")
    assert "280 × 16 float32" in out
    quantizer = codeword.load("q.cw")
    np.testing.assert_array_equal(np.load("decoded.npy"), quantizer.decode(quantizer.encode(X[:280])))


def test_encode_in_parts_equals_encode_at_once(cli: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from codeword.cli import quantize
    cli("fit", "base.npy", "--quantizer", "rabitq:code_bits=4", "-o", "q.cw")
    cli("encode", "q.cw", "base.npy", "-o", "once.cw")
    monkeypatch.setattr(quantize, "UNIT_BYTES", 4 * 16 * 37)
    (here / "shards").mkdir()
    for i, part in enumerate(np.array_split(X[:280], 3)):
        np.save(here / "shards" / f"{i}.npy", part)
    cli("encode", "q.cw", "shards", "-o", "parts.cw")
    assert (here / "once.cw").read_bytes() == (here / "parts.cw").read_bytes()


def test_an_interrupted_encode_resumes_to_the_same_bytes(cli: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from codeword.cli import quantize
    from codeword.quantizers.pq import PQ
    cli("fit", "base.npy", "--quantizer", "pq:num_codebooks=4,codebook_size=16,iterations=3", "-o", "q.cw")
    cli("encode", "q.cw", "base.npy", "-o", "quiet.cw")
    monkeypatch.setattr(quantize, "UNIT_BYTES", 4 * 16 * 50)
    encode, calls = PQ.encode, []

    def interrupted(self: PQ, x: Any, **options: Any) -> Any:
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, x, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PQ, "encode", interrupted)
        _, err = cli("encode", "q.cw", "base.npy", "-o", "codes.cw", code=130)
    assert "interrupted" in err and "Traceback" not in err and not (here / "codes.cw").exists()
    _, err = cli("encode", "q.cw", "base.npy", "-o", "codes.cw", code=2)
    assert "--resume" in err
    np.save("base.npy", X[:280] + 1)
    _, err = cli("encode", "q.cw", "base.npy", "-o", "codes.cw", "--resume", code=2)
    assert "the input vectors0 has changed since, or is another file" in err
    np.save("base.npy", X[:280])
    assert summary(cli("encode", "q.cw", "base.npy", "-o", "codes.cw", "--resume", "--json"))["parts_resumed"] == 2
    assert (here / "codes.cw").read_bytes() == (here / "quiet.cw").read_bytes()


def test_dry_run_writes_nothing(cli: Any, here: Path) -> None:
    cli("fit", "base.npy", "--quantizer", "pq:num_codebooks=4,codebook_size=16,iterations=2", "-o", "q.cw")
    said = summary(cli("encode", "q.cw", "base.npy", "-o", "codes.cw", "--dry-run", "--json"))
    assert said["bytes"] == 560 and said["parts"] == 1 and not list(here.glob("codes*"))


def test_compare_resumes_and_refuses_strangers(cli: Any, here: Path) -> None:
    words = ("compare", "base.npy", "--queries", "queries.npy", "--quantizers",
             "pq:num_codebooks=8,codebook_size=16,iterations=2,ecsq,vq-whole",
             "--bits", "2", "--out", "cmp")
    out, _ = cli(*words)
    assert "2 bits a dimension" in out and "left out: vq-whole at 2 bits: one codebook for whole vectors would need 2^32 codewords" in out
    assert "best at 2 bits: pq:num_codebooks=8" in out and (here / "cmp/report.html").exists()
    first = json.loads((here / "cmp/results.json").read_text())["rows"]
    again = summary(cli(*words, "--resume", "--json"))
    assert again["rows"] == first  # measured times included: nothing ran twice
    _, err = cli(*words, "--seed", "1", "--resume", code=2)
    assert "another job: seed" in err
    more = summary(cli("compare", "base.npy", "--queries", "queries.npy", "--quantizers", "ecsq", "--bits", "1,2", "--out", "cmp",
                       "--resume", "--json"))
    assert [row["rate"] for row in more["rows"]] == [1, 2] and more["rows"][1] == first[1]


def test_a_finished_comparison_makes_room_and_an_unfinished_one_does_not(cli: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from codeword.report import compare as room
    words = ("compare", "base.npy", "--quantizers", "ecsq,ecsq-pca", "--bits", "2", "--json")
    first = summary(cli(*words))
    again = summary(cli(*words))
    assert [row["relative_error"] for row in again["rows"]] == [row["relative_error"] for row in first["rows"]]
    assert again["rows"][0]["fit_seconds"] != first["rows"][0]["fit_seconds"]  # measured anew
    other = summary(cli(*words, "--seed", "1"))
    assert json.loads(Path("compare/results.json").read_text())["data"]["seed"] == 1 and other["data"]["seed"] == 1
    measure, calls = room.measure, []

    def interrupted(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*given)

    with monkeypatch.context() as patch:
        patch.setattr(room, "measure", interrupted)
        cli(*words, "--seed", "2", code=130)
    assert json.loads(Path("compare/results.json").read_text())["data"]["seed"] == 1
    _, err = cli(*words, "--seed", "2", code=2)
    assert "resume it (--resume)" in err
    _, err = cli(*words, code=2)
    assert "another job: seed is 2 there and 0 here" in err
    assert summary(cli(*words, "--seed", "2", "--resume"))["data"]["seed"] == 2
    assert summary(cli(*words))["data"]["seed"] == 0


def test_bad_input_leaves_nothing_that_blocks_the_corrected_command(cli: Any, here: Path) -> None:
    cli("fit", "base.npy", "--quantizer", "pq:num_codebooks=4,codebook_size=16,iterations=2", "-o", "q.cw")
    bad = X[:280].copy()
    bad[3, 2] = np.nan
    np.save("base.npy", bad)
    for words, reason in ((("encode", "q.cw", "base.npy", "-o", "codes.cw"), "row 3 of"),
                          (("compare", "base.npy", "--quantizers", "ecsq", "--bits", "2"), "row 3 of"),
                          (("compare", "base.npy", "--metric", "l3"), "metric='l3'"),
                          (("compare", "base.npy", "--quantizers", "rotated(nothing)"), "unknown quantizer 'nothing'"),
                          (("compare", "base.npy", "--quantizers", "pq:bogus=1"), "pq has no option 'bogus'")):
        assert reason in cli(*words, code=2)[1]
        assert not (here / "codes.cw.job").exists() and not (here / "compare").exists()
    np.save("base.npy", X[:280])
    cli("encode", "q.cw", "base.npy", "-o", "codes.cw")
    cli("compare", "base.npy", "--quantizers", "ecsq", "--bits", "2")


def test_a_comparison_without_time_says_so(cli: Any) -> None:
    done = summary(cli("compare", "base.npy", "--quantizers", "ecsq", "--bits", "1", "--out", "none", "--budget", "0", "--json"))
    assert done["rows"][0]["left_out"] == "the budget of 0 s was spent before it"


def test_index_build_search_add_remove_tune_info(cli: Any, here: Path) -> None:
    built = summary(cli("index", "build", "base.npy", "-o", "a.index", "--quantizer", "rabitq:bits=8", "--nlist", "4", "--json"))
    assert built["vectors"] == 280 and built["bytes_per_vector"] > 16
    out, _ = cli("index", "search", "a.index", "base.npy", "--rows", "7,3", "-k", "2", "--nprobe", "4", "--texts", "base.txt",
                 "--query-texts", "base.txt")
    assert "query 7: sentence 7" in out and "7  sentence 7" in out.split("query 3")[0] and "query 3: sentence 3" in out
    found = summary(cli("index", "search", "a.index", "queries.npy", "--nprobe", "4", "--base", "base.npy", "--out", "hits.npz", "--json"))
    assert found["recall"] > 0.9 and np.load("hits.npz")["ids"].shape == (20, 10)
    true = np.square(X[280:, None] - X[None, :280]).sum(-1).argsort(1)[:, :10]
    np.save("truth.npy", true)
    assert summary(cli("index", "search", "a.index", "queries.npy", "--nprobe", "4", "--truth", "truth.npy",
                       "--json"))["recall"] == found["recall"]
    tuned = summary(cli("index", "tune", "a.index", "queries.npy", "--base", "base.npy", "--recall", "0.5", "--json"))
    assert tuned["reached"] and 1 <= tuned["nprobe"] <= 4
    assert summary(cli("index", "info", "a.index", "--json"))["nprobe"] == tuned["nprobe"]
    assert summary(cli("index", "add", "a.index", "queries.npy", "--json"))["vectors"] == 300
    assert summary(cli("index", "remove", "a.index", "280-298,5", "6", "--json")) == {"index": "a.index", "removed": 21, "vectors": 279}
    _, err = cli("index", "remove", "a.index", "5", code=2)
    assert "id 5, which is not stored" in err
    assert summary(cli("index", "remove", "a.index", "5", "--ignore-missing", "--json"))["removed"] == 0
    out, _ = cli("index", "info", "a.index")
    assert "279 of width 16" in out
    _, err = cli("index", "build", "base.npy", "-o", "a.index", code=2)
    assert "a.index exists" in err


def test_build_tells_what_it_made(cli: Any, here: Path) -> None:
    np.save("few.npy", X[:3])
    out, _ = cli("index", "build", "few.npy", "-o", "few.index", "--nlist", "1000", "--quantizer", "rabitq:code_bits=8")
    assert "3 lists instead of 1,000, as there are no more rows" in out and " times more than float32; " in out
    assert summary(cli("index", "info", "few.index", "--json"))["nlist"] == 3 and "3, 3 visited" in cli("index", "info", "few.index")[0]
    out, _ = cli("index", "build", "base.npy", "-o", "all.index", "--nlist", "1", "--quantizer", "rabitq:code_bits=1")
    assert ", 1 list\n" in out and " times less than float32; " in out


def test_ids_of_ones_own(cli: Any, here: Path) -> None:
    Path("ids.txt").write_text("".join(f"{1000 + i}\n" for i in range(280)))
    cli("index", "build", "base.npy", "-o", "b.index", "--quantizer", "rabitq:bits=8", "--ids", "ids.txt")
    assert summary(cli("index", "search", "b.index", "base.npy", "--rows", "4", "-k", "1", "--json"))["hits"][0]["ids"] == [1004]
    _, err = cli("index", "add", "b.index", "base.npy", "--ids", "ids.txt", code=2)
    assert "id 1000, which is stored already" in err
    assert summary(cli("index", "add", "b.index", "base.npy", "--ids", "ids.txt", "--replace", "--json"))["vectors"] == 280
    Path("ids.txt").write_text("1\nx\n")
    _, err = cli("index", "add", "b.index", "base.npy", "--ids", "ids.txt", code=2)
    assert "line 2 of ids.txt is 'x'" in err


def test_recall_against_a_base_needs_its_ids(cli: Any, here: Path) -> None:
    Path("ids.txt").write_text("".join(f"{7 * i + 1000}\n" for i in range(280)))
    cli("index", "build", "base.npy", "-o", "b.index", "--quantizer", "rabitq:bits=8", "--nlist", "4", "--ids", "ids.txt")
    before = {path.name: path.read_bytes() for path in (here / "b.index").iterdir()}
    for words in (("search",), ("tune", "--recall", "0.5")):
        _, err = cli("index", words[0], "b.index", "queries.npy", *words[1:], "--base", "base.npy", code=2)
        assert "280 ids 1000..2953, which are not the row numbers 0..279 of base.npy" in err and "--base-ids" in err
    assert before == {path.name: path.read_bytes() for path in (here / "b.index").iterdir()}
    asked = ("b.index", "queries.npy", "--base", "base.npy", "--base-ids", "ids.txt", "--json")
    assert summary(cli("index", "search", *asked, "--nprobe", "4"))["recall"] > 0.9
    assert summary(cli("index", "tune", *asked, "--recall", "0.9"))["reached"]
    cli("index", "remove", "b.index", "1000", "1007")  # rows of the base that are gone from the index cannot be true neighbours
    found = summary(cli("index", "search", *asked, "--nprobe", "4", "-k", "278"))
    assert found["recall"] == 1 and all({1000, 1007}.isdisjoint(hit["ids"]) for hit in found["hits"])
    cli("index", "add", "b.index", "queries.npy")
    _, err = cli("index", "search", *asked, code=2)
    assert "ids.txt lacks id 2954" in err


def test_inspect_and_verify(cli: Any, here: Path) -> None:
    cli("fit", "base.npy", "--quantizer", "pq:num_codebooks=4,codebook_size=4,iterations=2", "-o", "q.cw")
    assert "280 vectors of width 16, float32" in cli("inspect", "base.npy")[0]
    assert summary(cli("inspect", "q.cw", "--json"))["kind"] == "quantizer"
    assert "clean" in cli("verify", "q.cw")[0]
    data = bytearray((here / "q.cw").read_bytes())
    data[-1] ^= 1
    (here / "q.cw").write_bytes(data)
    damaged = cli("verify", "q.cw", "--json", code=1)
    assert summary(damaged)["files"]["q.cw"][0]["code"] == "digest"
    (here / "q.cw").write_bytes(b"hello, this is no file of codeword's")
    cli("verify", "q.cw", code=2)


@pytest.mark.parametrize(("words", "message"), [
    (("compare", "nothing.npy"), "nothing.npy cannot be read: No such file"),
    (("compare", "base.npy", "--bits", "a"), "--bits is 'a'"),
    (("compare", "base.npy", "--quantizers", ",,"), "--quantizers is ',,'"),
    (("fit", "base.npy", "--quantizer", "pq:bits=", "-o", "q.cw"), "got bits=''; a finite number"),
    (("fit", "base.npy", "--quantizer", "xx", "-o", "q.cw"), "unknown quantizer 'xx'; the catalog has"),
    (("fit", "base.npy", "-o", "no/such/folder/q.cw"), "No such file or directory"),
    (("encode", "base.npy", "base.npy", "-o", "c.cw"), "base.npy"),
    (("index", "search", "base.npy", "base.npy"), "base.npy"),
    (("index", "remove", "a.index"), "ids are needed once"),
    (("reproduce", "nothing"), "nothing"),
])
def test_refusals_are_one_line_and_code_2(words: tuple[str, ...], message: str, cli: Any) -> None:
    out, err = cli(*words, code=2)
    assert message in err and err.startswith("codeword: ") and err.count("\n") == 1 and not out and "Traceback" not in err


def test_bad_values_name_file_and_row(cli: Any, here: Path) -> None:
    bad = X[:280].copy()
    bad[123, 4] = np.nan
    np.save("bad.npy", bad)
    cli("fit", "base.npy", "--quantizer", "rabitq:code_bits=4", "-o", "q.cw")
    for words in (("fit", "bad.npy", "-o", "r.cw"), ("encode", "q.cw", "bad.npy", "-o", "c.cw"),
                  ("index", "build", "bad.npy", "-o", "x.index"),
                  ("compare", "bad.npy", "--out", "c")):
        _, err = cli(*words, code=2)
        assert "row 123 of bad.npy has NaN or infinity" in err


def test_usage_errors_and_debug(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = cli("compare", code=2)
    assert "Missing argument" in err
    _, err = cli("nonsense", code=2)
    assert "No such command" in err
    monkeypatch.setenv("CODEWORD_DEBUG", "1")
    from codeword.errors import FormatError
    with pytest.raises(FormatError):
        main(["compare", "nothing.npy"])


def test_doctor_knows_the_machine(cli: Any) -> None:
    found = summary(cli("doctor", "--json"))
    assert found["ops"]["nearest"] in ("native", "reference") and found["self_check"] == {} and found["threads"] >= 1
    assert "nearest" in cli("doctor")[0]


def test_module_as_a_program_and_a_closed_pipe(here: Path) -> None:
    code = "import sys; from codeword.cli import main; sys.exit(main())"
    package = str(Path(codeword.__file__).parents[1])
    env = {**os.environ, "COLUMNS": "100", "PYTHONPATH": package}
    done = subprocess.run([sys.executable, "-c", code, "inspect", "base.npy", "--json"], capture_output=True, text=True, env=env,
                          check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["shape"] == [280, 16] and not done.stderr
    done = subprocess.run(f"{sys.executable} -c '{code}' --help | head -1", shell=True, capture_output=True, text=True, env=env,
                          check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_counts_are_exact_and_speeds_are_rounded(cli: Any) -> None:
    from codeword.cli.show import count, rounded
    assert (count(1996), count(1_234_567), count(1, "row"), count(2, "query")) == ("1,996", "1,234,567", "1 row", "2 queries")
    assert (rounded(1_234_567.0), rounded(1996.4), rounded(3.14)) == ("1,230,000", "2,000", "3.1")
    np.save("many.npy", np.tile(X, (7, 1))[:2000])
    cli("index", "build", "many.npy", "--quantizer", "rabitq:code_bits=1", "-o", "many.index")
    assert "4 vectors; 1,996 left" in cli("index", "remove", "many.index", "0-3")[0]
    assert "searched  1 query in" in cli("index", "search", "many.index", "queries.npy", "--rows", "0")[0]
