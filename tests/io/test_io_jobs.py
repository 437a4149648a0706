"""R18 and the job folder: finished units count, strangers are refused by the differing field, signals leave what resumes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from io_damage import Parts

import codeword
from codeword.errors import CodewordError, FormatError
from codeword.io import jobs
from codeword.io.jobs import Job

UNITS = [f"layer.{i}/weight" for i in range(5)]


def work(unit: str):
    seed = jobs.unit_seed(7, unit)
    return {"x": np.random.default_rng(seed).normal(size=20)}, {"unit": unit, "error": 0.5}


def start(home: Path, resume: bool = False, **other) -> Job:
    return Job.start(home, "sample", **{"config": {"bits": 4, "inner": {"size": 8}}, "inputs": {"rows": {"rows": 3}}, "seed": 7, **other},
                     resume=resume)


def contents(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.iterdir() if path.name != jobs.LOG}


def test_a_job_from_beginning_to_end(tmp_path):
    steps = []
    with start(tmp_path / "j") as job:
        done = job.run(UNITS, work, progress=lambda *step: steps.append(step))
        assert done == jobs.Run(0, 5, 5, False)
        content, record = job.result(UNITS[2])
        assert record == {"unit": UNITS[2], "error": 0.5} and np.array_equal(content["x"].numpy(), work(UNITS[2])[0]["x"])
    assert steps == [(i, 5, unit) for i, unit in enumerate(UNITS)] + [(5, 5, "")]
    with start(tmp_path / "j", resume=True) as job:
        assert job.run(UNITS, None) == jobs.Run(5, 0, 5, False)
    log = (tmp_path / "j" / jobs.LOG).read_text().splitlines()
    assert len(log) == 7 and log[0].endswith("began sample") and log[-1].endswith("resumed sample")


def test_only_a_finished_job_makes_room(tmp_path):
    with start(tmp_path) as job:
        job.run(UNITS, work)
    with pytest.raises(CodewordError, match="seed is 7 there and 8 here"):
        start(tmp_path, seed=8, replace_finished=True)
    with start(tmp_path, resume=True) as job:
        job.finish()
    with pytest.raises(CodewordError, match="seed is 7 there and 8 here"):
        start(tmp_path, seed=8)
    with start(tmp_path, seed=8, replace_finished=True) as job:
        assert not any(job.is_done(unit) for unit in UNITS)
        assert sorted(path.name for path in tmp_path.iterdir()) == [jobs.JOB, jobs.LOG]
        job.run(UNITS[:2], work)
        job.finish()
    with start(tmp_path, seed=8, resume=True) as job:  # takes the note back
        assert job.is_done(UNITS[0])
    with pytest.raises(CodewordError, match="already holds this job"):
        start(tmp_path, seed=8, replace_finished=True)


def test_an_error_before_the_first_unit_leaves_no_folder(tmp_path):
    def failing(unit: str):
        raise CodewordError("bad input")

    for error, left in ((CodewordError, False), (KeyboardInterrupt, True)):
        with pytest.raises(error), start(tmp_path / "j") as job:
            if left:
                raise KeyboardInterrupt
            job.run(UNITS, failing)
        assert (tmp_path / "j").exists() == left
    (tmp_path / "j" / "notes").write_text("mine")
    with pytest.raises(CodewordError), start(tmp_path / "j", resume=True) as job:
        job.run(UNITS, failing)
    assert [path.name for path in (tmp_path / "j").iterdir()] == ["notes"]


def test_an_error_in_a_unit_keeps_what_is_done(tmp_path):
    def failing(unit: str):
        if unit == UNITS[3]:
            raise RuntimeError("out of luck")
        return work(unit)

    with start(tmp_path / "a") as job, pytest.raises(RuntimeError, match="out of luck"):
        job.run(UNITS, failing)
    with start(tmp_path / "a", resume=True) as job:
        assert job.run(UNITS, work) == jobs.Run(3, 2, 5, False)
    with start(tmp_path / "b") as job:
        job.run(UNITS, work)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_damaged_units_are_done_again(tmp_path):
    with start(tmp_path / "j") as job:
        job.run(UNITS, work)
        quiet = contents(tmp_path / "j")
        paths = [job._unit_path(unit, "units") for unit in UNITS]
    shutil.copy(paths[0], paths[1])                                      # another unit's result under this name
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    data = bytearray(paths[3].read_bytes())
    data[-1] ^= 1
    paths[3].write_bytes(data)
    parts = Parts(paths[4].read_bytes())
    parts.header["job"] = "0" * 16                                       # whole, but of another job
    paths[4].write_bytes(parts.seal())
    with start(tmp_path / "j", resume=True) as job:
        with pytest.raises(FormatError, match="fingerprint"):
            job.result(UNITS[1])
        assert job.run(UNITS, work) == jobs.Run(1, 4, 5, False)
    assert contents(tmp_path / "j") == quiet
    assert (tmp_path / "j" / jobs.LOG).read_text().count("will repeat") == 4


def test_resume_refuses_strangers_by_the_field_that_differs(tmp_path):
    source = tmp_path / "x.npy"
    source.write_bytes(b"a" * 1000)
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "0").write_bytes(b"0")
    given = {"inputs": {"rows": source, "shards": folder}}
    start(tmp_path / "j", **given).close()
    for other, field in (({"config": {"bits": 5, "inner": {"size": 8}}}, "config.bits is 4 there and 5 here"),
                         ({"config": {"bits": 4.0, "inner": {"size": 8}}}, "config.bits is 4 there and 4.0 here"),
                         ({"config": {"bits": 4, "inner": {"size": 9}}}, "config.inner.size"),
                         ({"config": {"bits": 4, "inner": {"size": 8}, "fast": True}}, "config.fast is new here"),
                         ({"config": {"bits": 4}}, "config.inner is missing here"),
                         ({"seed": 8}, "seed is 7 there and 8 here"), ({"code": "0.0.9"}, "code"),
                         ({"inputs": {"rows": source}}, "inputs.shards is missing here")):
        with pytest.raises(CodewordError, match=field):
            start(tmp_path / "j", resume=True, **{**given, **other})
    with pytest.raises(CodewordError, match="kind is 'sample' there and 'other' here"):
        Job.start(tmp_path / "j", "other", config={}, inputs={}, resume=True)
    source.write_bytes(b"a" * 999 + b"b")
    with pytest.raises(CodewordError, match="the input rows has changed since, or is another file"):
        start(tmp_path / "j", resume=True, **given)
    source.write_bytes(b"a" * 1001)
    with pytest.raises(CodewordError, match="the input rows has changed since"):
        start(tmp_path / "j", resume=True, **given)
    source.write_bytes(b"a" * 1000)
    (folder / "0").write_bytes(b"1")
    with pytest.raises(CodewordError, match="the input shards/0 has changed since"):
        start(tmp_path / "j", resume=True, **given)
    (folder / "0").write_bytes(b"0")
    (folder / "1").write_bytes(b"")
    with pytest.raises(CodewordError, match=r"inputs\.shards\.1 is new here"):
        start(tmp_path / "j", resume=True, **given)
    (folder / "1").unlink()
    start(tmp_path / "j", resume=True, **given).close()


def test_large_inputs_are_identified_by_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "WHOLE_DIGEST_BYTES", 1 << 10)
    source = tmp_path / "x.npy"
    source.write_bytes(bytes(1 << 21))
    start(tmp_path / "j", inputs={"rows": source}).close()
    start(tmp_path / "j", inputs={"rows": source}, resume=True).close()
    time.sleep(0.02)
    source.write_bytes(bytes((1 << 21) - 1) + b"x")
    with pytest.raises(CodewordError, match="the input rows has changed since"):
        start(tmp_path / "j", inputs={"rows": source}, resume=True)


def test_resume_refuses_other_units_or_another_order(tmp_path):
    with start(tmp_path / "j") as job:
        job.run(UNITS, work)
        for units, at in ((UNITS[::-1], 0), (UNITS[:-1], 4), ([*UNITS, "more"], 5), (["x", *UNITS[1:]], 0)):
            with pytest.raises(CodewordError, match=f"differ at position {at}"):
                job.run(units, work)
        with pytest.raises(CodewordError, match="stands twice"):
            job.run(["a", "a"], work, phase="second")
        assert job.run(["a", "b"], work, phase="second").now == 2
        for phase in ("job", "../x", ""):
            with pytest.raises(CodewordError, match="identifier"):
                job.run(["a"], work, phase=phase)


def test_starting_twice_and_strange_folders(tmp_path):
    job = start(tmp_path / "j")
    with pytest.raises(CodewordError, match="being written by another"):
        start(tmp_path / "j", resume=True)
    job.close()
    with pytest.raises(CodewordError, match="--resume"):
        start(tmp_path / "j")
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "thesis.tex").write_text("x")
    with pytest.raises(CodewordError, match=r"thesis\.tex"):
        start(tmp_path / "k")
    with pytest.raises(CodewordError, match="canonical JSON"):
        start(tmp_path / "l", config={"rate": float("nan")})
    with pytest.raises(FormatError, match="cannot be read"):
        start(tmp_path / "m", inputs={"rows": tmp_path / "nothing"})


def test_a_damaged_record_is_refused(tmp_path):
    start(tmp_path / "j").close()
    path = tmp_path / "j" / jobs.JOB
    path.write_bytes(path.read_bytes().replace(b'"seed":7', b'"seed":8'))
    with pytest.raises(FormatError, match="digest"):
        start(tmp_path / "j", resume=True)


def test_unit_seeds_depend_on_seed_and_unit_alone():
    seeds = {jobs.unit_seed(seed, unit) for seed in range(10) for unit in UNITS}
    assert len(seeds) == 50 and all(0 <= seed < 1 << 63 for seed in seeds)
    assert jobs.unit_seed(7, "layer.0/weight") == 3739470410204970721  # for ever: old jobs resume


CHILD = textwrap.dedent("""
    import signal, sys, time, pathlib, numpy as np
    from codeword.io.jobs import Job
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test that runs in the background would hand its own deafness on
    def work(unit):
        print(unit, flush=True)
        time.sleep(float(sys.argv[2]))
        return {"x": np.full(4, int(unit))}, {}
    with Job.start(sys.argv[1], "sample", config={}, inputs={}, resume=True) as job:
        print(job.run([str(i) for i in range(8)], work), flush=True)
""")


def child(home: Path, seconds: float) -> subprocess.Popen:
    source = str(Path(codeword.__file__).parents[1])
    return subprocess.Popen([sys.executable, "-c", CHILD, str(home), str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                            text=True, env={**os.environ, "PYTHONPATH": source})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_finishes_the_unit_and_the_second_stops(number, tmp_path):
    one = child(tmp_path / "j", 0.5)
    assert one.stdout.readline() == "0\n"
    one.send_signal(number)
    assert one.stdout.readline() == "Run(before=0, now=1, total=8, interrupted=True)\n" and one.wait(20) == 0
    two = child(tmp_path / "j", 60)
    assert two.stdout.readline() == "1\n"
    two.send_signal(number)
    time.sleep(0.3)
    two.send_signal(number)
    assert two.wait(20) != 0
    three = child(tmp_path / "j", 0)
    assert three.communicate(timeout=60)[0].splitlines() == [*"1234567", "Run(before=1, now=7, total=8, interrupted=False)"]


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with jobs.graceful() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_killed_and_resumed_it_ends_with_the_same_bytes(tmp_path):
    kills = repeated = 0
    started: list[str] = []
    while True:
        one = child(tmp_path / "killed", 0.02)
        for _ in range(2):
            started.append(one.stdout.readline().strip())
        one.kill()
        one.wait()
        if started[-1].startswith("Run") or not started[-1]:
            break
        kills += 1
    units = [unit for unit in started if unit.isdigit()]
    repeated = len(units) - len(set(units))
    assert kills >= 3 and repeated <= kills
    assert child(tmp_path / "quiet", 0).wait(60) == 0
    assert child(tmp_path / "killed", 0).wait(60) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "quiet")
    assert json.loads((tmp_path / "killed" / jobs.JOB).read_bytes())["code"] == codeword.__version__
